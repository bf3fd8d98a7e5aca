"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690) by its authors' package, one chunk at a time.

The standard version: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square, each on
what the ones before have left robust; or other lists of its attacks. The package takes all images
in one tensor and keeps a state file that does not resume; here the caller cuts the images into
chunks and keeps each one's outcome.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from lib.algorithm.batch import DeviceBatch, Outcome
from lib.algorithm.metrics import correct_in_top
from lib.algorithm.precision import full_precision, precision_context
from lib.algorithm.protocols import AutoAttackSpec, ThreatModel
from lib.algorithm.seeds import derived_seed
from lib.evaluation.breakdowns import Breakdowns, in_ball
from utils.distributed.processes import out_of_memory
from utils.errors import UserError

CHUNK = 256  # images

Network = Callable[[torch.Tensor], torch.Tensor]


class AutoAttack:
    """AutoAttack on a network; to be used within `attacking(model)`.

    Starting points are drawn for a whole batch, so an outcome depends on the images that share it:
    chunks must be cut in the same way by any number of processes and after any interruption.

    Args:
        model: (B, 3, H, W) in [0, 1] to logits.
        spec: which of its attacks.
        threat: ball, seed, precision of the search. The protocol does not matter: an image is
            robust when no attack has found another one that is misclassified.
        source: the network that is attacked, where it is not `model`, which judges.
    """

    chunk: int | None = CHUNK

    def __init__(
        self,
        model: nn.Module,
        spec: AutoAttackSpec,
        threat: ThreatModel,
        source: nn.Module | None = None,
    ) -> None:
        self.model, self.spec, self.threat = model, spec, threat
        self.source = model if source is None else source
        self.warnings: set[str] = set()
        parameter = next(model.parameters(), None)
        self.dtype = torch.float32 if parameter is None else parameter.dtype

    def run(self, batches: Iterable[DeviceBatch]) -> Iterator[Outcome]:
        """Attack chunks. The random state of the process is left as it was.

        Raises:
            UserError: the device's memory is too small for a chunk.
        """
        for batch in batches:
            try:
                with preserved_state(batch.images.device), collected_warnings(self.warnings):
                    outcome = self.attack(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise UserError(
                    f"out of memory on {batch.images.device}: {self.spec.label} attacks up to"
                    f" {CHUNK} images at a time, whatever EVAL.batch_size; take a smaller"
                    " DATA.crop_size, EVAL.precision bf16, or pgd"
                ) from error
            yield outcome

    def attack(self, batch: DeviceBatch) -> Outcome:
        """Attack one chunk by every stage in turn."""
        # The package draws, clamps and reshapes float32 images that are contiguous.
        x = batch.images.to(torch.float32, memory_format=torch.contiguous_format)
        y = batch.labels
        logits = self.predict_full_precision(x)
        predictions, robust = logits.argmax(dim=1), correct_in_top(logits, y, 1)
        adversarial, survived = x.clone(), torch.zeros_like(y)
        broken = Breakdowns(x, self.threat)
        adversaries = self.adversaries(logits.shape[1], int(batch.indices[0]), broken)
        for stage in self.spec.stages:
            if not self.threat.eps:  # there is one image in the ball, and the package divides by it
                survived += robust
                continue
            for rows, found, logits in self.search(adversaries, stage, y, robust, broken):
                fooled = ~correct_in_top(logits, y[rows], 1)
                adversarial[rows[fooled]] = found[fooled]
                predictions[rows[fooled]] = logits[fooled].argmax(dim=1)
                robust[rows[fooled]] = False
            survived += robust
        assert in_ball(adversarial - x, self.threat).all(), "left the eps-ball"
        assert torch.equal(adversarial, adversarial.clamp(0, 1)), "left the pixel range"
        never = torch.zeros_like(robust)
        return Outcome(batch.indices, robust, survived, robust, predictions, never, adversarial)

    def search(
        self,
        adversaries: list[Any],
        stage: str,
        y: torch.Tensor,
        robust: torch.Tensor,
        broken: Breakdowns,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Attack what is robust: rows of the chunk, images found, the network's logits.

        What a search in low precision takes for misclassified and the network does not is attacked
        again in full precision.
        """
        rows = robust.nonzero().squeeze(1)
        for adversary in adversaries:
            if not len(rows):
                return
            adversary.attacks_to_run = [stage]
            found, claimed = adversary.run_standard_evaluation(
                broken.x[rows], y[rows], batch_size=len(rows)
            )
            fooled = claimed != y[rows]
            fooled |= broken.replace(rows, found, ~fooled)
            logits = self.predict_full_precision(found)
            yield rows, found, logits
            rows = rows[correct_in_top(logits, y[rows], 1) & fooled]

    @torch.no_grad()
    def predict_full_precision(self, images: torch.Tensor) -> torch.Tensor:
        """The network's logits in its own precision, (B, classes)."""
        with full_precision():
            logits: torch.Tensor = self.model(images.to(self.dtype))
        return logits

    def adversaries(self, classes: int, first_index: int, broken: Breakdowns) -> list[Any]:
        """The package's attack objects: one that searches as configured, one in full precision.

        Where another network is attacked there is nothing to repeat in full precision.

        Raises:
            UserError: the package is not installed.
        """
        seed = derived_seed(self.threat.seed, first_index)

        def logits_of(images: torch.Tensor) -> torch.Tensor:
            # The package takes views of its gradients, which a network in channels_last would
            # hand back in channels_last: behind a flat image they are contiguous.
            images = images.flatten(1).unflatten(1, images.shape[1:])
            logits = self.source(images.to(self.dtype)).float()
            broken.watch(images, logits)
            return logits

        def search_logits(images: torch.Tensor) -> torch.Tensor:
            with precision_context(images.device, self.threat.precision):
                return logits_of(images)

        def full_logits(images: torch.Tensor) -> torch.Tensor:
            with full_precision():
                return logits_of(images)

        searches = (search_logits, full_logits) if self.source is self.model else (search_logits,)
        make = partial(package_attack, self.spec, self.threat, classes, seed, broken.x.device)
        return [make(network) for network in searches]


def package_attack(
    spec: AutoAttackSpec,
    threat: ThreatModel,
    classes: int,
    seed: int,
    device: torch.device,
    logits_of: Network,
) -> Any:
    """The package's attack object for float32 images."""
    version = "plus" if spec.name == "autoattack-plus" else "standard"
    adversary = require_package()(
        logits_of, eps=threat.eps, norm=threat.norm, seed=seed, device=device, version=version
    )
    # As published for 10 classes or more; with fewer the package would count past the last one.
    for attack in (adversary.apgd_targeted, adversary.fab):
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
    return adversary


def require_package() -> Any:
    """The package's `AutoAttack`; to be called before long work too.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise UserError(
            "--attack autoattack needs the package pyautoattack;"
            " pip install -r requirements-extra.txt"
        ) from error
    return AutoAttack


@contextmanager
def preserved_state(device: torch.device) -> Iterator[None]:
    """Random state and trace function (a debugger's, say) as before; the package sets both."""
    trace = sys.gettrace()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            sys.settrace(trace)


@contextmanager
def collected_warnings(found: set[str]) -> Iterator[None]:
    """The package's warnings into a set, instead of on the terminal."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().replace(" See flags_doc.md for details.", "")
            text = re.sub(r"there are \d+ points", "there are points", text)  # once, not per step
            found.add(f"AutoAttack: {text}")

    logger, handler = logging.getLogger("auto-attack"), Collector(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
