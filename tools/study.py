"""The four trainings with and without hypersphere embedding, over seeds, on real digits.

    python -m tools.study [DIR]         # default: study; about an hour on two idle cores
    python -m tools.study --quick       # a few images and one seed, to see that it works

Trains free, fast, pgd and natural, each plain and with HE, through the suite's own commands,
attacks every model, and leaves DIR/STUDY.md with a table (mean ± standard deviation over seeds) and
a figure of robust accuracy against training cost. A run that is finished is kept, and one that was
interrupted is resumed, by the same command again.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lib.algorithm.protocols import METHODS as TRAINING_METHODS
from tools.compare import main as compare
from tools.demo import CONFIG, HE, ROOT, environment, write_digits
from utils.config.command_line import checked, parse_command_line, positive, tool_parser, user_path
from utils.config.settings import Config
from utils.config.validators import choice, list_of
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.figures import style
from utils.storage.conditions import worst_of
from utils.storage.files import atomic_write, make_folder
from utils.storage.results import AttackResult, Estimate, mean_over_seeds, only_result
from utils.text import markdown_table

# What each training gets: its epochs and its own numbers; steps are of 255.
METHODS: dict[str, dict[str, Any]] = {
    "natural": {"TRAIN.epochs": 10},
    "free": {"TRAIN.epochs": 20, "ADV.n_repeats": 4, "ADV.fgsm_step": 24},
    "fast": {"TRAIN.epochs": 10, "ADV.fgsm_step": 30},
    "pgd": {"TRAIN.epochs": 10, "ADV.train_steps": 3, "ADV.fgsm_step": 16},
}
# The last model is attacked: none is chosen by the images that it is then attacked on.
SETTINGS = {
    "TRAIN.schedule": "cosine",
    "TRAIN.lr": 0.01,
    "TRAIN.val_every": 1000,
    "DATA.workers": 0,
}
QUICK = {"TRAIN.epochs": 1, "ADV.n_repeats": 1, "DATA.img_size": 16, "DATA.crop_size": 16}
FEW = 100  # digits
ATTACKS = "pgd20,pgd20-margin,apgd"
TEXT = """# Free, fast, PGD and natural training, with and without hypersphere embedding

Made by `python -m tools.study` on {date:.10} with torch {versions[torch]} on {device}:
{config[TRAIN][arch]} trained on scikit-learn's handwritten digits of {config[DATA][crop_size]} px
and attacked on {subset[n]} others, eps {config[ADV][clip_eps]:g}/255, batch
{config[DATA][batch_size]}, a cosine of the learning rate from {config[TRAIN][lr]:g}; number of
seeds: {seeds}. The last model of each training is attacked, so that no image has chosen what it
judges.

{costs}

{comparison}

![what HE adds](comparison_effect.png)

![robust accuracy against training cost](cost.png)

What this does not show: anything about ImageNet. These are small grey images of ten classes and a
network trained for minutes; epochs and learning rate are the same for plain and HE and were not
tuned for either, and so few seeds tell large differences alone.
"""


class Job(NamedTuple):
    """A training and its attacks: its row of the table, flags, settings and run folder."""

    row: str
    flags: Sequence[str]
    config: Config
    run: Path

    @property
    def label(self) -> str:
        return f"{self.row}, seed {self.config.RUN.seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = tool_parser("study", __doc__)
    add, cores, default = parser.add_argument, os.cpu_count() or 1, "default: %(default)s"
    add("folder", nargs="?", default="study", metavar="DIR", type=user_path, help=default)
    add("--seeds", type=positive, default=3, metavar="N", help=default)
    add("--jobs", type=positive, default=cores, metavar="N", help="trainings at a time")
    listed = "commas between (default: all)"
    methods = checked(list_of(choice(*METHODS)))
    add("--methods", type=methods, default=[*METHODS], metavar="M,M", help=listed)
    add("--quick", action="store_true", help="a few images, one seed, one epoch")
    return run_command(lambda: study(parser.parse_args(argv)))


def study(arguments: argparse.Namespace) -> None:
    """Data, trainings with their attacks, comparison, report."""
    folder, quick = make_folder(arguments.folder).resolve(), arguments.quick
    data = folder / ("few_digits" if quick else "digits")
    write_digits(data, FEW if quick else None)
    jobs = all_jobs(folder, data, arguments.methods, 1 if quick else arguments.seeds, quick)
    train_all(folder, jobs, arguments.jobs)
    rows = list(dict.fromkeys(job.row for job in jobs))
    runs = [os.path.relpath(job.run) for job in jobs]
    stem = os.path.relpath(folder / "comparison")
    pairs = [word for m in arguments.methods for word in ("--paired", m, f"{m} + HE")]
    if status := compare([*runs, "--names", *rows, *pairs, "-o", stem]):
        raise UserError(f"the comparison ended with status {status}")
    write_report(folder, jobs)
    print(f"written: {os.path.relpath(folder / 'STUDY.md')}")


def all_jobs(
    folder: Path, data: Path, methods: Sequence[str], seeds: int, quick: bool
) -> list[Job]:
    """Every training, those of one row together."""
    jobs = []
    for method in methods:
        settings = {"TRAIN.method": method} | SETTINGS | METHODS[method] | (QUICK if quick else {})
        flags = [str(data), *CONFIG, "--attack", ATTACKS, "--resume", "auto"]
        flags += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        for row, embedding in ((method, []), (f"{method} + HE", HE)):
            for seed in range(seeds):
                own_flags = [*flags, *embedding, "--seed", str(seed)]
                config = parse_command_line(own_flags, "main_free", "")
                jobs.append(Job(row, own_flags, config, folder / config.run_dir))
    return jobs


def train_all(folder: Path, jobs: Sequence[Job], at_once: int) -> None:
    """Train and attack, several at a time; a line for each that is done."""
    waiting = [job for job in jobs if not any(job.run.glob("attack_*.json"))]
    done = len(jobs) - len(waiting)
    print(f"{len(jobs)} trainings, {done} of them finished before", flush=True)
    logs = make_folder(folder / "logs")
    running: dict[subprocess.Popen[bytes], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[start(folder, job, logs)] = job
            time.sleep(0.2)
            for process in [p for p in running if p.poll() is not None]:
                job = running.pop(process)
                done += 1
                if process.returncode:
                    raise UserError(
                        f"{job.label} ended with status {process.returncode}; {logs}/"
                        f"{job.run.name}.txt says why, and the same command resumes the study"
                    )
                result = only_result(job.run, AttackResult)
                clean, worst = result.clean.top1.percent, result.worst_case.top1.percent
                text = f"{clean:.1f} % clean, {worst:.1f} % in the worst case"
                print(f"[{done}/{len(jobs)}] {job.label}: {text}", flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def start(folder: Path, job: Job, logs: Path) -> subprocess.Popen[bytes]:
    """Start a training in the study's folder, on one thread, into a log."""
    words = [sys.executable, str(ROOT / "main_free.py"), *job.flags]
    with open(logs / f"{job.run.name}.txt", "a", encoding="utf-8") as log:
        one_thread = environment(OMP_NUM_THREADS="1")
        return subprocess.Popen(words, cwd=folder, env=one_thread, stdout=log, stderr=log)


def write_report(folder: Path, jobs: Sequence[Job]) -> None:
    """Write DIR/STUDY.md and DIR/cost.png from the results of all runs."""
    results: dict[str, list[AttackResult]] = {}
    for job in jobs:
        results.setdefault(job.row, []).append(only_result(job.run, AttackResult))
    costs = {job.row: training_cost(job.config) for job in jobs}
    points = {}
    for row, seeds in results.items():
        mean = mean_over_seeds([result.worst_case.top1.percent for result in seeds])
        warned = any(result.warnings for result in seeds)
        points[row] = costs[row], replace(mean, warned=warned)
    first = results[jobs[0].row][0]
    over = worst_of(first.conditions.attacks)
    style.save_figure(robustness_against_cost(points, over), folder / "cost")
    methods = {job.config.TRAIN.method: job.config for job in jobs}
    rows = [
        [method, ", ".join(f"{k} {its.value(k)}" for k in METHODS[method]), str(training_cost(its))]
        for method, its in methods.items()
    ]
    titles = ["training", "settings", "forward-backward passes of the training set"]
    text = TEXT.format(
        **first.provenance,
        seeds=len(results[jobs[0].row]),
        costs=markdown_table(titles, rows, numbers=False),
        comparison=(folder / "comparison.md").read_text(encoding="utf-8").strip(),
    )
    atomic_write(folder / "STUDY.md", text)


@style.applied
def robustness_against_cost(trainings: Mapping[str, tuple[float, Estimate]], over: str) -> Figure:
    """Cost and robust accuracy over seeds of each training, which its twin with HE follows.

    Of a pair that costs the same, one lies to the left and one to the right of its cost.
    """
    fig = Figure(figsize=(style.WIDTH, 3.2), layout="constrained")
    axes = fig.subplots()
    for number, (name, (cost, robust)) in enumerate(trainings.items()):
        look, with_he = style.marked(style.point(number // 2), robust.warned), number % 2
        look |= {"markersize": 6, "capsize": 2.5, "marker": "s" if with_he else "o"}
        x = cost * (1.02 if with_he else 0.98)  # two points of one cost stay apart
        axes.errorbar(
            x, robust.percent, yerr=robust.spread or None, label=style.literal(name), **look
        )
    axes.set_xscale("log")
    costs = sorted({cost for cost, _ in trainings.values()})
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training cost (forward-backward passes over the training set, logarithmic)")
    axes.set_ylabel(f"robust accuracy (%)\n{over}")
    estimates = [robust for _, robust in trainings.values()]
    handles = axes.get_legend_handles_labels()[0]
    handles += style.legend_handles({}, any(robust.warned for robust in estimates))
    axes.legend(handles=handles, ncols=2)
    note = "Two trainings of one cost are drawn beside it."
    if any(robust.spread is not None for robust in estimates):
        note += " Bars: ± one standard deviation over the seeds (n - 1)."
    style.footnote(fig, note)
    return fig


def training_cost(config: Config) -> int:
    """Forward-backward passes over the training set that a training makes."""
    method = TRAINING_METHODS[config.TRAIN.method]
    return config.passes * method.cost(config.ADV.n_repeats, config.ADV.train_steps)


if __name__ == "__main__":
    sys.exit(main())
