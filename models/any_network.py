"""Networks of torchvision and timm that are evaluated like our own, and never trained.

Each has its own mean and standard deviation in front of it; the weights come from a file or are
the published ones.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from models.resnet import PixelNetwork, torchvision_weights
from utils.errors import UserError

TIMM = "timm/"
# Their weights are of a time when the pixels were normalised otherwise; the network does it.
OLD_PIXELS = {"transform_input": True, "init_weights": False}
OWN_ARGUMENTS = {"googlenet": OLD_PIXELS, "inception_v3": OLD_PIXELS}


class Preset(NamedTuple):
    """How a network's published weights take images: sizes in pixels, colours of [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]
    resize: int
    crop: int
    interpolation: str


class AnyNetwork(PixelNetwork):
    """Another library's network with normalisation in front."""

    def __init__(
        self,
        arch: str,
        network: nn.Module,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        preset: Preset,
    ) -> None:
        super().__init__(arch, num_classes, 1.0, mean, std)
        self.network, self.preset = network, preset

    @property
    def body(self) -> nn.Module:
        """The library's network."""
        return self.network

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to logits (B, num_classes)."""
        logits: torch.Tensor = self.network(self.normalised(x))
        return logits


def build_any(
    arch: str,
    size: int | None = None,
    num_classes: int | None = None,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> AnyNetwork:
    """A network with random weights or the published ones.

    Args:
        arch: a name of torchvision's classification networks, or `timm/NAME`.
        size: side of the images, pixels; None is as it was published.
        num_classes: number of outputs; None is as it was published.
        pretrained: load the published weights.
        mean: per colour, pixels in [0, 1]; None is the network's own.
        std: likewise.
    """
    make = timm_network if arch.startswith(TIMM) else torchvision_network
    try:
        network, preset = make(arch, size, num_classes, pretrained)
        size = size or preset.crop
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(1, 3, size, size)).shape[1]
    except UserError:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"TRAIN.arch {arch} does not take images of DATA.crop_size {size} ({first_line(error)})"
        ) from error
    return AnyNetwork(arch, network, outputs, mean or preset.mean, std or preset.std, preset)


def first_line(error: Exception) -> str:
    """The first line of an exception's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def torchvision_network(
    arch: str, size: int | None, num_classes: int | None, pretrained: bool
) -> tuple[nn.Module, Preset]:
    """A network and how its published weights take images."""
    require_known(arch, [*torchvision.models.list_models(module=torchvision.models), TIMM])
    published = torchvision.models.get_model_weights(arch)
    weights = getattr(published, "IMAGENET1K_V1", None) or published["DEFAULT"]
    taken = weights.transforms()
    sizes = taken.resize_size[0], taken.crop_size[0]
    preset = Preset(tuple(taken.mean), tuple(taken.std), *sizes, taken.interpolation.value)
    size = size or preset.crop
    arguments: dict[str, Any] = dict(OWN_ARGUMENTS.get(arch, {}))
    if arch.startswith("vit_"):
        arguments["image_size"] = size
    elif arch.startswith("maxvit_"):
        arguments["input_size"] = (size, size)
    if pretrained:
        torchvision_weights(weights)  # says what is wrong when they cannot be downloaded
        arguments["weights"] = weights
    network = torchvision.models.get_model(arch, num_classes=num_classes or 1000, **arguments)
    return network, preset


def timm_network(
    arch: str, size: int | None, num_classes: int | None, pretrained: bool
) -> tuple[nn.Module, Preset]:
    """A network and how its published weights take images."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"TRAIN.arch {arch} needs the package timm; pip install timm") from error
    name = arch.removeprefix(TIMM)
    if not timm.is_model(name):  # which knows names with a tag too
        require_known(arch, [TIMM + known for known in timm.list_models()])
    published = timm.models.get_pretrained_cfg(name)
    arguments: dict[str, Any] = {}
    if size and published is not None and published.fixed_input_size:
        arguments["img_size"] = size
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    try:
        network = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        if not pretrained:
            raise
        raise UserError(
            f"cannot get timm's weights for {name} ({first_line(error)}); connect to the internet,"
            " delete a damaged file from its cache (HF_HOME), or give one by --resume"
        ) from error
    taken = timm.data.resolve_model_data_config(network)
    crop = taken["input_size"][-1]
    resize = math.floor(crop / taken["crop_pct"])
    return network, Preset(taken["mean"], taken["std"], resize, crop, taken["interpolation"])


def require_known(arch: str, names: Iterable[str]) -> None:
    """Refuse an unknown name, with the nearest one in the message."""
    names = list(names)
    if arch not in names:
        near = difflib.get_close_matches(arch, names, n=1)
        advice = f"did you mean {near[0]}?" if near else "torchvision's names, or timm/NAME"
        raise UserError(f"TRAIN.arch: there is no network {arch!r}; {advice}")
