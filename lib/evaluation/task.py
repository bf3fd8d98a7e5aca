"""What the three evaluations share: settings, images, conditions and origin of their results."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lib.algorithm.metrics import tf32_backends
from lib.data.folders import ImageTree, counted_twice
from lib.data.subsets import choose
from lib.evaluation.load_model import EvaluatedModel
from utils.config.rules import wrong_lengths
from utils.config.settings import ROBUSTBENCH, SETTINGS, Config, Data, Source, plain
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.conditions import Conditions
from utils.storage.provenance import now, suite, versions


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
        """The images of a folder that the flags choose."""
        return choose(tree, self.config.OPTIONS.n_examples, self.config.OPTIONS.image_ids)

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
            "config": self.config.as_dict(),
            "checkpoint": self.evaluated.identity,
            "subset": subset,
            "device": name,
            "arithmetic": arithmetic,
            "suite": suite(),
            "versions": versions("timm", "pyautoattack"),
            "seconds": round(time.monotonic() - self.started, 1),  # since the last interruption
            "date": now(),
        }
