"""What an ImageNet-C evaluation leaves: its JSON, CSV and figure, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from lib.imagenet_c.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, STANDARD
from lib.imagenet_c.mce import summarise
from lib.imagenet_c.shares import GroupCounts
from lib.imagenet_c.tree import CorruptionTree
from utils.errors import UserError
from utils.logging import table
from utils.storage.files import write_csv, write_json
from utils.storage.intervals import accuracy_entry
from utils.storage.results import is_evaluation, read_json

COLUMNS = ["corruption", "group", "severity", "n"]
COLUMNS += [f"{top}_{what}" for top in ("top1", "top5") for what in ("correct", "accuracy")]
COLUMNS += ["top1_low95", "top1_high95"]


def make_result(
    counts: Mapping[str, GroupCounts],
    tree: CorruptionTree,
    provenance: Mapping[str, Any],
    clean_accuracy: float | None,
    run_dir: Path,
) -> dict[str, Any]:
    """The content of the JSON.

    Args:
        counts: by group name, `gaussian_noise/1`.
        tree: what was evaluated.
        provenance: as it goes into the file, with checkpoint and subset.
        clean_accuracy: a fraction, or None to look into `run_dir`.
    """
    corruptions = {
        name: {
            "group": CORRUPTIONS[name].group,
            "top1": entries(counts, name, 0),
            "top5": entries(counts, name, 1),
        }
        for name in tree.images
    }
    clean = {"accuracy": clean_accuracy, "source": "--clean_accuracy"}
    if clean_accuracy is None:
        clean = find_clean_accuracy(run_dir, provenance)
    accuracies = {n: [entry["accuracy"] for entry in c["top1"]] for n, c in corruptions.items()}
    return {
        "kind": "imagenet_c",
        "provenance": dict(provenance),
        "corruptions": corruptions,
        "clean": clean,
        "summary": summarise(accuracies, tree.classes, clean["accuracy"]),
        "warnings": tree.warnings(),
    }


def entries(counts: Mapping[str, GroupCounts], name: str, column: int) -> list[dict[str, Any]]:
    """A corruption's accuracies over the severities, from one column of the counts."""
    rows = [counts[f"{name}/{severity}"] for severity in SEVERITIES]
    return [accuracy_entry(row[column], row[2]) for row in rows]


def find_clean_accuracy(run_dir: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Clean top-1 of an attack evaluation of the same checkpoint, and the file it stands in.

    On the same images if there is one, else on as many at least; None where there is neither.
    """
    subset = provenance["subset"]
    found = []
    for path in sorted(run_dir.glob("*.json")):
        try:
            data = read_json(path)
            if not is_evaluation(data) or data["kind"] != "attack":
                continue
            theirs, entry = data["provenance"], data["clean"]["top1"]
            same = theirs["subset"]["sha256"] == subset["sha256"]
            if theirs["checkpoint"]["sha256"] == provenance["checkpoint"]["sha256"]:
                found.append((same, entry["n"], entry["accuracy"], path.name))
        except (UserError, KeyError, TypeError):
            continue  # another program's file, or a broken one: not this command's business
    same, n, accuracy, source = max(found, default=(False, 0, None, None))
    if not same and n < subset["n"]:
        return {"accuracy": None, "source": None}
    return {"accuracy": accuracy, "source": source}


def write_result(result: Mapping[str, Any], stem: Path) -> None:
    """Write `stem.json`, `.csv`, `.png` and `.pdf`."""
    from utils.figures.imagenet_c import imagenet_c
    from utils.figures.style import run_label, save_figure

    write_json(stem.with_name(f"{stem.name}.json"), result)
    write_csv(stem.with_name(f"{stem.name}.csv"), COLUMNS, csv_rows(result))
    label = run_label(stem.resolve().parent.name)
    save_figure(imagenet_c({label: result}, f"ImageNet-C, {label}"), stem)


def csv_rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """One row per corruption and severity."""
    rows = []
    for name, entry in result["corruptions"].items():
        for severity, top1, top5 in zip(SEVERITIES, entry["top1"], entry["top5"], strict=True):
            counts = [value for top in (top1, top5) for value in (top["correct"], top["accuracy"])]
            interval = top1["interval95"]
            rows.append([name, entry["group"], severity, top1["n"], *counts, *interval])
    return rows


def result_text(result: Mapping[str, Any], stem: Path) -> str:
    """The table and the figures below it, accuracies in percent."""
    summary, corruptions = result["summary"], result["corruptions"]
    errors = summary["CE"]
    top1 = {n: [entry["accuracy"] for entry in c["top1"]] for n, c in corruptions.items()}
    rows = [line(name, values, errors.get(name)) for name, values in top1.items()]
    means = {f"{group} (mean)": members for group, members in GROUPS.items()}
    means["all 15 (mean)"] = STANDARD
    for label, members in means.items():
        if all(name in top1 for name in members):
            values = [fmean(column) for column in zip(*(top1[n] for n in members), strict=True)]
            ce = fmean(errors[n] for n in members) if errors else None
            rows.append(line(label, values, ce))
    header = ["top-1 (%), severity", *map(str, SEVERITIES), "mean", "CE"]
    cut = len(header) - (not errors)
    parts = [table(header[:cut], [row[:cut] for row in rows]), "", *summary_lines(result)]
    return "\n".join([*parts, f"written: {stem}.json, .csv, .png, .pdf"])


def line(label: str, values: list[float], error: float | None) -> list[str]:
    """A row: accuracies at the severities and their mean in percent, corruption error."""
    cells = [f"{100 * value:.2f}" for value in (*values, fmean(values))]
    return [label, *cells, "" if error is None else f"{error:.1f}"]


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The figures over the 15, each with the reason where it is left out."""
    summary, clean = result["summary"], result["clean"]
    labels = {
        "mean_accuracy": "mean accuracy over the 15",
        "mean_error": "mean error, unnormalised",
        "mCE": "mCE",
        "relative_mCE": "relative mCE",
    }
    lines = []
    for key, label in labels.items():
        value = summary[key]
        text = f"left out: {summary['left_out'].get(key)}"
        if value is not None:
            text = f"{value if 'mCE' in key else 100 * value:.2f} %"
        if value is not None and key == "relative_mCE":
            text += f" (clean accuracy {100 * clean['accuracy']:.2f} %, {clean['source']})"
        lines.append(f"{label:<26} {text}")
    return lines
