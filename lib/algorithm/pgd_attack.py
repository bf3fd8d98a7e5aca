"""PGD on a network under a protocol: from batches to what became of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from lib.algorithm.batch import DeviceBatch, Outcome, worst_per_image
from lib.algorithm.early_exit import attack_until_misclassified, is_zero
from lib.algorithm.losses import ATTACK_LOSS
from lib.algorithm.metrics import correct_in_top
from lib.algorithm.norms import NORMS
from lib.algorithm.pgd import Logits, Step, ascent_step, pgd
from lib.algorithm.precision import full_precision, is_full_precision, precision_context
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.algorithm.random_starts import RandomStarts

RECHECK_MULTIPLE = 32  # images; kernels are chosen, and memory is kept, for every batch size


class PGDAttack:
    """PGD on a network, under a protocol; to be used within `attacking(model)`.

    Args:
        model: `models.resnet.ResNet`, or any module that maps [0, 1] pixels to logits.
        spec: steps, step size, loss, restarts, scale.
        threat: ball, protocol, seed, precision.
        outputs: the raw outputs of what is attacked compiled, or None.
        source: the network that is attacked, where it is not `model`, which judges.
    """

    chunk: int | None = None

    def __init__(
        self,
        model: nn.Module,
        spec: PGDSpec,
        threat: ThreatModel,
        outputs: Logits | None = None,
        source: nn.Module | None = None,
    ) -> None:
        self.model, self.spec, self.threat = model, spec, threat
        self.warnings: set[str] = set()
        self.loss, self.norm = ATTACK_LOSS[spec.loss], NORMS[threat.norm]
        attacked = model if source is None else source
        own_scale = getattr(attacked, "scale", 1.0)
        scale = threat.protocol.search_scale(spec, own_scale)
        # Calling the module keeps hooks and foreign networks working where s is its own.
        own = scale == own_scale and outputs is None
        raw: Any = attacked if own else outputs or getattr(attacked, "outputs", attacked)
        self.raw: Logits = raw
        self.factor = 1.0 if own else scale
        self.compiled, self.transfers = outputs is not None, source is not None
        self.starts = RandomStarts(threat.eps, threat.seed, self.norm)

    def run(self, batches: Iterable[DeviceBatch]) -> Iterator[Outcome]:
        """Attack images, in any order of completion.

        Args:
            batches: the images; where the protocol judges every iterate, only those that are
                classified right, and the first batch says how many are attacked at once.
        """
        batches = self.starts.drawn_ahead(batches)
        if not self.threat.protocol.every_iterate:
            yield from (self.attack_final_iterate(*batch) for batch in batches)
            return
        yield from attack_until_misclassified(
            batches,
            steps=self.spec.steps,
            restarts=self.spec.restarts,
            begin=self.begin,
            ascend=self.ascend,
            recheck=self.recheck,
        )

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
        with full_precision():
            logits: torch.Tensor = self.model(images)
        return logits

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
        threat, spec = self.threat, self.spec
        iterates = pgd(
            self.search_logits,
            images,
            labels,
            self.starts(images, indices, restart),
            steps=spec.steps,
            step_size=spec.step_size,
            eps=threat.eps,
            loss=self.loss,
            norm=self.norm,
            ball_around_start=threat.protocol.ball_around_start,
        )
        adversarial, gradient, _ = next(iterates)
        for adversarial, _, _ in iterates:
            pass
        logits = self.predict_full_precision(adversarial)
        right, right5 = (correct_in_top(logits, labels, k) for k in (1, 5))
        prediction, no_gradient = logits.argmax(1), is_zero(gradient)
        return Outcome(indices, right, right.long(), right5, prediction, no_gradient, adversarial)

    def begin(
        self, images: torch.Tensor, indices: torch.Tensor, restart: torch.Tensor | int
    ) -> torch.Tensor:
        """Images at a random start of the ball around them."""
        moved = images + self.starts(images, indices, restart)
        return self.norm.project(moved, images, self.threat.eps)

    def ascend(self, adversarial: torch.Tensor, labels: torch.Tensor, centre: torch.Tensor) -> Step:
        """One step of the search."""
        return ascent_step(
            self.search_logits,
            adversarial,
            labels,
            centre,
            step_size=self.spec.step_size,
            eps=self.threat.eps,
            loss=self.loss,
            norm=self.norm,
        )

    def recheck(
        self,
        adversarial: torch.Tensor,
        labels: torch.Tensor,
        logits: torch.Tensor,
        last: torch.Tensor,
    ) -> torch.Tensor:
        """The search's logits, with those that decide something replaced in full precision.

        An iterate that another arithmetic takes for right is believed until the last one, which
        can only weaken the attack; one that seems to be misclassified is looked at again.
        """
        if self.transfers:
            return self.predict_full_precision(adversarial).to(logits.dtype)
        if is_full_precision(logits.device, self.threat.precision) and not self.compiled:
            return logits
        decisive = (last | ~correct_in_top(logits, labels, 1)).nonzero().squeeze(1)
        if not len(decisive):
            return logits
        padding = decisive[:1].expand(-len(decisive) % RECHECK_MULTIPLE)
        full = self.predict_full_precision(adversarial[torch.cat([decisive, padding])])
        return logits.index_copy(0, decisive, full[: len(decisive)].to(logits.dtype))
