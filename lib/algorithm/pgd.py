"""PGD: initialise, step, project; under the three protocols.

Madry et al. 2018, arXiv:1706.06083. All images are pixels in [0, 1], eps and steps in the same
unit, and the ball is that of the l-infinity norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.early_exit import Outcome, Pool, Queue, worst_per_image
from lib.algorithm.losses import ATTACK_LOSS, PerImageLoss
from lib.algorithm.metrics import correct_in_top
from lib.algorithm.precision import precision_context
from lib.algorithm.protocols import AttackSpec
from lib.algorithm.seeds import derived_seed

Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Threat:
    """What an attack may do and how it is judged.

    Attributes:
        eps: radius of the l-infinity ball, in units of [0, 1].
        protocol: standard, freeat or paper.
        seed: of the random starts.
        precision: fp32, bf16 or fp16, of the search; images found are judged in the
            parameters' own precision, so a low one can only weaken the attack.
    """

    eps: float
    protocol: str = "standard"
    seed: int = 0
    precision: str = "fp32"


def project(adversarial: torch.Tensor, centre: torch.Tensor, eps: float) -> torch.Tensor:
    """Nearest images within eps of `centre` and within [0, 1]."""
    inside = torch.minimum(torch.maximum(adversarial, centre - eps), centre + eps)
    return inside.clamp_(0, 1)


def random_start(
    indices: torch.Tensor, like: torch.Tensor, eps: float, seed: int, restart: int
) -> torch.Tensor:
    """Uniform noise in [-eps, eps], (B, 3, H, W), that depends on nothing but each image's index.

    Drawn on the CPU, one generator an image: the same for every batch size, device, process.
    """
    noise = torch.empty(like.shape, dtype=torch.float32)
    for row, index in zip(noise, indices.tolist(), strict=True):
        generator = torch.Generator().manual_seed(derived_seed(seed, restart, index))
        row.uniform_(-eps, eps, generator=generator)
    return noise.to(like, memory_format=torch.preserve_format)


@contextmanager
def attacking(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters without gradients; both as before afterwards."""
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, needs_gradient in required:
            parameter.requires_grad_(needs_gradient)


def loss_gradient(
    logits_of: Logits, images: torch.Tensor, labels: torch.Tensor, loss: PerImageLoss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of each image's loss at its pixels, (B, 3, H, W), and the logits (B, classes).

    The losses are added up, so that an image's gradient does not depend on the batch.
    """
    images = images.detach().requires_grad_()
    logits = logits_of(images)
    (gradient,) = torch.autograd.grad(loss(logits, labels).sum(), images)
    return gradient, logits.detach()


def sign_step(
    adversarial: torch.Tensor, gradient: torch.Tensor, centre: torch.Tensor, step: float, eps: float
) -> torch.Tensor:
    """One step up the loss, brought back into the ball and the pixel range."""
    return project(adversarial.add(gradient.sign(), alpha=step), centre, eps)


def pgd(
    logits_of: Logits,
    images: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    *,
    steps: int,
    step_size: float,
    eps: float,
    loss: PerImageLoss = ATTACK_LOSS["ce"],
    centre_on_start: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Plain PGD, one item a step.

    Args:
        logits_of: images to what the loss takes.
        images: (B, 3, H, W) in [0, 1], the clean ones.
        labels: (B,).
        start: (B, 3, H, W) in [-eps, eps], added before the first step.
        steps: sign steps.
        step_size: in units of [0, 1].
        eps: in units of [0, 1].
        loss: ascended; one value an image.
        centre_on_start: centre the ball on the image after its random start, as the HE paper's
            release does, so that the result is up to 2 eps from the clean image.

    Yields:
        After each step: the new images, and the gradient and the logits that it went by.
    """
    adversarial = (images + start).clamp(0, 1)
    centre = adversarial if centre_on_start else images
    for _ in range(steps):
        gradient, logits = loss_gradient(logits_of, adversarial, labels, loss)
        adversarial = sign_step(adversarial, gradient, centre, step_size, eps)
        yield adversarial, gradient, logits


def search_scale(spec: AttackSpec, protocol: str, own: float) -> float:
    """The factor on the raw outputs under the attack's loss.

    Args:
        own: the network's s; 1 without hypersphere embedding. `paper` ascends the cross-entropy of
            the unscaled outputs.
    """
    if spec.scale is not None:
        return spec.scale
    return 1.0 if protocol == "paper" and spec.loss == "ce" else own


class PGDAttack:
    """PGD on a network, under a protocol.

    Args:
        model: `models.resnet.ResNet`, or any module that maps [0, 1] pixels to logits. To be
            called within `attacking(model)`.
        spec: steps, step size, loss, restarts, scale.
        threat: ball, protocol, seed, precision.
        outputs: `model.outputs` compiled, or None.
    """

    def __init__(
        self, model: nn.Module, spec: AttackSpec, threat: Threat, outputs: Logits | None = None
    ) -> None:
        self.model = model
        self.spec = spec
        self.threat = threat
        self.loss = ATTACK_LOSS[spec.loss]
        own_scale = getattr(model, "scale", 1.0)
        scale = search_scale(spec, threat.protocol, own_scale)
        # Calling the module keeps hooks and foreign networks working where s is its own.
        own = scale == own_scale and outputs is None
        self.raw = model if own else outputs or model.outputs
        self.factor = 1.0 if own else scale

    def search_logits(self, images: torch.Tensor) -> torch.Tensor:
        """What the search ascends a loss of: logits at the attack's scale and precision."""
        with precision_context(images.device, self.threat.precision):
            logits = self.raw(images)
        if self.threat.precision != "fp32":
            logits = logits.float()
        return logits * self.factor if self.factor != 1.0 else logits

    @torch.no_grad()
    def predict_full_precision(self, images: torch.Tensor) -> torch.Tensor:
        """The network's logits in its own precision."""
        return self.model(images)

    def run(self, batches: Iterable[DeviceBatch], batch_size: int) -> Iterator[Outcome]:
        """Attack images, in any order of completion.

        Args:
            batches: the images; under `standard` only those that are classified right.
            batch_size: the most that are attacked at once.
        """
        if self.threat.protocol == "standard":
            yield from self.attack_until_misclassified(batches, batch_size)
        else:
            yield from (self.attack_final_iterate(*batch) for batch in batches)

    def attack_final_iterate(
        self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor
    ) -> Outcome:
        """Attack a batch and judge the last iterate of every restart."""
        result: Outcome | None = None
        for restart in range(self.spec.restarts):
            outcome = self.one_restart(images, labels, indices, restart)
            result = outcome if result is None else worst_per_image(result, outcome)
        assert result is not None
        return result

    def one_restart(
        self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, restart: int
    ) -> Outcome:
        """One random start of `attack_final_iterate`."""
        iterates = pgd(
            self.search_logits,
            images,
            labels,
            random_start(indices, images, self.threat.eps, self.threat.seed, restart),
            steps=self.spec.steps,
            step_size=self.spec.step_size,
            eps=self.threat.eps,
            loss=self.loss,
            centre_on_start=self.threat.protocol == "paper",
        )
        no_gradient = None
        for adversarial, gradient, _ in iterates:
            if no_gradient is None:
                no_gradient = is_zero(gradient)
        logits = self.predict_full_precision(adversarial)
        right, right5 = (correct_in_top(logits, labels, k) for k in (1, 5))
        return Outcome(indices, right, right5, logits.argmax(1), no_gradient, adversarial)

    def attack_until_misclassified(
        self, batches: Iterable[DeviceBatch], batch_size: int
    ) -> Iterator[Outcome]:
        """Attack images that stay in a pool until they fall or survive all restarts.

        An image that falls makes room for the next at once, so the batch stays full and the cost
        follows the robust accuracy.
        """
        queue = Queue(batches)
        pool = self.enter(queue.take(batch_size))
        while len(pool.labels):
            gradient, logits = loss_gradient(
                self.search_logits, pool.adversarial, pool.labels, self.loss
            )
            last = pool.step == self.spec.steps
            logits = self.recheck(pool, logits, last)
            right = correct_in_top(logits, pool.labels, 1)
            pool = replace(
                pool,
                right5=pool.right5 & correct_in_top(logits, pool.labels, 5),
                no_gradient=torch.where(
                    (pool.step == 0) & (pool.restart == 0), is_zero(gradient), pool.no_gradient
                ),
            )
            ended = ~right | (last & (pool.restart == self.spec.restarts - 1))
            moved = sign_step(
                pool.adversarial, gradient, pool.images, self.spec.step_size, self.threat.eps
            )
            if ended.any():
                yield pool.outcome(ended, right, logits.argmax(1))
            pool = self.advance(pool, moved, last)
            if ended.any():
                pool = pool.select(~ended)
                pool = pool.join(self.enter(queue.take(batch_size - len(pool.labels))))

    def recheck(self, pool: Pool, logits: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The search's logits, with those that decide something replaced by the judge's."""
        if self.threat.precision == "fp32":
            return logits
        # An iterate that a low precision takes for right is believed until the last one, which
        # can only weaken the attack; one that seems to have fallen is looked at again.
        decisive = last | ~correct_in_top(logits, pool.labels, 1)
        if decisive.any():
            logits = logits.clone()
            logits[decisive] = self.predict_full_precision(pool.adversarial[decisive]).to(
                logits.dtype
            )
        return logits

    def enter(self, batch: DeviceBatch | None) -> Pool:
        """New images at their first random start."""
        if batch is None:
            return Pool.empty()
        images, labels, indices = batch
        start = random_start(indices, images, self.threat.eps, self.threat.seed, 0)
        adversarial = project(images + start, images, self.threat.eps)
        zeros = torch.zeros_like(labels)
        seen5 = torch.ones_like(labels, dtype=torch.bool)
        return Pool(images, adversarial, labels, indices, zeros, zeros, seen5, ~seen5)

    def advance(self, pool: Pool, moved: torch.Tensor, last: torch.Tensor) -> Pool:
        """Everybody's next iterate; after the last one, the next restart's first."""
        step = torch.where(last, 0, pool.step + 1)
        restart = pool.restart + last.long()
        if self.spec.restarts > 1:
            for number in range(1, self.spec.restarts):
                again = last & (restart == number)
                if again.any():
                    images = pool.images[again]
                    start = random_start(
                        pool.indices[again], images, self.threat.eps, self.threat.seed, number
                    )
                    moved[again] = project(images + start, images, self.threat.eps)
        return replace(pool, adversarial=moved, step=step, restart=restart)


def is_zero(gradient: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) to (B,): the gradient vanishes in every pixel."""
    return gradient.flatten(1).abs().amax(dim=1) == 0
