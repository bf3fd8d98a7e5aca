"""What an evaluation measures, and what would be usual for its network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec
from lib.evaluation.attack_list import attack_list
from lib.evaluation.checkpoint_model import EvaluatedModel
from utils.config.readers import PgdRow
from utils.config.schema import Config
from utils.storage.measurement import Measurement, attack_text


def measured_attacks(
    config: Config,
    evaluated: EvaluatedModel,
    specs: Sequence[AttackSpec],
    subset: Mapping[str, Any],
    subset_name: str,
) -> Measurement:
    """An evaluation of attacks, with everything that can change its numbers.

    Args:
        subset: description, n and sha256 of the images; `subset_name` is what files are named by.
    """
    return Measurement(
        "attack",
        config.EVAL.protocol,
        evaluated.identity["sha256"],
        subset["sha256"],
        config.DATA.img_size,
        config.DATA.crop_size,
        scale=evaluated.model.scale,
        attacks=attack_texts(specs),
        eps=config.eps,
        precision=config.EVAL.precision,
        scales=tuple(config.EVAL.scales) if evaluated.settings.hypersphere else (),
        seed=config.RUN.seed,
        cascade=config.EVAL.cascade,
        class_order=class_order(config, evaluated),
        checkpoint_name=evaluated.tag.removeprefix("_"),
        subset=subset_name,
    )


def usual_attacks(measured: Measurement, evaluated: EvaluatedModel) -> Measurement:
    """The same network on all images under the settings of its training, or the built-in ones."""
    own = evaluated.trained or Config().as_dict()
    rows = [PgdRow(*row) for row in own["ADV"]["pgd_attack"]]
    return replace(
        measured,
        resize=own["DATA"]["img_size"],
        crop=own["DATA"]["crop_size"],
        attacks=attack_texts(attack_list((), rows, PROTOCOLS[measured.protocol])),
        eps=own["ADV"]["clip_eps"] / own["DATA"].get("max_color_value", 255),
        precision="fp32",
        scales=(),
        seed=0,
        cascade=False,
        class_order="auto",
        checkpoint_name="",
        subset="",
    )


def class_order(config: Config, evaluated: EvaluatedModel) -> str:
    """`DATA.class_order`, which means something for a checkpoint without class names alone."""
    return "auto" if evaluated.settings.classes else config.DATA.class_order


def attack_texts(specs: Iterable[AttackSpec]) -> tuple[str, ...]:
    """The attacks with their steps; those at further scales follow from the scales."""
    return tuple(
        attack_text(spec.name, getattr(spec, "step_size", 0.0))
        for spec in specs
        if getattr(spec, "scale", None) is None
    )
