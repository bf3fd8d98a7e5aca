"""Kill a training with SIGKILL at random instants, resume it, and compare with one left alone.

    PYTHONPATH=. python tests/soak.py                    # ten kills; some minutes on two cores
    PYTHONPATH=. python tests/soak.py --kills 50 --seed 3

Each start reads with another number of workers, 0 to 2, and every minibatch is saved, so that
kills hit steps, saves, validation and starts. Weights, momentum, noise, metrics.csv (but for its
two columns of time), gradient_norms.csv and the evaluation of every image must be the same to the
last bit. Exit status 0 if they are.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from conftest import command, settings, write_digits
from processes import differences, outcome, started, the_run

SETTINGS = settings(TRAIN__select="pgd", TRAIN__select_examples=8, DATA__batch_size=10)
ALWAYS = ("--set", "TRAIN.checkpoint_minutes=1e-9")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants (default 0)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    # Passes of seven minibatches, two replays each: more of them than the kills can use up.
    length = ("--set", f"TRAIN.epochs={6 + options.kills}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_digits(folder / "digits", {"train": 16, "val": 9}, classes=4)
        words = [data, "--FN", "--WN", "--print_gradients", *SETTINGS, *length]
        whole = left_alone(words, folder / "left_alone")
        wrong = differences(killed(words, folder / "killed", options.kills, chance), whole)
    print(
        f"differs: {', '.join(wrong)}" if wrong else f"{len(whole)} parts are the same, bit by bit"
    )
    return 1 if wrong else 0


def left_alone(words: list[Any], cwd: Path) -> dict[str, Any]:
    """The outcome when nothing happens."""
    cwd.mkdir()
    with started(command("main_free.py", *words), cwd) as running:
        done = running.end()
    assert done.status == 0, done
    print(f"left alone: {len(done.out.splitlines())} lines", flush=True)
    return outcome(the_run(cwd))


def killed(words: list[Any], cwd: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """The outcome after so many kills."""
    cwd.mkdir()
    count = 0
    while True:
        workers = ("--set", f"DATA.workers={chance.randrange(3)}")
        line = command("main_free.py", *words, "--resume", "auto", *ALWAYS, *workers)
        with started(line, cwd) as running:
            if count == kills:
                done = running.end()
                assert done.status == 0, done
                return outcome(the_run(cwd))
            if (minibatches := chance.randrange(5)) > 0:  # else somewhere in its start
                running.saw(r"epoch \d+/\d+ \[", times=minibatches)
            time.sleep(chance.uniform(0, 2))
            os.killpg(running.pid, signal.SIGKILL)
            running.end()
        count += 1
        print(f"kill {count} of {kills} {where(cwd)}", flush=True)


def where(cwd: Path) -> str:
    """How far the training had come, by its newest checkpoint."""
    for path in cwd.glob("trained_models/*/checkpoint.pth.tar"):
        state = torch.load(path, weights_only=True)["training"]
        return f"after epoch {state['epoch'] + 1}, minibatch {state['position']}"
    return "before the first checkpoint"


if __name__ == "__main__":
    sys.exit(main())
