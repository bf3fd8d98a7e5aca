"""Figures from the files that runs leave. Each is written as PNG and as PDF.

    python -m tools.plot imagenet_c A.json B.json -o fig.png
    python -m tools.plot gradient_ratio RUN_A RUN_B -o fig.png
    python -m tools.plot training RUN -o fig.png
    python -m tools.plot robustness RUN_A RUN_B -o fig.png
    python -m tools.plot classes A/attack_standard.json -o fig.png

imagenet_c takes results of `evaluate.py --eva_on_imagenet_c`, gradient_ratio run folders trained
with `--print_gradients True`, training one run folder, robustness run folders that hold evaluations
at several eps, classes one result of attacks. Exit status 2 after an error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.config.parser import OneLineParser, tool_parser
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.records import AttackResult, ImageNetCResult
from utils.storage.results import find_results, read_result


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: plot(build_parser().parse_args(argv)))


def plot(arguments: argparse.Namespace) -> None:
    """Draw and save the figure.

    Raises:
        UserError: an input is not what the figure is drawn from.
    """
    paths = arguments.draw(arguments)
    print(f"written: {', '.join(str(path) for path in paths)}")


def build_parser() -> OneLineParser:
    """The parser; each figure is a command."""
    parser = tool_parser("plot", __doc__)
    figures = parser.add_subparsers(metavar="FIGURE", required=True)
    for name, draw, inputs, count, text in (
        ("imagenet_c", draw_imagenet_c, "JSON", "+", "accuracy per corruption and severity"),
        ("gradient_ratio", draw_gradient_ratio, "RUN", "+", "adversarial over clean gradients"),
        ("training", draw_training, "RUN", 1, "loss, accuracy and learning rate over epochs"),
        ("robustness", draw_robustness, "RUN_OR_JSON", "+", "worst-case accuracy against eps"),
        ("classes", draw_classes, "JSON", 1, "the most and the least robust classes"),
    ):
        figure = figures.add_parser(name, help=text, description=text)
        figure.add_argument("inputs", metavar=inputs, nargs=count, type=os.path.expanduser)
        figure.add_argument(
            "-o",
            "--output",
            required=True,
            metavar="PATH",
            type=os.path.expanduser,
            help="fig or fig.png",
        )
        figure.add_argument("--title", default="", help="text above the figure")
        figure.set_defaults(draw=draw, labels=None, epoch=None)
        if count == "+" and name != "robustness":
            figure.add_argument("--labels", nargs="+", metavar="NAME", help="a name per input")
        if name == "gradient_ratio":
            figure.add_argument("--epoch", type=int, metavar="N", help="from 1; default the last")
    return parser


# matplotlib takes a second to load, so it is loaded once the arguments are known to be right.


def draw_imagenet_c(arguments: argparse.Namespace) -> list[Path]:
    """Curves and bars of one or more results."""
    results = [read_imagenet_c(path) for path in arguments.inputs]

    from utils.figures.imagenet_c import imagenet_c
    from utils.figures.style import run_labels, save_figure

    labels = run_labels(arguments.inputs, arguments.labels)
    fig = imagenet_c(dict(zip(labels, results, strict=True)), arguments.title)
    return save_figure(fig, arguments.output)


def read_imagenet_c(path: str) -> ImageNetCResult:
    """An ImageNet-C result file.

    Raises:
        UserError: it is none.
    """
    result = read_result(Path(path))
    if not isinstance(result, ImageNetCResult) or not result.corruptions:
        raise UserError(f"{path} is no ImageNet-C result; make one with --eva_on_imagenet_c")
    return result


def draw_gradient_ratio(arguments: argparse.Namespace) -> list[Path]:
    """Gradient norm ratios of one or more runs."""
    from utils.figures.gradients import gradient_ratio, read_gradient_norms
    from utils.figures.style import run_labels, save_figure

    labels = run_labels(arguments.inputs, arguments.labels)
    runs = [read_gradient_norms(run, arguments.epoch) for run in arguments.inputs]
    fig = gradient_ratio(dict(zip(labels, runs, strict=True)), arguments.title)
    return save_figure(fig, arguments.output)


def draw_training(arguments: argparse.Namespace) -> list[Path]:
    """Training curves of one run."""
    from utils.figures.run import draw_training as training
    from utils.figures.style import save_figure

    (run,) = arguments.inputs
    return save_figure(training(Path(run), arguments.title), arguments.output)


def draw_robustness(arguments: argparse.Namespace) -> list[Path]:
    """Robustness curves: of each run, one for every set of evaluations at several radii."""
    results = find_results([Path(path) for path in arguments.inputs])

    from utils.figures.robustness import curves_of, robustness, weak_attack_warnings
    from utils.figures.style import run_labels, save_figure

    attacks = {path: r for path, r in results.items() if isinstance(r, AttackResult)}
    curves = curves_of(attacks.values())
    if not curves:
        raise UserError("no two evaluations differ in eps alone; evaluate with --eps 1,2,4,8")
    files = [next(path for path, r in attacks.items() if r is curve[0]) for curve in curves]
    labelled = dict(zip(run_labels(files), curves, strict=True))
    for label, curve in labelled.items():
        for warning in weak_attack_warnings(curve):
            print(f"warning: {label}: {warning}", file=sys.stderr)
    return save_figure(robustness(labelled, arguments.title), arguments.output)


def draw_classes(arguments: argparse.Namespace) -> list[Path]:
    """The classes of one result of attacks, from the CSV beside it."""
    from utils.figures.classes import classes, read_classes
    from utils.figures.style import save_figure

    (file,) = arguments.inputs
    path = Path(file)
    rows = read_classes(path.with_name(f"{path.stem}_classes.csv"))
    return save_figure(classes(rows, arguments.title), arguments.output)


if __name__ == "__main__":
    sys.exit(main())
