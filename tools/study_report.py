"""The study's STUDY.md: how it was made, the table, the figure, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lib.algorithm.training import METHODS
from utils.config.settings import Config
from utils.figures.study import Point, robustness_against_cost
from utils.figures.style import save_figure
from utils.logging import markdown_table
from utils.storage.accuracy import over_seeds
from utils.storage.files import atomic_write
from utils.storage.results import AttackResult, only_result

TEXT = """# Free, fast, PGD and natural training, with and without hypersphere embedding

Made by `python -m tools.study` on {date} with torch {torch} on {device}: {arch} on scikit-learn's
handwritten digits, {train_images} training and {val_images} validation images of {size} px,
eps {eps:g}/255, batch {batch}, a cosine of the learning rate from {lr:g}, {seeds} seed{s}. The last
model of each training is attacked, so that no image has chosen what it judges.

{costs}

{comparison}

![robust accuracy against training cost](cost.png)

What this does not show: anything about ImageNet. These are small grey images of ten classes and a
network trained for minutes; epochs and learning rate are the same for plain and HE and were not
tuned for either, and {seeds} seed{s} tell{s2} large differences alone.
"""


def write_report(folder: Path, runs: Mapping[Path, tuple[str, Config]]) -> Path:
    """Write DIR/STUDY.md and DIR/cost.png from the results of all runs.

    Args:
        folder: the study's.
        runs: {run folder: (name of its row, its settings)}.

    Returns:
        The report's path.
    """
    results = {run: only_result(run, AttackResult) for run in runs}
    configs = dict(runs.values())
    worst = {
        name: [
            results[run].worst_case.top1.percent for run, (own, _) in runs.items() if own == name
        ]
        for name in configs
    }
    points = [
        Point(name, training_cost(config), over_seeds(worst[name]))
        for name, config in configs.items()
    ]
    save_figure(robustness_against_cost(points), folder / "cost")
    first = next(iter(results.values()))
    config, seeds = next(iter(configs.values())), max(map(len, worst.values()))
    text = TEXT.format(
        date=first.provenance["date"][:10],
        torch=first.provenance["versions"]["torch"],
        device=first.provenance["device"],
        arch=config.TRAIN.arch,
        train_images=count_images(config, "train"),
        val_images=count_images(config, "val"),
        size=config.DATA.crop_size,
        eps=255 * config.eps,
        batch=config.DATA.batch_size,
        lr=config.TRAIN.lr,
        seeds=seeds,
        s="s" * (seeds > 1),
        s2="s" * (seeds == 1),
        costs=markdown_table(
            ["training", "epochs", "steps", "forward-backward passes of the training set"],
            [cost_row(name, c) for name, c in configs.items() if "HE" not in name],
            numbers=False,
        ),
        comparison=(folder / "comparison.md").read_text(encoding="utf-8").strip(),
    )
    path = folder / "STUDY.md"
    atomic_write(path, text)
    return path


def training_cost(config: Config) -> int:
    """Forward-backward passes over the training set that a training makes."""
    method = METHODS[config.TRAIN.method]
    return config.passes * method.cost(config.ADV.n_repeats, config.ADV.train_steps)


def cost_row(name: str, config: Config) -> list[str]:
    """A row of the table of costs."""
    steps = {
        "free": f"{config.ADV.n_repeats} replays, step {config.ADV.fgsm_step:g}/255",
        "fast": f"step {config.ADV.fgsm_step:g}/255",
        "pgd": f"{config.ADV.train_steps} of {config.ADV.fgsm_step:g}/255",
        "natural": "none",
    }[config.TRAIN.method]
    return [name, str(config.TRAIN.epochs), steps, str(training_cost(config))]


def count_images(config: Config, split: str) -> int:
    return sum(1 for _ in Path(config.OPTIONS.data or "", split).glob("*/*"))
