"""A comparison as Markdown, LaTeX, CSV and a figure's panels, with what its reader must know."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from tools.comparison import CORRUPTIONS, MCE, MEAN, MEAN_OF_OTHERS, Column, Row, Table
from tools.paired import ALPHA, not_told_from_best
from utils.figures.comparison import ACCURACY, DIFFERENCE, ERROR, Panel
from utils.storage.conditions import PGD_ALONE
from utils.text import markdown_table, printable

CAPTION = 300  # characters, at most


def cell_text(row: Row, column: Column) -> str:
    """`93.6 [91.2, 95.4]`; in a row of seeds `93.6 ± 0.4 [91.2, 95.4] (3)`.

    An effect is `+3.6 [1.2, 5.4], p = 0.02`.
    """
    value = row.values.get(column)
    if value is None:
        return "-"
    text = f"{value.percent:+.1f}" if row.is_effect else f"{value.percent:.1f}"
    if value.spread is not None:
        text += f" ± {value.spread:.1f}"
    if value.interval:
        text += f" [{value.interval[0]:.1f}, {value.interval[1]:.1f}]"
    if value.members:
        text += f" ({len(value.members)})"
    if value.p is not None:
        text += ", p < 0.001" if value.p < 0.001 else f", p = {value.p:.2g}"
    return text


def text_rows(table: Table, transposed: bool) -> list[list[str]]:
    """The header, then each row, as texts; or a row for each column."""
    rows = [["", *table.columns.values()]]
    rows += [
        [row.name, *(cell_text(row, column) for column in table.columns)] for row in table.rows
    ]
    return [list(row) for row in zip(*rows, strict=True)] if transposed else rows


def markdown(tables: Sequence[Table], notes: Sequence[str], transposed: bool) -> str:
    """Markdown tables, and the notes below them."""
    lines: list[str] = []
    for table in tables:
        lines += [f"**{table.title}**", ""] if table.title else []
        header, *rows = text_rows(table, transposed)
        lines += [markdown_table(header, rows, numbers=True), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def latex(tables: Sequence[Table], name: str, transposed: bool) -> str:
    """LaTeX tables for `booktabs`; conditions and notes stand in NAME.md.

    In bold is what the exact paired test does not tell from the best of its column.
    """
    parts = []
    for number, table in enumerate(tables, 1):
        bold, why_not = not_told_from_best(table)
        seeds = {len(value.members) for _, _, value in table.entries}
        same = f" ({seeds.pop()})" if len(seeds) == 1 else "\n"  # said in the caption
        texts = text_rows(table, transposed)
        lines = [[escape(cell.replace(same, "")) for cell in row] for row in texts]
        names = [row.name for row in table.rows]
        for row, column in bold:
            at = names.index(row) + 1, [*table.columns].index(column) + 1
            y, x = reversed(at) if transposed else at
            value, _, rest = lines[y][x].partition(" ")
            lines[y][x] = rf"\textbf{{{value}}} {rest}".rstrip()
        header, *rows = [" & ".join(row) + r" \\" for row in lines]
        effects = sum(row.is_effect for row in table.rows)
        if effects and not transposed:
            rows.insert(-effects, r"\midrule")
        label = re.sub(r"[^A-Za-z0-9.-]+", "-", name) + (f"-{number}" if number > 1 else "")
        wide = [r"\small", r"\setlength{\tabcolsep}{3pt}"] if len(lines[0]) > 8 else []
        parts += [
            f"% conditions and notes: {name}.md",
            *(f"% {printable(text)}" for text in why_not),
            r"\begin{table}",
            *(r"\centering", *wide),
            r"\caption{" + caption(table, any_bold=bool(bold)) + "}",
            rf"\label{{tab:{label}}}",
            r"\begin{tabular}{l" + "r" * (len(lines[0]) - 1) + "}",
            *(r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def caption(table: Table, any_bold: bool) -> str:
    """What the cells are and what all columns share, in LaTeX; what fits of it."""
    values = [value for _, _, value in table.entries]
    what = "Top-1 accuracy in %"
    if any(value.spread is not None for value in values):
        seeds = {len(value.members) for value in values}
        what += (
            f", mean ± standard deviation over {seeds.pop() if len(seeds) == 1 else '(n)'} seeds"
        )
    if any(value.interval for value in values):
        what += ", in brackets 95 % intervals over images"
    parts = [f"{what}."]
    for aspect, word in (("protocol", "Protocol"), ("eps", "Radius")):
        texts = {column.condition(aspect) for column in table.columns} - {""}
        parts += [f"{word} {text}." for text in texts if len(texts) == 1]
    if any_bold:
        test = f"(p ≥ {ALPHA}, uncorrected)"
        parts.append(f"Bold: not told from the best by the exact paired test {test}.")
    effect = "in points, bootstrap intervals, p after Holm"
    parts += [f"{row.name}: {effect}." for row in table.rows if row.is_effect]
    parts += ["mCE: less is better."] * any(column.measure == MCE for column in table.columns)
    parts += [f"Of {table.title}."] if table.title else []
    text = ""
    for part in map(escape, parts):
        text += f" {part}" if len(text) + len(part) < CAPTION - 1 else ""
    return text.strip()


def escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"±": r"$\pm$", "≥": r"$\geq$", "<": "$<$", ">": "$>$"}
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    special["−"] = "$-$"
    return "".join(special.get(character, character) for character in text)


def csv_table(tables: Sequence[Table]) -> tuple[list[str], list[list[Any]]]:
    """The header, and a line per value: row, measure, interval, image count, conditions, file."""
    conditions = [
        pair for table in tables for column in table.columns for pair in column.conditions
    ]
    aspects = list(dict.fromkeys(aspect for aspect, text in conditions if text))
    titles = ["run", "measure", "percent", "low95", "high95", "std", "seeds", "n", "p"]
    rows: list[list[Any]] = []
    for row, column, value in (entry for table in tables for entry in table.entries):
        numbers = [value.percent, *(value.interval or (None, None)), value.spread]
        counts = [len(value.members) or 1, column.n, value.p]
        texts = [column.condition(aspect) for aspect in aspects]
        rows.append([row.name, column.measure, *numbers, *counts, *texts, value.source])
    return [*titles, *aspects, "file"], rows


def panels_of(tables: Sequence[Table], of_effect: bool) -> list[Panel]:
    """A figure's panels: for each table accuracies and mCE, or the effect on accuracies."""

    def belongs(column: Column, axis: str) -> bool:
        if axis == ACCURACY and column.kind == CORRUPTIONS:
            return False
        return (column.measure == MCE) == (axis == ERROR)

    panels = []
    for table, axis in product(tables, (DIFFERENCE,) if of_effect else (ACCURACY, ERROR)):
        rows = [row for row in table.rows if row.is_effect == of_effect]
        measures = [
            (title, {row.name: row.values[column] for row in rows if column in row.values})
            for column, title in table.columns.items()
            if belongs(column, axis)
        ]
        if shown := [(title, values) for title, values in measures if values]:
            panels.append(Panel(table.title, axis, shown))
    return panels


def condition_notes(table: Table) -> list[str]:
    """Under which conditions each column was taken."""
    alike: dict[str, dict[str, None]] = {}
    for column in table.columns:
        aspects = [aspect for aspect, _ in column.conditions if aspect != "image list"]
        alike.setdefault("; ".join(column.describe(aspects)), {})[column.title] = None
    return [f"{', '.join(titles)}: {conditions}." for conditions, titles in alike.items()]


def reading_notes(tables: Sequence[Table], rows: Sequence[Row]) -> list[str]:
    """What the numbers are, and what casts doubt on those of these rows."""
    entries = [entry for table in tables for entry in table.entries]
    measures = {column.measure for _, column, _ in entries}
    lines = ["Top-1 accuracy in %, in brackets its 95 % Wilson interval."]
    if any(value.spread is not None for _, _, value in entries):
        lines.append(
            "a ± b [c, d] (n): mean and standard deviation (n - 1) over the trainings of n seeds,"
            " and the mean's interval over the images; (1): of one seed."
        )
    for measure in sorted(measures & {MEAN, MEAN_OF_OTHERS}):
        lines.append(
            f"{measure}: over ImageNet-C's 15; 100 minus it is the unnormalised error. Its interval"
            " counts images, not image x corruption: conservative."
        )
    if any(column.title == "Worst of PGD" for _, column, _ in entries):
        lines.append(f"Worst of PGD: {PGD_ALONE}.")
    if MCE in measures:
        lines.append("mCE in %, less is better, AlexNet is 100; it has no simple interval.")
    about: dict[tuple[str, str], list[str]] = {}
    for name, remark in ((row.name, remark) for row in rows for remark in row.remarks):
        about.setdefault(remark, []).append(name)
    return lines + [f"{kind}, {', '.join(n)}: {printable(t)}" for (kind, t), n in about.items()]
