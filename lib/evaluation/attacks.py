"""Attacks behind one interface: batches in, what became of each image out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import nn

from lib.algorithm.batch import DeviceBatch, Outcome
from lib.algorithm.pgd import Logits
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import AttackSpec, AutoAttackSpec, ThreatModel
from lib.evaluation.autoattack import AutoAttack


class Attack(Protocol):
    """What an evaluation runs, within `attacking(model)`.

    Attributes:
        chunk: how many images must be attacked together, since their outcomes depend on the
            company; None where they do not.
        warnings: what the attack found to doubt about the network.
    """

    chunk: int | None
    warnings: set[str]

    def run(self, batches: Iterable[DeviceBatch]) -> Iterator[Outcome]:
        """Attack images, which may come out in another order."""
        ...


def make_attack(
    model: nn.Module,
    spec: AttackSpec,
    threat: ThreatModel,
    outputs: Logits | None = None,
    source: nn.Module | None = None,
) -> Attack:
    """The attack that a spec describes.

    Args:
        model: pixels in [0, 1] to logits.
        outputs: the raw outputs of what is attacked, compiled; None for its own.
        source: the network that is attacked, where it is not `model`, which judges.
    """
    if isinstance(spec, AutoAttackSpec):
        return AutoAttack(model, spec, threat, source)
    return PGDAttack(model, spec, threat, outputs, source)
