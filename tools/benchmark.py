"""How fast the suite is, against the published loop written out plainly, in one run.

    python -m tools.benchmark                       # everything, ResNet-50, 224 px: about an hour
    python -m tools.benchmark --parts free,pgd      # on two cores; less on others
    python -m tools.benchmark --device cuda --batch_size 256
    python -m tools.benchmark --quick               # seconds: whether it works, not how fast

Each subject has a process of its own: the plain loop, and the suite in each precision, with and
without torch.compile. Only one works at a time, in turn, for as many repetitions as asked for, so
that whatever slows the machine down meets all alike. Shown are medians, with the smallest and the
largest in brackets, on stdout as tables, and as JSON with every single take.

Parts: `free`, the training step, also against a natural training step of the same precision; `pgd`,
a step of PGD; `standard`, a whole PGD-50 evaluation of images of which half fall early; `reading`,
an ImageNet-C of JPEGs by worker processes. Close other programs.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from tools.benchmark_data import write_corruption_tree, write_half_robust
from tools.benchmark_process import Subject, say, subjects
from tools.benchmark_report import PARTS, Measured, rows_of, tables
from tools.benchmark_work import Case
from utils.config.parser import OneLineParser, names
from utils.config.schema import ARCHITECTURES, PRECISIONS
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import make_folder, write_json
from utils.storage.provenance import now, versions

QUICK = {
    "arch": "resnet18",
    "batch_size": 4,
    "crop_size": 32,
    "repeats": 2,
    "take_seconds": 0.01,
    "reading_images": 8,
    "standard_images": 6,
    "pgd_steps": 5,
    "no_compile": True,
}
DIFFERENT_JPEGS = 200


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
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        rows = [row for part in options.parts for row in run(part, options, Path(folder))]
    command = shlex.join(["python", "-m", "tools.benchmark", *arguments])
    origin = {"command": command, **machine(options), "load_average_before": load}
    write_json(options.output, {"kind": "benchmark", "provenance": origin, "rows": rows})
    print(tables(rows), end="")
    say(f"written: {options.output}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments.

    Raises:
        UserError: a flag is wrong, or there is no such device.
    """
    parser = OneLineParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--arch", choices=ARCHITECTURES, default="resnet50", help="(default: %(default)s)")
    add("--device", default="", help="cpu, cuda or mps (default: cuda where there is one)")
    size = "images in a batch (default: 16, on CUDA 256)"
    add("--batch_size", type=int, default=0, metavar="N", help=size)
    add("--crop_size", type=int, default=224, metavar="N", help="pixels (default: %(default)s)")
    add("--repeats", type=int, default=7, metavar="N", help="repetitions (default: %(default)s)")
    few = "repetitions of `standard`, minutes each (default: %(default)s)"
    add("--standard_repeats", type=int, default=3, metavar="N", help=few)
    take = "shortest take, but a step at least (default: %(default)s)"
    add("--take_seconds", type=float, default=4.0, metavar="S", help=take)
    listed = "commas between (default: %(default)s)"
    add("--parts", type=names, default=",".join(PARTS), metavar="P,P", help=listed)
    add("--precisions", type=names, default="fp32,bf16", metavar="P,P", help=listed)
    add("--no_compile", action="store_true", help="leave torch.compile out")
    add("--workers", type=int, default=2, metavar="N", help="reading processes (%(default)s)")
    each = "JPEGs in each of 5 folders (default: %(default)s)"
    add("--reading_images", type=int, default=1000, metavar="N", help=each)
    attacked = "images of `standard`, an even number (default: 4 batches)"
    add("--standard_images", type=int, default=0, metavar="N", help=attacked)
    add("--quick", action="store_true", help="tiny sizes: does it work at all")
    add("--output", type=Path, default=Path("benchmark.json"), metavar="FILE", help="JSON")
    options = parser.parse_args(argv, argparse.Namespace(pgd_steps=50))
    return checked(options)


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The arguments with what depends on others.

    Raises:
        UserError: something that would only be found after some work.
    """
    import torch

    if options.quick:
        vars(options).update(QUICK)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {options.device}: {reason}; use cpu") from error
    cuda = torch.device(options.device).type == "cuda"
    options.batch_size = options.batch_size or (256 if cuda else 16)
    options.standard_images = options.standard_images or 4 * options.batch_size
    for flag, known in (("parts", tuple(PARTS)), ("precisions", PRECISIONS)):
        if unknown := set(getattr(options, flag)) - set(known):
            raise UserError(f"--{flag}: no {min(unknown)}; there are {', '.join(known)}")
    for flag in ("batch_size", "crop_size", "repeats", "standard_repeats", "reading_images"):
        if getattr(options, flag) < 1:
            raise UserError(f"--{flag} {getattr(options, flag)}: at least 1 is needed")
    if options.standard_images % 2:
        raise UserError(f"--standard_images {options.standard_images}: half of them are to fall")
    return options


def run(part: str, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Repetitions of one part, every subject in turn."""
    cases = list(cases_of(part, options, folder))
    repeats = min(options.repeats, options.standard_repeats if part == "standard" else 10**9)
    with subjects(cases, options.take_seconds) as running:
        measured = [Measured(s.case, {action: [] for action in s.actions}) for s in running]
        for repetition in range(repeats):
            for subject, record in zip(running, measured, strict=True):
                take_all(subject, record)
            say(f"{part}: {repetition + 1} of {repeats}")
        for subject, record in zip(running, measured, strict=True):
            record.memory = subject.peak_memory()
    return rows_of(measured)


def take_all(subject: Subject, record: Measured) -> None:
    """One take of everything that a subject does."""
    for action in subject.actions:
        record.takes[action].append(subject.take(action))


def cases_of(part: str, options: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """The plain loop, and the suite in every setting that matters to the part."""
    own = ("arch", "batch_size", "crop_size", "device", "workers", "pgd_steps")
    settings = {name: getattr(options, name) for name in own}
    base = Case(part, "plain", "fp32", False, **settings)
    precisions, compiled = options.precisions, [False] + [True] * (not options.no_compile)
    if part == "reading":
        base = replace(base, data=str(folder / "C"))
        size = options.crop_size
        write_corruption_tree(folder / "C", size, options.reading_images, DIFFERENT_JPEGS)
        precisions, compiled = ["fp32"], [False]
    elif part == "standard":
        base = replace(base, data=str(folder / "half"))
        write_half_robust(folder / "half", options.crop_size, options.standard_images)
        compiled = [False]  # batches of every size would be compiled anew
    yield base
    for precision, on in product(precisions, compiled):
        yield replace(base, subject="suite", precision=precision, compiled=on)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    cuda = torch.device(options.device).type == "cuda"
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return {
        "settings": settings,
        "device": torch.cuda.get_device_name(options.device) if cuda else options.device,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "date": now(),
    }


def processor() -> str:
    """The processor's name and, on Linux, the vector instructions that matter."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))
    values = {key.strip(): value.strip() for key, value in values.items()}
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_fp16"}
    return " ".join(
        [
            values.get("model name", platform.machine()),
            *sorted(wanted & set(values.get("flags", "").split())),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
