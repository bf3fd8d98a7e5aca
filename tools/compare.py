"""One table and one figure over the evaluations of several runs.

    python -m tools.compare trained_models/RUN_A trained_models/RUN_B
    python -m tools.compare A/attack_standard.json B/attack_standard.json --names Free HE -o out/
    python -m tools.compare RUN_A RUN_B --published --paired RUN_A RUN_B

Each RUN_OR_JSON is a run folder, which means every evaluation in it, or one evaluation's JSON. A
row is a checkpoint, or the runs that differ in their seed alone (mean ± standard deviation); a
column is a measure: clean, each attack, worst case, mean over ImageNet-C's 15 corruptions, mCE.
Written are STEM.md, .csv, .tex, .png and .pdf; the Markdown is printed too.

Numbers share a column only where protocol, eps, arithmetic of the search, settings of the attack
and images agree, and columns name what distinguishes them. Columns over fewer images stand in a
table of their own. Runs that measured something under different conditions are refused (exit
status 2), or given a column each by --allow_mixed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.comparison_formats import condition_notes, csv_table, latex, markdown, reading_notes
from tools.comparison_seeds import Line, merge_seeds
from tools.comparison_table import Table, build_tables
from tools.comparison_values import MCE, Value, collect, row_of
from tools.paired import paired_lines
from tools.published import published_rows
from utils.config.command_line import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.figures.comparison import Panel, comparison
from utils.figures.style import run_labels, save_figure
from utils.storage.files import atomic_write, make_folder, write_csv
from utils.storage.results import Result, find_results
from utils.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: compare(parse(argv)))


def compare(arguments: argparse.Namespace) -> None:
    """Print the table and write it.

    Raises:
        UserError: a run is missing, or the evaluations do not compare.
    """
    results = find_results(arguments.runs)
    lines = merge_seeds(collect(results))
    names = row_names(lines, arguments.names)
    rows = {name: line.values for name, line in zip(names, lines, strict=True)}
    published: dict[str, list[Value]] = {}
    about: list[str] = []
    if arguments.published:
        columns = {value.column: None for values in rows.values() for value in values}
        published, about = published_rows(columns)
    tables = build_tables(rows, published, arguments.allow_mixed)
    notes = [*reading_notes(tables, line_warnings(lines, names, results)), *about]
    if arguments.paired:
        notes += paired_lines(arguments.paired, rows)
    text = markdown(tables, [*(n for table in tables for n in condition_notes(table)), *notes])
    print(text, end="")
    written = write(tables, text, notes, output_stem(arguments.output))
    print(f"written: {', '.join(str(path) for path in written)}", file=sys.stderr)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = tool_parser("compare", __doc__)
    add = parser.add_argument
    add("runs", metavar="RUN_OR_JSON", nargs="+", type=user_path)
    place = "folder (there, or ending in /) for comparison.*, or path without suffix (default:"
    place += " %(default)s, in the current folder)"
    kind, stem = os.path.expanduser, "comparison"
    add("-o", "--output", metavar="DIR_OR_STEM", default=stem, type=kind, help=place)
    add("--names", nargs="+", metavar="NAME", help="a name per row, in order")
    mixed = "give numbers that do not compare a column each, with what differs in its title"
    add("--allow_mixed", action="store_true", help=mixed)
    others = "add published results, in columns of the same conditions alone"
    add("--published", action="store_true", help=others)
    pair = "McNemar's exact test between two rows, each a name, a run folder or a JSON"
    add("--paired", nargs=2, metavar="ROW", help=pair)
    return parser.parse_args(argv)


def row_names(lines: Sequence[Line], given: Sequence[str] | None) -> list[str]:
    """A distinct name per row: those given, else the run's and, where needed, the checkpoint's.

    Raises:
        UserError: another number of names than of rows, or one twice.
    """
    if given is None:
        return [printable(name) for name in own_names(lines)]
    if len(given) != len(lines):
        found = ", ".join(
            f"{r.folder.name} ({r.checkpoint})" for r in (x.members[0] for x in lines)
        )
        raise UserError(f"--names has {len(given)} names for {len(lines)} rows: {found}")
    if len(set(given)) < len(given):
        raise UserError("--names has one name twice; give each row its own")
    return [printable(name) for name in given]


def own_names(lines: Sequence[Line]) -> list[str]:
    """Names after the run folders."""
    rows = [line.members[0] for line in lines]
    folders = list(dict.fromkeys(row.folder for row in rows))
    labels = dict(zip(folders, run_labels(folders), strict=True))
    per_folder = Counter(row.folder for row in rows)
    per_file = Counter((row.folder, row.checkpoint) for row in rows)
    names = []
    for row, line in zip(rows, lines, strict=True):
        name = labels[row.folder]
        if per_folder[row.folder] > 1:
            name += f" ({row.checkpoint})"
        if per_file[row.folder, row.checkpoint] > 1:  # the file was another one then
            name += f" {row.sha256[:8]}"
        if len(line.members) > 1:
            name = re.sub(r"(, seed |_seed)\d+", "", name) + f", {len(line.members)} seeds"
        names.append(name)
    return names


def line_warnings(
    lines: Sequence[Line], names: Sequence[str], results: Mapping[Path, Result]
) -> dict[str, dict[str, None]]:
    """What the evaluations of each row warned of, each warning once."""
    found: dict[str, dict[str, None]] = {name: {} for name in names}
    name_of = {row: name for name, line in zip(names, lines, strict=True) for row in line.members}
    for path, result in results.items():
        found[name_of[row_of(path, result)]] |= dict.fromkeys(map(printable, result.warnings))
    return found


def output_stem(output: str) -> Path:
    """The path of the files without suffix."""
    if output.endswith("/") or Path(output).is_dir():
        return Path(output) / "comparison"
    path = Path(output)
    # Not with_suffix(""): a stem such as `s10.0` has no suffix to drop.
    known = path.suffix in (".md", ".csv", ".tex", ".png", ".pdf")
    return path.with_suffix("") if known else path


def write(tables: Sequence[Table], text: str, notes: Sequence[str], stem: Path) -> list[Path]:
    """Write the tables in three formats and the figure in two."""
    make_folder(stem.parent)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("md", "csv", "tex")]
    atomic_write(paths[0], text)
    write_csv(paths[1], *csv_table(tables))
    atomic_write(paths[2], latex(tables, notes))
    return paths + save_figure(comparison(panels_of(tables)), stem)


def panels_of(tables: Sequence[Table]) -> list[Panel]:
    """The figure's panels: accuracies of each table, then mCE, where less is better."""
    panels = []
    for table in tables:
        for axis, is_error in (("top-1 accuracy (%)", False), ("mCE (%), less is better", True)):
            columns = [
                (title, {n: table.cells[n, c] for n in table.names if (n, c) in table.cells})
                for title, c in zip(table.headers(), table.columns, strict=True)
                if (c.measure == MCE) == is_error
            ]
            if columns:
                panels.append(Panel(table.title, axis, columns, is_share=not is_error))
    return panels


if __name__ == "__main__":
    sys.exit(main())
