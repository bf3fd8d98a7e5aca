"""A comparison as Markdown, LaTeX and CSV, with what must be known to read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.comparison_table import Table, describe
from tools.comparison_values import MCE, MEAN, MEAN_OF_OTHERS, Conditions, Value
from utils.text import markdown_table


def cell_text(value: Value | None) -> str:
    """`93.6 [91.2, 95.4]`; in a row of seeds `93.6 ± 0.4 (3)`, or with its interval and `(1)`.

    A dash where a row has no such value.
    """
    if value is None:
        return "-"
    text = f"{value.percent:.1f}"
    if value.spread is not None:
        text += f" ± {value.spread:.1f}"
    if value.interval:
        text += f" [{value.interval[0]:.1f}, {value.interval[1]:.1f}]"
    return text + (f" ({value.seeds})" if value.seeds else "")


def text_rows(table: Table) -> list[list[str]]:
    """The header, then each row, as texts."""
    rows = [["", *table.headers()]]
    for name in table.names:
        rows.append([name, *(cell_text(table.cells.get((name, c))) for c in table.columns)])
    return rows


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Markdown tables, and the notes below them."""
    lines: list[str] = []
    for table in tables:
        lines += [f"**{table.title}**", ""] if table.title else []
        header, *rows = text_rows(table)
        lines += [markdown_table(header, rows, numbers=True), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """LaTeX tables for the `booktabs` package; the conditions stand in the captions."""
    parts = []
    for index, table in enumerate(tables):
        about = [f"Images: {table.title}."] if table.title else []
        about += [*condition_notes(table), *(notes if index == 0 else [])]
        lines = [" & ".join(map(escape, row)) + r" \\" for row in text_rows(table)]
        parts += [
            r"\begin{table}",
            r"\centering",
            r"\caption{" + escape(" ".join(about)) + "}",
            r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def csv_table(tables: Sequence[Table]) -> tuple[list[str], list[list[Any]]]:
    """The header, and a line per value: row, measure, interval, image count, conditions, file."""
    columns = [column for table in tables for column in table.columns]
    aspects = list(dict.fromkeys(aspect for column in columns for aspect, _ in column.conditions))
    titles = ["run", "measure", "percent", "low95", "high95", "std", "seeds", "n", *aspects, "file"]
    rows: list[list[Any]] = []
    for table in tables:
        for name in table.names:
            for column in table.columns:
                if value := table.cells.get((name, column)):
                    spread = "" if value.spread is None else value.spread
                    numbers = [value.percent, *(value.interval or ("", "")), spread]
                    conditions = [column.condition(aspect) for aspect in aspects]
                    about = [value.seeds or 1, value.n, *conditions, str(value.source)]
                    rows.append([name, column.measure, *numbers, *about])
    return titles, rows


def condition_notes(table: Table) -> list[str]:
    """Under which conditions each column was taken."""
    alike: dict[Conditions, dict[str, None]] = {}
    for column in table.columns:
        alike.setdefault(column.conditions, {})[column.measure] = None
    lines = []
    for conditions, measures in alike.items():
        aspects = [aspect for aspect, _ in conditions if aspect != "image list"]
        lines.append(f"{', '.join(measures)}: {'; '.join(describe(conditions, aspects))}.")
    return lines


def reading_notes(tables: Sequence[Table], warnings: Mapping[str, Iterable[str]]) -> list[str]:
    """What the numbers are, and what casts doubt on them."""
    values = [value for table in tables for value in table.cells.values()]
    measures = {value.column.measure for value in values}
    lines = ["Top-1 accuracy in %, in brackets its 95 % Wilson interval."]
    if any(value.spread is not None for value in values):
        lines.append(
            "a ± b (n): mean and standard deviation over the trainings of n seeds; (1): of one."
        )
    for measure in sorted(measures & {MEAN, MEAN_OF_OTHERS}):
        lines.append(
            f"{measure}: over ImageNet-C's 15; 100 minus it is the unnormalised error. Its interval"
            " counts images, not image x corruption: conservative."
        )
    if MCE in measures:
        lines.append("mCE in %, less is better, AlexNet is 100; it has no simple interval.")
    doubtful: dict[str, list[str]] = {}
    for name, each in warnings.items():
        for text in each:
            doubtful.setdefault(text, []).append(name)
    cautions = [f"Warning, {', '.join(names)}: {text}" for text, names in doubtful.items()]
    return [*lines, *scale_notes(tables), *cautions]


def scale_notes(tables: Sequence[Table]) -> list[str]:
    """At which scale of the outputs each row was attacked, where they are not all alike."""
    scales: dict[str, set[float]] = {}
    for table in tables:
        for (name, _), value in table.cells.items():
            if value.scale is not None:
                scales.setdefault(name, set()).add(value.scale)
    if len({frozenset(each) for each in scales.values()}) < 2:
        return []
    texts = (f"{name} {', '.join(f'{s:g}' for s in sorted(each))}" for name, each in scales.items())
    return [f"Attack losses saw the outputs at the scale s of each network: {'; '.join(texts)}."]


def escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"±": r"$\pm$"}
    return "".join(special.get(character, character) for character in text)
