"""What an evaluation on shifted test sets leaves: table, JSON, CSV, figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.logging import table
from utils.storage.files import write_csv
from utils.storage.intervals import Accuracy
from utils.storage.records import ShiftAccuracies, ShiftResult
from utils.storage.results import write_result

MEASURES = ("top1", "top5", "present_top1", "present_top5")
COLUMNS = ["test_set", "classes", "n"]
COLUMNS += [f"{name}_{what}" for name in MEASURES for what in ("correct", "accuracy")]
COLUMNS += ["top1_low95", "top1_high95", "present_top1_low95", "present_top1_high95"]


def csv_row(name: str, found: ShiftAccuracies) -> list[Any]:
    each: list[Accuracy] = [getattr(found, measure) for measure in MEASURES]
    counts = [value for a in each for value in (a.correct, a.fraction)]
    intervals = (*found.top1.interval, *found.present_top1.interval)
    return [name, found.classes, found.top1.n, *counts, *intervals]


def result_text(result: ShiftResult, stem: Path) -> str:
    """The table, accuracies in percent."""
    header = ["test set", "images", "classes", "top-1 (%)", "top-5 (%)"]
    header += ["top-1 of its classes", "top-5 of its classes"]
    rows = [
        [name, str(found.top1.n), str(found.classes)]
        + [f"{getattr(found, measure).percent:.2f}" for measure in MEASURES]
        for name, found in result.sets.items()
    ]
    text = "top-1 and top-5 are over all outputs; those of its classes leave the other outputs out"
    return "\n".join([table(header, rows), "", text, f"written: {stem}.json, .csv, .png, .pdf"])


def write_files(result: ShiftResult, stem: Path) -> None:
    """Write `stem.json`, `.csv`, `.png` and `.pdf`."""
    from utils.figures.comparison import Panel, comparison
    from utils.figures.style import save_figure

    write_result(stem.with_name(f"{stem.name}.json"), result)
    rows = [csv_row(name, found) for name, found in result.sets.items()]
    write_csv(stem.with_name(f"{stem.name}.csv"), COLUMNS, rows)

    measures = [
        (name, {"all outputs": a.top1.estimate, "classes of the set": a.present_top1.estimate})
        for name, a in result.sets.items()
    ]
    save_figure(comparison([Panel("", "top-1 accuracy (%)", measures)]), stem)
