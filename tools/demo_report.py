"""The demo's REPORT.md: what was done, the comparison, the figures, and what the numbers say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from utils.figures.gradients import read_gradient_norms
from utils.storage.files import atomic_write
from utils.storage.records import AttackResult, ImageNetCResult
from utils.storage.results import only_result

TEMPLATE = Path(__file__).with_suffix(".md")


def write_report(folder: Path, runs: Mapping[str, Path]) -> Path:
    """Write DIR/REPORT.md from the files that the commands have left.

    Args:
        folder: the demo's folder.
        runs: name to run folder of both methods.

    Returns:
        The report's path.
    """
    attacks = {name: only_result(run, AttackResult) for name, run in runs.items()}
    corrupted = {n: only_result(run, ImageNetCResult).summary for n, run in runs.items()}
    origin = next(iter(attacks.values())).provenance
    config, versions = origin["config"], origin["versions"]
    values = {
        "date": origin["date"][:10],
        "torch": versions["torch"],
        "device": origin["device"],
        "train_images": len(list((folder / "digits" / "train").glob("*/*"))),
        "val_images": origin["subset"]["n"],
        "arch": config["TRAIN"]["arch"],
        "passes": -(-config["TRAIN"]["epochs"] // config["ADV"]["n_repeats"]),
        "repeats": config["ADV"]["n_repeats"],
        "eps": f"{config['ADV']['clip_eps']:g}",
        "config": "tools/demo_configs.yml",
        "comparison": (folder / "comparison.md").read_text().strip(),
        "verdict": verdict(attacks),
        "attack_figures": figures(folder, runs, "attack_standard_images.png"),
        "corruptions": "; ".join(
            f"{name} {100 * (found.mean_accuracy or 0):.2f} %" for name, found in corrupted.items()
        ),
        "ratios": "; ".join(f"{name} {group_ratios(run)}" for name, run in runs.items()),
        "training_figures": figures(folder, runs, "training_curves.png"),
    }
    path = folder / "REPORT.md"
    atomic_write(path, TEMPLATE.read_text(encoding="utf-8").format(**values))
    return path


def verdict(attacks: Mapping[str, AttackResult]) -> str:
    """What the intervals allow to be said, no more."""
    lines = [
        f"- {name}: {result.clean.top1.percent:.2f} % clean,"
        f" {result.worst_case.top1.percent:.2f} % in the worst case."
        for name, result in attacks.items()
    ]
    (one, first), (other, second) = ((n, r.worst_case.top1) for n, r in attacks.items())
    low, high = sorted((first, second), key=lambda accuracy: accuracy.fraction)
    better = one if high is first else other
    apart = low.interval[1] < high.interval[0]
    conclusion = f"{better} is the more robust here" if high != low else "Both are equally robust"
    certain = "their intervals do not overlap" if apart else (
        "but the intervals overlap: with this few images and one seed that is no finding"
    )  # fmt: skip
    return "\n".join([*lines, "", f"{conclusion}; {certain}."])


def group_ratios(run: Path) -> str:
    """The last epoch's ratios of the three groups."""
    rows = [row for row in read_gradient_norms(run) if row["parameter"] == "all"]
    return ", ".join(f"{row['group']} {float(row['ratio']):.2f}" for row in rows)


def figures(folder: Path, runs: Mapping[str, Path], name: str) -> str:
    """One figure of each run as Markdown."""
    paths = {label: Path(os.path.relpath(run / name, folder)) for label, run in runs.items()}
    return "\n\n".join(f"![{label}]({path.as_posix()})" for label, path in paths.items())
