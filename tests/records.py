"""Result records for the tests of what reads them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.imagenet_c.corruptions import STANDARD, group_of, summarise
from utils.storage.conditions import Conditions, attack_text
from utils.storage.results import (
    Accuracy,
    AttackAccuracies,
    AttackResult,
    CleanAccuracies,
    CleanReference,
    CorruptionAccuracies,
    ImageNetCResult,
    Result,
    TopAccuracies,
    write_result,
)


def provenance(checkpoint: str, images: str, n: int) -> dict[str, Any]:
    """As far as anything reads it."""
    subset = {"description": images, "n": n, "sha256": "0" * 64}
    return {"checkpoint": {"path": f"trained_models/x/{checkpoint}"}, "subset": subset}


def attack(
    name: str, label: str, correct: int, n: int = 100, step: float = 1 / 255
) -> AttackAccuracies:
    """One attack's record; AutoAttack's where `step` is 0."""
    steps = int("".join(c for c in name.partition("-")[0] if c.isdigit()) or 0)
    return AttackAccuracies(
        Accuracy(correct, n), name=name, label=label, steps=steps, step_size=step, loss="ce",
        restarts=1, scale=1.0,
    )  # fmt: skip


PGD10 = attack("pgd10", "PGD-10 (ce)", 50)


def attack_result(
    sha256: str = "a",
    clean: int = 90,
    attacks: Sequence[AttackAccuracies] = (PGD10,),
    worst: int = 40,
    n: int = 100,
    images: str = "",
    checkpoint: str = "model_best.pth.tar",
    warnings: Iterable[str] = (),
    cascade: Sequence[str] | None = None,
    **measured: Any,
) -> AttackResult:
    """An evaluation; `measured` are fields of Conditions."""
    description = images or f"all {n} images"
    norm = measured.get("norm", "Linf")
    whole = (a for a in attacks if "autoattack-" not in a.name)
    texts = [attack_text(a.name, a.step_size, norm) for a in whole]
    conditions = Conditions(
        kind="attack", protocol="standard", checkpoint=sha256 * 64, images=f"{description:*<64}",
        resize=256, crop=224, attacks=tuple(texts), eps=4 / 255,
    )  # fmt: skip
    return AttackResult(
        replace(conditions, **measured),
        provenance(checkpoint, description, n),
        tuple(warnings),
        CleanAccuracies(Accuracy(clean, n), Accuracy(clean, n), loss=0.5),
        () if cascade else tuple(attacks),
        TopAccuracies(Accuracy(worst, n)),
        None if cascade is None else tuple(cascade),
    )


def imagenet_c_result(
    level: float = 0.4,
    names: Iterable[str] = STANDARD,
    classes: Sequence[str] = (),
    sha256: str = "a",
    n: int = 1000,
    images: str = "",
    **measured: Any,
) -> ImageNetCResult:
    """Accuracies that fall with severity from `level`."""
    description = images or f"all {n} images"
    fractions = {name: [level * (6 - s) / 5 for s in range(1, 6)] for name in names}
    corruptions = {}
    for name, values in fractions.items():
        top1 = tuple(Accuracy(round(n * value), n) for value in values)
        corruptions[name] = CorruptionAccuracies(group_of(name), top1, top1)
    conditions = Conditions(
        kind="imagenet_c", protocol="standard", checkpoint=sha256 * 64,
        images=f"{description:*<64}", resize=None, crop=224,
    )  # fmt: skip
    return ImageNetCResult(
        replace(conditions, **measured),
        provenance("model_best.pth.tar", description, n),
        (),
        corruptions,
        CleanReference(None, None),
        summarise(fractions, classes),
    )


def write(path: Path, result: Result) -> Path:
    """A result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result(path, result)
    return path
