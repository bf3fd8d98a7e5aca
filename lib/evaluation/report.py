"""From outcomes image by image to the numbers: JSON, CSV, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import PROTOCOLS, AttackSpec, Protocol
from lib.data.folders import ImageTree
from lib.evaluation.runner import CLEAN, parts_of
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
        for name in parts_of(spec.name):
            scale = protocol.search_scale(spec, own_scale)
            result["attacks"].append(attack_entry(spec, name, rows, scale))
    robust = worst_case(rows, protocol)
    result["worst_case"] = {"top1": accuracy_entry(sum(robust.values()), n)}
    if cascade:
        result["cascade"] = [spec.name for spec in specs]
    return result


def attack_entry(
    spec: AttackSpec, name: str, rows: Mapping[str, Rows], scale: float
) -> dict[str, Any]:
    """One attack's settings and accuracies."""
    clean, attacked = rows[CLEAN], rows[name]
    robust = sum(row.right for row in attacked.values())
    robust5 = sum(row.right5 for row in attacked.values())
    robust5 += sum(row.right5 for i, row in clean.items() if i not in attacked)
    entry = {
        "name": name,
        "label": spec.label if name == spec.name else f"AutoAttack, after {name[11:]}",
        "steps": spec.steps,
        "step_size": spec.step_size,
        "loss": spec.loss if spec.kind == "pgd" else None,
        "restarts": spec.restarts,
        "scale": scale,
        "top1": accuracy_entry(robust, len(clean)),
    }
    if spec.kind == "pgd":  # AutoAttack has no top-5
        entry["top5"] = accuracy_entry(robust5, len(clean))
    return entry


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
    names: Sequence[str],
    protocol: Protocol,
    cascade: bool,
) -> tuple[list[str], Iterable[list]]:
    """Header and lines of the per-image CSV; with a cascade, empty where not attacked."""
    header = ["image", "label", "clean_prediction", "clean_correct"]
    header += [f"{name}_robust" for name in names] + ["worst_case_robust"]
    robust = worst_case(rows, protocol)

    def cell(name: str, i: int) -> Any:
        row = rows[name].get(i)
        return ("" if cascade else 0) if row is None else int(row.right)

    def lines() -> Iterable[list]:
        for i, clean in rows[CLEAN].items():
            start = [tree.files[i], tree.labels[i], clean.prediction, int(clean.right)]
            yield [*start, *(cell(name, i) for name in names), int(robust[i])]

    return header, lines()


def write_results(
    stem: Path,
    result: Mapping[str, Any],
    tree: ImageTree,
    rows: Mapping[str, Rows],
    specs: Sequence[AttackSpec],
) -> None:
    """`<stem>_images.csv`, then `<stem>.json`, whose being there means that all is there."""
    names = [name for spec in specs for name in parts_of(spec.name)]
    protocol, cascade = PROTOCOLS[result["provenance"]["protocol"]], "cascade" in result
    write_csv(
        stem.with_name(f"{stem.name}_images.csv"),
        *image_table(tree, rows, names, protocol, cascade),
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
