"""From outcomes image by image to the numbers: JSON, CSV, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec, PGDSpec, Protocol
from lib.data.folders import ImageTree
from lib.evaluation.runner import CLEAN
from utils.logging import table
from utils.storage.files import write_csv, write_json
from utils.storage.intervals import accuracy_entry

Rows = Mapping[int, Any]


def summarise(
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
    protocol: Protocol,
    cascade: bool,
    own_scale: float,
) -> dict[str, Any]:
    """The counts of an evaluation, as result files hold them.

    Where every iterate counts, an image that is misclassified clean was not attacked and is not
    robust.
    With a cascade an attack has seen only a part of the images, so only the worst case counts.
    """
    clean = rows[CLEAN]
    n = len(clean)
    result: dict[str, Any] = {
        "clean": {
            "loss": sum(row.loss for row in clean.values()) / n,
            "top1": accuracy_entry(sum(row.right for row in clean.values()), n),
            "top5": accuracy_entry(sum(row.right5 for row in clean.values()), n),
        },
        "attacks": [],
    }
    for spec in () if cascade else specs:
        result["attacks"] += attack_entries(spec, rows, protocol, own_scale)
    robust = worst_case(rows, protocol)
    result["worst_case"] = {"top1": accuracy_entry(sum(robust.values()), n)}
    if cascade:
        result["cascade"] = [spec.name for spec in specs]
    return result


def attack_entries(
    spec: AttackSpec, rows: Mapping[str, Rows], protocol: Protocol, own_scale: float
) -> list[dict[str, Any]]:
    """An attack's settings and accuracies, after each of its stages."""
    clean, attacked = rows[CLEAN], rows[spec.name]
    settings: dict[str, Any] = {"steps": 0, "step_size": 0.0, "loss": None, "restarts": 1}
    settings["scale"] = own_scale
    if isinstance(spec, PGDSpec):
        settings = asdict(spec) | {"scale": protocol.search_scale(spec, own_scale)}
    entries = []
    for number, (name, label) in enumerate(spec.parts, 1):
        robust = sum(row.stages_survived >= number for row in attacked.values())
        top1 = accuracy_entry(robust, len(clean))
        entries.append({"name": name, "label": label, **settings, "top1": top1})
    if isinstance(spec, PGDSpec):  # AutoAttack has no top-5
        robust5 = sum(row.right5 for row in attacked.values())
        robust5 += sum(row.right5 for i, row in clean.items() if i not in attacked)
        entries[-1]["top5"] = accuracy_entry(robust5, len(clean))
    return entries


def worst_case(rows: Mapping[str, Rows], protocol: Protocol) -> dict[int, bool]:
    """For each image, whether it is robust against every attack of the list."""
    attacks = [attacked for name, attacked in rows.items() if name != CLEAN]
    return {
        i: (clean.right or not protocol.every_iterate)
        and all(i not in a or a[i].right for a in attacks)
        for i, clean in rows[CLEAN].items()
    }


def image_table(
    tree: ImageTree,
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
    protocol: Protocol,
    cascade: bool,
) -> tuple[list[str], Iterable[list]]:
    """Header and lines of the per-image CSV; with a cascade, empty where not attacked."""
    header = ["image", "label", "clean_prediction", "clean_correct"]
    header += [f"{name}_robust" for spec in specs for name, _ in spec.parts] + ["worst_case_robust"]
    robust = worst_case(rows, protocol)

    def cells_of(spec: AttackSpec, i: int) -> list[Any]:
        row, stages = rows[spec.name].get(i), range(1, len(spec.parts) + 1)
        unseen = "" if cascade else 0
        return [unseen if row is None else int(row.stages_survived >= n) for n in stages]

    def lines() -> Iterable[list]:
        for i, clean in rows[CLEAN].items():
            start = [tree.files[i], tree.labels[i], clean.prediction, int(clean.right)]
            yield [*start, *(x for spec in specs for x in cells_of(spec, i)), int(robust[i])]

    return header, lines()


def write_results(
    stem: Path,
    result: Mapping[str, Any],
    tree: ImageTree,
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
) -> None:
    """`<stem>_images.csv`, then `<stem>.json`, whose being there means that all is there."""
    protocol, cascade = PROTOCOLS[result["provenance"]["protocol"]], "cascade" in result
    write_csv(
        stem.with_name(f"{stem.name}_images.csv"),
        *image_table(tree, rows, specs, protocol, cascade),
    )
    write_json(stem.with_suffix(".json"), result)


def result_table(result: Mapping[str, Any]) -> str:
    """The table on the terminal: top-1 with its 95 % interval, top-5."""
    origin = result["provenance"]
    lines = [["clean", *cells(result["clean"])]]
    lines += [[attack["label"], *cells(attack)] for attack in result["attacks"]]
    lines.append(["worst case", *cells(result["worst_case"])])
    eps = f"{origin['eps'] * 255:g}/255"
    title = f"protocol {origin['protocol']}, eps {eps}, {origin['subset']['description']}"
    scales = {attack["scale"] for attack in result["attacks"] if attack["loss"] == "ce"}
    if scales and (origin["checkpoint"]["FN"] or origin["checkpoint"]["WN"]):
        title += f"; cross-entropy at scale {', '.join(f'{s:g}' for s in sorted(scales))}"
    if origin["precision"] != "fp32":
        title += f"; searched in {origin['precision']}, judged in fp32"
    head = ["", "top-1 %", "95 % interval", "top-5 %"]
    return f"{title}\n{table(head, lines)}"


def cells(entry: Mapping[str, Any]) -> list[str]:
    """Top-1, its interval, top-5 as text; a dash where there is none."""
    top1 = entry["top1"]
    low, high = top1["interval95"]
    interval = f"{100 * low:.2f} - {100 * high:.2f}"
    top5 = f"{100 * entry['top5']['accuracy']:.2f}" if "top5" in entry else "-"
    return [f"{100 * top1['accuracy']:.2f}", interval, top5]
