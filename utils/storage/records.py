"""What an evaluation found, as typed records; `utils.storage.results` writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.storage.intervals import Accuracy
from utils.storage.measurement import Measurement


@dataclass(frozen=True)
class TopAccuracies:
    """Top-1, and top-5 where it was looked at."""

    top1: Accuracy
    top5: Accuracy | None = None


@dataclass(frozen=True)
class CleanAccuracies(TopAccuracies):
    """On clean images, with the mean cross-entropy in nats."""

    loss: float = field(kw_only=True)


@dataclass(frozen=True)
class AttackAccuracies(TopAccuracies):
    """Under one attack.

    Attributes:
        name: as `--attack` takes it; `autoattack-apgd-ce` for what a part of AutoAttack left.
        label: the name in tables.
        step_size: in [0, 1] under Linf; 0 where the attack sets its own.
        loss: what it ascends; None where the attack has its own.
        scale: factor on the network's raw outputs under the loss.
    """

    name: str = field(kw_only=True)
    label: str = field(kw_only=True)
    steps: int = field(kw_only=True)
    step_size: float = field(kw_only=True)
    loss: str | None = field(kw_only=True)
    restarts: int = field(kw_only=True)
    scale: float | None = field(kw_only=True)

    @property
    def is_part(self) -> bool:
        """Whether this is what the first of an attack's several attacks have left."""
        return ", after " in self.label


@dataclass(frozen=True)
class Result:
    """What every result file holds.

    Attributes:
        measurement: everything that can change the numbers.
        provenance: command, settings, checkpoint, subset, versions, device, date.
        warnings: what casts doubt on the numbers.
    """

    measurement: Measurement
    provenance: Mapping[str, Any]
    warnings: tuple[str, ...] = field(kw_only=True)


@dataclass(frozen=True)
class AttackResult(Result):
    """Clean accuracy and robustness.

    Attributes:
        attacks: every attack; empty after a cascade, whose attacks saw a part of the images each.
        worst_case: images that are robust against all of them.
        cascade: names of the attacks of a cascade; None where each saw all images.
    """

    clean: CleanAccuracies
    attacks: tuple[AttackAccuracies, ...]
    worst_case: TopAccuracies
    cascade: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CorruptionAccuracies:
    """One corruption's group, and its accuracies by severity, 1 to 5."""

    group: str
    top1: tuple[Accuracy, ...]
    top5: tuple[Accuracy, ...]


@dataclass(frozen=True)
class CleanReference:
    """The clean accuracy in [0, 1] behind relative mCE, and where it was found; None: nowhere."""

    accuracy: float | None
    source: str | None


@dataclass(frozen=True)
class Summary:
    """Means over ImageNet-C's 15 corruptions; None where they are undefined.

    Attributes:
        mean_accuracy: in [0, 1], the figure of arXiv:2002.08619.
        mean_error: the same of errors, unnormalised.
        mCE, relative_mCE: in percent, as they are published.
        groups: mean accuracy in [0, 1] by group.
        CE: corruption errors in percent.
        left_out: {what is None: why}.
    """

    mean_accuracy: float | None
    mean_error: float | None
    mCE: float | None
    relative_mCE: float | None
    groups: Mapping[str, float | None]
    CE: Mapping[str, float]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class ImageNetCResult(Result):
    """Accuracy per corruption and severity."""

    corruptions: Mapping[str, CorruptionAccuracies]
    clean: CleanReference
    summary: Summary


@dataclass(frozen=True)
class ShiftAccuracies:
    """On one shifted test set.

    Attributes:
        classes: how many classes it has.
        images: SHA-256 of the list of its images.
        top1, top5: over all outputs of the network.
        present_top1, present_top5: over the outputs of its classes alone.
    """

    classes: int
    images: str
    top1: Accuracy
    top5: Accuracy
    present_top1: Accuracy
    present_top5: Accuracy


@dataclass(frozen=True)
class ShiftResult(Result):
    """Accuracy on each shifted test set."""

    sets: Mapping[str, ShiftAccuracies]
