"""One table and one figure over the evaluations of several runs.

    python -m tools.compare trained_models/RUN_A trained_models/RUN_B
    python -m tools.compare A/attack_standard.json B/attack_standard.json --names Free HE -o out/
    python -m tools.compare PLAIN HE --paired                 # and HE minus PLAIN, with a test
    python -m tools.compare RUN* --paired PLAIN HE --columns clean,pgd50-margin,worst --transposed

Each RUN_OR_JSON is a run folder, which means every evaluation in it, or one evaluation's JSON. A
row is a checkpoint, or the runs that differ in their seed alone (mean ± standard deviation); a
column is a measure: clean, each attack, worst case, mean over ImageNet-C's 15 corruptions, mCE; the
single corruptions have a table of their own.
Written are STEM.md, .csv, .tex, .png and .pdf; the Markdown is printed too. With --paired,
once for each pair, the second row minus the first is a row, and a figure STEM_effect.png and .pdf.
In LaTeX the conditions stay in STEM.md, and what an exact paired test does not tell from the best
is bold.

Numbers share a column only where protocol, eps, arithmetic of the search, settings of the attack
and images agree, and columns name what distinguishes them. Columns over fewer images stand in a
table of their own. Runs that measured something under different conditions are refused (exit
status 2), or given a column each by --allow_mixed.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools import comparison_formats as formats
from tools.comparison import (
    Column,
    Row,
    Value,
    build_tables,
    collect,
    columns_in_order,
    merge_seeds,
    refuse_mixture,
    squeezed,
)
from tools.paired import effects
from utils.config.command_line import checked, tool_parser, user_path
from utils.config.validators import list_of
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.figures import style
from utils.figures.comparison import comparison
from utils.storage.files import atomic_write, make_folder, write_csv
from utils.storage.results import find_results
from utils.text import printable

# Results that others have published, with the conditions under which they were taken.
PUBLISHED = Path(__file__).with_name("published_results.json")
ARCHIVE = "matchedfrequencyformatval"  # what ImageNet-V2's folder is called beyond its name


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: compare(parse(argv)))


def compare(arguments: argparse.Namespace) -> None:
    """Print the table and write it."""
    runs = arguments.runs or [user_path(name) for pair in arguments.paired for name in pair]
    if not runs:
        raise UserError("which runs? Give run folders or results of evaluate.py")
    rows = merge_seeds(collect(find_results(runs)))
    columns = columns_in_order(rows, arguments.columns)
    for row, name in zip(rows, row_names(rows, arguments.names), strict=True):
        row.name = printable(name)
        row.values = {column: row.values[column] for column in columns if column in row.values}
    if not arguments.allow_mixed:
        refuse_mixture(rows)
    others: list[Row] = []
    notes: list[str] = []
    if arguments.published:
        others, notes = published_rows(columns)
    if arguments.paired:
        differences, tests = effects(arguments.paired, rows)
        others, notes = [*others, *differences], [*notes, *tests]
    tables = build_tables([*rows, *others], columns)
    conditions = (note for table in tables for note in formats.condition_notes(table))
    notes = [*conditions, *formats.reading_notes(tables, rows), *notes]
    text = formats.markdown(tables, notes, arguments.transposed)
    print(text, end="")
    stem = arguments.output
    make_folder(stem.parent)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("md", "csv", "tex")]
    atomic_write(paths[0], text)
    write_csv(paths[1], *formats.csv_table(tables))
    atomic_write(paths[2], formats.latex(tables, stem.name, arguments.transposed))
    for of_effect, name in ((False, stem.name), (True, f"{stem.name}_effect")):
        if panels := formats.panels_of(tables, of_effect):
            paths += style.save_figure(comparison(panels), stem.with_name(name))
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = tool_parser("compare", __doc__)
    add = parser.add_argument
    add("runs", metavar="RUN_OR_JSON", nargs="*", type=user_path)
    place = "folder (there, or ending in /), or path without suffix (default: %(default)s)"
    add("-o", "--output", metavar="STEM", default="comparison", type=output_stem, help=place)
    add("--names", nargs="+", metavar="NAME", help="a name per row, in order")
    mixed = "give numbers that do not compare a column each, with what differs in its title"
    add("--allow_mixed", action="store_true", help=mixed)
    others = "add published results, in columns of the same conditions alone"
    add("--published", action="store_true", help=others)
    pair = "second row minus first, with an exact test; each a name, a run folder or a JSON"
    alone = "alone: the two given; repeatable"
    add("--paired", nargs="*", metavar="ROW", action="append", default=[], help=f"{pair}; {alone}")
    those = "columns in this order: clean, worst, mce, names of attacks, corruptions"
    add("--columns", type=checked(list_of(str)), metavar="C,C", help=those)
    add("--transposed", action="store_true", help="a row for each measure, in .md and .tex")
    return parser.parse_args(argv)


def row_names(rows: Sequence[Row], given: Sequence[str] | None) -> list[str]:
    """A distinct name per row: those given, else the run's and, where needed, the checkpoint's."""
    if given is not None:
        return style.run_labels([row.folder / row.file for row in rows], given)
    folders = list(dict.fromkeys(row.folder for row in rows))
    labels = dict(zip(folders, style.run_labels(folders), strict=True))
    names = [labels[row.folder] for row in rows]
    # A file's content may have changed between two evaluations of it.
    for part in (lambda row: f" ({row.file})", lambda row: f" {row.sha256[:8]}"):
        counts, pairs = Counter(names), zip(names, rows, strict=True)
        names = [name + part(row) if counts[name] > 1 else name for name, row in pairs]
    return [style.label_of_seeds(name, row.seeds) for name, row in zip(names, rows, strict=True)]


def published_rows(columns: Sequence[Column]) -> tuple[list[Row], list[str]]:
    """The published values that stand in these columns, and notes on all that there are."""
    rows, sources, elsewhere = [], [], []
    for published in json.loads(PUBLISHED.read_text(encoding="utf-8"))["rows"]:
        row = Row({}, published["name"])
        absent: dict[str, None] = {}
        for entry in published["values"]:
            measure, conditions = squeezed(entry["measure"]), entry["conditions"].items()
            alike = [
                column
                for column in columns
                if column.n == entry["n"]
                and squeezed(column.measure).replace(ARCHIVE, "") == measure
                and conditions <= dict(column.conditions).items()
            ]
            value = Value(percent=entry["percent"], source=published["source"])
            row.values |= dict.fromkeys(alike, value)
            if not alike:
                eps = entry["conditions"].get("eps")
                absent[entry["measure"] + (f" at eps {eps}" if eps else "")] = None
        if row.values:
            rows.append(row)
            sources.append(f"{row.name}: published, {published['source']}.")
        elsewhere += [f"{row.name}: {', '.join(absent)}"] if absent else []
    if elsewhere:
        sources.append(f"Published, but of no column's conditions: {'; '.join(elsewhere)}.")
    return rows, sources


def output_stem(text: str) -> Path:
    """argparse type: the path of the files without suffix; a stem such as `s10.0` has none."""
    if text.endswith("/") or user_path(text).is_dir():
        return user_path(text) / "comparison"
    return user_path(re.sub(r"\.(md|csv|tex|png|pdf)$", "", text))


if __name__ == "__main__":
    sys.exit(main())
