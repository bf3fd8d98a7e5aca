"""The conditions of an evaluation of attacks, and what would be usual for its network."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec, ThreatModel
from lib.evaluation.attack_list import attack_list
from lib.evaluation.load_model import EvaluatedModel
from utils.config.settings import Config
from utils.config.validators import PgdRow
from utils.storage.conditions import Conditions, attack_text


def attack_conditions(
    config: Config,
    evaluated: EvaluatedModel,
    surrogate: EvaluatedModel | None,
    threat: ThreatModel,
    specs: Sequence[AttackSpec],
    subset: Mapping[str, Any],
    subset_name: str,
) -> Conditions:
    """Everything that can change the numbers of attacks.

    Args:
        surrogate: the network that is attacked, where it is another one.
        threat: ball, protocol, seed and precision.
        subset: description, n and sha256 of the images; `subset_name` is what files are named by.
    """
    return Conditions(
        kind="attack",
        protocol=threat.protocol.name,
        checkpoint=evaluated.identity["sha256"],
        images=subset["sha256"],
        resize=config.DATA.img_size,
        crop=config.DATA.crop_size,
        network=network_text(config, evaluated),
        checkpoint_file=evaluated.file_name,
        attacks=attack_texts(specs, threat.norm),
        subset=subset_name,
        eps=threat.eps,
        norm=threat.norm,
        precision=threat.precision,
        seed=threat.seed,
        surrogate="" if surrogate is None else surrogate.identity["sha256"],
        cascade=config.EVAL.cascade,
    )


def usual_conditions(conditions: Conditions, evaluated: EvaluatedModel) -> dict[str, Any]:
    """Settings of the network's training, or the built-in ones, that files are not named by."""
    trained = evaluated.trained or Config().as_dict()
    rows = [PgdRow(*row) for row in trained["ADV"]["pgd_attack"]]
    protocol, norm = PROTOCOLS[conditions.protocol], conditions.norm
    return {
        "resize": trained["DATA"]["img_size"],
        "crop": trained["DATA"]["crop_size"],
        "eps": trained["ADV"]["clip_eps"] / trained["DATA"].get("max_color_value", 255),
        "attacks": attack_texts(attack_list((), rows, protocol, (), norm, conditions.eps), norm),
    }


def network_text(config: Config, evaluated: EvaluatedModel) -> str:
    """What flags say of a network whose file does not; empty where it carries its settings."""
    settings = evaluated.settings
    if settings.classes:
        return ""
    colours = f"mean {settings.mean}, std {settings.std}"
    return f"{settings.describe()}, {colours}, class order {config.DATA.class_order}"


def threat_models(config: Config) -> list[ThreatModel]:
    """The balls of `--eps`, or the one of ADV.clip_eps; Linf has the unit of max_color_value."""
    evaluation = config.EVAL
    unit = config.DATA.max_color_value if evaluation.norm == "Linf" else 1.0
    protocol = PROTOCOLS[evaluation.protocol]
    return [
        ThreatModel(eps / unit, protocol, config.RUN.seed, evaluation.precision, evaluation.norm)
        for eps in evaluation.eps or (config.ADV.clip_eps,)
    ]


def attack_texts(specs: Iterable[AttackSpec], norm: str) -> tuple[str, ...]:
    """The attacks with their steps."""
    return tuple(attack_text(s.name, getattr(s, "step_size", 0.0), norm) for s in specs)
