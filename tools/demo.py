"""`make demo`: both methods trained, attacked and compared on real digits, through the commands.

    python -m tools.demo [DIR]          # default: demo

Runs the suite's own command lines in DIR, each printed first, and leaves DIR/REPORT.md with its
figures beside it. Interrupted, the same command resumes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.config.command_line import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.figures.gradients import read_gradient_norms
from utils.storage.files import atomic_write, make_folder
from utils.storage.results import AttackResult, ImageNetCResult, only_result

TEMPLATE = Path(__file__).with_name("demo_report.md")
ROOT = Path(__file__).resolve().parent.parent
CONFIG = ["-c", str(ROOT / "tools" / "demo_configs.yml")]
HE = ["--FN", "True", "--WN", "True", "--s_HE", "10.0", "--angular_margin_HE", "0.2"]
METHODS = {"FreeAT": [], "FreeAT + HE": HE}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: demo(parse(argv)))


def parse(argv: Sequence[str] | None) -> Path:
    """The folder to work in."""
    parser = tool_parser("demo", __doc__)
    parser.add_argument(
        "folder", nargs="?", default="demo", metavar="DIR", type=user_path, help="default: demo"
    )
    return parser.parse_args(argv).folder


def demo(folder: Path) -> None:
    """Data, trainings, evaluations, comparison, report."""
    began = time.monotonic()
    folder = make_folder(folder).resolve()
    step(folder, "-m", "tools.demo_data", "digits", "--corruptions")
    for flags in METHODS.values():
        train = [*CONFIG, *flags, "--print_gradients", "True", "--save_images", "6"]
        step(folder, "main_free.py", "digits", *train, "--resume", "auto")
    runs = run_folders(folder)
    for run in runs.values():
        best = f"{run.name}/model_best.pth.tar"
        corrupted = ["digits-C", "--eva_on_imagenet_c", *CONFIG, "--resume", best]
        step(folder, "evaluate.py", *corrupted)
    paths = [str(run.relative_to(folder)) for run in runs.values()]
    step(folder, "-m", "tools.compare", *paths, "--names", *runs, "-o", "comparison")
    step(folder, "-m", "tools.plot", "gradient_ratio", *paths, "-o", "gradient_ratio.png")
    results = [f"{path}/imagenet_c_standard.json" for path in paths]
    step(folder, "-m", "tools.plot", "imagenet_c", *results, "-o", "corruptions.png")
    report = write_report(folder, runs)
    print(f"\n{(folder / 'comparison.md').read_text().strip()}\n")
    minutes = (time.monotonic() - began) / 60
    print(f"done in {minutes:.1f} minutes: {os.path.relpath(report)}")


def step(folder: Path, *arguments: str) -> None:
    """Run one of the suite's commands in the demo's folder.

    Raises:
        UserError: it failed; what it printed says why.
    """
    words = list(arguments)
    script = [] if words[0] == "-m" else [str(ROOT / words.pop(0))]
    shown = [os.path.relpath(word, folder) if os.path.isabs(word) else word for word in words]
    name = [os.path.relpath(path, folder) for path in script]
    print(f"\n$ python {shlex.join([*name, *shown])}", flush=True)
    done = subprocess.run([sys.executable, *script, *words], cwd=folder, env=environment())
    if done.returncode:
        raise UserError(
            f"the command above ended with status {done.returncode}; fix what it says, then give"
            " the same command again to resume"
        )


def environment(**more: str) -> dict[str, str]:
    """In which another folder's commands find the suite."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def run_folders(folder: Path) -> dict[str, Path]:
    folders = sorted((folder / "trained_models").iterdir(), key=lambda path: "_FN_" in path.name)
    return dict(zip(METHODS, folders, strict=True))


def write_report(folder: Path, runs: Mapping[str, Path]) -> Path:
    """Write DIR/REPORT.md from the files that the commands have left.

    Args:
        folder: the demo's folder.
        runs: name to run folder of both methods.

    Returns:
        The report's path.
    """
    attacks = {name: only_result(run, AttackResult) for name, run in runs.items()}
    corrupted = {n: only_result(run, ImageNetCResult).summary for n, run in runs.items()}
    origin = next(iter(attacks.values())).provenance
    config, versions = origin["config"], origin["versions"]
    values = {
        "date": origin["date"][:10],
        "torch": versions["torch"],
        "device": origin["device"],
        "train_images": len(list((folder / "digits" / "train").glob("*/*"))),
        "val_images": origin["subset"]["n"],
        "arch": config["TRAIN"]["arch"],
        "passes": -(-config["TRAIN"]["epochs"] // config["ADV"]["n_repeats"]),
        "repeats": config["ADV"]["n_repeats"],
        "eps": f"{config['ADV']['clip_eps']:g}",
        "config": "tools/demo_configs.yml",
        "comparison": (folder / "comparison.md").read_text().strip(),
        "verdict": verdict(attacks),
        "attack_figures": figures(folder, runs, "attack_standard_images.png"),
        "corruptions": "; ".join(
            f"{name} {100 * (found.mean_accuracy or 0):.2f} %" for name, found in corrupted.items()
        ),
        "ratios": "; ".join(f"{name} {group_ratios(run)}" for name, run in runs.items()),
        "training_figures": figures(folder, runs, "training_curves.png"),
    }
    path = folder / "REPORT.md"
    atomic_write(path, TEMPLATE.read_text(encoding="utf-8").format(**values))
    return path


def verdict(attacks: Mapping[str, AttackResult]) -> str:
    """What the intervals allow to be said, no more."""
    lines = [
        f"- {name}: {result.clean.top1.percent:.2f} % clean,"
        f" {result.worst_case.top1.percent:.2f} % in the worst case."
        for name, result in attacks.items()
    ]
    (one, first), (other, second) = ((n, r.worst_case.top1) for n, r in attacks.items())
    low, high = sorted((first, second), key=lambda accuracy: accuracy.fraction)
    better = one if high is first else other
    apart = low.interval[1] < high.interval[0]
    conclusion = f"{better} is the more robust here" if high != low else "Both are equally robust"
    certain = "their intervals do not overlap" if apart else (
        "but the intervals overlap: with this few images and one seed that is no finding"
    )  # fmt: skip
    return "\n".join([*lines, "", f"{conclusion}; {certain}."])


def group_ratios(run: Path) -> str:
    """The last epoch's ratios of the three groups."""
    rows = [row for row in read_gradient_norms(run) if row["parameter"] == "all"]
    return ", ".join(f"{row['group']} {float(row['ratio']):.2f}" for row in rows)


def figures(folder: Path, runs: Mapping[str, Path], name: str) -> str:
    """One figure of each run as Markdown."""
    paths = {label: Path(os.path.relpath(run / name, folder)) for label, run in runs.items()}
    return "\n\n".join(f"![{label}]({path.as_posix()})" for label, path in paths.items())


if __name__ == "__main__":
    sys.exit(main())
