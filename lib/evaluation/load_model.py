"""What an evaluation starts from: the network, the settings of its training, the images."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lib.algorithm.metrics import tf32_backends
from lib.data.folders import ImageTree, counted_twice
from lib.data.subsets import choose, describe_subset
from lib.evaluation.model_settings import (
    KEYS,
    ModelSettings,
    build,
    model_of,
    require_both_colours,
    settings_from,
    settings_of,
)
from models.any_network import AnyNetwork, build_any
from models.pixel_network import PixelNetwork
from models.resnet import load_pretrained, load_weights
from utils.config.rules import wrong_lengths
from utils.config.settings import ARCHITECTURES, SETTINGS, Config, Data, Source, plain
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint, read_checkpoint
from utils.storage.conditions import Conditions, file_stem
from utils.storage.files import file_sha256
from utils.storage.provenance import now, suite, versions
from utils.storage.run_folder import BEST, ROOT, find_checkpoint

# What an evaluation takes from the network's training unless the user says otherwise.
TRAINED = (
    "DATA.img_size",
    "DATA.crop_size",
    "DATA.interpolation",
    "DATA.max_color_value",
    "ADV.clip_eps",
    "ADV.pgd_attack",
)


@dataclass(frozen=True)
class EvaluatedModel:
    """The network under evaluation, or the surrogate of a transfer.

    Attributes:
        model: on the device, channels_last.
        settings: as it was trained.
        folder: where results go: the checkpoint's.
        identity: path, sha256, arch, FN, WN, s_HE, angular_margin_HE; for result files.
        file_name: the checkpoint's; empty for a run's best model and where there is no file.
        trained: the configuration of its training, {section: {key: value}}, in our own files;
            the image sizes of networks of other families.
        notes: what to know of how the file was read.
    """

    model: PixelNetwork
    settings: ModelSettings
    folder: Path
    identity: dict[str, Any]
    file_name: str = ""
    trained: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def trained_or_default(self) -> Mapping[str, Any]:
        """The configuration of its training, or the built-in one."""
        trained = self.trained or {}
        return {name: v | trained.get(name, {}) for name, v in Config().as_dict().items()}


def load_evaluated_model(config: Config, device: torch.device, path: str = "") -> EvaluatedModel:
    """The network that `--resume` or `--pretrained` names; `auto` is the run's best model.

    Args:
        path: a checkpoint in place of `--resume`.

    Raises:
        UserError: no such checkpoint, or it contradicts the flags.
    """
    path = path or config.OPTIONS.resume
    trained, notes = None, []
    if path:
        path = find_checkpoint(str(config.run_dir / BEST) if path == "auto" else path)
        model, settings, checkpoint = read_network(config, path)
        folder, digest = Path(path).parent, file_sha256(path)
        name = "" if Path(path).name == BEST else Path(path).name
        trained = checkpoint.content.get("config") if checkpoint.is_ours else None
        notes = [checkpoint.note] if checkpoint.note else []
        if not (checkpoint.is_ours or checkpoint.mean or config.chosen("TRAIN.mean")):
            colours = f"mean {tuple(settings.mean)} and std {tuple(settings.std)}"
            notes.append(f"{path} holds no colours: assumed are {colours}; see TRAIN.mean and .std")
    else:
        model, settings = pretrained_network(config)
        folder = ROOT / f"{settings.arch.replace('/', '_')}_pretrained"
        digest, name = state_digest(model), ""
        in_family = settings.arch in ARCHITECTURES
        path = "torchvision IMAGENET1K_V1" if in_family else f"published weights of {settings.arch}"
    if isinstance(model, AnyNetwork):
        preset = model.preset
        sizes = {"img_size": preset.resize, "crop_size": preset.crop}
        trained = {"DATA": sizes | {"interpolation": preset.interpolation}}
        notes.append(
            f"{settings.arch} as published: resize {preset.resize}, crop {preset.crop},"
            f" {preset.interpolation}; DATA.img_size, .crop_size and .interpolation change them"
        )
    if config.OPTIONS.output:  # where files of one name from many folders may meet
        name = f"{file_stem(name) or folder.name}_{digest[:8]}.pth"
        folder = Path(config.OPTIONS.output)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    identity = {"path": path, "sha256": digest}
    for key in ("arch", "FN", "WN", "s_HE", "angular_margin_HE"):
        identity[key] = getattr(settings, key)
    return EvaluatedModel(model, settings, folder, identity, name, trained, tuple(notes))


def read_network(config: Config, path: str) -> tuple[PixelNetwork, ModelSettings, Checkpoint]:
    """The network of a file; `TRAIN.arch` says which where it is none of the ResNet family."""
    if config.TRAIN.arch not in ARCHITECTURES:
        network = read_any_network(config, path)
        if network is not None:
            return network
    checkpoint = read_checkpoint(path, weights=config.OPTIONS.weights)
    settings = settings_of(config, checkpoint)
    return model_of(checkpoint, settings), settings, checkpoint


def read_any_network(
    config: Config, path: str
) -> tuple[PixelNetwork, ModelSettings, Checkpoint] | None:
    """As `read_network`, of any family; None where the file says that it is another network's."""
    arch = config.TRAIN.arch
    keys = [key for key in any_network(config).body.state_dict() if "num_batches" not in key]
    checkpoint = read_checkpoint(path, keys[0], config.OPTIONS.weights)
    last = checkpoint.state_dict.get(keys[-1])
    if checkpoint.is_ours or (last is None and not config.given("TRAIN.arch")):
        return None
    if last is None:
        raise UserError(f"{path} holds no {arch}: it lacks {keys[-1]}; set TRAIN.arch to its own")
    model = any_network(config, len(last), checkpoint=checkpoint)
    load_weights(model, checkpoint.state_dict)
    return model, settings_of_any(config, model), checkpoint


def any_network(
    config: Config,
    num_classes: int | None = None,
    pretrained: bool = False,
    checkpoint: Checkpoint | None = None,
) -> AnyNetwork:
    """The network of `TRAIN.arch`, with random weights or the published ones.

    Mean and standard deviation are the command line's, else the checkpoint's, else as published.
    """
    if config.HE.FN or config.HE.WN:
        raise UserError(f"a {config.TRAIN.arch} has no hypersphere head; leave --FN and --WN out")
    require_both_colours(config)
    mean, std = (checkpoint.mean, checkpoint.std) if checkpoint else (None, None)
    return build_any(
        config.TRAIN.arch,
        config.DATA.crop_size if config.chosen("DATA.crop_size") else None,
        num_classes,
        pretrained,
        mean=config.TRAIN.mean if config.given("TRAIN.mean") else mean,
        std=config.TRAIN.std if config.given("TRAIN.std") else std,
    )


def settings_of_any(config: Config, model: AnyNetwork) -> ModelSettings:
    """The settings of a network that carries none."""
    mean, std = map(list, model.normalisation.values())
    return replace(settings_from(config, None), mean=mean, std=std)


def pretrained_network(config: Config) -> tuple[PixelNetwork, ModelSettings]:
    """A network with published weights, for evaluation without a checkpoint."""
    if config.TRAIN.arch not in ARCHITECTURES:
        model = any_network(config, pretrained=True)
        return model, settings_of_any(config, model)
    settings = settings_from(config, None)
    if settings.hypersphere:
        raise UserError(
            "--pretrained has no hypersphere head; leave --FN and --WN out, or train first"
        )
    resnet = build(settings, 1000)
    load_pretrained(resnet)
    return resnet, settings


def with_trained_settings(config: Config, evaluated: EvaluatedModel, logger: Logger) -> Config:
    """The configuration with the image sizes, radius and attacks of the network's training.

    Values on the command line and in a file given by -c go over them. The suite's own configs.yml
    does not, being the same for every training; where it was changed, a warning has both.
    """
    values: dict[str, object] = {}
    for key in TRAINED:
        section, _, name = key.partition(".")
        saved = (evaluated.trained or {}).get(section, {})
        unit_of_radius = key == "DATA.max_color_value" and config.chosen("ADV.clip_eps")
        if name not in saved or config.chosen(key) or unit_of_radius:
            continue
        setting, value = SETTINGS[key], config.value(key)
        values[key] = trained = setting.validate(saved[name])
        if value not in (trained, setting.default):
            logger.warning(
                f"{key} is {plain(trained)} as in the network's training, not {plain(value)} as in"
                f" configs.yml; give --set {key}=... to evaluate otherwise"
            )
    config = config.changed(values, Source.CHECKPOINT)
    if problems := list(wrong_lengths(config)):
        raise UserError("\n".join(problems))
    return config


def state_digest(model: PixelNetwork) -> str:
    """SHA-256 of a network's weights, where there is no file of ours to hash."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Task:
    """An evaluation of a network: what is asked for, and by which processes it is done.

    Attributes:
        config: with the settings of the network's training, see `with_trained_settings`.
        started: when, monotonic seconds.
    """

    config: Config
    context: DistributedContext
    logger: Logger
    evaluated: EvaluatedModel
    started: float = field(default_factory=time.monotonic)

    def announce(self, task: str) -> None:
        """Log what is evaluated on what."""
        network = self.evaluated
        self.logger.heading(f"{network.identity['path']}: {network.settings.describe()}")
        self.logger.info(task)

    def with_labels(self, tree: ImageTree) -> ImageTree:
        """The images with labels that index the network's outputs; logs what is odd about them.

        Raises:
            UserError: a class that the network does not know.
        """
        names, outputs = self.evaluated.settings.classes, self.evaluated.model.num_classes
        tree = tree.with_labels_of(names, outputs, self.config.DATA.class_order)
        for note in tree.notes:
            self.logger.warning(note)
        return tree

    def with_repeats(self, root: str, trees: dict[str, ImageTree]) -> dict[str, ImageTree]:
        """The folders of one result, with a note in each, which is logged, if one counts twice."""
        notes = counted_twice(root, {name: tree.root for name, tree in trees.items()})
        for note in notes:
            self.logger.warning(note)
        return {k: replace(tree, notes=(*tree.notes, *notes)) for k, tree in trees.items()}

    def pick(self, tree: ImageTree) -> ImageTree:
        """The images of a folder that the flags choose."""
        return choose(tree, self.config.OPTIONS.n_examples, self.config.OPTIONS.image_ids)

    def subset(self, n: int, total: int, sha256: str) -> dict[str, Any]:
        """What result files say of `n` picked out of `total` images, see `describe_subset`."""
        return describe_subset(n, total, bool(self.config.OPTIONS.image_ids), sha256)

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
        data = self.evaluated.trained_or_default["DATA"]
        resize = None if conditions.resize is None else data["img_size"]
        interpolated = {"interpolation": data["interpolation"]} if conditions.resize else {}
        return {"resize": resize, "crop": data["crop_size"], **interpolated}

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


def load_surrogate(task: Task) -> EvaluatedModel | None:
    """The network of `--transfer_from`; None where the evaluated network itself is attacked."""
    config, context, evaluated = task.config, task.context, task.evaluated
    path = config.OPTIONS.transfer_from
    if not path:
        return None
    # The flags describe the evaluated network and contradict nothing in the surrogate's file.
    values = {key: config.value(key) for key in KEYS.values()} | {"weights": ""}
    without_flags = config.changed(values, Source.BUILT_IN)

    def load() -> EvaluatedModel:
        surrogate = load_evaluated_model(without_flags, context.device, path)
        names = [network.settings.classes for network in (evaluated, surrogate)]
        if surrogate.model.num_classes != evaluated.model.num_classes or (
            all(names) and names[0] != names[1]
        ):
            raise UserError(
                f"--transfer_from {path} has other classes than {evaluated.identity['path']}; take"
                " a network that was trained on the same ones"
            )
        return surrogate

    return context.run_and_share_errors(load)
