"""Evaluate a checkpoint: attacks on ImageNet, ImageNet-C and shifted test sets.

    python evaluate.py /data/ImageNet -e --resume RUN/model_best.pth.tar
    python evaluate.py /data/ImageNet -e --attack pgd10,pgd50-margin,autoattack --resume ...
    python evaluate.py /data/ImageNet -e --protocol paper --n_examples 5000 --resume ...
    python evaluate.py /data/ImageNet-C --eva_on_imagenet_c --resume RUN/model_best.pth.tar
    python evaluate.py /data/ImageNet-R --eva_on_shift --resume RUN/model_best.pth.tar
    python evaluate.py -e --eva_on_imagenet_c --resume ...           # both, DIRs from configs.yml

PATH of --resume is as given or under trained_models/. Checkpoints of this suite carry their
settings, so no other flag is needed; for others give --FN --WN --s_HE as in their training, and
--set TRAIN.arch=convnext_tiny or timm/NAME for any network of torchvision or timm; --pretrained
takes their published weights.
Results go beside the checkpoint: a table here, JSON with provenance, one CSV row an image. An
interrupted evaluation resumes with the same command.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lib.evaluation.attacks import attacks_by_ball
from utils.config.command_line import parse_command_line
from utils.config.settings import Config
from utils.distributed.launch import launch, run_command

if TYPE_CHECKING:
    from utils.distributed.context import DistributedContext


def work(config: Config, context: "DistributedContext") -> None:
    """One process."""
    from lib.evaluation.run import evaluate

    evaluate(config, context)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then run on every GPU; returns the exit status."""

    def command() -> None:
        config = parse_command_line(argv, "evaluate", __doc__ or "")
        attacks_by_ball(config)  # a wrong name is answered at once
        launch(work, config)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
