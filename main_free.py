"""Free adversarial training (FreeAT) on ImageNet, with or without hypersphere embedding (HE).

    python main_free.py /data/ImageNet
    python main_free.py /data/ImageNet --FN True --WN True --s_HE 10.0 --angular_margin_HE 0.2
    python main_free.py /data/ImageNet --print_gradients True       # gradient norm ratios
    python main_free.py /data/ImageNet --resume auto                # start or resume
    python main_free.py /data/ImageNet -e --resume RUN/model_best.pth.tar

DIR holds train/CLASS/IMAGE and val/CLASS/IMAGE. Every visible GPU is used; the batch size is that
over all of them. On several machines, on each of them:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        main_free.py /data/ImageNet --resume auto

A run leaves trained_models/<name>/: checkpoint.pth.tar, model_best.pth.tar, config.yml, log.txt,
metrics.csv, figures, and the evaluation of the best model as JSON and CSV. Ctrl-C and SIGTERM save
and stop, SIGUSR1, SIGUSR2 and SIGXCPU save and continue; --resume auto resumes bit by bit on the
CPU.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lib.evaluation.attacks import attacks_by_ball
from utils.config.command_line import parse_command_line
from utils.config.load import phases_of
from utils.config.settings import Config
from utils.distributed.launch import launch, run_command

if TYPE_CHECKING:
    from utils.distributed.context import DistributedContext


def work(config: Config, context: "DistributedContext") -> None:
    """One process: train and attack what was trained, or evaluate a checkpoint."""
    from lib.evaluation.run import evaluate, evaluate_trained
    from lib.training.run import train

    if config.OPTIONS.evaluating:
        evaluate(config, context)
        return
    for phase in phases_of(config):
        train(phase, context)
    evaluate_trained(phase, context)


def run_script(script: str, manual: str | None, argv: Sequence[str] | None) -> int:
    """Parse the flags of `main_free` or `evaluate`, run on every GPU; returns the exit status."""

    def command() -> None:
        config = parse_command_line(argv, script, manual or "")
        attacks_by_ball(config)  # a wrong name is answered at once
        launch(work, config)

    return run_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_script("main_free", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
