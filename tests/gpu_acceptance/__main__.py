"""Prove the suite on a GPU, in at most ten minutes.

    python -m tests.gpu_acceptance                    # everything
    python -m tests.gpu_acceptance --quick            # about two minutes
    python -m tests.gpu_acceptance --json found.json --parts golden,waits

Every line says PASS, FAIL, SKIP or note, the seconds it took, what was found and what is allowed.
The exit status is 1 after any FAIL, 2 on a machine without CUDA, else 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.gpu_acceptance.checks import FAIL
from tests.gpu_acceptance.runner import PARTS, run_parts
from tests.gpu_acceptance.setting import Setting
from tests.processes import script
from utils.config.parser import OneLineParser, names
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import write_json
from utils.storage.provenance import now, versions

SECONDS = 540  # after which no case is begun, so that all is done in ten minutes


def main() -> int:
    """The command; its exit status."""
    return run_command(accept)


def accept() -> int:
    """Run the parts that are asked for.

    Raises:
        UserError: there is no CUDA here, or no such part.
    """
    parser = OneLineParser(
        prog="python -m tests.gpu_acceptance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--json", type=Path, metavar="F", help="keep every line in a file")
    parser.add_argument(
        "--parts", type=names, default=list(PARTS), metavar="P,P", help="only these"
    )
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        raise UserError(f"--parts: no {min(unknown)}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        raise UserError(
            "this proves the suite on CUDA, and there is no GPU here that torch can use"
        )
    ends = time.monotonic() + SECONDS
    with tempfile.TemporaryDirectory(prefix="gpu_acceptance_") as folder:
        setting = Setting(torch.device("cuda", 0), options.quick, Path(folder), script, ends)
        lines = run_parts(setting, options.parts)
    counts = Counter(line["status"] for line in lines)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if options.json:
        content = {"versions": versions(), "date": now(), "quick": options.quick, "lines": lines}
        write_json(options.json, content)
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(main())
