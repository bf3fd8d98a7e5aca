"""Trainings that fail although their loss falls: an overfitted step, one class for everything."""

from collections.abc import Mapping, Sequence

from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.data.datasets import ImageBatches
from lib.data.to_device import to_device
from lib.training.checkpointing import Run

COLUMN = "train_pgd_top1"  # of metrics.csv, with TRAIN.method fast


def minibatch_under_pgd(run: Run, spec: PGDSpec, threat: ThreatModel) -> float:
    """Top-1 in percent of the epoch's first minibatch under PGD, over all processes.

    It is read once more, so that the same epoch has the same number after any interruption.
    """
    model = run.trainer.model
    images = run.loader.loader.dataset
    assert isinstance(images, ImageBatches)
    run.context.copy_from_main_(model.buffers())
    run.order.set_position(run.progress.epoch)
    batch = to_device(images.__getitems__(next(iter(run.order))), run.context.device)
    attack = PGDAttack(model, spec, threat, number_of=images.trees[0].image_number)
    with frozen_eval(model):
        robust = attack.attack_final_iterate(*batch).robust
    right, n = run.context.sum([int(robust.sum()), len(robust)])
    return 100 * right / n


def warn_of_overfitting(run: Run, rows: Sequence[Mapping[str, float]]) -> None:
    """Once, at the first of the epochs' rows of metrics.csv that shows it.

    The step's own images are learnt and those of PGD are not: robustness to PGD falls to zero in an
    epoch (Wong et al. 2020, arXiv:2001.03994, Sec. 5.4).
    """
    learnt = 300 / len(run.model_settings.classes or ())  # percent: three times a guess
    found = [row["train_top1"] > max(learnt, 3 * row[COLUMN]) for row in rows if COLUMN in row]
    if any(found[-1:]) and not any(found[:-1]):
        run.logger.warning(
            f"catastrophic overfitting (arXiv:2001.03994): {rows[-1]['train_top1']:.2f} % of the"
            f" step's own images are classified right, and {rows[-1][COLUMN]:.2f} % of a minibatch"
            " under PGD-10; take a smaller ADV.fgsm_step, fewer epochs, or TRAIN.method pgd"
        )


def warn_of_collapse(run: Run, name: str, predicted: float) -> None:
    """Where a best model, by its file's `name`, gives all validation images one class."""
    if predicted == 1 and len(run.model_settings.classes or ()) > 1:
        run.logger.warning(
            f"{name} gives every validation image the same class: it has collapsed, and its"
            " accuracy is that of a guess; lower TRAIN.lr, or raise it slowly"
        )
