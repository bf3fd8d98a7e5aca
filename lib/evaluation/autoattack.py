"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690) by its authors' package, one chunk at a time.

The standard version: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square, each on
what the ones before have left robust; or some of its attacks. The package takes all images in one
tensor and keeps a state file that does not resume; here the caller cuts the images into chunks and
keeps each one's outcome.
"""

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lib.algorithm.metrics import correct_in_top, derived_seed, full_precision, precision_context
from lib.algorithm.norms import NORMS
from lib.algorithm.pgd import Logits
from lib.algorithm.pgd_attack import DeviceBatch, Outcome
from lib.algorithm.protocols import AutoAttackSpec, ThreatModel
from utils.errors import UserError

CHUNK = 256  # images, whatever EVAL.batch_size
ROUNDING = 1e-6  # of a float32 pixel in [0, 1]; and of a radius, relatively


class AutoAttack:
    """AutoAttack on a network; to be used within `frozen_eval(model)`.

    Starting points are drawn for a whole batch, so an outcome depends on the images that share it:
    chunks must be cut in the same way by any number of processes and after any interruption.

    Args:
        model: (B, 3, H, W) in [0, 1] to logits.
        spec: which of its attacks.
        threat: ball, seed, precision of the search. The protocol does not matter: an image is
            robust when no attack has found another one that is misclassified.
        surrogate: the network that is attacked, where it is not `model`.
        network: what the search calls in place of it: the same, compiled.
    """

    chunk: int | None = CHUNK

    def __init__(
        self,
        model: nn.Module,
        spec: AutoAttackSpec,
        threat: ThreatModel,
        surrogate: nn.Module | None = None,
        network: Logits | None = None,
    ) -> None:
        self.model, self.spec, self.threat, self.surrogate = model, spec, threat, surrogate
        self.searched: Logits = network or surrogate or model
        self.warnings: set[str] = set()
        self.passes: Counter[str] = Counter()  # images, `forward` and `backward`
        self.dtype = next(model.parameters()).dtype

    def run(self, batches: Iterable[DeviceBatch]) -> Iterator[Outcome]:
        """Attack chunks. The random state of the process is left as it was."""
        for batch in batches:
            with isolated(batch.images.device, self.warnings):
                outcome = self.attack(batch)
            yield outcome

    def attack(self, batch: DeviceBatch) -> Outcome:
        """Attack one chunk by every stage in turn.

        What a search in low precision takes for misclassified and the network does not is attacked
        again in full precision.
        """
        # The package draws, clamps and reshapes float32 images that are contiguous.
        x = batch.images.to(torch.float32, memory_format=torch.contiguous_format)
        y = batch.labels
        logits = self.predict_full_precision(x)
        predictions, robust = logits.argmax(dim=1), correct_in_top(logits, y, 1)
        adversarial, survived = x.clone(), torch.zeros_like(y)
        non_finite = NonFinite(x, self.threat)
        seed = derived_seed(self.threat.seed, int(batch.indices[0]))
        adversaries = [
            package_attack(self.threat, logits.shape[1], seed, x.device, network)
            for network in self.networks(non_finite)
        ]
        for stage in self.spec.stages:
            rows = robust.nonzero().squeeze(1)
            for adversary in adversaries if self.threat.eps else ():  # which the package divides by
                if not len(rows):
                    break
                adversary.attacks_to_run = [stage]
                images, answers = adversary.run_standard_evaluation(
                    x[rows], y[rows], batch_size=len(rows)
                )
                claimed = answers != y[rows]
                claimed |= non_finite.replace(rows, images, ~claimed)
                logits = self.predict_full_precision(images)
                right = correct_in_top(logits, y[rows], 1)
                fooled = rows[~right]
                adversarial[fooled] = images[~right]
                predictions[fooled] = logits[~right].argmax(dim=1)
                robust[fooled] = False
                rows = rows[right & claimed]
            survived += robust
        assert in_ball(adversarial - x, self.threat).all(), "left the eps-ball"
        assert torch.equal(adversarial, adversarial.clamp(0, 1)), "left the pixel range"
        never = torch.zeros_like(robust)
        return Outcome(batch.indices, robust, survived, robust, predictions, never, adversarial)

    @torch.no_grad()
    def predict_full_precision(self, images: torch.Tensor) -> torch.Tensor:
        """The network's logits in its own precision, (B, classes)."""
        self.passes["forward"] += len(images)
        with full_precision():
            logits: torch.Tensor = self.model(images.to(self.dtype))
        return logits

    def networks(self, non_finite: "NonFinite") -> list[Logits]:
        """What the package attacks: the network in the search's precision, then in full.

        Of another network than the evaluated one, nothing is repeated in full precision.
        """
        attacked = self.surrogate or self.model

        def logits_of(network: Logits, images: torch.Tensor) -> torch.Tensor:
            # The package takes views of its gradients, which a network in channels_last would
            # hand back in channels_last: behind a flat image they are contiguous.
            images = images.flatten(1).unflatten(1, images.shape[1:])
            self.passes.update(forward=len(images), backward=images.requires_grad * len(images))
            logits = network(images.to(self.dtype)).float()
            non_finite.watch(images, logits)
            return logits

        def search_logits(images: torch.Tensor) -> torch.Tensor:
            with precision_context(images.device, self.threat.precision):
                return logits_of(self.searched, images)

        def full_logits(images: torch.Tensor) -> torch.Tensor:
            with full_precision():
                return logits_of(attacked, images)

        return [search_logits, full_logits] if attacked is self.model else [search_logits]


class NonFinite:
    """Watches the attacked network's outputs for NaN, which the package does not notice.

    It compares the largest output with the label, and a NaN counts as the largest: an image of
    class 0 whose outputs are NaN would be robust. `correct_in_top` does not count it right.

    Args:
        x: (B, 3, H, W) float32, the images attacked.
    """

    def __init__(self, x: torch.Tensor, threat: ThreatModel) -> None:
        self.x, self.threat = x, threat
        self.images = x.clone()
        self.seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def watch(self, images: torch.Tensor, logits: torch.Tensor) -> None:
        """Keep each image with a NaN for every `x` in whose ball it lies."""
        for image in images.detach()[logits.detach().isnan().any(dim=1)]:
            inside = in_ball(image - self.x, self.threat)
            self.images[inside] = image
            self.seen |= inside

    def replace(
        self, rows: torch.Tensor, images: torch.Tensor, robust: torch.Tensor
    ) -> torch.Tensor:
        """Put the images kept into `images` where the package takes `rows` for robust.

        Where a NaN in the gradient has made the image itself NaN, too: the one kept, or the clean.

        Returns:
            (rows,) bool, where an image kept was put.
        """
        replaced = robust | images.isnan().flatten(1).any(dim=1)
        images[replaced] = self.images[rows[replaced]]
        return self.seen[rows] & replaced


def in_ball(change: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """Whether changes (B, 3, H, W) are no longer than the radius, (B,)."""
    distance, eps = NORMS[threat.norm].length(change).flatten(), threat.eps
    return distance <= eps + ROUNDING * max(1, eps)


def package_attack(
    threat: ThreatModel,
    classes: int,
    seed: int,
    device: torch.device,
    logits_of: Logits,
) -> Any:
    """The package's attack object for float32 images."""
    adversary = require_package()(
        logits_of, eps=threat.eps, norm=threat.norm, seed=seed, device=device
    )
    # As published for 10 classes or more; with fewer the package would count past the last one.
    for attack in (adversary.apgd_targeted, adversary.fab):
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
    return adversary


def require_package() -> Any:
    """The package's `AutoAttack`; to be called before long work too."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "--attack autoattack needs the package pyautoattack;"
            " pip install -r requirements-extra.txt"
        ) from error
    return AutoAttack


@contextmanager
def isolated(device: torch.device, warnings: set[str]) -> Iterator[None]:
    """Random state and trace function (a debugger's, say) as before; the package sets both.

    Its warnings go into a set, instead of on the terminal.
    """

    def collect(record: logging.LogRecord) -> bool:
        text = record.getMessage().replace(" See flags_doc.md for details.", "")
        text = re.sub(r"there are \d+ points", "there are points", text)  # once, not per step
        warnings.update({f"AutoAttack: {text}"} if record.levelno >= logging.WARNING else ())
        return False

    trace, logger = sys.gettrace(), logging.getLogger("auto-attack")
    logger.addFilter(collect)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        logger.removeFilter(collect)
        sys.settrace(trace)
