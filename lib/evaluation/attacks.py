"""Attacks behind one interface: batches in, what became of each image out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import nn

from lib.algorithm.batch import DeviceBatch, Outcome
from lib.algorithm.pgd import Logits
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import AttackSpec, AutoAttackSpec, ThreatModel
from lib.evaluation.autoattack import AutoAttack, require_classes, require_package
from utils.errors import UserError


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
    model: nn.Module, spec: AttackSpec, threat: ThreatModel, outputs: Logits | None = None
) -> Attack:
    """The attack that a spec describes.

    Args:
        model: pixels in [0, 1] to logits.
        outputs: the model's raw outputs, compiled; None for its own.
    """
    if isinstance(spec, AutoAttackSpec):
        return AutoAttack(model, spec, threat)
    return PGDAttack(model, spec, threat, outputs)


def require_attackable(specs: Iterable[AttackSpec], classes: int) -> None:
    """To be called before long work.

    Raises:
        UserError: an attack needs a package that is missing, or more classes than there are.
    """
    for spec in specs:
        if isinstance(spec, AutoAttackSpec):
            require_package()
            require_classes(classes)
        elif spec.loss == "dlr" and classes < 3:
            raise UserError("the dlr loss compares three classes; use margin")
