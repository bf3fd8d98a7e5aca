"""Signs that a robust accuracy is not what it seems: masked gradients, odd outputs.

After Athalye et al. 2018, arXiv:1802.00420, and Carlini et al. 2019, arXiv:1902.06705, Sec. 5.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from lib.algorithm.pgd import frozen_eval
from lib.algorithm.protocols import AttackSpec, AutoAttackSpec, PGDSpec, ThreatModel
from lib.evaluation.evaluate import CLEAN, Rows
from lib.evaluation.task import EvaluationData
from utils.storage.conditions import length_text
from utils.storage.run_folder import BEST, BEST_EMA

ZERO_GRADIENT_SHARE = 0.1  # of the attacked images
CHANCE = 2  # images more or fewer tell nothing
MORE_STEPS_SHARE = 0.005  # of all images: more steps may lose a few by chance, not many
MARGIN_SHARE = 0.05  # of all images
SQUARE_SHARE = 0.002  # of all images, the bound of the authors' package
REPEAT_TOLERANCE = 1e-3  # relative: kernels may round differently from call to call


def check_reach(specs: Sequence[AttackSpec], threat: ThreatModel) -> tuple[list[str], list[str]]:
    """Warnings and notes of each PGD's reach, once for all its losses.

    A warning where the steps cannot cross from the centre to the edge of the ball; a note where
    they cannot cross it from a random start near the opposite edge.
    """
    labels: dict[tuple[int, float], list[str]] = {}
    for spec in specs:
        if isinstance(spec, PGDSpec):
            labels.setdefault((spec.steps, spec.step_size), []).append(spec.label)
    warnings, notes = [], []
    for (steps, size), names in labels.items():
        step, reach, eps = (length_text(x, threat.norm) for x in (size, steps * size, threat.eps))
        text = f"{' and '.join(names)}: {steps} x {step} reach {reach} of a radius of {eps}, "
        better = "take more steps, or longer ones (pgdSTEPS@STEP)"
        if steps * size < threat.eps * (1 - 1e-6):
            warnings.append(f"{text}so robust accuracy is overestimated: {better}")
        elif steps * size < 2 * threat.eps * (1 - 1e-6) and not threat.protocol.ball_around_start:
            notes.append(f"{text}less than its diameter, which a random start may need: {better}")
    return warnings, notes


def check_network(model: nn.Module, data: EvaluationData) -> list[str]:
    """Warnings of outputs that change between identical calls, and of ones that are probabilities.

    One batch of this evaluation is looked at.
    """
    batch = next(data.batches(range(min(len(data.tree.files), data.batch_size))), None)
    found = [] if batch is None else output_warnings(model, batch.images)
    return sorted({warning for warnings in data.context.gather(found) for warning in warnings})


@torch.no_grad()
def output_warnings(model: nn.Module, images: torch.Tensor) -> list[str]:
    """As `check_network`, on images (B, 3, H, W) in [0, 1]."""
    with frozen_eval(model):
        first, second = model(images).float(), model(images).float()
    warnings = []
    if (first - second).abs().max() > REPEAT_TOLERANCE * first.abs().max():
        warnings.append(
            "the network's outputs change between two identical calls; attacks on random networks"
            " need expectation over the randomness, so the robust accuracy is overestimated"
        )
    if first.min() >= 0 and ((first.sum(dim=1) - 1).abs() < 1e-4).all():
        warnings.append(
            "the network's outputs look like probabilities; cross-entropy of a softmax flattens"
            " gradients, so attack the logits before it"
        )
    return warnings


def check_selection(
    checkpoint: str, trained: Mapping[str, Any] | None
) -> tuple[list[str], list[str]]:
    """Warnings and notes where the images may have chosen the model by its accuracy on them."""
    train = (trained or {}).get("TRAIN", {})
    if checkpoint not in (BEST, BEST_EMA) or not train or train.get("select_from", "val") != "val":
        return [], []
    if train.get("val_every", 1) >= train.get("epochs", math.inf):
        return [], []  # the last model alone was looked at
    advice = "TRAIN.select_from: train holds images out of the training to choose on"
    if train.get("select") == "pgd":
        chosen = (
            f"{checkpoint} was chosen by PGD-10 on {train['select_examples']} of the validation"
        )
        return [f"{chosen} images, so its robust accuracy on them is biased upwards; {advice}"], []
    chosen = f"{checkpoint} was chosen by its clean accuracy on the validation images"
    return [], [f"{chosen}, which is biased upwards on them; {advice}"]


def check_attacks(rows: Mapping[str, Rows], specs: Sequence[AttackSpec]) -> Iterator[str]:
    """A warning for each sign of masked gradients in the outcomes of all attacks."""
    n = len(rows[CLEAN])
    pgd = [spec for spec in specs if isinstance(spec, PGDSpec)]
    for spec in specs:
        if isinstance(spec, PGDSpec):
            yield from zero_gradients(spec, rows)
        else:
            yield from square_alone(spec, rows[spec.name], n)
    robust = {spec.name: sum(row.robust for row in rows[spec.name].values()) for spec in pgd}
    for one, other in combinations(sorted(pgd, key=lambda spec: spec.steps), 2):
        if rows[one.name].keys() == rows[other.name].keys():  # not after a cascade
            yield from more_steps(one, other, robust, n)
            yield from margin_below(one, other, robust, n)


def square_alone(spec: AutoAttackSpec, rows: Rows, n: int) -> Iterator[str]:
    """The attack without gradients must not beat those with them.

    The package says this of one call; here all chunks count together.
    """
    if "square" in spec.stages[1:]:
        before = spec.stages.index("square")
        broken = sum(row.stages_survived == before for row in rows.values())
        if broken > SQUARE_SHARE * n:
            yield (
                f"{spec.label}: Square, which uses no gradients, broke {broken} images that the"
                " gradient attacks had left: gradients may be masked, robustness overestimated"
            )


def zero_gradients(spec: PGDSpec, rows: Mapping[str, Rows]) -> Iterator[str]:
    """Gradients that vanish leave an attack nothing to follow."""
    attacked, clean = rows[spec.name], rows[CLEAN]
    # Of others nothing is wanted, and DLR is constant where the label is third.
    zero = sum(row.no_gradient and clean[i].correct for i, row in attacked.items())
    if zero > ZERO_GRADIENT_SHARE * len(attacked):
        advice = "try autoattack" if spec.loss == "margin" else "try margin or autoattack"
        if len({row.prediction for row in clean.values()}) == 1:
            advice = "the network gives every image the same class, so look at the network itself"
        yield (
            f"{spec.label}: the gradient is zero on {zero} of {len(attacked)} images at the first"
            f" step; the attack is blind there, so robust accuracy is overestimated: {advice}"
        )


def more_steps(one: PGDSpec, other: PGDSpec, robust: Mapping[str, int], n: int) -> Iterator[str]:
    """More steps of the same attack must not break fewer images."""
    alike = (one.loss, one.restarts, one.scale) == (other.loss, other.restarts, other.scale)
    lost = robust[other.name] - robust[one.name]
    if alike and one.steps != other.steps and lost > max(CHANCE, MORE_STEPS_SHARE * n):
        yield (
            f"{other.label} breaks {lost} images fewer than {one.label}; its steps overshoot or"
            " gradients mislead, so take the worst case and a smaller step size"
        )


def margin_below(one: PGDSpec, other: PGDSpec, robust: Mapping[str, int], n: int) -> Iterator[str]:
    """Cross-entropy that finds far less than the margin loss has a saturated softmax."""
    by_loss = {one.loss: one, other.loss: other}
    if set(by_loss) == {"ce", "margin"} and one.steps == other.steps:
        ce, margin = by_loss["ce"], by_loss["margin"]
        gap = robust[ce.name] - robust[margin.name]
        if gap > max(CHANCE, MARGIN_SHARE * n):
            yield (
                f"{margin.label} leaves {100 * gap / n:.1f} % of the images fewer than {ce.label};"
                " cross-entropy alone flatters this network: report the worst case"
            )
