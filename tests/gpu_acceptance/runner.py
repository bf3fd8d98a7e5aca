"""Runs the parts, prints every line, counts what failed."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.gpu_acceptance import (
    checkpoints,
    compiled,
    ddp,
    environment,
    errors,
    evaluation,
    golden,
    pool,
    precision,
    speed,
    streams,
    waits,
)
from tests.gpu_acceptance.checks import FAIL, Check
from tests.gpu_acceptance.setting import Setting

Part = Callable[[Setting], Iterator[Check]]
Line = dict[str, Any]
PARTS: dict[str, Part] = {
    "environment": environment.checks,
    "golden": golden.checks,
    "precision": precision.checks,
    "waits": waits.checks,
    "streams": streams.checks,
    "pool": pool.checks,
    "checkpoints": checkpoints.checks,
    "errors": errors.checks,
    "ddp": ddp.checks,
    "compiled": compiled.checks,
    "evaluation": evaluation.checks,
    "speed": speed.checks,
}


def run_parts(setting: Setting, parts: Iterable[str] = tuple(PARTS)) -> list[Line]:
    """Every line of some parts, printed as it comes; each part has a folder of its own."""
    lines: list[Line] = []
    for part in parts:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            for line in run_part(part, PARTS[part], replace(setting, folder=Path(folder))):
                print(text_of(line), flush=True)
                lines.append(line)
        gc.collect()
        if setting.cuda:
            torch.cuda.empty_cache()
    return lines


def run_part(name: str, part: Part, setting: Setting) -> Iterator[Line]:
    """A part's lines; an exception ends it with a line that fails."""
    found = part(setting)
    while True:
        started = time.monotonic()
        try:
            check = next(found)
        except StopIteration:
            return
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            check = Check(FAIL, "the part itself", f"{where(error)}: {said(error)}", "no exception")
        seconds = round(time.monotonic() - started, 2)
        yield {"part": name, **check._asdict(), "seconds": seconds}


def where(error: Exception) -> str:
    """File and line of an exception's innermost frame outside of packages."""
    own = [
        f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename
    ]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def said(error: Exception) -> str:
    """Kind and first line of an exception."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def text_of(line: Line) -> str:
    """A line as people read it."""
    value = f"{line['value']:.4g}" if isinstance(line["value"], float) else line["value"]
    bound = f" ({line['bound']})" if line["bound"] else ""
    what = f"{line['part']}: {line['name']}"
    return f"{line['status']:4} {line['seconds']:7.2f} s  {what}: {value}{bound}"
