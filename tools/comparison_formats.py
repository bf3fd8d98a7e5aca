"""A comparison's table as Markdown, LaTeX and CSV, with what must be known to read it."""

from __future__ import annotations

import csv
import io

from utils.storage.comparison import Table, tell
from utils.storage.results import Conditions, Value


def markdown(table: Table) -> str:
    """A Markdown table, the conditions and the warnings below it."""
    lines = [
        "| | " + " | ".join(table.headers()) + " |",
        "|---|" + "---:|" * len(table.columns),
    ]
    for name in table.names:
        cells = [cell_text(table.cells.get((name, column))) for column in table.columns]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(table))]) + "\n"


def latex(table: Table) -> str:
    """A LaTeX table for the `booktabs` package, the notes as comments above it."""
    rows = [["", *table.headers()]]
    for name in table.names:
        cells = [cell_text(table.cells.get((name, column))) for column in table.columns]
        rows.append([name, *cells])
    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
    return "\n".join(
        [
            *(f"% {note}" for note in notes(table)),
            r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def comma_separated(table: Table) -> str:
    """One line per value: its row, measure, interval, image count, conditions and file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    aspects = list(dict.fromkeys(a for column in table.columns for a, _ in column.conditions))
    titles = ["run", "measure", "percent", "low95", "high95", "n", *aspects, "file"]
    writer.writerow(titles)
    for name in table.names:
        for column in table.columns:
            if value := table.cells.get((name, column)):
                told = [dict(column.conditions).get(aspect, "") for aspect in aspects]
                numbers = [value.percent, *(value.interval or ("", "")), value.n]
                writer.writerow([name, value.measure, *numbers, *told, value.source])
    return text.getvalue()


def cell_text(value: Value | None) -> str:
    """`93.6 [91.2, 95.4]`; a dash where a row has no such value."""
    if value is None:
        return "-"
    text = f"{value.percent:.1f}"
    return text + (f" [{value.interval[0]:.1f}, {value.interval[1]:.1f}]" if value.interval else "")


def notes(table: Table) -> list[str]:
    """What the numbers are, and under which conditions each column was taken."""
    lines = ["Top-1 accuracy in %, with its 95 % Wilson interval."]
    alike: dict[Conditions, list[str]] = {}
    for column in table.columns:
        alike.setdefault(column.conditions, []).append(column.measure)
    for conditions, measures in alike.items():
        aspects = [aspect for aspect, _ in conditions if aspect != "image list"]
        lines.append(f"{', '.join(measures)}: {'; '.join(tell(conditions, aspects))}.")
    measures = {column.measure for column in table.columns}
    if "ImageNet-C mean" in measures:
        lines.append("The ImageNet-C interval counts images, not image x corruption: conservative.")
    if "mCE" in measures:
        lines.append("mCE in %, less is better, AlexNet is 100; it has no simple interval.")
    warnings = [
        f"Warning, {name}: {text}" for name, each in table.warnings.items() for text in each
    ]
    return lines + scale_notes(table) + warnings


def scale_notes(table: Table) -> list[str]:
    """At which scale of the outputs each row was attacked, where they are not all alike."""
    scales: dict[str, set[float]] = {}
    for (name, _), value in table.cells.items():
        if value.scale is not None:
            scales.setdefault(name, set()).add(value.scale)
    if len({frozenset(each) for each in scales.values()}) < 2:
        return []
    told = (f"{name} {', '.join(f'{s:g}' for s in sorted(each))}" for name, each in scales.items())
    return [f"Attack losses saw the outputs at the scale s of each network: {'; '.join(told)}."]


def escape(text: str) -> str:
    """Text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
