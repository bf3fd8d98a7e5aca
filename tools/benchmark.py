"""How fast the suite is, against the published loop written out plainly, in one run.

    python -m tools.benchmark                       # everything, ResNet-50, 224 px: about an hour
    python -m tools.benchmark --parts free,pgd      # on two cores; less on others
    python -m tools.benchmark --device cuda --batch_size 256
    python -m tools.benchmark --against ../before   # a checkout of the suite, in place of the loop
    python -m tools.benchmark --quick               # seconds: whether it works, not how fast

Subjects are the plain loop, and the suite in each precision, with and without torch.compile; with
--against, the suite here and there. Each is measured in a fresh process, one at a time, in turn,
for as many repetitions as asked for, so that whatever slows the machine down slows all of them.
Shown are medians, with the smallest and the largest in brackets, on stdout as tables, and as JSON
with every single take.

Parts: `free`, the training step, also against a natural training step of the same precision;
`methods`, a minibatch of every training method; `pgd`, a step of PGD; `standard`, a whole PGD-50
evaluation of images of which half are misclassified early; `reading`, an ImageNet-C of JPEGs by
worker processes. Close other programs.
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
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from tools.benchmark_subject import MISCLASSIFIED, ROBUST, Case
from utils.config.command_line import names, positive, tool_parser, user_path
from utils.config.settings import ARCHITECTURES, PRECISIONS
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import choose_device
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import make_folder, write_json
from utils.storage.provenance import now, processor, versions
from utils.text import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "free": "Free step",
    "methods": "Training methods, a minibatch",
    "pgd": "PGD-50, plain",
    "standard": "PGD-50 of the `standard` protocol, half of the images misclassified early",
    "reading": "Reading ImageNet-C",
}
QUICK = (
    "--arch resnet18 --batch_size 4 --crop_size 32 --repeats 1 --take_seconds 0.01"
    " --reading_images 8 --standard_images 6 --no_compile"
).split()
COLUMNS = {
    "images/s": "images_per_second",
    "ratio to plain": "ratio_to_plain",
    "ratio to the other checkout": "ratio_to_other",
    "time over natural step": "time_over_natural_step",
}
DIFFERENT_JPEGS = 200
Row = dict[str, Any]


class Subject(NamedTuple):
    """What is measured in turn: a case, the checkout whose code measures it, its rival's name."""

    name: str
    case: Case
    checkout: Path
    reference: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: benchmark(arguments))


def benchmark(arguments: Sequence[str]) -> None:
    """Measure, write and print.

    Raises:
        UserError: a flag is wrong, or a subject failed.
    """
    options = parse(arguments)
    make_folder(options.output.parent, "choose another --output")
    command = shlex.join(["python", "-m", "tools.benchmark", *arguments])
    provenance = {"command": command, **machine(options)}
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        rows = [row for part in options.parts for row in measure(part, options, Path(folder))]
    write_json(options.output, {"kind": "benchmark", "provenance": provenance, "rows": rows})
    for part in options.parts:
        print(f"### {PARTS[part]}\n\n{table([row for row in rows if row['part'] == part])}\n")
    print(f"written: {options.output}", file=sys.stderr)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, with what depends on others.

    Raises:
        UserError: a flag is wrong, or there is no such device.
    """
    parser = tool_parser("benchmark", __doc__)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--arch", choices=ARCHITECTURES, default="resnet50", help=default)
    add("--device", default="auto", help=f"cpu, cuda or mps {default}")
    size = "images in a batch (default: 16, on CUDA 256)"
    add("--batch_size", type=positive, metavar="N", help=size)
    add("--crop_size", type=positive, default=224, metavar="N", help=f"pixels {default}")
    add("--repeats", type=positive, default=7, metavar="N", help=f"repetitions {default}")
    few = f"repetitions of `standard`, minutes each {default}"
    add("--standard_repeats", type=positive, default=3, metavar="N", help=few)
    take = f"shortest take, but a step at least {default}"
    add("--take_seconds", type=float, default=4.0, metavar="S", help=take)
    listed = f"commas between {default}"
    add("--parts", type=names, default=",".join(PARTS), metavar="P,P", help=listed)
    add("--precisions", type=names, default="fp32,bf16", metavar="P,P", help=listed)
    add("--no_compile", action="store_true", help="leave torch.compile out")
    add("--workers", type=int, default=2, metavar="N", help=f"processes that read {default}")
    each = f"JPEGs in each of 5 folders {default}"
    add("--reading_images", type=positive, default=1000, metavar="N", help=each)
    attacked = "images of `standard`, an even number (default: 4 batches)"
    add("--standard_images", type=int, metavar="N", help=attacked)
    other = "another checkout of the suite, measured in place of the plain loop"
    add("--against", type=user_path, metavar="DIR", help=other)
    add("--quick", action="store_true", help="tiny sizes: does it work at all")
    add("--output", type=user_path, default=Path("benchmark.json"), metavar="FILE", help="JSON")
    options = parser.parse_args(argv)
    if options.quick:
        options = parser.parse_args([*QUICK, *argv])
    options.pgd_steps = 5 if options.quick else 50
    device = choose_device(options.device)
    options.device = str(device)
    options.batch_size = options.batch_size or (256 if device.type == "cuda" else 16)
    options.standard_images = options.standard_images or 4 * options.batch_size
    for flag, known in (("parts", PARTS), ("precisions", PRECISIONS)):
        if unknown := set(getattr(options, flag)) - set(known):
            raise UserError(f"--{flag}: no {min(unknown)}; there are {', '.join(known)}")
    if options.standard_images % 2:
        raise UserError(f"--standard_images {options.standard_images}: take an even number")
    if options.against and not (options.against / "tools/benchmark_subject.py").is_file():
        raise UserError(f"--against {options.against}: no checkout of the suite")
    return options


def measure(part: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All repetitions of one part, every subject in turn, as a row a subject and action."""
    if part == "reading":
        write_corruption_tree(folder / part, options.crop_size, options.reading_images)
    elif part == "standard":
        write_half_robust(folder / part, options.crop_size, options.standard_images)
    subjects = subjects_of(part, options, folder / part)
    results: dict[str, list[Row]] = {subject.name: [] for subject in subjects}
    repeats = min(options.repeats, options.standard_repeats if part == "standard" else sys.maxsize)
    for repetition in range(repeats):
        for subject in subjects:
            results[subject.name].append(run(subject))
        print(f"{part}: {repetition + 1} of {repeats}", file=sys.stderr, flush=True)
    return [
        row_of(subject, results, action)
        for subject in subjects
        for action in results[subject.name][0]["takes"]
    ]


def subjects_of(part: str, options: argparse.Namespace, folder: Path) -> list[Subject]:
    """The suite in every setting that matters to the part, and what it is compared with."""
    copied = ("arch", "batch_size", "crop_size", "device", "workers", "pgd_steps", "take_seconds")
    sizes = {name: getattr(options, name) for name in copied}
    precisions = ["fp32"] if part == "reading" else options.precisions
    compiled: list[bool | str] = [False]
    if not options.no_compile and part not in ("reading", "standard"):  # batches of every size
        compiled.append(True)
        if part != "pgd" and options.device.startswith("cuda"):
            compiled.append(REDUCE_OVERHEAD)
    subjects = []
    if not options.against and part != "methods":
        case = Case(part, "plain", "fp32", False, data=str(folder), **sizes)
        subjects.append(Subject("plain", case, ROOT, ""))
    for precision, mode in product(precisions, compiled):
        words = [precision, "compile" if mode is True else mode] if part != "reading" else []
        name = " ".join(["suite", *filter(None, words)])
        case = Case(part, "suite", precision, mode, data=str(folder), **sizes)
        if options.against:
            subjects.append(Subject(f"other {name}", case, options.against, ""))
        reference = f"other {name}" if options.against else "plain"
        subjects.append(Subject(name, case, ROOT, reference))
    return subjects


def run(subject: Subject) -> Row:
    """One subject in a process of its own, which a signal does not reach before it ends us.

    Raises:
        UserError: it failed; its last words are on stderr.
    """
    words = [sys.executable, "-m", "tools.benchmark_subject", json.dumps(asdict(subject.case))]
    done = subprocess.run(
        words, cwd=subject.checkout, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    if done.returncode:
        hint = "; if memory was short, take a smaller --batch_size" if done.returncode < 0 else ""
        ended = f"its process ended with status {done.returncode}"
        raise UserError(f"{subject.case.part}, {subject.name}: {ended}{hint}")
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def row_of(subject: Subject, results: Mapping[str, Sequence[Row]], action: str) -> Row:
    """What one subject did in one action, in all repetitions, beside its reference."""
    takes = results[subject.name]
    values = rates(takes, action)
    row = {
        "part": subject.case.part,
        "action": action,
        "name": subject.name,
        "precision": subject.case.precision,
        "compile": subject.case.compiled,
        "images_per_second": spread(values),
        "takes": [take["takes"][action] for take in takes],
        "peak_memory_bytes": max(take["peak_memory_bytes"] for take in takes),
    }
    references = results.get(subject.reference)
    if references and action in references[0]["takes"]:
        key = "ratio_to_plain" if subject.reference == "plain" else "ratio_to_other"
        row[key] = quotients(values, rates(references, action))
    if action != "natural" and "natural" in takes[0]["takes"]:  # time: the rates' inverse
        row["time_over_natural_step"] = quotients(rates(takes, "natural"), values)
    return row


def rates(results: Sequence[Row], action: str) -> list[float]:
    """Images a second in each repetition."""
    return [images / seconds for images, seconds in (r["takes"][action] for r in results)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def quotients(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians; smallest and largest of the ratios within a repetition."""
    pairs = [one / other for one, other in zip(above, below, strict=True)]
    return spread(pairs) | {"median": median(above) / median(below)}


def table(rows: Sequence[Row]) -> str:
    """Rows of one part as Markdown."""
    several = len({row["action"] for row in rows}) > 1
    columns = {title: key for title, key in COLUMNS.items() if any(key in row for row in rows)}
    lines = []
    for row in rows:
        name = row["name"] + (f", {row['action']}" if several else "")
        cells = [cell(row.get(key)) for key in columns.values()]
        lines.append([name, *cells, f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"])
    return markdown_table(["", *columns, "peak memory"], lines, numbers=True)


def cell(value: Mapping[str, float] | None) -> str:
    """`1.41 (1.38-1.44)`, or nothing."""
    if value is None:
        return ""
    digits = 1 if value["median"] >= 20 else 2
    return "{median:.{d}f} ({min:.{d}f}-{max:.{d}f})".format(**value, d=digits)


def write_corruption_tree(folder: Path, size: int, images: int) -> None:
    """A corruption of five severities, each with so many JPEGs, links to a few different ones."""
    generator = np.random.default_rng(0)
    places = [folder / "gaussian_noise" / str(severity) / "class" for severity in range(1, 6)]
    for place in places:
        place.mkdir(parents=True)
    for number in range(images):
        original = places[0] / f"{number % DIFFERENT_JPEGS:06d}.jpg"
        if number < DIFFERENT_JPEGS:  # about as many bytes as ImageNet-C's, which have quality 85
            coarse = generator.normal(110, 60, (size // 3, size // 3, 3)).clip(0, 255)
            image = Image.fromarray(coarse.astype(np.uint8))
            image.resize((size, size), Image.Resampling.BICUBIC).save(original, quality=85)
        for place in places[number < DIFFERENT_JPEGS :]:
            os.link(original, place / f"{number:06d}.jpg")


def write_half_robust(folder: Path, size: int, images: int) -> None:
    """DIR/val of one class: by turns an image just above middle grey and a bright one, PNG."""
    place = folder / "val" / "class"
    place.mkdir(parents=True)
    for number in range(images):
        level = ROBUST if number % 2 else MISCLASSIFIED
        Image.new("RGB", (size, size), (level,) * 3).save(place / f"{number:05d}.png")


def machine(options: argparse.Namespace) -> Row:
    """What the numbers depend on."""
    cuda = torch.device(options.device).type == "cuda"
    return {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "device": torch.cuda.get_device_name(options.device) if cuda else options.device,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions(),
        "date": now(),
        "load_average_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


if __name__ == "__main__":
    sys.exit(main())
