"""What the result files of earlier versions measured, which did not say it in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.storage.measurement import Measurement, attack_text
from utils.storage.run_folder import BEST


def measurement_of_earlier(data: Mapping[str, Any]) -> Measurement:
    """From a file's content. KeyError or TypeError where it is no result file."""
    origin = data["provenance"]
    settings, checkpoint = origin["config"], origin["checkpoint"]
    is_attack = data["kind"] == "attack"
    resized = is_attack or origin["protocol"] != "standard"
    name = Path(checkpoint["path"]).name
    hypersphere = checkpoint.get("FN") or checkpoint.get("WN")
    measurement = Measurement(
        kind=data["kind"],
        protocol=origin["protocol"],
        checkpoint=checkpoint["sha256"],
        images=origin["subset"]["sha256"],
        resize=settings["DATA"]["img_size"] if resized else None,
        crop=settings["DATA"]["crop_size"],
        scale=checkpoint["s_HE"] if hypersphere else 1.0,
        checkpoint_name="" if name == BEST else name,
    )
    if not is_attack:
        return measurement
    return replace(
        measurement,
        attacks=attacks_of(data),
        eps=origin["eps"],
        precision=origin["precision"],
        scales=tuple(settings.get("EVAL", {}).get("scales", ())),
        seed=origin["seed"],
        cascade="cascade" in data,
    )


def attacks_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The attacks with their steps, those at further scales and AutoAttack's parts left out."""
    if "cascade" not in data:
        entries = [(entry["name"], entry["step_size"]) for entry in data["attacks"]]
    else:  # which kept no entries
        rows = data["provenance"]["config"]["ADV"]["pgd_attack"]
        steps = {f"pgd{row[0]}": row[1] for row in rows}
        names = [(name, name.partition("-")[0]) for name in data["cascade"]]
        entries = [
            (name, 0 if start == "autoattack" else steps.get(start, rows[0][1]))
            for name, start in names
        ]
    return tuple(
        attack_text(name, step)
        for name, step in entries
        if not name.startswith("autoattack-") and "-s" not in name
    )
