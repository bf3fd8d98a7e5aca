"""What an evaluation starts from: the network, the images, where results go."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lib.algorithm.precision import tf32_backends
from lib.data.folders import ImageTree, read_split
from lib.data.subsets import choose, describe_subset
from lib.evaluation.judged_network import pretrained_network, read_network
from lib.evaluation.model_settings import ModelSettings
from models.pixel_network import PixelNetwork
from utils.config.rules import wrong_units_and_sizes
from utils.config.settings import ARCHITECTURES, SETTINGS, Config, Source, plain
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage.conditions import subset_label
from utils.storage.files import file_sha256, make_folder
from utils.storage.provenance import provenance
from utils.storage.run_folder import BEST, ROOT, find_checkpoint

PRETRAINED = "torchvision IMAGENET1K_V1"  # of the ResNet family


@dataclass(frozen=True)
class EvaluatedModel:
    """The network under evaluation.

    Attributes:
        model: on the device, channels_last.
        settings: as it was trained.
        folder: where results go: the checkpoint's.
        identity: path, sha256, arch, FN, WN, s_HE, angular_margin_HE; for result files.
    """

    model: PixelNetwork
    settings: ModelSettings
    folder: Path
    identity: dict[str, Any]
    trained: Mapping[str, Any] | None = None  # the settings of its training, of our own files

    @property
    def file_name(self) -> str:
        """Of the checkpoint; empty for a run's best model and where there is no file."""
        path, name = self.identity["path"], Path(self.identity["path"]).name
        return "" if name == BEST or path == origin_of(self.settings.arch) else name


def load_evaluated_model(
    config: Config, device: torch.device, path: str = "", leaves_results: bool = True
) -> EvaluatedModel:
    """The network that `--resume` or `--pretrained` names.

    Args:
        path: a checkpoint in place of `--resume`.
        leaves_results: results are going to be written beside it.

    Raises:
        UserError: no such checkpoint, or it contradicts the flags, or the folder is not writable.
    """
    given = path or config.OPTIONS.resume
    if given:
        found = find_checkpoint(auto_path(config) if given == "auto" else given)
        model, settings, checkpoint = read_network(config, found)
        folder, source, digest = Path(found).parent, found, file_sha256(found)
        trained = checkpoint.content.get("config") if checkpoint.is_ours else None
        if leaves_results:
            make_folder(folder, "results go beside the checkpoint: copy it to where you can write")
    else:
        model, settings = pretrained_network(config)
        folder = ROOT / f"{settings.arch.replace('/', '_')}_pretrained"
        source, digest = origin_of(settings.arch), state_digest(model)
        trained = None
        make_folder(folder)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    identity = {"path": source, "sha256": digest}
    for name in ("arch", "FN", "WN", "s_HE", "angular_margin_HE"):
        identity[name] = getattr(settings, name)
    return EvaluatedModel(model, settings, folder, identity, trained)


def load_source(
    config: Config, context: DistributedContext, evaluated: EvaluatedModel
) -> EvaluatedModel | None:
    """The network of `--transfer_from`; None where the evaluated network itself is attacked.

    Raises:
        UserError: it cannot be loaded, or has other classes.
    """
    path = config.OPTIONS.transfer_from
    if not path:
        return None

    # The flags describe the network that judges: they contradict nothing here.
    keys = [*(f"HE.{key}" for key in vars(config.HE)), "TRAIN.arch", "TRAIN.mean", "TRAIN.std"]
    mild = config.changed({key: config.value(key) for key in keys}, Source.BUILT_IN)

    def load() -> EvaluatedModel:
        source = load_evaluated_model(mild, context.device, path, leaves_results=False)
        ours, its = evaluated.settings.classes, source.settings.classes
        if source.model.num_classes != evaluated.model.num_classes or (
            ours and its and ours != its
        ):
            raise UserError(
                f"--transfer_from {path} has other classes than {evaluated.identity['path']}; take"
                " a network that was trained on the same ones"
            )
        return source

    return context.run_and_share_errors(load)


# What an evaluation takes from the network's training unless the user says otherwise.
TRAINED = (
    "DATA.img_size",
    "DATA.crop_size",
    "DATA.max_color_value",
    "ADV.clip_eps",
    "ADV.pgd_attack",
)


def with_trained_settings(config: Config, evaluated: EvaluatedModel, logger: Logger) -> Config:
    """The configuration with the image sizes, radius and attacks of the network's training.

    Values on the command line and in a file given by -c go over them. The suite's own configs.yml
    does not, being the same for every training; where it was changed, a warning has both.

    Raises:
        UserError: a radius in another unit, or a crop larger than the image.
    """
    explicit = (Source.COMMAND_LINE, Source.GIVEN_FILE)
    values: dict[str, object] = {}
    for key in TRAINED:
        section, _, name = key.partition(".")
        its = (evaluated.trained or {}).get(section, {})
        unit_of_given = key == "DATA.max_color_value" and config.source("ADV.clip_eps") in explicit
        if name not in its or config.source(key) in explicit or unit_of_given:
            continue
        values[key] = trained = SETTINGS[key].validate(its[name])
        own = config.value(key)
        if own not in (trained, SETTINGS[key].default):
            logger.warning(
                f"{key} is {plain(trained)} as in the network's training, not {plain(own)} as in"
                f" configs.yml; give --set {key}=... to evaluate otherwise"
            )
    config = config.changed(values, Source.CHECKPOINT)
    if problems := wrong_units_and_sizes(config):
        raise UserError("\n".join(problems))
    return config


def origin_of(arch: str) -> str:
    """Where a network without a file has its weights from."""
    return PRETRAINED if arch in ARCHITECTURES else f"published weights of {arch}"


def auto_path(config: Config) -> str:
    """`--resume auto` in evaluation: the best model of the run that the settings name."""
    return str(config.run_dir / BEST)


def state_digest(model: PixelNetwork) -> str:
    """SHA-256 of a network's weights, where there is no file of ours to hash."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_images(
    config: Config, data: str, evaluated: EvaluatedModel
) -> tuple[ImageTree, dict[str, Any], str]:
    """The validation images that the flags choose, labelled by the network's outputs.

    Returns:
        The images; for result files the subset's description, size and hash; its part of names.

    Raises:
        UserError: bad tree, unknown classes, or a bad list of ids.
    """
    whole = read_split(data, "val").with_labels_of(
        evaluated.settings.classes, evaluated.model.num_classes, config.DATA.class_order
    )
    n_examples, image_ids = config.OPTIONS.n_examples, config.OPTIONS.image_ids
    tree, total, listed = choose(whole, n_examples, image_ids), len(whole.files), bool(image_ids)
    subset = describe_subset(len(tree.files), total, listed, tree.fingerprint)
    return tree, subset, subset_label(subset, total, listed)


def device_name(device: torch.device) -> str:
    """`cpu`, `mps`, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def make_provenance(
    config: Config,
    evaluated: EvaluatedModel,
    subset: Mapping[str, Any],
    context: DistributedContext,
) -> dict[str, Any]:
    """Provenance of the results of this process's evaluation."""
    found = provenance(config, evaluated.identity, subset, device_name(context.device))
    return found | {"arithmetic": arithmetic(context.device)}


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides how a GPU rounds; nothing elsewhere. Outcomes are judged without TF32."""
    if device.type != "cuda":
        return {}
    products, convolutions = (backend.allow_tf32 for backend in tf32_backends())
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_in_search": {"matmul": products, "convolutions": convolutions},
    }


def announce(evaluated: EvaluatedModel, what: str, logger: Logger) -> None:
    """Say what is evaluated on what."""
    logger.heading(f"{evaluated.identity['path']}: {evaluated.settings.describe()}")
    logger.info(what)
