"""The end of an epoch: validation, the best model, tables, checkpoint."""

import csv
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lib.algorithm.gradient_norms import HEADER as NORMS_HEADER
from lib.algorithm.metrics import averages
from lib.algorithm.pool import DeviceBatch
from lib.algorithm.protocols import PROTOCOLS, PGDSpec, ThreatModel
from lib.evaluation.validation import adversarial_examples, validate, validate_pgd
from lib.training import overfitting
from lib.training.checkpointing import Run, begin_epoch, epoch_totals, save
from lib.training.loop import describe_metrics, lr_at, stop_run
from utils.logging import ProgressBar
from utils.storage.checkpoint import Checkpoint
from utils.storage.conditions import BY_FILE, length_text
from utils.storage.files import write_csv
from utils.storage.run_folder import BEST, BEST_EMA
from utils.text import counted

HEADER = (
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
)
MOST_WAITING = 0.1  # of an epoch, for images
EMA_HEADER = ("val_ema_loss", "val_ema_top1", "val_ema_pgd_top1")  # with TRAIN.ema alone
GROUPS = (HEADER, EMA_HEADER, (overfitting.COLUMN,))


@dataclass(frozen=True)
class Validation:
    """What the validation of a network gives.

    Attributes:
        clean: loss, and top-1 and top-5 in percent.
        robust: top-1 under PGD-10 in percent, with TRAIN.select pgd.
        score: what the best model has the largest of.
    """

    clean: dict[str, float]
    robust: float | None
    score: float

    def describe(self, run: Run) -> str:
        text = describe_metrics(run, self.clean)
        return text + ("" if self.robust is None else f", PGD-10 top-1 {self.robust:.2f} %")


def finish_epoch(run: Run) -> None:
    """Validate, write the epoch's rows, keep the best model, save."""
    progress, passes = run.progress, run.config.passes
    totals, now = epoch_totals(run), time.monotonic()
    rate = totals[3] / max(now - run.epoch_started, 1e-9)
    waited = run.loader.seconds_waited / max(now - run.resumed_at, 1e-9)
    warn_of_waiting(run, run.context.gather(waited))
    epoch, trained = progress.epoch + 1, averages(totals)
    raw = average = None
    if epoch % run.config.TRAIN.val_every == 0 or epoch == passes:
        raw, average = validate_networks(run)
    best = keep_best(run, raw, average)
    row = [epoch, last_lr(run), *trained.values(), *cells(raw, "loss", "top1", "top5")]
    row += [round(rate, 2), round(time.monotonic() - run.epoch_started, 2)]
    row += cells(average, "loss", "top1") if average is not None else []
    if run.config.TRAIN.method == "fast":
        row += [""] * (len(HEADER + EMA_HEADER) - len(row))
        row.append(overfitting.minibatch_under_pgd(run, *quick_attack(run)))
    progress.history = [*progress.history, row]
    text = f"epoch {epoch}/{passes}: train loss {trained['loss']:.4f} top-1"
    text += f" {trained['top1']:.2f} %, {waited:.0%} of the time waiting for images"
    if raw is not None:
        text += f", clean validation {raw.describe(run)}" + " (best)" * (BEST in best)
    if average is not None:
        text += f"; of the averaged weights {average.describe(run)}" + " (best)" * (
            BEST_EMA in best
        )
    if run.config.TRAIN.method == "fast":
        text += f"; a training minibatch under PGD-10 top-1 {row[-1]:.2f} %"
    run.logger.info(text)
    overfitting.warn_of_overfitting(run, named_rows(run))
    for name, validation in ((BEST, raw), (BEST_EMA, average)):
        if validation is not None and name in best:
            overfitting.warn_of_collapse(run, name, validation.clean["predicted"])
    write_tables(run)
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


def begin_selection(run: Run, resumed: Checkpoint | None) -> None:
    """Let the best begin anew where it has measured something else, or its file is not here.

    What is finished keeps its best, whatever it was; its last network stands in for a lost file.
    """
    progress, now = run.progress, selection_of(run)
    was = progress.best_of
    if resumed is not None and not was:  # of a version that did not keep it
        sections = resumed.content.get("config", {})
        keys = [key.split(".") for key in ("TRAIN.select", "DATA.img_size") if sections]
        was = {f"{section}.{key}": str(sections[section][key]) for section, key in keys}
        was["random start by"] = "number in the list"
    finished = progress.epoch >= run.config.passes
    progress.best_of = was if finished and was else now
    changes = [f"{k} was {was[k]} and is {v}" for k, v in now.items() if was.get(k, v) != v]
    lost = []
    for name, value in ((BEST, progress.best), (BEST_EMA, progress.best_ema)):
        is_here = run.context.from_main((run.config.run_dir / name).exists)
        reasons = [] if finished else list(changes)
        reasons += [] if is_here else [f"{name} is not in {run.config.run_dir}"]
        if value >= 0 and reasons:
            lost.append(name)
            setattr(progress, "best" if name == BEST else "best_ema", -1.0)
            run.logger.warning(
                f"the best value so far, {value:.2f} %, counts no more: {', '.join(reasons)}; the"
                " best starts anew"
            )
    if finished and lost:
        begin_epoch(run)
        save(run, keep_best(run, *validate_networks(run)))


def validate_networks(run: Run) -> tuple[Validation, Validation | None]:
    """The network, and the one of averaged weights where there is one."""
    raw, average = validate_network(run, run.trainer.model), run.trainer.average
    return raw, None if average is None else validate_network(run, average.module)


def warn_of_waiting(run: Run, waited: Sequence[float]) -> None:
    """Say, once, how many workers would keep up, where the slowest process waits for images.

    Args:
        waited: share of the epoch, of each process.
    """
    share, context = max(waited), run.context
    if share > MOST_WAITING and not run.warned_of_waiting:
        run.warned_of_waiting = True
        workers = max(1, run.loader.loader.num_workers)
        needed = math.ceil(workers / (1 - min(share, 0.99)) - 1e-6)
        run.logger.warning(
            f"{share:.0%} of the epoch went by waiting for images: {counted(workers, 'worker')} a"
            f" process read them, about {needed} would keep up, on a core each (this process has"
            f" {counted(context.cores, 'core')}); see DATA.workers"
        )


def keep_best(run: Run, raw: Validation | None, average: Validation | None) -> list[str]:
    """The files of best models that this epoch's networks become."""
    progress, best = run.progress, []
    if raw is not None and raw.score > progress.best:
        progress.best = raw.score
        best.append(BEST)
    if average is not None and average.score > progress.best_ema:
        progress.best_ema = average.score
        best.append(BEST_EMA)
    return best


def last_lr(run: Run) -> float:
    """The learning rate of the epoch's last update."""
    return lr_at(run, run.order.batches_per_epoch() - 1, run.config.ADV.n_repeats - 1)


def cells(validation: Validation | None, *names: str) -> list[Any]:
    """Some clean metrics and the robust top-1 for a table, empty where they were not measured."""
    if validation is None:
        return [""] * (len(names) + 1)
    robust = "" if validation.robust is None else validation.robust
    return [*(validation.clean[name] for name in names), robust]


def validate_network(run: Run, model: nn.Module) -> Validation:
    """Clean validation, and the score on the images that choose the best model."""
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

    clean = validate(model, run.validation, with_progress)
    if train.select == "pgd":
        robust = validate_pgd(model, run.selection, *quick_attack(run), train.select_examples)
        return Validation(clean, robust, robust)
    if train.select_from == "val":
        return Validation(clean, None, clean["top1"])
    return Validation(clean, None, validate(model, run.selection, with_progress)["top1"])


def quick_attack(run: Run) -> tuple[PGDSpec, ThreatModel]:
    """PGD-10, for looks at a model in training."""
    config = run.config
    spec = PGDSpec(10, config.attacks_within(config.eps)[0].step_size)
    return spec, ThreatModel(config.eps, PROTOCOLS[config.EVAL.protocol], config.RUN.seed)


def named_rows(run: Run) -> list[dict[str, Any]]:
    """The epochs' rows of metrics.csv, by column."""
    columns = [name for group in GROUPS for name in group]
    return [dict(zip(columns, row, strict=False)) for row in run.progress.history]


def write_tables(run: Run) -> None:
    """The epoch in metrics.csv, gradient_norms.csv and TensorBoard."""
    epoch = run.progress.epoch + 1
    rows = named_rows(run)
    # TRAIN.ema may have come with a resumption.
    present = {name for row in rows for name, value in row.items() if value != ""}
    header = [name for group in GROUPS if present & set(group) for name in group]
    norms = [] if run.norms is None else run.norms.rows(epoch)
    if run.norms is not None and not norms:
        run.logger.warning("no gradient norms of this epoch: every one measured overflowed")
    if run.context.is_main:
        if run.norms is not None:
            write_gradient_norms(run.config.run_dir / "gradient_norms.csv", epoch, norms)
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
