"""Names of attacks: `pgd10`, `pgd50-dlr-r5`, `pgd100@1/255`, `autoattack`, `apgd`, `square`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lib.algorithm.protocols import (
    LOSS_NAMES,
    PROTOCOLS,
    AttackSpec,
    AutoAttackSpec,
    PGDSpec,
    ThreatModel,
)
from utils.config.settings import Config
from utils.config.validators import number, whole
from utils.errors import UserError

REACH = 2.5  # radii that the steps of PGD add up to outside Linf, as in MadryLab's robustness
NAME = re.compile(rf"pgd([1-9]\d*)(?:-({'|'.join(LOSS_NAMES)}))?(?:-r([1-9]\d*))?(?:@(.+))?")
AUTOATTACK = (
    AutoAttackSpec(),
    # The cheap stand-in of papers on robust ImageNet networks.
    AutoAttackSpec("apgd", "APGD (ce, targeted)", ("apgd-ce", "apgd-t")),
    AutoAttackSpec("apgd-ce", "APGD (ce)", ("apgd-ce",)),
    AutoAttackSpec("apgd-t", "APGD (targeted)", ("apgd-t",)),
    AutoAttackSpec("fab-t", "FAB (targeted)", ("fab-t",)),
    AutoAttackSpec("square", "Square", ("square",)),
)


def parse_attack(name: str, row_step: float, threat: ThreatModel) -> AttackSpec:
    """One name to its meaning.

    Args:
        row_step: of PGD in Linf, where the name has none.
        threat: whose radius decides it under other norms.
    """
    for spec in AUTOATTACK:
        if spec.name == name:
            return spec
    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"--attack: unknown attack {name!r}; use pgdSTEPS[-LOSS][-rRESTARTS][@STEP], LOSS one"
            f" of {', '.join(LOSS_NAMES)}, such as pgd50-margin, pgd50-dlr-r5, pgd100@1/255; or"
            f" one of {', '.join(spec.name for spec in AUTOATTACK)}"
        )
    text = match[4] or ""
    try:
        steps, restarts = (whole(1)(digits) for digits in (match[1], match[3] or "1"))
        step = number(text) if text else usual_step(steps, row_step, threat)
    except ValueError as error:
        raise UserError(f"--attack {name}: {error}") from None
    if text and (step <= 0 or (threat.norm == "Linf" and step >= 0.5)):
        raise UserError(
            f"--attack {name}: {text} is no step size; in Linf it is in units of the range [0, 1],"
            " such as 1/255"
        )
    return PGDSpec(steps, step, match[2] or "ce", restarts, step_text=text)


def usual_step(steps: int, row_step: float, threat: ThreatModel) -> float:
    """A step of the configuration's in Linf, elsewhere what reaches any point of the ball."""
    return row_step if threat.norm == "Linf" else REACH * threat.eps / steps


def attack_list(
    names: Sequence[str],
    rows: Sequence[PGDSpec],
    threat: ThreatModel,
    scales: Iterable[float] = (),
) -> list[AttackSpec]:
    """The attacks of one evaluation, in order.

    Args:
        names: from `--attack`; where empty, `rows` are used.
        rows: `ADV.pgd_attack`. The first row's step size is also that of `pgd...` in `names`.
        threat: its protocol may repeat one of `rows` on another loss.
        scales: further scales at which every cross-entropy attack is repeated.
    """
    specs = [parse_attack(name, rows[0].step_size, threat) for name in names]
    if not names:
        rows = [replace(r, step_size=usual_step(r.steps, r.step_size, threat)) for r in rows]
        specs = [*threat.protocol.default_attacks(rows)]
    specs += [
        replace(spec, scale=scale)
        for spec in specs
        for scale in scales
        if isinstance(spec, PGDSpec) and spec.loss == "ce"
    ]
    by_name: dict[str, AttackSpec] = {}
    for spec in specs:
        other = by_name.setdefault(spec.name, spec)
        if other != spec:  # outcomes and results are kept by name
            sizes = " and ".join(f"{getattr(each, 'step_size', 0):g}" for each in (other, spec))
            raise UserError(
                f"ADV.pgd_attack has {spec.name} with two step sizes, {sizes}; give each an"
                " evaluation of its own"
            )
    return list(by_name.values())


def attacks_by_ball(
    config: Config, scales: Sequence[float] = ()
) -> dict[ThreatModel, list[AttackSpec]]:
    """The attacks in each ball of `--eps`, or in that of ADV.clip_eps; see `attack_list`."""
    norm, precision = config.EVAL.norm, config.EVAL.precision
    protocol, unit = PROTOCOLS[config.EVAL.protocol], config.DATA.max_color_value
    attacks = {}
    for radius in config.EVAL.eps or (config.ADV.clip_eps,):
        eps = radius / unit if norm == "Linf" else radius
        threat = ThreatModel(eps, protocol, config.RUN.seed, precision, norm)
        rows = config.attacks_within(eps)
        attacks[threat] = attack_list(config.OPTIONS.attack, rows, threat, scales)
    return attacks


def for_classes(specs: Iterable[AttackSpec], classes: int) -> list[AttackSpec]:
    """The attacks for a network of this many outputs.

    The targeted attacks take the fourth largest logit, and DLR the third; with fewer classes their
    untargeted forms stand in, and cross-entropy for DLR; the label then says what runs.
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
    fitting: list[AttackSpec] = []
    for spec in specs:
        if isinstance(spec, AutoAttackSpec):
            stages = tuple(dict.fromkeys(stand_ins.get(stage, stage) for stage in spec.stages))
            if stages != spec.stages:
                label = f"{spec.label.partition(' (')[0]} ({', '.join(stages)})"
                spec = replace(spec, stages=stages, label=label)
        fitting.append(spec)
    return fitting
