"""A comparison as Markdown, LaTeX, CSV and a figure's panels, with what its reader must know."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.comparison import (
    CORRUPTIONS,
    MCE,
    MEAN,
    MEAN_OF_OTHERS,
    Effect,
    Texts,
    Value,
)
from tools.comparison_layout import Table, describe
from tools.paired import ALPHA, not_told_from_best
from utils.figures.comparison import Panel
from utils.storage.conditions import PGD_ALONE
from utils.text import markdown_table, printable

CAPTION = 300  # characters, at most


def cell_text(value: Value | None) -> str:
    """`93.6 [91.2, 95.4]`; in a row of seeds `93.6 ± 0.4 [91.2, 95.4] (3)`.

    An effect is `+3.6 [1.2, 5.4], p = 0.02`.
    """
    if value is None:
        return "-"
    text = f"{value.percent:+.1f}" if isinstance(value, Effect) else f"{value.percent:.1f}"
    if value.spread is not None:
        text += f" ± {value.spread:.1f}"
    if value.interval:
        text += f" [{value.interval[0]:.1f}, {value.interval[1]:.1f}]"
    text += f" ({value.seeds})" if value.seeds else ""
    if not isinstance(value, Effect) or value.p is None:
        return text
    return text + (", p < 0.001" if value.p < 0.001 else f", p = {value.p:.2g}")


def text_rows(table: Table, transposed: bool) -> list[list[str]]:
    """The header, then each row, as texts; or a row for each column."""
    rows = [["", *table.columns.values()]]
    for name, values in {**table.rows, **table.effect}.items():
        rows.append([name, *(cell_text(values.get(column)) for column in table.columns)])
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
        seeds = {value.seeds for _, _, value in table.values}
        same = f" ({seeds.pop()})" if len(seeds) == 1 else "\n"  # said in the caption
        texts = text_rows(table, transposed)
        lines = [[escape(cell.replace(same, "")) for cell in row] for row in texts]
        for row, column in bold:
            at = [*table.rows].index(row) + 1, [*table.columns].index(column) + 1
            y, x = reversed(at) if transposed else at
            value, _, rest = lines[y][x].partition(" ")
            lines[y][x] = rf"\textbf{{{value}}} {rest}".rstrip()
        header, *rows = [" & ".join(row) + r" \\" for row in lines]
        if table.effect and not transposed:
            rows.insert(-1, r"\midrule")
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
    values = [value for _, _, value in table.values]
    what = "Top-1 accuracy in %"
    seeds = {str(value.seeds) for value in values}
    over = f" ± standard deviation over {seeds.pop() if len(seeds) == 1 else '(n)'} seeds"
    what += f", mean{over}" * any(value.spread is not None for value in values)
    what += ", in brackets 95 % intervals over images" * any(v.interval is not None for v in values)
    parts = [f"{what}."]
    for aspect, word in (("protocol", "Protocol"), ("eps", "Radius")):
        texts = {column.condition(aspect) for column in table.columns} - {""}
        parts += [f"{word} {text}." for text in texts if len(texts) == 1]
    if any_bold:
        parts.append(f"Bold: not told from the best by the exact paired test (p ≥ {ALPHA}).")
    parts += [f"{name}: in points." for name in table.effect]
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
    conditions = [column.conditions for table in tables for column in table.columns]
    aspects = list(dict.fromkeys(aspect for texts in conditions for aspect, _ in texts))
    titles = ["run", "measure", "percent", "low95", "high95", "std", "seeds", "n", "p"]
    titles += [*aspects, "file"]
    rows: list[list[Any]] = []
    for name, column, value in (entry for table in tables for entry in table.values):
        spread = "" if value.spread is None else value.spread
        numbers = [value.percent, *(value.interval or ("", "")), spread, value.seeds or 1, value.n]
        texts = [column.condition(aspect) for aspect in aspects]
        p = value.p if isinstance(value, Effect) else None
        rows.append([name, column.measure, *numbers, "" if p is None else p, *texts, value.source])
    return titles, rows


def panels_of(tables: Sequence[Table]) -> list[Panel]:
    """The figure's panels: accuracies of each table, then mCE, where less is better."""
    panels = []
    for table in tables:
        for axis, is_error in (("top-1 accuracy (%)", False), ("mCE (%), less is better", True)):
            columns = [
                (title, {name: row[column] for name, row in table.rows.items() if column in row})
                for column, title in table.columns.items()
                if (column.measure == MCE) == is_error and column.kind != CORRUPTIONS
            ]
            if columns:
                panels.append(Panel(table.title, axis, columns, is_share=not is_error))
    return panels


def effect_panels(tables: Sequence[Table]) -> list[Panel]:
    """The panels of the effect: differences of accuracies."""
    return [
        Panel(
            table.title,
            "difference of top-1 accuracy (points)",
            [
                (title, {name: row[column] for name, row in table.effect.items()})
                for column, title in table.columns.items()
                if column.measure != MCE and any(column in row for row in table.effect.values())
            ],
            is_difference=True,
        )
        for table in tables
        if table.effect
    ]


def condition_notes(table: Table) -> list[str]:
    """Under which conditions each column was taken."""
    alike: dict[Texts, dict[str, None]] = {}
    for column in table.columns:
        alike.setdefault(column.conditions, {})[column.title] = None
    lines = []
    for conditions, measures in alike.items():
        aspects = [aspect for aspect, _ in conditions if aspect != "image list"]
        lines.append(f"{', '.join(measures)}: {'; '.join(describe(conditions, aspects))}.")
    return lines


def reading_notes(
    tables: Sequence[Table], remarks: Mapping[str, Iterable[tuple[str, str]]]
) -> list[str]:
    """What the numbers are, and what casts doubt on them."""
    entries = [entry for table in tables for entry in table.values]
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
    scales: dict[str, list[str]] = {}
    for name, scale in sorted({(n, v.scale) for n, _, v in entries if v.scale is not None}):
        scales.setdefault(name, []).append(f"{scale:g}")
    if len(set(map(tuple, scales.values()))) > 1:
        texts = "; ".join(f"{name} {', '.join(each)}" for name, each in scales.items())
        lines.append(f"Attack losses saw the outputs at the scale s of each network: {texts}.")
    about: dict[tuple[str, str], list[str]] = {}
    for name, remark in ((name, remark) for name, each in remarks.items() for remark in each):
        about.setdefault(remark, []).append(name)
    return lines + [f"{kind}, {', '.join(n)}: {printable(t)}" for (kind, t), n in about.items()]
