"""From configuration and checkpoint to a network, and an error where the two disagree."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from models.resnet import ResNet, family_member, load_pretrained, load_weights
from utils.config.settings import ARCHITECTURES, Config, plain
from utils.errors import UserError
from utils.storage.checkpoint import Checkpoint

# What a network is, and the settings that say it of a new one.
KEYS = {
    "arch": "TRAIN.arch",
    "FN": "HE.FN",
    "WN": "HE.WN",
    "s_HE": "HE.s_HE",
    "angular_margin_HE": "HE.angular_margin_HE",
    "mean": "TRAIN.mean",
    "std": "TRAIN.std",
}


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


def settings_from(config: Config, classes: Sequence[str] | None) -> ModelSettings:
    """A new network's settings."""
    values = {name: plain(config.value(key)) for name, key in KEYS.items()}
    return ModelSettings(**values, classes=None if classes is None else list(classes))


def settings_of(config: Config, checkpoint: Checkpoint) -> ModelSettings:
    """A checkpoint's settings: its own where it carries them, else by flags and its shapes."""
    wanted = settings_from(config, None)
    if checkpoint.model is None:
        require_both_colours(config)
        settings = settings_of_foreign(checkpoint, wanted)
    else:
        settings = ModelSettings(**checkpoint.model)
    for name in KEYS if checkpoint.is_ours else ("arch",):
        saved, flag = getattr(settings, name), getattr(wanted, name)
        if config.given(KEYS[name]) and saved != flag:
            raise UserError(
                f"{checkpoint.path} was trained with {name} {saved}, and the command says {flag};"
                " leave the flag out, the checkpoint carries its settings"
            )
    return settings


def require_both_colours(config: Config) -> None:
    """Of a network that does not carry them."""
    given = {config.chosen(f"TRAIN.{name}") for name in ("mean", "std")}
    if len(given) > 1:
        raise UserError("TRAIN.mean and TRAIN.std belong to one network; give both")


def settings_of_foreign(checkpoint: Checkpoint, wanted: ModelSettings) -> ModelSettings:
    """A foreign file tells its architecture by its shapes and a hypersphere head by its bias."""
    state = checkpoint.state_dict
    arch = family_member(state, ARCHITECTURES) or checkpoint.arch
    if arch not in ARCHITECTURES:
        raise UserError(
            f"{checkpoint.path} holds no network of torchvision's ResNet family that this suite"
            f" knows ({', '.join(ARCHITECTURES)}); name another to evaluate, such as --set"
            " TRAIN.arch=convnext_tiny or timm/NAME"
        )
    if "fc.weight" not in state:
        raise UserError(f"{checkpoint.path} has no last layer (fc.weight)")
    if ("fc.bias" in state) == wanted.hypersphere:
        if wanted.hypersphere:
            head, fix = (
                "an ordinary last layer (with fc.bias: FN False, WN False)",
                "leave them out",
            )
        else:
            head = "a hypersphere head (no fc.bias)"
            fix = "give the flags of its training, such as --FN True --WN True --s_HE 10.0"
        raise UserError(
            f"{checkpoint.path} has {head}, and the command says FN {wanted.FN}, WN {wanted.WN};"
            f" {fix}"
        )
    mean, std = checkpoint.mean or wanted.mean, checkpoint.std or wanted.std
    return replace(wanted, arch=arch, mean=mean, std=std)


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
    """The checkpoint's network."""
    model = build(settings, len(checkpoint.state_dict["fc.weight"]))
    load_weights(model, checkpoint.state_dict)
    return model


def build(settings: ModelSettings, num_classes: int) -> ResNet:
    """A network with these settings and random weights."""
    return ResNet(
        settings.arch,
        num_classes,
        settings.FN,
        settings.WN,
        settings.s_HE,
        settings.mean,
        settings.std,
    )
