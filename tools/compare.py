"""One table and one figure over the evaluations of several runs.

    python -m tools.compare trained_models/RUN_A trained_models/RUN_B
    python -m tools.compare A/attack_standard.json B/attack_standard.json --names Free HE -o out/

Each RUN_OR_JSON is a run folder, which means every evaluation in it, or one evaluation's JSON. A
row is a checkpoint, a column a measure: clean, each attack, worst case, mean over ImageNet-C's 15
corruptions, mCE. Written are STEM.md, .csv, .tex, .png and .pdf; the Markdown is printed too.

Numbers share a column only where protocol, eps, arithmetic of the search, settings of the attack
and images agree. Runs that have a measure but never alike are refused (exit status 2), or given a
column each by --allow_mixed, which names in its title what differs.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.comparison_formats import comma_separated, latex, markdown
from utils.config.parser import OneLineParser
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.comparison import Table, build_table
from utils.storage.files import atomic_write, make_folder
from utils.storage.results import Row, Value, collect, collect_warnings, find_evaluations


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: compare(parse(argv)))


def compare(arguments: argparse.Namespace) -> None:
    """Print the table and write it.

    Raises:
        UserError: a run is missing, or the evaluations do not compare.
    """
    evaluations = find_evaluations(arguments.runs)
    rows, warnings = collect(evaluations), collect_warnings(evaluations)
    names = row_names(rows, arguments.names)
    table = build_table(rows, names, warnings, arguments.allow_mixed)
    print(markdown(table), end="")
    written = write(table, output_stem(arguments.output))
    print(f"written: {', '.join(str(path) for path in written)}", file=sys.stderr)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments.

    Raises:
        UserError: a flag is wrong or a path is missing.
    """
    parser = OneLineParser(
        prog="python -m tools.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN_OR_JSON", nargs="+", type=Path)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR_OR_STEM",
        default="comparison",
        help="folder (there, or ending in /) for comparison.*, or path without suffix"
        " (default: %(default)s, in the current folder)",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="a name per row, in order")
    parser.add_argument(
        "--allow_mixed",
        action="store_true",
        help="give numbers that do not compare a column each, with what differs in its title",
    )
    return parser.parse_args(argv)


def row_names(rows: Mapping[Row, list[Value]], given: Sequence[str] | None) -> list[str]:
    """A distinct name per row: those given, else the run's and, where needed, the checkpoint's.

    Raises:
        UserError: another number of names than of rows, or one twice.
    """
    if given is None:
        from utils.figures.style import run_labels

        folders = list(dict.fromkeys(row.folder for row in rows))
        labels = dict(zip(folders, run_labels(folders), strict=True))
        per_folder = Counter(row.folder for row in rows)
        per_file = Counter((row.folder, row.checkpoint) for row in rows)
        names = []
        for row in rows:
            name = labels[row.folder]
            if per_folder[row.folder] > 1:
                name += f" ({row.checkpoint})"
            if per_file[row.folder, row.checkpoint] > 1:  # the file was another one then
                name += f" {row.sha256[:8]}"
            names.append(name)
        return names
    if len(given) != len(rows):
        found = ", ".join(f"{row.folder.name} ({row.checkpoint})" for row in rows)
        raise UserError(f"--names has {len(given)} names for {len(rows)} rows: {found}")
    if len(set(given)) < len(given):
        raise UserError("--names has one name twice; give each row its own")
    return list(given)


def output_stem(output: str) -> Path:
    """The path of the files without suffix."""
    if output.endswith("/") or Path(output).is_dir():
        return Path(output) / "comparison"
    path = Path(output)
    # Not with_suffix(""): a stem such as `s10.0` has no suffix to drop.
    known = path.suffix in (".md", ".csv", ".tex", ".png", ".pdf")
    return path.with_suffix("") if known else path


def write(table: Table, stem: Path) -> list[Path]:
    """Write the table in three formats and the figure in two."""
    from utils.figures.comparison import comparison
    from utils.figures.style import save_figure

    make_folder(stem.parent)
    texts = {"md": markdown(table), "csv": comma_separated(table), "tex": latex(table)}
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        atomic_write(path, text)
    return paths + save_figure(comparison(table), stem)


if __name__ == "__main__":
    sys.exit(main())
