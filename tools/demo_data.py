"""Real data to try everything with, offline: scikit-learn's 1797 handwritten digits.

    python -m tools.demo_data data/digits                 # an ImageFolder: data/digits/{train,val}
    python -m tools.demo_data data/digits --corruptions   # and data/digits-C, as ImageNet-C is

The 8 x 8 scans become 32 x 32 RGB PNGs. Every fifth image of a class goes to `val`. digits-C holds
the 15 corruptions of ImageNet-C at 5 severities of some `val` images, evenly spread. The same
command gives the same bytes; what is there and complete is left alone. A tree is built beside its
place and moved there whole, so an interrupted command leaves nothing that looks complete.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib.imagenet_c.corruptions import SEVERITIES, STANDARD
from tools.parallel import image_bar, in_parallel
from utils.config.command_line import positive, tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import make_folder, write_json

SIZE = 32  # pixels; the corruptions need 32 at least
VAL_EVERY = 5
MARKER = ".complete.json"
REQUIREMENTS = "pip install -r requirements-dev.txt"
OWN_SEED = ("glass_blur", "impulse_noise")  # drawn from other generators than NumPy's global one


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = tool_parser("demo_data", __doc__)
    add = parser.add_argument
    add("dir", metavar="DIR", type=user_path, help="folder to make")
    add("--corruptions", action="store_true", help="also make DIR-C, laid out as ImageNet-C")
    images = "val images that DIR-C holds in each of its 75 folders (default: %(default)s)"
    add("--images", type=positive, default=120, metavar="N", help=images)
    add("--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes")
    return run_command(lambda: write_data(parser.parse_args(argv)))


def write_data(arguments: argparse.Namespace) -> None:
    """Write the digits and, if asked for, their corrupted twins."""
    digits = Path(os.path.abspath(arguments.dir))
    write_digits(digits)
    if arguments.corruptions:
        recipe = {"corrupted": arguments.images, "of": "digits", "pixels": SIZE}
        write = partial(write_corruptions, digits / "val", arguments)
        build(digits.with_name(f"{digits.name}-C"), recipe, write)


def build(folder: Path, recipe: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Make a tree whole, or not at all; one that is there and complete is left alone."""
    if folder.is_dir() and any(folder.iterdir()):
        with contextlib.suppress(OSError, ValueError):
            if json.loads((folder / MARKER).read_text(encoding="utf-8")) == recipe:
                print(f"{folder}: already complete")
                return
        raise UserError(
            f"{folder} is not empty and was not made by this command with these settings; remove it"
        )
    make_folder(folder.parent)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
    try:
        partial.mkdir()
        write(partial)
        write_json(partial / MARKER, recipe)
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{folder}: written")


def write_digits(folder: Path, limit: int | None = None) -> None:
    """Make an ImageFolder of the digits, or the first of them: {train,val}/CLASS/NUMBER.png."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"the digits come with scikit-learn; {REQUIREMENTS}") from error

    def write(partial: Path) -> None:
        digits, seen = load_digits(), Counter[int]()
        scans = zip(digits.images[:limit], digits.target[:limit].tolist(), strict=True)
        for number, (scan, label) in enumerate(scans):
            split = "val" if seen[label] % VAL_EVERY == VAL_EVERY - 1 else "train"
            seen[label] += 1
            path = partial / split / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))  # from 0 to 16
            grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB").save(path)

    recipe = {"digits": SIZE, "val_every": VAL_EVERY}
    build(folder, recipe | ({"limit": limit} if limit else {}), write)


def write_corruptions(val: Path, arguments: argparse.Namespace, folder: Path) -> None:
    """Every corruption and severity of evenly spread images, under a progress bar."""
    files = sorted(path.relative_to(val).as_posix() for path in val.glob("*/*.png"))
    count = min(arguments.images, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    jobs = list(product([val], [folder], STANDARD, SEVERITIES, chosen))
    bar = image_bar("corrupting", len(jobs))
    with bar, contextlib.closing(in_parallel(corrupt_image, jobs, arguments.workers)) as results:
        for _ in results:
            bar.advance()


def corrupt_image(job: tuple[Path, Path, str, int, str]) -> None:
    """Write `folder/corruption/severity/name` of a (val, folder, corruption, severity, name)."""
    try:
        import cv2
        from imagecorruptions import corrupt
    except ImportError as error:
        raise UserError(f"corruptions need imagecorruptions-imaug; {REQUIREMENTS}") from error
    warnings.simplefilter("ignore")  # the packages'
    cv2.setNumThreads(1)  # there is one process per core already
    val, folder, corruption, severity, name = job
    with Image.open(val / name) as image:
        pixels = np.array(image)
    # Of the image's own name, so that neither order nor number of processes matters.
    seed = zlib.crc32(f"{corruption}/{severity}/{name}".encode())
    np.random.seed(seed)
    arguments = {"seed": seed} if corruption in OWN_SEED else {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints when it meets small images
        result = corrupt(pixels, severity, corruption_name=corruption, **arguments)
    path = folder / corruption / str(severity) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result).save(path, compress_level=1)


if __name__ == "__main__":
    sys.exit(main())
