"""Names of attacks: `pgd10`, `pgd50-margin`, `pgd50-dlr-r5`, `autoattack`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

from lib.algorithm.protocols import AttackSpec, AutoAttackSpec, PGDSpec, Protocol
from utils.config.readers import ATTACK_LOSSES, PgdRow
from utils.errors import UserError

NAME = re.compile(r"pgd([1-9]\d*)(?:-(ce|margin|dlr))?(?:-r([1-9]\d*))?")


def parse_attack(name: str, step_size: float) -> AttackSpec:
    """One name to its meaning.

    Raises:
        UserError: the name follows no known form.
    """
    if name == "autoattack":
        return AutoAttackSpec()
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"--attack: unknown attack {name!r}; use autoattack or pgdSTEPS[-LOSS][-rRESTARTS],"
            f" LOSS one of {', '.join(ATTACK_LOSSES)}, such as pgd50-margin or pgd50-dlr-r5"
        )
    steps, loss, restarts = match.groups()
    return PGDSpec(int(steps), step_size, loss or "ce", int(restarts or 1))


def attack_list(
    names: Sequence[str],
    rows: Sequence[PgdRow],
    protocol: Protocol,
    scales: Iterable[float] = (),
) -> list[AttackSpec]:
    """The attacks of one evaluation, in order.

    Args:
        names: from `--attack`; where empty, `rows` are used.
        rows: `ADV.pgd_attack`, each [steps, step size in [0, 1], loss, restarts]. The first
            row's step size is also that of every `pgd...` in `names`.
        protocol: may repeat one of `rows` on another loss.
        scales: further scales at which every cross-entropy attack is repeated.

    Raises:
        UserError: an unknown name, or two attacks of one name.
    """
    specs: list[AttackSpec] = [parse_attack(name, rows[0].step_size) for name in names]
    specs = specs or [*protocol.default_attacks([PGDSpec(*row) for row in rows])]
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
