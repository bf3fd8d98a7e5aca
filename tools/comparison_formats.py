"""A comparison as Markdown, LaTeX, CSV and a figure's panels, with what its reader must know."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.comparison import MCE, MEAN, MEAN_OF_OTHERS, Table, Texts, Value, describe
from utils.figures.comparison import Panel
from utils.storage.conditions import PGD_ALONE
from utils.text import markdown_table, printable


def cell_text(value: Value | None) -> str:
    """`93.6 [91.2, 95.4]`; in a row of seeds `93.6 ± 0.4 [91.2, 95.4] (3)`."""
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
    rows = [["", *table.columns.values()]]
    for name, values in table.rows.items():
        rows.append([name, *(cell_text(values.get(column)) for column in table.columns)])
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
        header, *rows = [" & ".join(map(escape, row)) + r" \\" for row in text_rows(table)]
        parts += [
            r"\begin{table}",
            r"\centering",
            r"\caption{" + escape(" ".join(about)) + "}",
            r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
            *(r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"} | {"±": r"$\pm$"}
    return "".join(special.get(character, character) for character in text)


def csv_table(tables: Sequence[Table]) -> tuple[list[str], list[list[Any]]]:
    """The header, and a line per value: row, measure, interval, image count, conditions, file."""
    conditions = [column.conditions for table in tables for column in table.columns]
    aspects = list(dict.fromkeys(aspect for texts in conditions for aspect, _ in texts))
    titles = ["run", "measure", "percent", "low95", "high95", "std", "seeds", "n", *aspects, "file"]
    rows: list[list[Any]] = []
    for name, column, value in (entry for table in tables for entry in table.values):
        spread = "" if value.spread is None else value.spread
        numbers = [value.percent, *(value.interval or ("", "")), spread, value.seeds or 1, value.n]
        texts = [column.condition(aspect) for aspect in aspects]
        rows.append([name, column.measure, *numbers, *texts, str(value.source)])
    return titles, rows


def panels_of(tables: Sequence[Table]) -> list[Panel]:
    """The figure's panels: accuracies of each table, then mCE, where less is better."""
    panels = []
    for table in tables:
        for axis, is_error in (("top-1 accuracy (%)", False), ("mCE (%), less is better", True)):
            columns = [
                (title, {name: row[column] for name, row in table.rows.items() if column in row})
                for column, title in table.columns.items()
                if (column.measure == MCE) == is_error
            ]
            if columns:
                panels.append(Panel(table.title, axis, columns, is_share=not is_error))
    return panels


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
