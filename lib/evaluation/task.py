"""What evaluations share: settings, images, clean outcomes, conditions and origin of results."""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from lib.algorithm.losses import ce_loss
from lib.algorithm.metrics import averages, correct_in_top, full_precision, tf32_backends
from lib.algorithm.pgd import Logits, frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch, PGDAttack
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.data.datasets import ImageBatches, Keys, eval_transform, share_in_batches
from lib.data.folders import ImageTree, counted_twice, evenly_spread, positions_of
from lib.data.loader import Loader, WhileWaiting, on_device
from lib.evaluation.load_model import KEYS, EvaluatedModel
from utils.config.load import wrong_lengths
from utils.config.settings import ROBUSTBENCH, SETTINGS, Config, Data, Source, plain
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.conditions import Conditions, now, suite, versions

WithProgress = Callable[[Iterable[DeviceBatch], int], Iterable[DeviceBatch]]  # (batches, how many)


def with_trained_settings(config: Config, evaluated: EvaluatedModel, logger: Logger) -> Config:
    """The configuration with the image sizes, radius and attacks of the network's training.

    Values on the command line and in a file given by -c go over them. The suite's own configs.yml
    does not, being the same for every training; where it was changed, a warning has both.
    """
    usual, values = evaluated.usual, {}
    for key in usual.sources:
        unit_of_radius = key == "DATA.max_color_value" and config.chosen("ADV.clip_eps")
        if config.chosen(key) or unit_of_radius:
            continue
        value, trained = config.value(key), usual.value(key)
        values[key] = trained
        if value not in (trained, SETTINGS[key].default):
            logger.warning(
                f"{key} is {plain(trained)} as in the network's training, not {plain(value)} as in"
                f" configs.yml; give --set {key}=... to evaluate otherwise"
            )
    config = config.changed(values, Source.CHECKPOINT)
    if problems := list(wrong_lengths(config)):
        raise UserError("\n".join(problems))
    return config


@dataclass(frozen=True)
class Task:
    """An evaluation of a network: what is asked for, and by which processes it is done."""

    config: Config  # with the settings of the network's training, see `with_trained_settings`
    context: DistributedContext
    logger: Logger
    evaluated: EvaluatedModel
    started: float = field(default_factory=time.monotonic)  # seconds

    def announce(self, task: str) -> None:
        """Log what is evaluated on what."""
        network = self.evaluated
        self.logger.heading(f"{network.identity['path']}: {network.settings.describe()}")
        self.logger.info(task)

    def with_labels(self, tree: ImageTree) -> ImageTree:
        """The images with labels that index the network's outputs; logs what is odd about them."""
        names, outputs = self.evaluated.settings.classes, self.evaluated.model.num_classes
        tree = tree.with_labels_of(names, outputs, self.config.DATA.class_order)
        for note in tree.notes:
            self.logger.warning(note)
        return tree

    def with_notes(
        self, root: str, trees: dict[str, ImageTree], more: Sequence[str] = ()
    ) -> dict[str, ImageTree]:
        """The folders of one result, each with what is odd about all of them, which is logged."""
        twice = counted_twice(root, {name: tree.root for name, tree in trees.items()})
        notes = (*twice, *more)
        for note in notes:
            self.logger.warning(note)
        return {k: replace(tree, notes=(*tree.notes, *notes)) for k, tree in trees.items()}

    def pick(self, tree: ImageTree) -> ImageTree:
        """The images of a folder that `--image_ids` or `--n_examples` names, or all."""
        options = self.config.OPTIONS
        if options.image_ids:
            return tree.subset(positions_of(tree, options.image_ids))
        if options.n_examples:
            return tree.subset(evenly_spread(len(tree.files), options.n_examples))
        return tree

    def subset(self, n: int, total: int, sha256: str) -> dict[str, Any]:
        """What result files say of `n` picked out of `total` images; SHA-256 is of their list."""
        listed = self.config.OPTIONS.image_ids
        some = f"{n} listed" if listed else f"{n} evenly spread"
        if listed == ROBUSTBENCH:  # as tools/published_results.json has it
            some = f"RobustBench's {n}"
        description = f"{some} of {total} images" if n < total else f"all {total} images"
        label = "" if n >= total else f"ids{sha256[:8]}" if listed else f"n{n}"
        return {"description": description, "n": n, "sha256": sha256, "label": label}

    def conditions(
        self, kind: str, protocol: str, resize: int | None, subset: Mapping[str, Any], **others: Any
    ) -> Conditions:
        """The conditions of a result; `others` are those of its kind alone."""
        evaluated, settings = self.evaluated, self.evaluated.settings
        network = ""
        if not settings.classes:  # its file does not say what it is
            colours = f"mean {settings.mean}, std {settings.std}"
            order = f"class order {self.config.DATA.class_order}"
            network = f"{settings.describe()}, {colours}, {order}"
            if self.config.OPTIONS.weights:
                network += f", weights {self.config.OPTIONS.weights}"
        return Conditions(
            kind=kind,
            protocol=protocol,
            checkpoint=evaluated.identity["sha256"],
            images=subset["sha256"],
            resize=resize,
            crop=self.config.DATA.crop_size,
            interpolation=self.config.DATA.interpolation if resize else Data.interpolation,
            network=network,
            checkpoint_file=evaluated.file_name,
            subset=subset["label"],
            **others,
        )

    def usual(self, conditions: Conditions) -> dict[str, Any]:
        """Sizes of the network's training, or the built-in ones, that files are not named by."""
        data = self.evaluated.usual.DATA
        resize = None if conditions.resize is None else data.img_size
        interpolated = {"interpolation": data.interpolation} if conditions.resize else {}
        return {"resize": resize, "crop": data.crop_size, **interpolated}

    def provenance(self, subset: Mapping[str, Any]) -> dict[str, Any]:
        """What every result file says of its origin, with what decides how a GPU rounds."""
        device, name, arithmetic = self.context.device, self.context.device.type, {}
        network = {key: getattr(self.evaluated.settings, own) for own, key in KEYS.items()}
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            products, convolutions = (backend.allow_tf32 for backend in tf32_backends())
            arithmetic = {
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "tf32_in_search": {"matmul": products, "convolutions": convolutions},
            }
        return {
            "command": self.config.OPTIONS.command,
            "config": self.config.changed(network, Source.CHECKPOINT).as_dict(),
            "checkpoint": self.evaluated.identity,
            "subset": subset,
            "device": name,
            "arithmetic": arithmetic,
            "suite": suite(),
            "versions": versions("timm", "pyautoattack"),
            "seconds": round(time.monotonic() - self.started, 1),  # since the last interruption
            "date": now(),
        }


class CleanRow(NamedTuple):
    """One clean image: predicted output, top-1 and top-5 correct, cross-entropy."""

    prediction: int
    correct: bool
    correct5: bool
    loss: float


@dataclass
class EvaluationData:
    """How the images of a tree are read for evaluation."""

    tree: ImageTree  # labels index the network's outputs
    img_size: int | None  # shorter side before the crop, pixels; None crops alone
    crop_size: int  # side of the network's input, pixels
    batch_size: int  # images in a batch of one process
    workers: int  # of one process, which read
    context: DistributedContext  # the processes that share the images out
    while_waiting: WhileWaiting = lambda: False  # see `lib.data.loader.Loader.batches`
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        transform = eval_transform(self.img_size, self.crop_size, self.interpolation)
        self.images = ImageBatches([self.tree], transform, self.crop_size)

    def batches(self, positions: Iterable[int]) -> Iterator[DeviceBatch]:
        """This process's share of some positions, each image once."""
        yield from self.read(self.shares(positions))

    def shares(
        self, positions: Iterable[int], done: Container[int] = (), chunk: int | None = None
    ) -> list[Sequence[int]]:
        """This process's batches of some positions, without those done before.

        Args:
            chunk: cut batches of this many from the list of all positions, the same for every
                number of processes, and leave one out only when all of it is done; None cuts this
                process's share of what is not done into batches of `batch_size`.
        """
        rank, world_size = self.context.rank, self.context.world_size
        if chunk is not None:
            chunks = share_in_batches(list(positions), chunk)
            return [c for c in chunks if any(i not in done for i in c)][rank::world_size]
        rest = [i for i in positions if i not in done]
        return share_in_batches(rest, self.batch_size, rank, world_size)

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[DeviceBatch]:
        """Batches of positions, on the device."""
        if batches:
            keys = [(0, positions) for positions in batches]
            waiting = self.while_waiting
            yield from read_batches(self.images, keys, self.workers, self.context, waiting)


def read_batches(
    images: ImageBatches,
    batches: Sequence[Keys],
    workers: int,
    context: DistributedContext,
    while_waiting: WhileWaiting = lambda: False,
) -> Iterator[DeviceBatch]:
    """Batches of (number of the tree, positions in it), on the device."""
    workers = min(workers, len(batches))
    loader = Loader(images, batches, workers, context.device, context.local_processes)
    return on_device(loader, context.device, while_waiting)


@torch.no_grad()
def clean_rows(model: nn.Module, batches: Iterable[DeviceBatch]) -> Iterator[dict[int, CleanRow]]:
    """Classify clean images; one dictionary by position for each batch."""
    with frozen_eval(model):
        for images, labels, indices in batches:
            with full_precision():
                logits = model(images)
            columns = (
                logits.argmax(1),
                correct_in_top(logits, labels, 1),
                correct_in_top(logits, labels, 5),
                ce_loss(logits, labels),
            )
            rows = zip(*(column.tolist() for column in columns), strict=True)
            yield {i: CleanRow(*row) for i, row in zip(indices.tolist(), rows, strict=True)}


def validate(model: nn.Module, data: EvaluationData, progress: WithProgress) -> dict[str, float]:
    """Clean loss, top-1 and top-5 in percent, number of classes predicted, over all processes."""
    batches = data.shares(range(len(data.tree.files)))
    rows: list[CleanRow] = []
    for part in clean_rows(model, progress(data.read(batches), len(batches))):
        rows += part.values()
    columns = ([row[k] for row in rows] for k in (3, 1, 2))
    predicted = set().union(*data.context.gather({row.prediction for row in rows}))
    means = averages(data.context.sum([*map(sum, columns), len(rows)]))
    return {**means, "predicted": len(predicted)}


def validate_pgd(
    model: nn.Module,
    data: EvaluationData,
    spec: PGDSpec,
    threat: ThreatModel,
    examples: int,
    outputs: Logits | None = None,
) -> float:
    """Robust top-1 in percent on evenly spread images, over all processes.

    Args:
        outputs: of the model, compiled, for the search.
    """
    positions = evenly_spread(len(data.tree.files), examples)
    targets = set(positions)
    if threat.protocol.every_iterate:
        rows: dict[int, CleanRow] = {}
        for part in clean_rows(model, data.batches(positions)):
            rows.update(part)
        shares = data.context.gather(rows)
        targets = {i for part in shares for i, row in part.items() if row.correct}
    attack = PGDAttack(model, spec, threat, outputs, number_of=data.tree.image_number)
    robust = 0
    with frozen_eval(model):
        for outcome in attack.run(data.batches(sorted(targets))):
            robust += int(outcome.robust.sum())
    return 100 * sum(data.context.gather(robust)) / len(positions)


def adversarial_examples(
    model: nn.Module, data: EvaluationData, spec: PGDSpec, threat: ThreatModel, count: int = 16
) -> torch.Tensor:
    """The last iterates of PGD on evenly spread images of this process, for people to look at."""
    positions = evenly_spread(len(data.tree.files), count * data.context.world_size)
    batch = next(data.batches(positions))
    with frozen_eval(model):
        attack = PGDAttack(model, spec, threat, number_of=data.tree.image_number)
        return attack.attack_final_iterate(*batch).adversarial
