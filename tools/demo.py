"""`make demo`: both methods trained, attacked and compared on real digits, through the commands.

    python -m tools.demo [DIR]          # default: demo

Runs the suite's own command lines in DIR, each printed first, and leaves DIR/REPORT.md with its
figures beside it. Interrupted, the same command resumes.

The data come with scikit-learn: 1797 scans of 8 x 8, which become RGB PNGs of 32 x 32; every fifth
of a class goes to `val`. digits-C holds the 15 corruptions of ImageNet-C of some of these.
"""

import io
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from lib.imagenet_c.corruptions import SEVERITIES, STANDARD
from utils.config.command_line import tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.logging import Logger, ProgressBar
from utils.storage.files import atomic_write, make_folder
from utils.storage.results import read_result

TEMPLATE = Path(__file__).with_name("demo_report.md")
ROOT = Path(__file__).resolve().parent.parent
CONFIG = ["-c", str(ROOT / "tools" / "demo_configs.yml")]
HE = ["--FN", "True", "--WN", "True", "--s_HE", "10.0", "--angular_margin_HE", "0.2"]
ATTACKS, FEW = "pgd20@2/255,apgd", "70"  # APGD takes four minutes on all digits
METHODS = {"FreeAT": [], "FreeAT + HE": HE}
SIZE = 32  # pixels; the corruptions need 32 at least
VAL_EVERY = 5
OWN_SEED = ("glass_blur", "impulse_noise")  # drawn from other generators than NumPy's global one


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
    write_digits(folder / "digits")
    write_corruptions(folder / "digits-C", folder / "digits" / "val")
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


def write_digits(folder: Path, limit: int | None = None) -> None:
    """Make an ImageFolder of the digits, or the first of them: {train,val}/CLASS/NUMBER.png."""
    if is_built(folder, "val/*/*.png"):
        return
    with built_whole(folder) as unfinished:
        from sklearn.datasets import load_digits

        digits, seen = load_digits(), Counter[int]()
        scans = zip(digits.images[:limit], digits.target[:limit].tolist(), strict=True)
        for number, (scan, label) in enumerate(scans):
            split = "val" if seen[label] % VAL_EVERY == VAL_EVERY - 1 else "train"
            seen[label] += 1
            path = unfinished / split / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))  # from 0 to 16
            grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB").save(path)


def write_corruptions(folder: Path, val: Path, images: int = 120) -> None:
    """Make an ImageNet-C of so many images, evenly spread: the same bytes every time."""
    if is_built(folder, "*/5/*/*.png"):
        return
    files = sorted(path.relative_to(val).as_posix() for path in val.glob("*/*.png"))
    chosen = [files[i * len(files) // images] for i in range(images)]
    jobs = list(product(STANDARD, SEVERITIES, chosen))
    bar = ProgressBar(Logger(to_stderr=True), len(jobs), "corrupting", len(jobs) // 20, "image")
    with (
        built_whole(folder) as unfinished,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        from imagecorruptions import corrupt

        warnings.simplefilter("ignore")  # the package's, which prints, too, when images are small
        for corruption, severity, name in bar.over(jobs):
            with Image.open(val / name) as image:
                pixels = np.array(image)
            seed = zlib.crc32(f"{corruption}/{severity}/{name}".encode())
            np.random.seed(seed)
            seeded = {"seed": seed} if corruption in OWN_SEED else {}
            path = unfinished / corruption / str(severity) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            corrupted = corrupt(pixels, severity, corruption_name=corruption, **seeded)
            Image.fromarray(corrupted).save(path, compress_level=1)


def is_built(folder: Path, images: str) -> bool:
    """Whether a folder holds these images already; one with anything else is refused."""
    if any(folder.glob(images)):
        return True
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and not this demo's; choose another, or remove it")
    return False


@contextmanager
def built_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which stands in its place once all is in it."""
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a command that was interrupted
    try:
        unfinished.mkdir()
        yield unfinished
        os.replace(unfinished, folder)
    except ImportError as error:
        raise UserError(f"{error}; pip install -r requirements-dev.txt") from error
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another") from error
    print(f"{folder}: written")


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
