"""Names of attacks: `pgd10`, `pgd50-dlr-r5`, `pgd100@1/255`, `autoattack`, `apgd`, `square`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from lib.algorithm.protocols import LOSS_NAMES, AttackSpec, AutoAttackSpec, PGDSpec, Protocol
from utils.config.validators import PgdRow, number, whole
from utils.errors import UserError

REACH = 2.5  # radii that the steps of PGD add up to outside Linf, as in MadryLab's robustness
STEP, LOSS = r"(@[^-@]+)?", "|".join(LOSS_NAMES)
NAME = re.compile(rf"pgd([1-9]\d*){STEP}(?:-({LOSS}))?(?:-r([1-9]\d*))?{STEP}")
AUTOATTACK = (
    AutoAttackSpec(),
    AutoAttackSpec(
        "autoattack-plus",
        "AutoAttack plus",
        ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    ),
    # The cheap stand-in of papers on robust ImageNet networks.
    AutoAttackSpec("apgd", "APGD (ce, targeted)", ("apgd-ce", "apgd-t")),
    AutoAttackSpec("apgd-ce", "APGD (ce)", ("apgd-ce",)),
    AutoAttackSpec("apgd-t", "APGD (targeted)", ("apgd-t",)),
    AutoAttackSpec("fab-t", "FAB (targeted)", ("fab-t",)),
    AutoAttackSpec("square", "Square", ("square",)),
)


def parse_attack(name: str, row_step: float, norm: str = "Linf", eps: float = 0.0) -> AttackSpec:
    """One name to its meaning.

    Args:
        row_step: of PGD in Linf, where the name has none.
        norm, eps: of the ball; outside Linf they decide the step where the name has none.

    Raises:
        UserError: the name follows no known form.
    """
    for spec in AUTOATTACK:
        if spec.name == name:
            return spec
    match = NAME.fullmatch(name)
    if match is None or (match[2] and match[5]):
        raise UserError(
            f"--attack: unknown attack {name!r}; use pgdSTEPS[-LOSS][-rRESTARTS][@STEP], LOSS one"
            f" of {', '.join(LOSS_NAMES)}, such as pgd50-margin, pgd50-dlr-r5, pgd100@1/255; or"
            f" one of {', '.join(spec.name for spec in AUTOATTACK)}"
        )
    given = (match[2] or match[5] or "@")[1:]
    try:
        steps, restarts = (whole(1)(text) for text in (match[1], match[4] or "1"))
    except ValueError as error:
        raise UserError(f"--attack {name}: {error}") from None
    size = read_step(name, given, norm) if given else default_step(steps, row_step, norm, eps)
    return PGDSpec(steps, size, match[3] or "ce", restarts, step_text=given)


def step_outside_linf(steps: int, eps: float) -> float:
    """The usual step of PGD in L2 and L1: so many of them reach any point of the ball."""
    return REACH * eps / steps


def read_step(name: str, given: str, norm: str) -> float:
    """The step size after `@`.

    Raises:
        UserError: it is no length of a step.
    """
    try:
        size = number(given)
    except ValueError:
        size = 0.0
    if size <= 0 or (norm == "Linf" and size >= 0.5):
        raise UserError(
            f"--attack {name}: {given} is no step size; in Linf it is in units of the range [0, 1],"
            " such as 1/255"
        )
    return size


def default_step(steps: int, row_step: float, norm: str, eps: float) -> float:
    """A step of the configuration's in Linf, elsewhere what reaches any point of the ball."""
    return row_step if norm == "Linf" else step_outside_linf(steps, eps)


def attack_list(
    names: Sequence[str],
    rows: Sequence[PgdRow],
    protocol: Protocol,
    scales: Iterable[float] = (),
    norm: str = "Linf",
    eps: float = 0.0,
) -> list[AttackSpec]:
    """The attacks of one evaluation, in order.

    Args:
        names: from `--attack`; where empty, `rows` are used.
        rows: `ADV.pgd_attack`. The first row's step size is also that of `pgd...` in `names`.
        protocol: may repeat one of `rows` on another loss.
        scales: further scales at which every cross-entropy attack is repeated.
        norm, eps: of the ball, which decide the steps outside Linf.

    Raises:
        UserError: an unknown name, or two attacks of one name.
    """
    specs = [parse_attack(name, rows[0].step_size, norm, eps) for name in names]
    if not names:
        sizes = [default_step(row.steps, row.step_size, norm, eps) for row in rows]
        pairs = zip(rows, sizes, strict=True)
        configured = [PGDSpec(*row._replace(step_size=size)) for row, size in pairs]
        specs = [*protocol.default_attacks(configured)]
    at_scales = [
        replace(spec, scale=scale)
        for spec in specs
        for scale in scales
        if isinstance(spec, PGDSpec) and spec.loss == "ce"
    ]
    chosen = list(dict.fromkeys([*specs, *at_scales]))
    for one, other in combinations(chosen, 2):
        if isinstance(one, PGDSpec) and isinstance(other, PGDSpec) and one.name == other.name:
            raise UserError(  # outcomes and results are kept by name
                f"ADV.pgd_attack has {one.name} with two step sizes, {one.step_size:g} and"
                f" {other.step_size:g}; give each an evaluation of its own"
            )
    return chosen


def for_classes(specs: Iterable[AttackSpec], classes: int) -> list[AttackSpec]:
    """The attacks for a network of this many outputs.

    The targeted attacks take the fourth largest logit, and DLR the third; with fewer classes their
    untargeted forms stand in, and cross-entropy for DLR.

    Raises:
        UserError: with one class there is nothing to attack, and no DLR with two.
    """
    if classes < 2:
        raise UserError(
            "the network has one output, so every image is classified right and there is nothing"
            " to attack"
        )
    stand_ins = {}
    if classes < 4:
        dlr = "apgd-dlr" if classes == 3 else "apgd-ce"
        stand_ins = {"apgd-t": dlr, "apgd-dlr": dlr, "fab-t": "fab"}
    found: list[AttackSpec] = []
    for spec in specs:
        if isinstance(spec, AutoAttackSpec):
            stages = dict.fromkeys(stand_ins.get(stage, stage) for stage in spec.stages)
            spec = replace(spec, stages=tuple(stages))
        elif spec.loss == "dlr" and classes < 3:
            raise UserError("the dlr loss compares three classes; use margin")
        found.append(spec)
    return found
