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
from collections.abc import Sequence
from pathlib import Path

from tools.demo_report import write_report
from utils.config.parser import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import make_folder

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
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, *script, *words], cwd=folder, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise UserError(
            f"the command above ended with status {done.returncode}; fix what it says, then give"
            " the same command again to resume"
        )


def run_folders(folder: Path) -> dict[str, Path]:
    folders = sorted((folder / "trained_models").iterdir(), key=lambda path: "_FN_" in path.name)
    return dict(zip(METHODS, folders, strict=True))


if __name__ == "__main__":
    sys.exit(main())
