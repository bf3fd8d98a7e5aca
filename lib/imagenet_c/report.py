"""What an ImageNet-C evaluation leaves: its JSON, CSV and figure, and the table on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lib.data.folders import ImageTree
from lib.imagenet_c.corruptions import GROUPS, SEVERITIES, STANDARD, group_of, summarise
from utils.errors import UserError
from utils.storage.accuracy import Accuracy
from utils.storage.conditions import Conditions
from utils.storage.files import write_csv
from utils.storage.results import (
    AttackResult,
    CleanReference,
    CorruptionAccuracies,
    ImageNetCResult,
    read_result,
    write_result,
)
from utils.text import table

COLUMNS = ["corruption", "group", "severity", "n", "top1_correct", "top1_accuracy"]
COLUMNS += ["top5_correct", "top5_accuracy", "top1_low95", "top1_high95"]


def make_result(
    counts: Mapping[str, Sequence[int]],
    images: ImageTree,
    conditions: Conditions,
    provenance: Mapping[str, Any],
    clean_accuracy: float | None,
    run_dir: Path,
) -> ImageNetCResult:
    """The content of the JSON.

    Args:
        counts: by folder, `gaussian_noise/1`: top-1 right, top-5 right, images.
        images: of one folder, the same in all.
        provenance: with checkpoint and subset.
        clean_accuracy: a fraction, or None to look into `run_dir`.
    """
    corruptions = {}
    for name in dict.fromkeys(folder.rpartition("/")[0] for folder in counts):
        rows = [counts[f"{name}/{severity}"] for severity in SEVERITIES]
        top1, top5 = (tuple(Accuracy(row[column], row[2]) for row in rows) for column in (0, 1))
        corruptions[name] = CorruptionAccuracies(group_of(name), top1, top5)
    clean = CleanReference(clean_accuracy, "--clean_accuracy")
    if clean_accuracy is None:
        clean = find_clean_accuracy(run_dir, conditions, len(images.files))
    classes = sorted({file.partition("/")[0] for file in images.files})
    summary = summarise(fractions(corruptions), classes, clean.accuracy)
    return ImageNetCResult(conditions, provenance, images.notes, corruptions, clean, summary)


def fractions(corruptions: Mapping[str, CorruptionAccuracies]) -> dict[str, list[float]]:
    """Top-1 accuracies in [0, 1] over the severities."""
    return {name: [a.fraction for a in entry.top1] for name, entry in corruptions.items()}


def find_clean_accuracy(run_dir: Path, conditions: Conditions, n: int) -> CleanReference:
    """Clean top-1 of an attack evaluation of the same checkpoint, and the file it stands in.

    On the same images if there is one, else on `n` at least; None where there is neither.
    """
    candidates = []
    for path in sorted(run_dir.glob("*.json")):
        try:
            result = read_result(path)
        except UserError:
            continue  # another program's file, or a broken one: not this command's business
        same_network = result.conditions.checkpoint == conditions.checkpoint
        if isinstance(result, AttackResult) and same_network:
            same_images = result.conditions.images == conditions.images
            top1 = result.clean.top1
            candidates.append((same_images, top1.n, top1.fraction, path.name))
    same_images, most, accuracy, source = max(candidates, default=(False, 0, None, None))
    if not same_images and most < n:
        return CleanReference(None, None)
    return CleanReference(accuracy, source)


def write_files(result: ImageNetCResult, stem: Path) -> None:
    """Write `stem.json`, `.csv`, `.png` and `.pdf`."""
    from utils.figures.imagenet_c import imagenet_c
    from utils.figures.style import run_label, save_figure

    write_result(stem.with_name(f"{stem.name}.json"), result)
    write_csv(stem.with_name(f"{stem.name}.csv"), COLUMNS, csv_rows(result))
    label = run_label(stem.resolve().parent.name)
    save_figure(imagenet_c({label: result}, f"Common corruptions, {label}"), stem)


def csv_rows(result: ImageNetCResult) -> list[list[Any]]:
    """One row per corruption and severity."""
    rows = []
    for name, entry in result.corruptions.items():
        for severity, top1, top5 in zip(SEVERITIES, entry.top1, entry.top5, strict=True):
            counts = [value for top in (top1, top5) for value in (top.correct, top.fraction)]
            rows.append([name, entry.group, severity, top1.n, *counts, *top1.interval])
    return rows


def result_text(result: ImageNetCResult, stem: Path) -> str:
    """The table and the metrics below it, accuracies in percent."""
    errors, top1 = result.summary.CE, fractions(result.corruptions)
    rows = [table_row(name, values, errors.get(name)) for name, values in top1.items()]
    means = {f"{group} (mean)": members for group, members in GROUPS.items()}
    means["all 15 (mean)"] = STANDARD
    for label, members in means.items():
        if all(name in top1 for name in members):
            values = [fmean(column) for column in zip(*(top1[n] for n in members), strict=True)]
            ce = fmean(errors[n] for n in members) if errors else None
            rows.append(table_row(label, values, ce))
    header = ["top-1 (%), severity", *map(str, SEVERITIES), "mean", "CE"]
    cut = len(header) - (not errors)
    parts = [table(header[:cut], [row[:cut] for row in rows]), "", *summary_lines(result)]
    return "\n".join([*parts, f"written: {stem}.json, .csv, .png, .pdf"])


def table_row(label: str, values: Sequence[float], error: float | None) -> list[str]:
    """Accuracies at the severities and their mean in percent, corruption error."""
    cells = [f"{100 * value:.2f}" for value in (*values, fmean(values))]
    return [label, *cells, "" if error is None else f"{error:.1f}"]


def summary_lines(result: ImageNetCResult) -> list[str]:
    """The metrics over the 15, each with the reason where it is left out.

    The unnormalised error stands beside mCE always, over what was evaluated where the 15 are not
    complete: AlexNet's errors are no yardstick of other corruptions or classes.
    """
    summary, clean = result.summary, result.clean
    accuracies = fractions(result.corruptions)
    texts = {
        "mean accuracy over the 15": ("mean_accuracy", percent(summary.mean_accuracy)),
        "mean error, unnormalised": ("mean_error", percent(summary.mean_error)),
        "mCE": ("mCE", percent(summary.mCE, 1)),
        "relative mCE": ("relative_mCE", percent(summary.relative_mCE, 1)),
    }
    lines = [
        f"{label:<26} {text or f'left out: {summary.left_out.get(key)}'}"
        for label, (key, text) in texts.items()
    ]
    if summary.relative_mCE is not None:
        lines[-1] += f" (clean accuracy {percent(clean.accuracy)}, {clean.source})"
    if set(accuracies) != set(STANDARD):
        error = 1 - fmean(value for values in accuracies.values() for value in values)
        evaluated = f"mean error of the {len(accuracies)}"
        lines.append(f"{evaluated:<26} {percent(error)}, over all that were evaluated")
    return lines


def percent(value: float | None, unit: float = 100) -> str:
    """`12.30 %`; nothing for None."""
    return "" if value is None else f"{unit * value:.2f} %"
