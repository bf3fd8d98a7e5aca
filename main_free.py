"""Free adversarial training (FreeAT) on ImageNet, with or without hypersphere embedding (HE).

    python main_free.py /data/ImageNet
    python main_free.py /data/ImageNet --FN True --WN True --s_HE 10.0 --angular_margin_HE 0.2
    python main_free.py /data/ImageNet --print_gradients True       # gradient norm ratios
    python main_free.py /data/ImageNet --resume auto                # go on where it was
    python main_free.py /data/ImageNet -e --resume RUN/model_best.pth.tar

DIR holds train/CLASS/IMAGE and val/CLASS/IMAGE. Every visible GPU is used; the batch size is that
over all of them. On several machines, on each of them:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        main_free.py /data/ImageNet --resume auto

A run leaves trained_models/<name>/: checkpoint.pth.tar, model_best.pth.tar, config.yml, log.txt,
metrics.csv, figures, and the evaluation of the best model as JSON and CSV. Ctrl-C and SIGTERM save
and stop, SIGUSR1 saves and goes on; --resume auto continues bit by bit on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from utils.command_line import parse_command_line
from utils.launch import launch, run_command
from utils.memory import keep_freed_memory


def work(config: Any, ranks: Any) -> None:
    """One process: train and attack what was trained, or only evaluate."""
    from lib.evaluation import evaluate, evaluate_trained
    from lib.training import train

    keep_freed_memory()
    if config.OPTIONS.evaluate:
        evaluate(config, ranks)
        return
    train(config, ranks)
    evaluate_trained(config, ranks)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, then run on every GPU; returns the exit status."""

    def command() -> None:
        launch(work, parse_command_line(argv, "main_free", __doc__ or ""))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
