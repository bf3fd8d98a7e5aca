"""What an evaluation measures, and what would be usual for its network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec, ThreatModel
from lib.evaluation.attack_list import attack_list
from lib.evaluation.checkpoint_model import EvaluatedModel
from utils.config.settings import Config
from utils.config.validators import PgdRow
from utils.storage.measurement import Measurement, attack_text


def measured_attacks(
    config: Config,
    evaluated: EvaluatedModel,
    source: EvaluatedModel | None,
    threat: ThreatModel,
    specs: Sequence[AttackSpec],
    subset: Mapping[str, Any],
    subset_name: str,
) -> Measurement:
    """An evaluation of attacks, with everything that can change its numbers.

    Args:
        source: the network that is attacked, where it is another one.
        threat: ball, protocol, seed and precision.
        subset: description, n and sha256 of the images; `subset_name` is what files are named by.
    """
    return Measurement(
        "attack",
        threat.protocol.name,
        evaluated.identity["sha256"],
        subset["sha256"],
        config.DATA.img_size,
        config.DATA.crop_size,
        scale=evaluated.model.scale,
        attacks=attack_texts(specs),
        eps=threat.eps,
        norm=threat.norm,
        precision=threat.precision,
        scales=tuple(config.EVAL.scales) if evaluated.settings.hypersphere else (),
        seed=threat.seed,
        cascade=config.EVAL.cascade,
        class_order=class_order(config, evaluated),
        network=network_flags(evaluated),
        transfer="" if source is None else source.identity["sha256"],
        transfer_name="" if source is None else Path(source.identity["path"]).name,
        checkpoint_name=evaluated.file_name,
        subset=subset_name,
    )


def usual_attacks(measured: Measurement, evaluated: EvaluatedModel) -> Measurement:
    """The same network on all images under the settings of its training, or the built-in ones."""
    own = evaluated.trained or Config().as_dict()
    rows = [PgdRow(*row) for row in own["ADV"]["pgd_attack"]]
    specs = attack_list((), rows, PROTOCOLS[measured.protocol], (), measured.norm, measured.eps)
    return Measurement(
        measured.kind,
        measured.protocol,
        measured.checkpoint,
        measured.images,
        own["DATA"]["img_size"],
        own["DATA"]["crop_size"],
        attacks=attack_texts(specs),
        eps=own["ADV"]["clip_eps"] / own["DATA"].get("max_color_value", 255),
    )


def class_order(config: Config, evaluated: EvaluatedModel) -> str:
    """`DATA.class_order`, which means something for a checkpoint without class names alone."""
    return "auto" if evaluated.settings.classes else config.DATA.class_order


def network_flags(evaluated: EvaluatedModel) -> str:
    """What flags say of a network whose file does not, where it is not usual: `FN_mean0.5+0.5+0.5`.

    Usual are FN and WN together and ImageNet's mean and standard deviation.
    """
    settings, usual = evaluated.settings, Config().TRAIN
    if settings.classes:
        return ""
    parts = [
        name for name in ("FN", "WN") if settings.FN != settings.WN and getattr(settings, name)
    ]
    for name in ("mean", "std"):
        values = list(getattr(settings, name))
        if values != list(getattr(usual, name)):
            parts.append(name + "+".join(map(str, values)))
    return "_".join(parts)


def threat_models(config: Config) -> list[ThreatModel]:
    """The balls of `--eps`, or the one of ADV.clip_eps; Linf has the unit of max_color_value."""
    evaluation = config.EVAL
    unit = config.DATA.max_color_value if evaluation.norm == "Linf" else 1.0
    protocol = PROTOCOLS[evaluation.protocol]
    return [
        ThreatModel(eps / unit, protocol, config.RUN.seed, evaluation.precision, evaluation.norm)
        for eps in evaluation.eps or (config.ADV.clip_eps,)
    ]


def attack_texts(specs: Iterable[AttackSpec]) -> tuple[str, ...]:
    """The attacks with their steps; those at further scales follow from the scales."""
    return tuple(
        attack_text(spec.name, getattr(spec, "step_size", 0.0))
        for spec in specs
        if getattr(spec, "scale", None) is None
    )
