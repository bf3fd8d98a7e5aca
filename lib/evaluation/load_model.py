"""The network that an evaluation or a training starts from: ours, others', or published weights."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.any_network import AnyNetwork, build_any
from models.resnet import PixelNetwork, ResNet, family_member, load_pretrained, load_weights
from utils.config.settings import ARCHITECTURES, SETTINGS, Config, Source, place_of, plain
from utils.errors import UserError
from utils.storage.checkpoint import Checkpoint, read_checkpoint
from utils.storage.conditions import file_stem
from utils.storage.files import file_sha256
from utils.storage.run_folder import BEST, ROOT, find_checkpoint

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


@dataclass(frozen=True)
class EvaluatedModel:
    """The network under evaluation, or the surrogate of a transfer."""

    model: PixelNetwork  # on the device, channels_last
    settings: ModelSettings  # as it was trained
    folder: Path  # where results go: the checkpoint's
    identity: dict[str, Any]  # path, sha256 and what KEYS names but for colours; for result files
    file_name: str = ""  # the checkpoint's; empty for a run's best model and where there is no file
    trained: Mapping[str, Any] | None = None  # {section: {key: value}} of its training, if it says
    notes: tuple[str, ...] = ()  # what to know of how the file was read

    @property
    def usual(self) -> Config:
        """The built-in configuration with what TRAINED names of the network's training."""
        values = {}
        for key in TRAINED:
            section, name = place_of(key)
            saved = (self.trained or {}).get(section, {})
            if name in saved:
                values[key] = SETTINGS[key].validate(saved[name])
        return Config().changed(values, Source.CHECKPOINT)


def load_evaluated_model(config: Config, device: torch.device) -> EvaluatedModel:
    """The network that `--resume` or `--pretrained` names; `auto` is the run's best model."""
    path, trained, notes = config.OPTIONS.resume, None, []
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
        model, settings = published_network(config)
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


def load_surrogate(
    config: Config, device: torch.device, evaluated: EvaluatedModel
) -> EvaluatedModel | None:
    """The network of `--transfer_from`; None where the evaluated network itself is attacked."""
    path = config.OPTIONS.transfer_from
    if not path:
        return None
    # The flags describe the evaluated network and contradict nothing in the surrogate's file.
    values = {key: config.value(key) for key in KEYS.values()} | {"weights": "", "resume": path}
    surrogate = load_evaluated_model(config.changed(values, Source.BUILT_IN), device)
    names = [network.settings.classes for network in (evaluated, surrogate)]
    if surrogate.model.num_classes != evaluated.model.num_classes or (
        all(names) and names[0] != names[1]
    ):
        raise UserError(
            f"--transfer_from {path} has other classes than {evaluated.identity['path']}; take"
            " a network that was trained on the same ones"
        )
    return surrogate


def read_network(config: Config, path: str) -> tuple[PixelNetwork, ModelSettings, Checkpoint]:
    """The network of a file; `TRAIN.arch` says which where it is none of the ResNet family."""
    arch, weights = config.TRAIN.arch, config.OPTIONS.weights
    if arch not in ARCHITECTURES:
        state = any_network(config)[0].body.state_dict()
        keys = [key for key in state if "num_batches" not in key]
        checkpoint = read_checkpoint(path, keys[0], weights)
        last = checkpoint.state_dict.get(keys[-1])
        if last is not None and not checkpoint.is_ours:
            model, settings = any_network(config, len(last), checkpoint=checkpoint)
            load_weights(model, checkpoint.state_dict)
            return model, settings, checkpoint
        if config.given("TRAIN.arch") and not checkpoint.is_ours:
            raise UserError(
                f"{path} holds no {arch}: it lacks {keys[-1]}; set TRAIN.arch to its own"
            )
    checkpoint = read_checkpoint(path, weights=weights)
    settings = settings_of(config, checkpoint)
    return model_of(checkpoint, settings), settings, checkpoint


def published_network(config: Config) -> tuple[PixelNetwork, ModelSettings]:
    """A network with published weights, for evaluation without a checkpoint."""
    if config.TRAIN.arch not in ARCHITECTURES:
        return any_network(config, pretrained=True)
    settings = settings_from(config, None)
    if settings.hypersphere:
        raise UserError(
            "--pretrained has no hypersphere head; leave --FN and --WN out, or train first"
        )
    model = build(settings, 1000)
    load_pretrained(model)
    return model, settings


def any_network(
    config: Config,
    num_classes: int | None = None,
    pretrained: bool = False,
    checkpoint: Checkpoint | None = None,
) -> tuple[AnyNetwork, ModelSettings]:
    """The network of `TRAIN.arch`, with random weights or the published ones.

    Mean and standard deviation are the command line's, else the checkpoint's, else as published.
    """
    if config.HE.FN or config.HE.WN:
        raise UserError(f"a {config.TRAIN.arch} has no hypersphere head; leave --FN and --WN out")
    require_both_colours(config)
    mean, std = (checkpoint.mean, checkpoint.std) if checkpoint else (None, None)
    model = build_any(
        config.TRAIN.arch,
        config.DATA.crop_size if config.chosen("DATA.crop_size") else None,
        num_classes,
        pretrained,
        mean=config.TRAIN.mean if config.given("TRAIN.mean") else mean,
        std=config.TRAIN.std if config.given("TRAIN.std") else std,
    )
    mean, std = map(list, model.normalisation.values())
    return model, replace(settings_from(config, None), mean=mean, std=std)


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
        head = "a hypersphere head (no fc.bias)"
        fix = "give the flags of its training, such as --FN True --WN True --s_HE 10.0"
        if wanted.hypersphere:
            head = "an ordinary last layer (with fc.bias: FN False, WN False)"
            fix = "leave them out"
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


def state_digest(model: PixelNetwork) -> str:
    """SHA-256 of a network's weights, where there is no file of ours to hash."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
