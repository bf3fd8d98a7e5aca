"""From configuration and checkpoint to a network, and an error where the two disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from models.resnet import ResNet, family_member, load_pretrained, load_weights
from utils.config.settings import ARCHITECTURES, Config
from utils.errors import UserError
from utils.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class ModelSettings:
    """What a checkpoint carries so that it can be used without any flags."""

    arch: str
    FN: bool
    WN: bool
    s_HE: float
    angular_margin_HE: float
    mean: list[float]
    std: list[float]
    classes: list[str] | None  # name of each output; None where a foreign file has none

    @property
    def hypersphere(self) -> bool:
        return self.FN or self.WN

    @property
    def scaled_margin(self) -> float:
        """What the training loss takes off the true logit: s * m, or 0 without HE."""
        return self.s_HE * self.angular_margin_HE if self.hypersphere else 0.0

    def describe(self) -> str:
        """`resnet50, FN, WN, s 10.0, margin 0.2`."""
        if not self.hypersphere:
            return self.arch
        flags = [name for name, on in (("FN", self.FN), ("WN", self.WN)) if on]
        return ", ".join(
            [self.arch, *flags, f"s {self.s_HE:g}", f"margin {self.angular_margin_HE:g}"]
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def settings_from(config: Config, classes: Sequence[str] | None) -> ModelSettings:
    """A new network's settings."""
    train = config.TRAIN
    return ModelSettings(
        arch=train.arch,
        mean=list(train.mean),
        std=list(train.std),
        classes=None if classes is None else list(classes),
        **vars(config.HE),
    )


def settings_of(config: Config, checkpoint: Checkpoint) -> ModelSettings:
    """A checkpoint's settings: its own where it carries them, else by flags and its shapes.

    Raises:
        UserError: a flag contradicts the checkpoint; the message has both values.
    """
    wanted = settings_from(config, None)
    given = {key.partition(".")[2] for key in config.sources if config.given(key)}
    if checkpoint.model is not None:
        settings = ModelSettings(**checkpoint.model)
        for name in ("arch", "FN", "WN", "s_HE", "angular_margin_HE", "mean", "std"):
            its, flag = getattr(settings, name), getattr(wanted, name)
            if name in given and its != flag:
                raise UserError(
                    f"{checkpoint.path} was trained with {name} {its}, and the command says"
                    f" {flag}; leave the flag out, the checkpoint carries its settings"
                )
        return settings
    arch = family_member(checkpoint.state_dict, ARCHITECTURES) or checkpoint.arch
    if arch not in ARCHITECTURES:
        raise UserError(
            f"{checkpoint.path} holds no network of torchvision's ResNet family that this suite"
            f" knows ({', '.join(ARCHITECTURES)}); name another that is to be judged, such as --set"
            " TRAIN.arch=convnext_tiny or timm/NAME"
        )
    if "arch" in given and arch != wanted.arch:
        raise UserError(
            f"{checkpoint.path} holds a {arch}, and the command says {wanted.arch}; leave"
            " TRAIN.arch out"
        )
    check_head(checkpoint, wanted)
    mean, std = checkpoint.mean or wanted.mean, checkpoint.std or wanted.std
    return ModelSettings(**{**wanted.as_dict(), "arch": arch, "mean": list(mean), "std": list(std)})


def check_head(checkpoint: Checkpoint, wanted: ModelSettings) -> None:
    """A foreign file tells by its bias whether the last layer is a hypersphere head.

    Raises:
        UserError: flags and file disagree.
    """
    if "fc.weight" not in checkpoint.state_dict:
        raise UserError(f"{checkpoint.path} has no last layer (fc.weight)")
    has_bias = "fc.bias" in checkpoint.state_dict
    if has_bias and wanted.hypersphere:
        raise UserError(
            f"{checkpoint.path} has an ordinary last layer (with fc.bias: FN False, WN False), and"
            f" the command says FN {wanted.FN}, WN {wanted.WN}; leave the flags out"
        )
    if not has_bias and not wanted.hypersphere:
        raise UserError(
            f"{checkpoint.path} has a hypersphere head (no fc.bias), and the command says FN False,"
            " WN False; give the flags of its training, such as --FN True --WN True --s_HE 10.0"
        )


def new_model(settings: ModelSettings, seed: int, pretrained: bool) -> ResNet:
    """A network with seeded random weights, or torchvision's."""
    assert settings.classes is not None
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        model = build(settings, len(settings.classes))
    if pretrained:
        load_pretrained(model)
    return model


def model_of(checkpoint: Checkpoint, settings: ModelSettings) -> ResNet:
    """The checkpoint's network.

    Raises:
        UserError: its tensors do not fit.
    """
    model = build(settings, len(checkpoint.state_dict["fc.weight"]))
    load_weights(model, checkpoint.state_dict)
    return model


def build(settings: ModelSettings, num_classes: int) -> ResNet:
    """A network with these settings."""
    return ResNet(
        settings.arch,
        num_classes,
        settings.FN,
        settings.WN,
        settings.s_HE,
        settings.mean,
        settings.std,
    )
