"""The four trainings with and without hypersphere embedding, over seeds, on real digits.

    python -m tools.study [DIR]         # default: study; about an hour on two idle cores
    python -m tools.study --quick       # a few images and one seed, to see that it works

Trains free, fast, pgd and natural, each plain and with HE, through the suite's own commands,
attacks every model, and leaves DIR/STUDY.md with a table (mean ± standard deviation over seeds) and
a figure of robust accuracy against training cost. A run that is finished is kept, and one that was
interrupted is resumed, by the same command again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.compare import main as compare
from tools.demo import CONFIG, HE, ROOT, environment
from tools.study_report import write_report
from utils.config.command_line import names, parse_command_line, positive, tool_parser, user_path
from utils.config.settings import Config
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.storage.files import make_folder
from utils.storage.results import AttackResult, only_result

# What each training gets: its epochs and its own numbers; steps are of 255.
METHODS: dict[str, dict[str, Any]] = {
    "natural": {"TRAIN.epochs": 10},
    "free": {"TRAIN.epochs": 20, "ADV.n_repeats": 4, "ADV.fgsm_step": 24},
    "fast": {"TRAIN.epochs": 10, "ADV.fgsm_step": 30},
    "pgd": {"TRAIN.epochs": 10, "ADV.train_steps": 3, "ADV.fgsm_step": 16},
}
# The last model is judged: none is chosen by the images that it is then judged on.
SETTINGS = {
    "TRAIN.schedule": "cosine",
    "TRAIN.lr": 0.01,
    "TRAIN.val_every": 1000,
    "DATA.workers": 0,
}
QUICK = {"TRAIN.epochs": 1, "ADV.n_repeats": 1, "DATA.img_size": 16, "DATA.crop_size": 16}
ATTACKS = ("pgd20", "pgd20-margin", "apgd")


@dataclass(frozen=True)
class Job:
    """One training and its attacks: a row's name, its seed, the command, where results go."""

    name: str
    seed: int
    words: tuple[str, ...]
    config: Config
    folder: Path  # the study's

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def run(self) -> Path:
        return self.folder / self.config.run_dir

    @property
    def done(self) -> bool:
        return any(self.run.glob("attack_*.json"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: study(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = tool_parser("study", __doc__)
    add, cores, default = parser.add_argument, os.cpu_count() or 1, "default: %(default)s"
    add("folder", nargs="?", default="study", metavar="DIR", type=user_path, help=default)
    add("--seeds", type=positive, default=3, metavar="N", help=default)
    add("--jobs", type=positive, default=cores, metavar="N", help="trainings at a time")
    listed = "commas between (default: all)"
    add("--methods", type=names, default=[*METHODS], metavar="M,M", help=listed)
    add("--quick", action="store_true", help="a few images, one seed, one epoch")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.methods) - METHODS.keys():
        raise UserError(f"--methods: no {min(unknown)}; there are {', '.join(METHODS)}")
    return arguments


def study(arguments: argparse.Namespace) -> None:
    """Data, trainings with their attacks, comparison, report."""
    folder = make_folder(arguments.folder).resolve()
    make_data(folder, arguments.quick)
    seeds = 1 if arguments.quick else arguments.seeds
    jobs = all_jobs(folder, arguments.methods, seeds, arguments.quick)
    run_jobs([job for job in jobs if not job.done], arguments.jobs, len(jobs))
    rows = list(dict.fromkeys(job.name for job in jobs))
    runs = [str(os.path.relpath(job.run)) for job in jobs]
    stem = os.path.relpath(folder / "comparison")
    if status := compare([*runs, "--names", *rows, "-o", stem]):
        raise UserError(f"the comparison ended with status {status}")
    report = write_report(folder, {job.run: (job.name, job.config) for job in jobs})
    print(f"written: {os.path.relpath(report)}")


def make_data(folder: Path, quick: bool) -> None:
    """The digits, and of them a few where it is to be quick."""
    making = start(folder, "digits", ["-m", "tools.demo_data", "digits", "--workers", "1"])
    require_success(folder, "digits", making.wait())
    if quick and not (folder / "few").exists():
        for source in sorted((folder / "digits").glob("*/*")):
            target = folder / "few.part" / source.relative_to(folder / "digits")
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:4]:
                shutil.copy(image, target)
        (folder / "few.part").rename(folder / "few")


def all_jobs(folder: Path, methods: Sequence[str], seeds: int, quick: bool) -> list[Job]:
    """Every training, those of one row together."""
    data = str(folder / ("few" if quick else "digits"))
    jobs = []
    for method in methods:
        own = METHODS[method] | (QUICK if quick else {})
        values = {"TRAIN.method": method, **SETTINGS, **own}
        flags = [word for key, v in values.items() for word in ("--set", f"{key}={v}")]
        for name, embedding in ((method, []), (f"{method} + HE", HE)):
            for seed in range(seeds):
                words = [data, *CONFIG, *flags, *embedding, "--attack", ",".join(ATTACKS)]
                words += ["--seed", str(seed), "--resume", "auto"]
                config = parse_command_line(words, "main_free", "")
                jobs.append(Job(name, seed, tuple(words), config, folder))
    return jobs


def run_jobs(jobs: Sequence[Job], at_once: int, total: int) -> None:
    """Train and attack, several at a time; a line for each that is done.

    Whatever ends this ends the trainings under way, which save their state first.

    Raises:
        UserError: one failed; its log says why.
    """
    print(f"{total} trainings, {total - len(jobs)} of them finished before", flush=True)
    waiting, done = list(jobs), total - len(jobs)
    running: dict[subprocess.Popen[bytes], tuple[Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                words = [str(ROOT / "main_free.py"), *job.words]
                running[start(job.folder, job.label, words)] = job, time.monotonic()
            time.sleep(0.2)
            for process in [p for p in running if p.poll() is not None]:
                job, began = running.pop(process)
                require_success(job.folder, job.label, process.returncode)
                done += 1
                minutes = (time.monotonic() - began) / 60
                result = only_result(job.run, AttackResult)
                clean, worst = result.clean.top1.percent, result.worst_case.top1.percent
                found = f"{clean:.1f} % clean, {worst:.1f} % in the worst case"
                print(f"[{done}/{total}] {job.label}: {found} ({minutes:.1f} min)", flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def start(folder: Path, label: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command in the study's folder, on one thread, into a log."""
    own = environment(OMP_NUM_THREADS="1")
    with open(log_of(folder, label), "a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=own, stdout=file, stderr=file
        )


def log_of(folder: Path, label: str) -> Path:
    return make_folder(folder / "logs") / f"{label.replace(', ', '_').replace(' ', '_')}.txt"


def require_success(folder: Path, label: str, status: int) -> None:
    """A command must have ended well.

    Raises:
        UserError: it has not.
    """
    if status:
        raise UserError(
            f"{label} ended with status {status}; {log_of(folder, label)} says why, and the same"
            " command resumes the study"
        )


if __name__ == "__main__":
    sys.exit(main())
