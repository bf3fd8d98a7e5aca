"""Figures from the files that runs leave. Each is written as PNG and as PDF.

    python -m tools.plot imagenet_c A.json B.json -o fig.png
    python -m tools.plot gradient_ratio RUN_A RUN_B -o fig.png
    python -m tools.plot training RUN -o fig.png
    python -m tools.plot robustness RUN_A RUN_B -o fig.png

imagenet_c takes results of `evaluate.py --eva_on_imagenet_c`, gradient_ratio run folders trained
with `--print_gradients True` (those that differ in their seed alone are drawn as mean and standard
deviation), training one run folder, robustness run folders that hold evaluations
at several eps, of seeds their mean and deviation. gradient_ratio and robustness write their numbers
too, as fig.csv.
Exit status 2 after an error.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from tools.comparison import seed_groups
from utils.config.command_line import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.figures import style
from utils.figures.evaluation import curves_of, imagenet_c, panels_of, robustness, weak_attack_signs
from utils.figures.training import gradient_ratio, mean_of_seeds, read_gradients, training_curves
from utils.storage.files import make_folder, write_csv
from utils.storage.results import ImageNetCResult, find_results
from utils.text import markdown_table


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: plot(parse(argv)))


def plot(arguments: argparse.Namespace) -> None:
    """Draw and save the figure."""
    paths = style.save_figure(arguments.draw(arguments), arguments.output, arguments.title)
    print(f"written: {', '.join(str(path) for path in paths)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; each figure is a command."""
    parser = tool_parser("plot", __doc__)
    figures = parser.add_subparsers(metavar="FIGURE", required=True)
    for name, draw, inputs, count, text in (
        ("imagenet_c", of_imagenet_c, "RUN_OR_JSON", "+", "accuracy per corruption and severity"),
        ("gradient_ratio", of_gradients, "RUN", "+", "adversarial over clean gradients"),
        ("training", lambda a: training_curves(*a.inputs), "RUN", 1, "loss, accuracy, rate"),
        ("robustness", of_robustness, "RUN_OR_JSON", "+", "accuracy against eps"),
    ):
        figure = figures.add_parser(name, help=text, description=text)
        add = figure.add_argument
        add("inputs", metavar=inputs, nargs=count, type=user_path)
        add("-o", "--output", required=True, metavar="PATH", type=user_path, help="fig or fig.png")
        add("--title", default="", help="text above the figure")
        figure.set_defaults(draw=draw)
        if name != "training":
            add("--labels", nargs="+", metavar="NAME", help="a name per input, or per its seeds")
        if name == "gradient_ratio":
            add("--epoch", type=int, metavar="N", help="from 1; default the last")
    return parser.parse_args(argv)


def of_imagenet_c(arguments: argparse.Namespace) -> Figure:
    """Curves and bars of one or more results."""
    found = find_results(arguments.inputs)
    results = {
        path: r for path, r in found.items() if isinstance(r, ImageNetCResult) and r.corruptions
    }
    for path in arguments.inputs:
        if path not in {*results, *(result.parent for result in results)}:
            raise UserError(f"{path} is no ImageNet-C result; make one with --eva_on_imagenet_c")
    labels = style.run_labels(list(results), arguments.labels)
    return imagenet_c(dict(zip(labels, results.values(), strict=True)))


def of_gradients(arguments: argparse.Namespace) -> Figure:
    """Gradient norm ratios of one or more runs; those of several seeds as their mean."""
    groups = seed_groups((run, None, run) for run in arguments.inputs)
    labels = style.run_labels([group[0] for group in groups], arguments.labels)
    runs = {}
    for label, group in zip(labels, groups, strict=True):
        seeds = [read_gradients(run, arguments.epoch) for run in group]
        runs[style.label_of_seeds(label, len(seeds))] = mean_of_seeds(seeds)
    header = ["run", "group", "epoch", "ratio", "std"]
    rows = [
        [label, row["group"], row["epoch"], row["ratio"], row.get("deviation", "")]
        for label, its in runs.items()
        for row in its
        if row["parameter"] == "all"
    ]
    shown = [[*row[:3], *(f"{float(x):.3f}" if x else "" for x in row[3:])] for row in rows]
    print(markdown_table(header, shown, numbers=True))
    write_numbers(arguments.output, header, rows)
    return gradient_ratio(runs)


def of_robustness(arguments: argparse.Namespace) -> Figure:
    """Robustness curves of every set of evaluations at several radii; of seeds their mean."""
    curves = curves_of(find_results(arguments.inputs))
    if not curves:
        raise UserError("no two evaluations differ in eps alone; evaluate with --eps 1,2,4,8")
    drawn = {path.resolve().parent for path in curves}
    for run in arguments.inputs:
        if run.is_dir() and run.resolve() not in drawn:
            print(f"warning: {run} is left out: no two eps are evaluated there", file=sys.stderr)
    groups = seed_groups(
        (path.resolve().parent, replace(curve[-1].conditions, checkpoint=""), path)
        for path, curve in curves.items()
    )
    labels = style.run_labels([group[0] for group in groups], arguments.labels)
    seeds = {
        style.label_of_seeds(label, len(group)): [curves[path] for path in group]
        for label, group in zip(labels, groups, strict=True)
    }
    for label, curve in ((label, curve) for label, its in seeds.items() for curve in its):
        for warning in weak_attack_signs(curve):
            print(f"warning: {label}: {warning}", file=sys.stderr)
    header = ["run", "attack", "norm", "eps", "percent", "low95", "high95", "std", "seeds", "n"]
    rows = []
    for label, its in seeds.items():
        counts = len(its), its[0][0].clean.top1.n
        for (norm, attack), panel in panels_of(seeds).items():
            for eps, top1 in panel.get(label, ()):
                numbers = [eps, top1.percent, *(top1.interval or ("", "")), top1.spread, *counts]
                rows.append([label, attack, norm, *numbers])
    write_numbers(arguments.output, header, rows)
    return robustness(seeds)


def write_numbers(output: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The numbers of a figure, beside it."""
    path = output.with_name(re.sub(r"\.(png|pdf)$", "", output.name, flags=re.I) + ".csv")
    make_folder(path.parent)
    write_csv(path, header, rows)
    print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
