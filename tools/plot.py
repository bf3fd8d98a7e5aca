"""Figures from the files that runs leave. Each is written as PNG and as PDF.

    python -m tools.plot imagenet_c A.json B.json -o fig.png
    python -m tools.plot gradient_ratio RUN_A RUN_B -o fig.png
    python -m tools.plot training RUN -o fig.png
    python -m tools.plot robustness RUN_A RUN_B -o fig.png

imagenet_c takes results of `evaluate.py --eva_on_imagenet_c`, gradient_ratio run folders trained
with `--print_gradients True` (those that differ in their seed alone are drawn as mean and standard
deviation), training one run folder, robustness run folders that hold evaluations
at several eps. Exit status 2 after an error.
"""

import argparse
import sys
from collections.abc import Sequence

from matplotlib.figure import Figure

from tools.comparison import Row, seed_groups
from utils.config.command_line import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.figures.gradients import gradient_ratio, mean_of_seeds, read_gradient_norms
from utils.figures.imagenet_c import imagenet_c
from utils.figures.robustness import curves_of, robustness, weak_attack_warnings
from utils.figures.style import run_labels, save_figure
from utils.figures.training import training_curves
from utils.storage.results import AttackResult, ImageNetCResult, find_results, read_result


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: plot(parse(argv)))


def plot(arguments: argparse.Namespace) -> None:
    """Draw and save the figure."""
    paths = save_figure(arguments.draw(arguments), arguments.output, arguments.title)
    print(f"written: {', '.join(str(path) for path in paths)}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; each figure is a command."""
    parser = tool_parser("plot", __doc__)
    figures = parser.add_subparsers(metavar="FIGURE", required=True)
    for name, draw, inputs, count, text in (
        ("imagenet_c", of_imagenet_c, "JSON", "+", "accuracy per corruption and severity"),
        ("gradient_ratio", of_gradients, "RUN", "+", "adversarial over clean gradients"),
        (
            "training",
            lambda a: training_curves(*a.inputs),
            "RUN",
            1,
            "loss, accuracy, rate",
        ),
        ("robustness", of_robustness, "RUN_OR_JSON", "+", "worst-case accuracy against eps"),
    ):
        figure = figures.add_parser(name, help=text, description=text)
        add = figure.add_argument
        add("inputs", metavar=inputs, nargs=count, type=user_path)
        add("-o", "--output", required=True, metavar="PATH", type=user_path, help="fig or fig.png")
        add("--title", default="", help="text above the figure")
        figure.set_defaults(draw=draw)
        if name in ("imagenet_c", "gradient_ratio"):
            add("--labels", nargs="+", metavar="NAME", help="a name per input, or per its seeds")
        if name == "gradient_ratio":
            add("--epoch", type=int, metavar="N", help="from 1; default the last")
    return parser.parse_args(argv)


def of_imagenet_c(arguments: argparse.Namespace) -> Figure:
    """Curves and bars of one or more results."""
    results, labels = {}, run_labels(arguments.inputs, arguments.labels)
    for path, label in zip(arguments.inputs, labels, strict=True):
        result = read_result(path)
        if not isinstance(result, ImageNetCResult) or not result.corruptions:
            raise UserError(f"{path} is no ImageNet-C result; make one with --eva_on_imagenet_c")
        results[label] = result
    return imagenet_c(results)


def of_gradients(arguments: argparse.Namespace) -> Figure:
    """Gradient norm ratios of one or more runs; those of several seeds as their mean."""
    groups = list(seed_groups([Row(run, "", "") for run in arguments.inputs]))
    labels = run_labels([group[0].folder for group in groups], arguments.labels)
    runs = {}
    for label, group in zip(labels, groups, strict=True):
        seeds = [read_gradient_norms(row.folder, arguments.epoch) for row in group]
        runs[f"{label}, {len(seeds)} seeds" if len(seeds) > 1 else label] = mean_of_seeds(seeds)
    return gradient_ratio(runs)


def of_robustness(arguments: argparse.Namespace) -> Figure:
    """Robustness curves: of each run, one for every set of evaluations at several radii."""
    results = find_results(arguments.inputs)
    attacks = {path: r for path, r in results.items() if isinstance(r, AttackResult)}
    curves = curves_of(attacks.values())
    if not curves:
        raise UserError("no two evaluations differ in eps alone; evaluate with --eps 1,2,4,8")
    files = [next(path for path, r in attacks.items() if r is curve[0]) for curve in curves]
    labelled = dict(zip(run_labels(files), curves, strict=True))
    for label, curve in labelled.items():
        for warning in weak_attack_warnings(curve):
            print(f"warning: {label}: {warning}", file=sys.stderr)
    return robustness(labelled)


if __name__ == "__main__":
    sys.exit(main())
