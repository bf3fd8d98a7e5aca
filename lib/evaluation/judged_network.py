"""The network under evaluation: one of the ResNet family, or any of torchvision and timm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lib.evaluation.model_settings import ModelSettings, build, model_of, settings_from, settings_of
from models.any_network import AnyNetwork, build_any
from models.pixel_network import PixelNetwork
from models.resnet import load_pretrained, load_weights
from utils.config.settings import ARCHITECTURES, Config
from utils.errors import UserError
from utils.storage.checkpoint import Checkpoint, read_checkpoint


def read_network(config: Config, path: str) -> tuple[PixelNetwork, ModelSettings, Checkpoint]:
    """The network of a file; `TRAIN.arch` says which it is where that is none of the ResNet family.

    Raises:
        UserError: the file is no such network, or contradicts the flags.
    """
    if config.TRAIN.arch not in ARCHITECTURES:
        found = read_any_network(config, path)
        if found is not None:
            return found
    checkpoint = read_checkpoint(path)
    settings = settings_of(config, checkpoint)
    return model_of(checkpoint, settings), settings, checkpoint


def read_any_network(
    config: Config, path: str
) -> tuple[PixelNetwork, ModelSettings, Checkpoint] | None:
    """As `read_network`, of any family; None where the file says that it is another network's.

    Raises:
        UserError: there is no such family, or the tensors do not fit.
    """
    arch, size = config.TRAIN.arch, config.DATA.crop_size
    model = any_network(config)
    keys = [key for key in model.body.state_dict() if "num_batches" not in key]
    checkpoint = read_checkpoint(path, first_key=keys[0])
    head = checkpoint.state_dict.get(keys[-1])
    if checkpoint.is_ours or (head is None and not config.given("TRAIN.arch")):
        return None
    if head is None:
        raise UserError(f"{path} holds no {arch}: it lacks {keys[-1]}; set TRAIN.arch to its own")
    mean = checkpoint.mean or model.normalisation["mean"]
    std = checkpoint.std or model.normalisation["std"]
    colours = own_colours(config, mean, std)
    model = build_any(arch, size, len(head), colours=colours)
    load_weights(model, checkpoint.state_dict)
    return model, settings_of_any(config, model), checkpoint


def pretrained_network(config: Config) -> tuple[PixelNetwork, ModelSettings]:
    """A network with its makers' weights, for evaluation without a checkpoint.

    Raises:
        UserError: with a hypersphere head there is nothing to evaluate, or no weights.
    """
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


def any_network(config: Config, pretrained: bool = False) -> AnyNetwork:
    """The network of `TRAIN.arch` as published, with random weights or its makers'.

    Raises:
        UserError: there is none, or a hypersphere head was asked for.
    """
    arch = config.TRAIN.arch
    if config.HE.FN or config.HE.WN:
        raise UserError(f"a {arch} has no hypersphere head; leave --FN and --WN out")
    model = build_any(arch, config.DATA.crop_size, pretrained=pretrained)
    mean, std = model.normalisation.values()
    return AnyNetwork(arch, model.network, model.num_classes, *own_colours(config, mean, std))


def own_colours(
    config: Config, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the command line, else these."""
    return (
        config.TRAIN.mean if config.given("TRAIN.mean") else mean,
        config.TRAIN.std if config.given("TRAIN.std") else std,
    )


def settings_of_any(config: Config, model: AnyNetwork) -> ModelSettings:
    """What is said of a network that carries no settings."""
    mean, std = map(list, model.normalisation.values())
    return replace(settings_from(config, None), mean=mean, std=std)
