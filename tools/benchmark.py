"""How fast the suite is, against the published loop written out plainly, in one run.

    python -m tools.benchmark                       # everything, ResNet-50, 224 px: about an hour
    python -m tools.benchmark --parts free,pgd      # on two cores; less on others
    python -m tools.benchmark --device cuda --batch_size 256
    python -m tools.benchmark --quick               # seconds: whether it works, not how fast

Subjects are the plain loop, and the suite in each precision, with and without torch.compile. Each
is measured in a fresh process, one at a time, in turn, for as many repetitions as asked for, so
that whatever slows the machine down slows all of them. Shown are medians, with the smallest and the
largest in brackets, on stdout as tables, and as JSON with every single take.

Parts: `free`, the training step, also against a natural training step of the same precision;
`methods`, a minibatch of every training method, with its forward-backward passes; `pgd`, a step of
PGD; `standard`, a whole PGD-50 evaluation of images of which half are misclassified
early; `reading`, an ImageNet-C of JPEGs by worker processes. Close other programs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lib.algorithm.training_methods import METHODS
from tools.benchmark_case import ATTACK_STEPS, REPLAYS, Case, cases_of, run
from utils.config.command_line import names, positive, tool_parser, user_path
from utils.config.settings import ARCHITECTURES, PRECISIONS
from utils.distributed.device import choose_device
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.logging import markdown_table
from utils.storage.files import make_folder, write_json
from utils.storage.provenance import now, processor, versions

PARTS = {
    "free": "Free step",
    "methods": "Training methods, a minibatch",
    "pgd": "PGD-50, plain",
    "standard": "PGD-50 of the `standard` protocol, half of the images misclassified early",
    "reading": "Reading ImageNet-C",
}
QUICK = {
    "arch": "resnet18",
    "batch_size": 4,
    "crop_size": 32,
    "repeats": 1,
    "take_seconds": 0.01,
    "reading_images": 8,
    "standard_images": 6,
    "pgd_steps": 5,
    "no_compile": True,
}
COLUMNS = {
    "passes": "passes",
    "images/s": "images_per_second",
    "ratio to plain": "ratio_to_plain",
    "time over natural step": "time_over_natural_step",
}
Row = dict[str, Any]


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
    """The arguments.

    Raises:
        UserError: a flag is wrong, or there is no such device.
    """
    parser = tool_parser("benchmark", __doc__)
    add = parser.add_argument
    default = "(default: %(default)s)"
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
    add("--workers", type=int, default=2, metavar="N", help="reading processes (%(default)s)")
    each = f"JPEGs in each of 5 folders {default}"
    add("--reading_images", type=positive, default=1000, metavar="N", help=each)
    attacked = "images of `standard`, an even number (default: 4 batches)"
    add("--standard_images", type=int, metavar="N", help=attacked)
    add("--quick", action="store_true", help="tiny sizes: does it work at all")
    add("--output", type=user_path, default=Path("benchmark.json"), metavar="FILE", help="JSON")
    return checked(parser.parse_args(argv, argparse.Namespace(pgd_steps=50)))


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The arguments with what depends on others.

    Raises:
        UserError: something that would only be found after some work.
    """
    if options.quick:
        vars(options).update(QUICK)
    device = choose_device(options.device)
    options.device = str(device)
    if options.batch_size is None:
        options.batch_size = 256 if device.type == "cuda" else 16
    if options.standard_images is None:
        options.standard_images = 4 * options.batch_size
    for flag, known in (("parts", PARTS), ("precisions", PRECISIONS)):
        if unknown := set(getattr(options, flag)) - set(known):
            raise UserError(f"--{flag}: no {min(unknown)}; there are {', '.join(known)}")
    if options.standard_images % 2:
        raise UserError(f"--standard_images {options.standard_images}: take an even number")
    return options


def measure(part: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All repetitions of one part, every subject in turn, as a row a subject and action."""
    repeats = options.standard_repeats if part == "standard" else options.repeats
    cases = list(cases_of(part, options, folder))
    results: list[list[Row]] = [[] for _ in cases]
    for repetition in range(min(repeats, options.repeats)):
        for case, own in zip(cases, results, strict=True):
            own.append(run(case))
        print(f"{part}: {repetition + 1} of {repeats}", file=sys.stderr, flush=True)
    plain = results[0] if cases[0].subject == "plain" else []
    return [
        row_of(case, own, plain, action)
        for case, own in zip(cases, results, strict=True)
        for action in own[0]["takes"]
    ]


def row_of(case: Case, results: Sequence[Row], plain: Sequence[Row], action: str) -> Row:
    """What one subject did in one action, in all repetitions, beside the plain loop's."""
    values = rates(results, action)
    row = {
        "part": case.part,
        "action": action,
        "name": case.name,
        "precision": case.precision,
        "compile": case.compiled,
        "images_per_second": spread(values),
        "takes": [result["takes"][action] for result in results],
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
    }
    if plain and action in plain[0]["takes"]:
        row["ratio_to_plain"] = quotients(values, rates(plain, action))
    if case.part == "methods":
        row["passes"] = METHODS[action].cost(REPLAYS if action == "free" else 1, ATTACK_STEPS)
    if action != "natural" and "natural" in results[0]["takes"]:  # time: the rates' inverse
        row["time_over_natural_step"] = quotients(rates(results, "natural"), values)
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


def cell(value: Mapping[str, float] | int | None) -> str:
    """`1.41 (1.38-1.44)`, a count, or nothing."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    digits = 1 if value["median"] >= 20 else 2
    return "{median:.{d}f} ({min:.{d}f}-{max:.{d}f})".format(**value, d=digits)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    cuda = torch.device(options.device).type == "cuda"
    return {
        "settings": {**vars(options), "output": str(options.output)},
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
