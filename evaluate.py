"""Evaluate a checkpoint: PGD and AutoAttack on ImageNet, and ImageNet-C.

    python evaluate.py /data/ImageNet -e --resume RUN/model_best.pth.tar
    python evaluate.py /data/ImageNet -e --attack pgd10,pgd50-margin,autoattack --resume ...
    python evaluate.py /data/ImageNet -e --protocol paper --n_examples 5000 --resume ...
    python evaluate.py /data/ImageNet-C --eva_on_imagenet_c --resume RUN/model_best.pth.tar
    python evaluate.py -e --eva_on_imagenet_c --resume ...           # both, DIRs from configs.yml

PATH of --resume is as given or under trained_models/. Checkpoints of this suite carry their
settings, so no other flag is needed; for others give --FN --WN --s_HE as in their training.
Results go beside the checkpoint: a table here, JSON with provenance, one CSV row an image. An
interrupted evaluation goes on with the same command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from utils.command_line import parse_command_line
from utils.launch import launch, run_command


def work(config: Any, ranks: Any) -> None:
    """One process."""
    from lib.evaluation import evaluate

    evaluate(config, ranks)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then run on every GPU; returns the exit status."""

    def command() -> None:
        launch(work, parse_command_line(argv, "evaluate", __doc__ or ""))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
