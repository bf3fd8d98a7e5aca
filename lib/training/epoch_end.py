"""The end of an epoch: validation, the best model, tables, checkpoint."""

import csv
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lib.algorithm.gradient_norms import HEADER as NORMS_HEADER
from lib.algorithm.metrics import averages
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch, PGDAttack
from lib.algorithm.protocols import PROTOCOLS, PGDSpec, ThreatModel
from lib.data.loader import to_device
from lib.evaluation.task import adversarial_examples, validate, validate_pgd
from lib.training.checkpointing import BEST_VALUES, Run, begin_epoch, epoch_totals, save
from lib.training.loop import describe_metrics, lr_at, stop_run
from utils.logging import ProgressBar
from utils.storage.conditions import BY_FILE, length_text
from utils.storage.files import write_csv
from utils.storage.run_folder import BEST, BEST_EMA
from utils.text import counted

OVERFITTING = "train_pgd_top1"  # a column of metrics.csv, with TRAIN.method fast
MOST_WAITING = 0.1  # of an epoch, for images
# Columns of metrics.csv in the order in which checkpoints keep a row; groups after the first are
# there if one of their columns is measured.
COLUMN_GROUPS = (
    (
        "epoch",
        "lr",
        "train_loss",
        "train_top1",
        "train_top5",
        "val_loss",
        "val_top1",
        "val_top5",
        "val_pgd_top1",
        "images_per_second",
        "seconds",
    ),
    ("val_ema_loss", "val_ema_top1", "val_ema_pgd_top1"),  # with TRAIN.ema
    (OVERFITTING,),
)
COLUMNS = [name for group in COLUMN_GROUPS for name in group]
# What a network of `Run.networks` is called, in columns and in the log.
COLUMN_PREFIXES = {BEST: "val", BEST_EMA: "val_ema"}
LABELS = {BEST: ", clean validation", BEST_EMA: "; of the averaged weights"}


def finish_epoch(run: Run) -> None:
    """Validate, write the epoch's row, keep the best model, save."""
    progress, train, passes = run.progress, run.config.TRAIN, run.config.passes
    totals, now = epoch_totals(run), time.monotonic()
    waited = run.loader.seconds_waited / max(now - run.resumed_at, 1e-9)
    warn_of_waiting(run, run.context.gather(waited))
    epoch, trained = progress.epoch + 1, averages(totals)
    validations: dict[str, dict[str, float]] = {}
    if epoch % train.val_every == 0 or epoch == passes:
        validations = validate_networks(run)
    best = keep_best(run, validations)
    row: dict[str, float] = {f"train_{name}": value for name, value in trained.items()}
    last = run.order.batches_per_epoch() - 1, run.config.ADV.n_repeats - 1  # update of the epoch
    row |= {"epoch": epoch, "lr": lr_at(run, *last)}
    row["images_per_second"] = round(totals[3] / max(now - run.epoch_started, 1e-9), 2)
    row["seconds"] = round(time.monotonic() - run.epoch_started, 2)
    text = f"epoch {epoch}/{passes}: train loss {trained['loss']:.4f} top-1"
    text += f" {trained['top1']:.2f} %, {waited:.0%} of the time waiting for images"
    for name, validation in validations.items():
        row |= {f"{COLUMN_PREFIXES[name]}_{key}": value for key, value in validation.items()}
        text += f"{LABELS[name]} {describe_metrics(run, validation)}" + " (best)" * (name in best)
    if train.method == "fast":
        top1 = minibatch_under_pgd(run)
        row[OVERFITTING] = top1
        text += f"; a training minibatch under PGD-10 top-1 {top1:.2f} %"
    progress.history = [*progress.history, [row.get(name, "") for name in COLUMNS]]
    run.logger.info(text)
    rows = named_rows(progress.history)
    warn_of_overfitting(run, rows)
    for name in best:
        warn_of_collapse(run, name, validations[name]["predicted"])
    write_tables(run, rows)
    progress.end_epoch()
    begin_epoch(run)
    save(run, best)


def selection_of(run: Run) -> dict[str, str]:
    """What the best value measures, as far as a resumption can change it."""
    train, images = run.config.TRAIN, run.selection
    what: dict[str, Any] = {"TRAIN.select": train.select, "DATA.img_size": images.img_size}
    what["DATA.interpolation"] = images.interpolation
    what["list of images"] = images.tree.fingerprint[:8]
    if train.select == "pgd":
        spec, threat = quick_attack(run)
        what |= {"eps": length_text(threat.eps), "step": length_text(spec.step_size)}
        what |= {"EVAL.protocol": threat.protocol.name, "random start by": BY_FILE}
        what["TRAIN.select_examples"] = train.select_examples
    return {name: str(value) for name, value in what.items()}


def begin_selection(run: Run) -> None:
    """Let the best begin anew where it has measured something else, or its file is not here.

    What is finished keeps its best, whatever it was; its last network stands in for a lost file.
    """
    progress, was, now = run.progress, run.progress.best_of, selection_of(run)
    finished = progress.epoch >= run.config.passes
    progress.best_of = was if finished and was else now
    changes = [f"{k} was {was[k]} and is {v}" for k, v in now.items() if was.get(k, v) != v]
    changes += ["its checkpoint does not say what it measured"] * (not was)
    lost = []
    for name, field in BEST_VALUES.items():
        value, is_here = getattr(progress, field), (run.config.run_dir / name).exists
        reasons = [] if finished else list(changes)
        if not run.context.from_main(is_here):
            reasons.append(f"{name} is not in {run.config.run_dir}")
        if value >= 0 and reasons:
            lost.append(name)
            setattr(progress, field, -1.0)
            run.logger.warning(
                f"the best value so far, {value:.2f} %, counts no more: {', '.join(reasons)}; the"
                " best starts anew"
            )
    if finished and lost:
        begin_epoch(run)
        save(run, keep_best(run, validate_networks(run)))


def warn_of_waiting(run: Run, waited: Sequence[float]) -> None:
    """Say, once, how many workers would keep up; `waited` is each process's share of the epoch."""
    share, context = max(waited), run.context  # of the slowest process
    if share > MOST_WAITING and not run.warned_of_waiting:
        run.warned_of_waiting = True
        workers = max(1, run.loader.loader.num_workers)
        needed = math.ceil(workers / (1 - min(share, 0.99)) - 1e-6)
        run.logger.warning(
            f"{share:.0%} of the epoch went by waiting for images: {counted(workers, 'worker')} a"
            f" process read them, about {needed} would keep up, on a core each (this process has"
            f" {counted(context.cores, 'core')}); see DATA.workers"
        )


def keep_best(run: Run, validations: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The files of best models that the validated networks become."""
    best = []
    for name, validation in validations.items():
        if validation["score"] > getattr(run.progress, BEST_VALUES[name]):
            setattr(run.progress, BEST_VALUES[name], validation["score"])
            best.append(name)
    return best


def validate_networks(run: Run) -> dict[str, dict[str, float]]:
    """Validate each of `Run.networks`."""
    return {name: validate_network(run, network) for name, network in run.networks.items()}


def validate_network(run: Run, model: nn.Module) -> dict[str, float]:
    """What `validate` measures; `score`, of which the best model has the largest.

    With TRAIN.select pgd that is `pgd_top1`, under PGD-10 in percent.
    """
    train = run.config.TRAIN
    # Batch-norm's statistics are rank 0's, which are what a checkpoint keeps.
    run.context.copy_from_main_(model.buffers())
    passes = run.config.passes
    what = f"validation {min(run.progress.epoch + 1, passes)}/{passes}"

    def answer_stop() -> None:
        if run.requests.stop:
            stop_run(run, run.requests.stop)  # saved before validation began

    def with_progress(batches: Iterable[DeviceBatch], total: int) -> Iterator[DeviceBatch]:
        bar = ProgressBar(run.logger, total, what, train.print_freq)
        for batch in bar.over(batches):
            answer_stop()
            yield batch

    run.validation.while_waiting = run.selection.while_waiting = answer_stop

    measured = validate(model, run.validation, with_progress)
    if train.select == "pgd":
        robust = validate_pgd(model, run.selection, *quick_attack(run), train.select_examples)
        return {**measured, "pgd_top1": robust, "score": robust}
    if train.select_from == "val":
        return {**measured, "score": measured["top1"]}
    return {**measured, "score": validate(model, run.selection, with_progress)["top1"]}


def quick_attack(run: Run) -> tuple[PGDSpec, ThreatModel]:
    """PGD-10, for looks at a model in training."""
    config = run.config
    spec = PGDSpec(10, config.attacks_within(config.eps)[0].step_size)
    return spec, ThreatModel(config.eps, PROTOCOLS[config.EVAL.protocol], config.RUN.seed)


def named_rows(history: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """What was measured in the epochs, by column of metrics.csv."""
    rows = [zip(COLUMNS, row, strict=False) for row in history]  # older rows may be shorter
    return [{name: value for name, value in row if value != ""} for row in rows]


def write_tables(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """The epochs' rows in metrics.csv; the last one in gradient_norms.csv and TensorBoard too."""
    epoch = run.progress.epoch + 1
    norms = [] if run.norms is None else run.norms.rows(epoch)
    if run.norms is not None and not norms:
        run.logger.warning("no gradient norms of this epoch: every one measured overflowed")
    if run.context.is_main:
        if run.norms is not None:
            write_gradient_norms(run.config.run_dir / "gradient_norms.csv", epoch, norms)
        # TRAIN.ema may have come with a resumption.
        measured = set().union(*rows)
        header = [name for group in COLUMN_GROUPS if measured & set(group) for name in group]
        lines = [[row.get(name, "") for name in header] for row in rows]
        write_csv(run.config.run_dir / "metrics.csv", header, lines)
    if run.board is not None:
        named = [dict(zip(NORMS_HEADER, entry, strict=True)) for entry in norms]
        logged = ("train_loss", "train_top1", "train_top5", "lr")  # with the last minibatch
        run.board.add({k: v for k, v in rows[-1].items() if k not in logged}, run.step)
        run.board.gradients(named, run.step)
        images = adversarial_examples(run.trainer.model, run.validation, *quick_attack(run))
        run.board.images(images, run.step)


def write_gradient_norms(path: Path, epoch: int, rows: list[list]) -> None:
    """Put an epoch's rows after those of earlier epochs; others, an interrupted run's, give way."""
    kept: list[list] = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) < epoch]
    if kept or rows:
        write_csv(path, NORMS_HEADER, kept + rows)
    else:
        path.unlink(missing_ok=True)


# Trainings that fail although their loss falls


def minibatch_under_pgd(run: Run) -> float:
    """Top-1 in percent of the epoch's first minibatch under PGD-10, over all processes.

    It is read once more, so that the same epoch has the same number after any interruption.
    """
    model, images = run.trainer.model, run.loader.dataset
    run.context.copy_from_main_(model.buffers())
    run.order.set_position(run.progress.epoch)
    batch = to_device(images.__getitems__(next(iter(run.order))), run.context.device)
    attack = PGDAttack(model, *quick_attack(run), number_of=images.trees[0].image_number)
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
    found = [
        row["train_top1"] > max(learnt, 3 * row[OVERFITTING]) for row in rows if OVERFITTING in row
    ]
    if any(found[-1:]) and not any(found[:-1]):
        run.logger.warning(
            f"catastrophic overfitting (arXiv:2001.03994): {rows[-1]['train_top1']:.2f} % of the"
            f" step's own images are classified right, and {rows[-1][OVERFITTING]:.2f} % of a"
            " minibatch under PGD-10; take a smaller ADV.fgsm_step, fewer epochs, or"
            " TRAIN.method pgd"
        )


def warn_of_collapse(run: Run, name: str, predicted: float) -> None:
    """Where a best model, by its file's `name`, gives all validation images one class."""
    if predicted == 1 and len(run.model_settings.classes or ()) > 1:
        run.logger.warning(
            f"{name} gives every validation image the same class: it has collapsed, and its"
            " accuracy is that of a guess; lower TRAIN.lr, or raise it slowly"
        )
