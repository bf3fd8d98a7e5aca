"""Names of attacks: `pgd10`, `pgd50-margin`, `pgd50-dlr-r5`, `autoattack`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from utils.config_schema import ATTACK_LOSSES
from utils.errors import UserError

NAME = re.compile(r"pgd([1-9]\d*)(?:-(ce|margin|dlr))?(?:-r([1-9]\d*))?")


@dataclass(frozen=True)
class AttackSpec:
    """One row of an evaluation: PGD with these settings, or AutoAttack.

    Attributes:
        kind: `pgd` or `autoattack`.
        steps: sign steps per restart; 0 for AutoAttack, which sets its own.
        step_size: step in units of [0, 1].
        loss: what PGD ascends, one of `ATTACK_LOSSES`.
        restarts: random starts; an image must survive all of them.
        scale: the factor on the network's raw outputs under the loss; None is the network's own.
    """

    kind: str
    steps: int = 0
    step_size: float = 0.0
    loss: str = "ce"
    restarts: int = 1
    scale: float | None = None

    @property
    def name(self) -> str:
        """The name that `--attack` takes, with the scale where it is not the network's own."""
        if self.kind == "autoattack":
            return "autoattack"
        name = f"pgd{self.steps}" + (f"-{self.loss}" if self.loss != "ce" else "")
        name += f"-r{self.restarts}" if self.restarts > 1 else ""
        return name + (f"-s{self.scale:g}" if self.scale is not None else "")

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        if self.kind == "autoattack":
            return "AutoAttack"
        extra = f", {self.restarts} restarts" if self.restarts > 1 else ""
        extra += f", scale {self.scale:g}" if self.scale is not None else ""
        return f"PGD-{self.steps} ({self.loss}{extra})"


def parse_attack(name: str, step_size: float) -> AttackSpec:
    """One name to its meaning.

    Raises:
        UserError: the name follows no known form.
    """
    if name == "autoattack":
        return AttackSpec("autoattack")
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"--attack: unknown attack {name!r}; use autoattack or pgdSTEPS[-LOSS][-rRESTARTS],"
            f" LOSS one of {', '.join(ATTACK_LOSSES)}, such as pgd50-margin or pgd50-dlr-r5"
        )
    steps, loss, restarts = match.groups()
    return AttackSpec("pgd", int(steps), step_size, loss or "ce", int(restarts or 1))


def attack_list(
    names: Sequence[str],
    rows: Sequence[Sequence],
    protocol: str,
    scales: Iterable[float] = (),
) -> list[AttackSpec]:
    """The attacks of one evaluation, in order.

    Args:
        names: from `--attack`; where empty, `rows` are used.
        rows: `ADV.pgd_attack`, each [steps, step size in [0, 1], loss, restarts]. The first
            row's step size is also that of every `pgd...` in `names`.
        protocol: `standard` adds the longest row again on the `margin` loss when all of `rows`
            ascend cross-entropy, because cross-entropy alone flatters a cosine head.
        scales: further scales at which every cross-entropy attack is repeated.

    Raises:
        UserError: an unknown name, or two attacks of one name.
    """
    if names:
        specs = [parse_attack(name, rows[0][1]) for name in names]
    else:
        specs = [AttackSpec("pgd", *row) for row in rows]
        if protocol == "standard" and all(spec.loss == "ce" for spec in specs):
            longest = max(specs, key=lambda spec: spec.steps)
            specs.append(AttackSpec("pgd", longest.steps, longest.step_size, "margin"))
    at_scales = [
        AttackSpec("pgd", spec.steps, spec.step_size, spec.loss, spec.restarts, scale)
        for spec in specs
        for scale in scales
        if spec.loss == "ce" and spec.kind == "pgd"
    ]
    chosen = list(dict.fromkeys(specs + at_scales))
    for one, other in combinations(chosen, 2):
        if one.name == other.name:  # outcomes and results are kept by name
            raise UserError(
                f"ADV.pgd_attack has {one.name} with two step sizes, {one.step_size:g} and"
                f" {other.step_size:g}; give each an evaluation of its own"
            )
    return chosen
