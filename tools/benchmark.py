"""How fast the suite is, against the published loop written out plainly, in one run.

    python -m tools.benchmark                       # everything, ResNet-50, 224 px: about an hour
    python -m tools.benchmark --parts free,pgd      # on two cores; less on others
    python -m tools.benchmark --device cuda --batch_size 256
    python -m tools.benchmark --against ../before   # a checkout of the suite, in place of the loop
    python -m tools.benchmark --quick               # seconds: whether it works, not how fast

Parts: `free`, a free and a natural training step; `pgd`, a step of PGD; `standard`, a whole PGD-50
evaluation of images of which half are misclassified early. The suite is measured in each precision,
with and without torch.compile.

Each subject is measured in a fresh process, one at a time, in turn, for as many repetitions as
asked for, so that whatever slows the machine down slows all of them. Shown are medians, with the
smallest and the largest in brackets, on stdout as tables, and as JSON with every single take.
Close other programs.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tools.benchmark_subject import Case
from utils.config.command_line import checked, positive, tool_parser, user_path
from utils.config.settings import ARCHITECTURES, PRECISIONS
from utils.config.validators import REDUCE_OVERHEAD, choice, list_of
from utils.distributed.context import choose_device
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.conditions import now, processor, versions
from utils.storage.files import make_folder, write_json
from utils.text import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "free": "Training steps",
    "pgd": "PGD-50, plain",
    "standard": "PGD-50 of the `standard` protocol, half of the images misclassified early",
}
QUICK = "--arch resnet18 --batch_size 4 --crop_size 32 --repeats 1 --no_compile".split()
GREY_LEVELS = 129, 204  # by turns: misclassified soon, and robust; see `HalfRobust`
COLUMNS = ("images_per_second", "ratio", "time_over_natural_step")
Row = dict[str, Any]
Subjects = dict[str, tuple[Path, Case]]  # by name, a case and the checkout whose code measures it


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: benchmark(arguments))


def benchmark(arguments: Sequence[str]) -> None:
    """Measure, write and print."""
    options = parse(arguments)
    make_folder(options.output.parent, "choose another --output")
    cuda = options.device.startswith("cuda")
    provenance = {
        "command": shlex.join(["python", "-m", "tools.benchmark", *arguments]),
        "settings": {name: str(value) for name, value in vars(options).items()},
        "device": torch.cuda.get_device_name(options.device) if cuda else options.device,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "date": now(),
    }
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        rows = {part: measure(part, options, Path(folder, part)) for part in options.parts}
    all_rows = [row for part in rows.values() for row in part]
    write_json(options.output, {"kind": "benchmark", "provenance": provenance, "rows": all_rows})
    for part in options.parts:
        print(f"### {PARTS[part]}\n\n{table(rows[part])}\n")
    print(f"written: {options.output}", file=sys.stderr)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with what depends on others."""
    parser = tool_parser("benchmark", __doc__)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--arch", choices=ARCHITECTURES, default="resnet50", help=default)
    add("--device", default="auto", help=f"cpu, cuda or mps {default}")
    size = "images in a batch (default: 16, on CUDA 256)"
    add("--batch_size", type=positive, metavar="N", help=size)
    add("--crop_size", type=positive, default=224, metavar="N", help=f"pixels {default}")
    few = f"repetitions; of `standard`, minutes each, 3 at most {default}"
    add("--repeats", type=positive, default=7, metavar="N", help=few)
    listed = f"commas between {default}"
    parts, precisions = (checked(list_of(choice(*names))) for names in (PARTS, PRECISIONS))
    add("--parts", type=parts, default=",".join(PARTS), metavar="P,P", help=listed)
    add("--precisions", type=precisions, default="fp32,bf16", metavar="P,P", help=listed)
    add("--no_compile", action="store_true", help="leave torch.compile out")
    add("--workers", type=int, default=2, metavar="N", help=f"processes that read {default}")
    other = "another checkout of the suite, measured in place of the plain loop"
    add("--against", type=user_path, metavar="DIR", help=other)
    add("--quick", action="store_true", help="tiny sizes: does it work at all")
    add("--output", type=user_path, default=Path("benchmark.json"), metavar="FILE", help="JSON")
    options = parser.parse_args(argv)
    if options.quick:
        options = parser.parse_args([*QUICK, *argv])
    device = choose_device(options.device)
    options.device = str(device)
    options.batch_size = options.batch_size or (256 if device.type == "cuda" else 16)
    if options.against and not (options.against / "tools/benchmark_subject.py").is_file():
        raise UserError(f"--against {options.against}: no checkout of the suite")
    return options


def measure(part: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All repetitions of one part, every subject in turn, as a row a subject and action."""
    if part == "standard":
        write_images(folder / "gaussian_noise/1/class", options.crop_size, 4 * options.batch_size)
    subjects = subjects_of(part, options, folder)
    results: dict[str, list[Row]] = {name: [] for name in subjects}
    repeats = min(options.repeats, 3) if part == "standard" else options.repeats
    for repetition in range(repeats):
        for name, subject in subjects.items():
            results[name].append(run(name, *subject))
        print(f"{part}: {repetition + 1} of {repeats}", file=sys.stderr, flush=True)
    return rows_of(subjects, results)


def subjects_of(part: str, options: argparse.Namespace, folder: Path) -> Subjects:
    """The suite in every setting that matters to the part, and what it is compared with."""
    sizes = {k: vars(options)[k] for k in "arch batch_size crop_size device workers".split()}
    steps, seconds = (5, 0.01) if options.quick else (50, 4.0)
    sizes |= {"data": str(folder), "pgd_steps": steps, "take_seconds": seconds}
    modes: dict[bool | str, str] = {False: ""}
    if not options.no_compile:
        modes[True] = " compile"
        if part == "free" and options.device.startswith("cuda"):
            modes[REDUCE_OVERHEAD] = f" {REDUCE_OVERHEAD}"
    subjects = {}
    if not options.against:
        subjects["plain"] = ROOT, Case(part, "plain", "fp32", False, **sizes)
    for precision, (mode, word) in product(options.precisions, modes.items()):
        case = Case(part, "suite", precision, mode, **sizes)
        if options.against:
            subjects[f"other {precision}{word}"] = options.against, case
        subjects[f"suite {precision}{word}"] = ROOT, case
    return subjects


def run(name: str, checkout: Path, case: Case) -> Row:
    """One subject in a process of its own, which a signal does not reach before it ends us."""
    words = [sys.executable, "-m", "tools.benchmark_subject", json.dumps(asdict(case))]
    pipe = subprocess.PIPE
    done = subprocess.run(words, cwd=checkout, stdout=pipe, text=True, start_new_session=True)
    if done.returncode:
        ended = f"its process ended with status {done.returncode}"
        raise UserError(f"{case.part}, {name}: {ended}; memory was short if that is -9")
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def rows_of(subjects: Subjects, results: Mapping[str, Sequence[Row]]) -> list[Row]:
    """What each subject did in each action, in all repetitions, beside what it compares with."""
    rows = []
    for name, own in results.items():
        case, actions = subjects[name][1], own[0]["takes"]
        other = results["plain" if "plain" in results else name.replace("suite", "other")]
        for action in actions:
            row = {
                "part": case.part,
                "action": action,
                "name": name,
                "precision": case.precision,
                "compile": case.compiled,
                "images_per_second": spread(speeds(own, action)),
                "takes": [result["takes"][action] for result in own],
                "peak_memory_bytes": max(result["peak_memory_bytes"] for result in own),
            }
            if other is not own and action in other[0]["takes"]:
                row["ratio"] = spread(speeds(own, action), speeds(other, action))
            if action == "free" and "natural" in actions:  # time: the inverse
                row["time_over_natural_step"] = spread(speeds(own, "natural"), speeds(own, "free"))
            rows.append(row)
    return rows


def speeds(results: Sequence[Row], action: str) -> np.ndarray:
    """Images per second in each repetition."""
    images, seconds = np.array([result["takes"][action] for result in results]).T
    return images / seconds


def spread(values: np.ndarray, over: np.ndarray | None = None) -> dict[str, float]:
    """Median, smallest and largest; of quotients that of the medians, those within a repetition."""
    over = np.ones_like(values) if over is None else over
    quotients = (values / over).tolist()
    middle = float(np.median(values) / np.median(over))
    return {"median": middle, "min": min(quotients), "max": max(quotients)}


def table(rows: Sequence[Row]) -> str:
    """Rows of one part as Markdown."""
    lines = []
    for row in rows:
        cells = [cell(row.get(column)) for column in COLUMNS]
        memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
        lines.append([f"{row['name']}, {row['action']}", *cells, memory])
    titles = [column.replace("_", " ") for column in COLUMNS]
    return markdown_table(["", *titles, "GPU memory"], lines, numbers=True)


def cell(value: Mapping[str, float] | None) -> str:
    """`1.41 (1.38-1.44)`, or nothing."""
    if value is None:
        return ""
    digits = 1 if value["median"] >= 20 else 2
    return "{median:.{d}f} ({min:.{d}f}-{max:.{d}f})".format(**value, d=digits)


def write_images(folder: Path, size: int, images: int) -> None:
    """JPEGs about as large as ImageNet-C's."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(images):
        coarse = generator.normal(0, 20, (size // 3, size // 3, 3))
        coarse += GREY_LEVELS[number % 2] - coarse.mean()
        image = Image.fromarray(coarse.round().clip(0, 255).astype(np.uint8))
        resized = image.resize((size, size), Image.Resampling.BICUBIC)
        resized.save(folder / f"{number:06d}.jpg", quality=95)


if __name__ == "__main__":
    sys.exit(main())
