"""`--save_images N`: attacked images as PNG, and one figure of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torchvision.utils import save_image

from lib.algorithm.pgd import attacking
from lib.algorithm.protocols import AttackSpec
from lib.data.subsets import evenly_spread
from lib.evaluation.attacks import make_attack
from lib.evaluation.model_settings import ModelSettings
from lib.evaluation.runner import CLEAN, AttackEvaluation
from lib.evaluation.validation import EvaluationData
from utils.distributed.context import DistributedContext
from utils.figures.attacks import AttackedImage, attack_images
from utils.figures.style import save_figure
from utils.storage.conditions import length_text
from utils.storage.files import make_folder, replacing

MOST_IN_FIGURE = 12
Pair = tuple[torch.Tensor, torch.Tensor]  # clean and adversarial, (3, H, W) in [0, 1], on the CPU


def save_attack_images(
    evaluation: AttackEvaluation,
    rows: Mapping[str, Mapping[int, Any]],
    specs: Sequence[AttackSpec],
    count: int,
    stem: Path,
    settings: ModelSettings,
) -> None:
    """Attack `count` evenly spread images again and keep them.

    Each is attacked by the first attack of the list that breaks it, or by the last one where none
    does. Writes `<stem>_images/<number>_{original,adversarial,perturbation}.png`, 8 bits a colour,
    with the perturbation scaled so that grey is none and black and white are -eps and eps (the
    largest change under other norms than Linf); and the figure `<stem>_images.png` and `.pdf`.
    """
    data = evaluation.data
    right = [i for i, row in rows[CLEAN].items() if row.right] or list(rows[CLEAN])
    chosen = [right[i] for i in evenly_spread(len(right), count)]
    alone = EvaluationData(
        data.tree, data.img_size, data.images.size, data.batch_size, 0,
        DistributedContext(0, 1, data.context.device),
    )  # fmt: skip
    found: dict[int, Pair] = {}
    for spec in specs:
        group = [i for i in chosen if breaking(rows, specs, i) is spec]
        found |= attacked(evaluation, alone, spec, group)
    pairs = {i: found[i] for i in chosen}
    threat = evaluation.threat
    largest = max(float((adversarial - clean).abs().max()) for clean, adversarial in pairs.values())
    reach = max(threat.eps if threat.norm == "Linf" else largest, 1e-12)
    write_images(list(pairs.values()), reach, make_folder(stem.with_name(f"{stem.name}_images")))
    first = dict(list(pairs.items())[:MOST_IN_FIGURE])
    figure = images_figure(evaluation, rows, specs, first, reach, settings)
    save_figure(figure, stem.with_name(f"{stem.name}_images"))


def write_images(pairs: Sequence[Pair], reach: float, folder: Path) -> None:
    """The three files of each image; `reach` is the change that is drawn white."""
    for number, (clean, adversarial) in enumerate(pairs):
        change = ((adversarial - clean) / (2 * reach) + 0.5).clamp(0, 1)
        images = {"original": clean, "adversarial": adversarial, "perturbation": change}
        for name, image in images.items():
            with replacing(folder / f"{number:03d}_{name}.png") as file:
                save_image(image, file, format="png")


def images_figure(
    evaluation: AttackEvaluation,
    rows: Mapping[str, Mapping[int, Any]],
    specs: Sequence[AttackSpec],
    pairs: Mapping[int, Pair],
    reach: float,
    settings: ModelSettings,
) -> Figure:
    """The figure of some images by position, with what the network says before and after."""
    tree, threat = evaluation.data.tree, evaluation.threat
    adversarial = torch.stack([pair[1] for pair in pairs.values()])
    with torch.no_grad(), attacking(evaluation.model):
        after = evaluation.model(adversarial.to(evaluation.context.device)).argmax(1).tolist()

    def class_name(output: int) -> str:
        return settings.classes[output] if settings.classes else f"output {output}"

    images = [
        AttackedImage(
            *pairs[i],
            class_name(tree.labels[i]),
            class_name(rows[CLEAN][i].prediction),
            class_name(prediction),
            breaking(rows, specs, i).label,
        )
        for i, prediction in zip(pairs, after, strict=True)
    ]
    eps = length_text(threat.eps, threat.norm)
    title = f"{settings.describe()}; protocol {threat.protocol.name}, eps {eps}"
    title += ", images made on another network" * (evaluation.source is not None)
    return attack_images(images, reach, title)


def breaking(
    rows: Mapping[str, Mapping[int, Any]], specs: Sequence[AttackSpec], index: int
) -> AttackSpec:
    """The first attack that breaks an image, or the last one."""
    for spec in specs:
        row = rows[spec.name].get(index)
        if row is not None and not row.right:
            return spec
    return specs[-1]


def attacked(
    evaluation: AttackEvaluation, data: EvaluationData, spec: AttackSpec, positions: list[int]
) -> dict[int, Pair]:
    """Clean and adversarial image of each position."""
    if not positions:
        return {}
    clean: dict[int, torch.Tensor] = {}
    for images, _, indices in data.batches(positions):
        clean |= dict(zip(indices.tolist(), images, strict=True))
    found: dict[int, torch.Tensor] = {}
    with attacking(evaluation.model):
        attack = make_attack(evaluation.model, spec, evaluation.threat, source=evaluation.source)
        for outcome in attack.run(data.batches(positions)):
            found |= dict(zip(outcome.indices.tolist(), outcome.adversarial, strict=True))
    return {i: (clean[i].cpu(), found[i].detach().cpu()) for i in positions}
