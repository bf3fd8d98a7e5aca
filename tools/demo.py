"""`make demo`: both methods trained, attacked and compared on real digits, through the commands.

    python -m tools.demo [DIR]          # default: demo

Runs the suite's own command lines in DIR, each printed first, and leaves DIR/REPORT.md with its
figures beside it. Interrupted, the same command resumes.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from utils.config.command_line import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import atomic_write, make_folder
from utils.storage.results import read_result

TEMPLATE = Path(__file__).with_name("demo_report.md")
ROOT = Path(__file__).resolve().parent.parent
CONFIG = ["-c", str(ROOT / "tools" / "demo_configs.yml")]
HE = ["--FN", "True", "--WN", "True", "--s_HE", "10.0", "--angular_margin_HE", "0.2"]
ATTACKS, FEW = "pgd20@2/255,apgd", "70"  # APGD takes four minutes on all digits
METHODS = {"FreeAT": [], "FreeAT + HE": HE}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = tool_parser("demo", __doc__)
    add, default = parser.add_argument, "default: %(default)s"
    add("folder", nargs="?", default="demo", metavar="DIR", type=user_path, help=default)
    return run_command(lambda: demo(parser.parse_args(argv).folder))


def demo(folder: Path) -> None:
    """Data, trainings, evaluations, comparison, report."""
    began = time.monotonic()
    folder = make_folder(folder).resolve()
    step(folder, "-m", "tools.demo_data", "digits", "--corruptions")
    for flags in METHODS.values():
        train = [*CONFIG, *flags, "--print_gradients", "True", "--save_images", "6"]
        step(folder, str(ROOT / "main_free.py"), "digits", *train, "--resume", "auto")
    folders = [run for run in (folder / "trained_models").iterdir() if "_seed" not in run.name]
    folders.sort(key=lambda run: "_FN_" in run.name)
    for run in folders:
        best = f"{run.name}/model_best.pth.tar"
        corrupted = ["digits-C", "--eva_on_imagenet_c", *CONFIG, "--resume", best]
        step(folder, str(ROOT / "evaluate.py"), *corrupted)
        stronger = ["digits", "-e", *CONFIG, "--resume", best, "--attack", ATTACKS]
        step(folder, str(ROOT / "evaluate.py"), *stronger, "--n_examples", FEW)
    runs = [f"trained_models/{run.name}" for run in folders]
    step(folder, "-m", "tools.compare", *runs, "--names", *METHODS, "-o", "comparison")
    step(folder, "-m", "tools.plot", "gradient_ratio", *runs, "-o", "gradient_ratio.png")
    results = [f"{run}/imagenet_c_standard.json" for run in runs]
    step(folder, "-m", "tools.plot", "imagenet_c", *results, "-o", "corruptions.png")
    report = write_report(folder, *runs)
    print(f"\n{(folder / 'comparison.md').read_text().strip()}\n")
    minutes = (time.monotonic() - began) / 60
    print(f"done in {minutes:.1f} minutes: {os.path.relpath(report)}")


def step(folder: Path, *arguments: str) -> None:
    """Print one of the suite's commands and run it in the demo's folder."""
    words = [os.path.relpath(word, folder) if os.path.isabs(word) else word for word in arguments]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    with subprocess.Popen([sys.executable, *words], cwd=folder, env=environment()) as process:
        try:
            status = process.wait()
        finally:
            process.terminate()  # where this is interrupted; a training saves its state first
    if status:
        raise UserError(
            f"the command above ended with status {status}; fix what it says, then give the same"
            " command again to resume"
        )


def environment(**more: str) -> dict[str, str]:
    """In which another folder's commands find the suite."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def write_report(folder: Path, plain: str, he: str) -> Path:
    """Write DIR/REPORT.md from the files that the commands have left in the two runs."""
    provenance = read_result(folder / plain / "attack_standard.json").provenance
    config = provenance["config"]
    text = TEMPLATE.read_text(encoding="utf-8").format(
        **provenance,
        train_images=len(list((folder / "digits" / "train").glob("*/*"))),
        passes_over_data=-(-config["TRAIN"]["epochs"] // config["ADV"]["n_repeats"]),
        comparison=(folder / "comparison.md").read_text().strip(),
        plain=plain,
        he=he,
    )
    path = folder / "REPORT.md"
    atomic_write(path, text)
    return path


if __name__ == "__main__":
    sys.exit(main())
