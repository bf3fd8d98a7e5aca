"""Every setting of a run and every flag of a call, and what follows from them.

A setting is SECTION.key, one field below; `configs.yml` shows the same with comments. TRAIN, ADV
and DATA hold the published keys and some in the same spirit; HE, EVAL and RUN hold what the
published scripts took from flags or fixed in their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from lib.algorithm.protocols import METHOD_NAMES, NORM_NAMES, PROTOCOLS
from utils.config.validators import (
    PgdRow,
    architecture,
    choice,
    compile_mode,
    device,
    numbers,
    output_prefix,
    path,
    pgd_rows,
    phase_list,
    radii,
    real,
    strict_bool,
    whole,
    words,
    workers,
)

SWITCH = "switch"
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What is known of a field.

    Attributes:
        default: its value where nobody gives another.
        read: text or YAML to a checked value; a ValueError says what is wrong.
        help: one line, with the unit.
        resume: what another value than the checkpoint's means to `--resume`: `fixed` is refused,
            because the saved state would make no sense, `noted` is warned of.
        metavar: of the flag `--key`, or none where there is no flag but `--set SECTION.key=value`.
            The value of BOOL may be left out and then is True; a SWITCH takes none.
        short: another name of the flag.
        group: of --help.
        script: the only one the flag means something to.
    """

    default: object
    read: Callable[[object], object]
    help: str
    resume: Literal["free", "noted", "fixed"] = "free"
    metavar: str = ""
    short: str = ""
    group: str = "run"
    script: Literal["", "main_free", "evaluate"] = ""


def setting(default: T, read: Callable[[object], T], help: str, **more: Any) -> T:
    """A dataclass field that carries a `Setting`."""
    about = Setting(default, read, help, **more)
    return field(default=default, metadata={"setting": about})


def switch(help: str, metavar: str = "BOOL", **more: Any) -> bool:
    """A field that is False unless its flag is given."""
    return setting(False, strict_bool, help, metavar=metavar, **more)


def settings_in(section: type) -> dict[str, Setting]:
    """{key: what is known of it} of a section's class."""
    return {f.name: f.metadata["setting"] for f in fields(section) if "setting" in f.metadata}


ARCHITECTURES = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d"
    " wide_resnet50_2 wide_resnet101_2"
).split()
PRECISIONS = ("fp32", "bf16", "fp16")
CLASS_ORDERS = ("auto", "text", "numeric")
AUTO: int | str = "auto"
NOT_COMPILED: bool | str = False
ONE_255TH = 0.00392156862  # as the published configs.yml rounds 1/255


@dataclass(frozen=True)
class Train:
    """TRAIN: the network and its training."""

    arch: str = setting(
        "resnet50",
        architecture,
        "torchvision architecture; evaluation also takes timm/NAME",
        resume="fixed",
    )
    method: str = setting("free", choice(METHOD_NAMES), ", ".join(METHOD_NAMES), resume="fixed")
    epochs: int = setting(
        90, whole(1), "epochs of training; free makes ceil(epochs / n_repeats) passes of them"
    )
    start_epoch: int = setting(0, whole(0), "first pass over the data, counted from 0")
    lr: float = setting(0.1, real(0, above=True), "SGD learning rate", resume="noted")
    momentum: float = setting(0.9, real(0, 1), "SGD momentum", resume="noted")
    weight_decay: float = setting(1e-4, real(0), "SGD weight decay", resume="noted")
    bn_weight_decay: bool = setting(
        True, strict_bool, "decay batch-norm's parameters too; fast: false", resume="fixed"
    )
    label_smoothing: float = setting(
        0.0, real(0, 1), "share of the target for all classes alike", resume="noted"
    )
    schedule: str = setting(
        "auto",
        choice(("auto", "step", "linear", "cosine")),
        "learning rate; auto is linear where lr_epochs are given, else step",
        resume="noted",
    )
    lr_epochs: tuple[float, ...] = setting(
        (), numbers(None, 0), "linear: epochs at which lr_values hold", resume="noted"
    )
    lr_values: tuple[float, ...] = setting(
        (), numbers(None, 0), "linear: learning rates at lr_epochs", resume="noted"
    )
    warmup_epochs: float = setting(
        0.0, real(0), "cosine: epochs of linear increase at the start", resume="noted"
    )
    phases: tuple[dict[str, Any], ...] = setting(
        (), phase_list, "trainings in turn, each with settings of its own: [{DATA.crop_size: 128}]"
    )
    phase: int = setting(0, whole(0), "number of the phase, which TRAIN.phases sets")
    ema: float = setting(
        0.0, real(0, 1), "decay of an average of the weights; 0 keeps none", resume="noted"
    )
    val_every: int = setting(1, whole(1), "epochs per validation")
    print_freq: int = setting(10, whole(1), "minibatches between two lines of progress")
    mean: tuple[float, ...] = setting(
        (0.485, 0.456, 0.406), numbers(3, 0, 1), "mean per colour, pixels in [0, 1]"
    )
    std: tuple[float, ...] = setting(
        (0.229, 0.224, 0.225), numbers(3, 0, 1, above=True), "deviation per colour, in [0, 1]"
    )
    precision: str = setting(
        "fp32", choice(PRECISIONS), "arithmetic of training: fp32, bf16, fp16", resume="noted"
    )
    compile: bool | str = setting(
        NOT_COMPILED, compile_mode, "compile the network; reduce-overhead: in CUDA graphs"
    )
    sync_bn: bool = setting(False, strict_bool, "batch statistics over all processes")
    checkpoint_minutes: float = setting(
        10.0, real(0, above=True), "minutes between checkpoints within an epoch"
    )
    gradient_every: int = setting(10, whole(1), "minibatches per sample of --print_gradients")
    select: str = setting(
        "clean", choice(("clean", "pgd")), "what model_best is best at", resume="noted"
    )
    select_from: str = setting(
        "val",
        choice(("val", "train")),
        "images that choose model_best; train holds select_examples out of training",
        resume="fixed",
    )
    select_examples: int = setting(1000, whole(1), "images of select: pgd and select_from: train")


@dataclass(frozen=True)
class Adv:
    """ADV: the adversary of training and evaluation."""

    clip_eps: float = setting(
        4.0, real(0), "radius of the l-infinity ball, of max_color_value", resume="noted"
    )
    fgsm_step: float = setting(
        4.0, real(0), "step of the noise in training, same unit", resume="noted"
    )
    n_repeats: int = setting(
        4, whole(1), "replays of each minibatch (m); other methods than free: 1", resume="fixed"
    )
    random_init: bool = setting(
        True, strict_bool, "fast: draw the noise for every minibatch", resume="noted"
    )
    train_steps: int = setting(3, whole(1), "pgd: steps of the attack in training", resume="noted")
    pgd_attack: tuple[PgdRow, ...] = setting(
        (PgdRow(10, ONE_255TH), PgdRow(50, ONE_255TH)),
        pgd_rows,
        "list of [steps, step size in [0, 1]], optionally followed by loss and restarts",
    )


@dataclass(frozen=True)
class Data:
    """DATA: images, and how they become batches."""

    imagenet: str = setting("data/ImageNet", path, "default DIR: holds train/ and val/")
    imagenet_c: str = setting("data/ImageNet-C", path, "default DIR of --eva_on_imagenet_c")
    workers: int | str = setting(
        AUTO,
        workers,
        "data loading processes of a machine, over its GPUs; auto: one a core that may be used",
    )
    class_order: str = setting(
        "auto",
        choice(CLASS_ORDERS),
        "order of class folders for checkpoints without class names: auto, text or numeric",
    )
    batch_size: int = setting(256, whole(1), "images per minibatch, over all GPUs", resume="fixed")
    img_size: int = setting(
        256, whole(0), "shorter side before the centre crop, pixels; 0: as it is", resume="noted"
    )
    min_area: float = setting(
        0.08,
        real(0, 1, above=True),
        "smallest share of an image in a training crop",
        resume="noted",
    )
    flip: bool = setting(True, strict_bool, "mirror half of the training images", resume="noted")
    crop_size: int = setting(224, whole(1), "side of the network's input, pixels", resume="fixed")
    max_color_value: float = setting(255.0, real(0, above=True), "unit of clip_eps and fgsm_step")


@dataclass(frozen=True)
class Hypersphere:
    """HE: hypersphere embedding; scale and margin act with either FN or WN."""

    FN: bool = switch("HE: normalise the features", resume="fixed", group="model")
    WN: bool = switch("HE: normalise the last layer's weight rows", resume="fixed", group="model")
    s_HE: float = setting(
        10.0,
        real(0, above=True),
        "HE: scale of the cosines",
        resume="fixed",
        metavar="S",
        group="model",
    )
    angular_margin_HE: float = setting(
        0.2, real(0, 2), "HE: margin on the true cosine", resume="fixed", metavar="M", group="model"
    )


@dataclass(frozen=True)
class Eval:
    """EVAL: how attacks and ImageNet-C are measured."""

    protocol: str = setting(
        "standard",
        choice(tuple(PROTOCOLS)),
        f"whose evaluation: {', '.join(PROTOCOLS)}",
        metavar="NAME",
        group="evaluation",
    )
    precision: str = setting(
        "fp32", choice(PRECISIONS), "arithmetic of the attack's search: fp32, bf16, fp16"
    )
    norm: str = setting(
        "Linf",
        choice(NORM_NAMES),
        "norm of the ball: Linf, L2, L1",
        metavar="NAME",
        group="evaluation",
    )
    eps: tuple[float, ...] = setting(
        (),
        radii,
        "radii of the ball, separated by commas, an evaluation each: of max_color_value in Linf,"
        " plain in L2 and L1, pixels being in [0, 1] (default: ADV.clip_eps)",
        metavar="EPS",
        group="evaluation",
    )
    batch_size: int = setting(
        128, whole(1), "images that each process evaluates at once; AutoAttack takes 256"
    )
    compile: bool = setting(False, strict_bool, "compile the network with torch.compile")
    cascade: bool = setting(False, strict_bool, "attack only what is robust to earlier attacks")
    scales: tuple[float, ...] = setting(
        (), numbers(None, 0, above=True), "scales s of HE at which cross-entropy is attacked"
    )


@dataclass(frozen=True)
class Run:
    """RUN: seed, machine, name."""

    seed: int = setting(
        0,
        whole(0, 2**63 - 1),
        "seed of weights, order, crops and attacks",
        resume="fixed",
        metavar="N",
    )
    device: str = setting(
        "auto", device, "auto (the best there is), cpu, cuda, cuda:1 or mps", metavar="NAME"
    )
    nproc: int = setting(0, whole(0), "processes; 0 is one per GPU, or one", metavar="N")
    output_prefix: str = setting(
        "free_adv", output_prefix, "part of the run folder's name", metavar="TEXT"
    )


ROBUSTBENCH = "robustbench"  # what --image_ids takes in place of a file


@dataclass(frozen=True)
class Options:
    """Flags of one call that describe no run; `script` and `command` say what was called."""

    script: str = ""
    command: str = ""
    data: str | None = setting(None, path, "data set; default DATA.imagenet of configs.yml")
    evaluate: bool = switch(
        "evaluate on DIR/val: clean images and the attacks",
        metavar=SWITCH,
        short="-e",
        group="evaluation",
    )
    resume: str = setting(
        "",
        path,
        "checkpoint, as given or under trained_models/; `auto` is this run's newest valid one",
        metavar="PATH",
        group="model",
    )
    pretrained: bool = switch("start from torchvision's ImageNet weights", group="model")
    print_gradients: bool = switch(
        "measure adversarial/clean gradient norms while training", script="main_free"
    )
    overwrite: bool = switch("replace a run that is there", script="main_free")
    tensorboard: bool = switch("write TensorBoard logs", script="main_free")
    attack: tuple[str, ...] = setting(
        (),
        words,
        "attacks separated by commas: pgd10,pgd50-margin,pgd50-dlr-r5,pgd100@1/255,autoattack,"
        " autoattack-plus,apgd,apgd-ce,apgd-t,fab-t,square (default:"
        " ADV.pgd_attack, and in protocol standard its longest row on margin)",
        metavar="NAMES",
        group="evaluation",
    )
    transfer_from: str = setting(
        "",
        path,
        "checkpoint that is attacked in place of the one that judges: transferred attacks that beat"
        " a network's own are a sign of masked gradients",
        metavar="PATH",
        group="evaluation",
    )
    n_examples: int | None = setting(
        None, whole(1), "only N images, evenly spread", metavar="N", group="evaluation"
    )
    image_ids: str | None = setting(
        None,
        path,
        "only the images listed, one class/filename a line; robustbench: its 5000",
        metavar="FILE",
        group="evaluation",
    )
    save_images: int = setting(
        0,
        whole(0),
        "save N images with their adversarial twins as PNG, and a figure",
        metavar="N",
        group="evaluation",
    )
    eva_on_imagenet_c: bool = switch(
        "evaluate on ImageNet-C at DIR", metavar=SWITCH, group="evaluation", script="evaluate"
    )
    eva_on_shift: bool = switch(
        "evaluate on the shifted test set at DIR, or on each of several in it",
        metavar=SWITCH,
        group="evaluation",
        script="evaluate",
    )
    corruptions: tuple[str, ...] = setting(
        (),
        words,
        "corruptions separated by commas, `extra`, or `all` of the tree (default: the 15)",
        metavar="NAMES",
        group="evaluation",
        script="evaluate",
    )
    clean_accuracy: float | None = setting(
        None,
        real(0, 1),
        "clean top-1 as a fraction in [0, 1], for relative mCE (default: from a clean evaluation"
        " in the run folder)",
        metavar="A",
        group="evaluation",
        script="evaluate",
    )

    start_from: str = ""  # the checkpoint of the phase before

    @property
    def evaluating(self) -> bool:
        """Whether nothing is trained."""
        return self.script == "evaluate" or self.evaluate


# What configs.yml, --set, checkpoints and results hold.
SECTIONS: dict[str, type] = {
    "TRAIN": Train,
    "ADV": Adv,
    "DATA": Data,
    "HE": Hypersphere,
    "EVAL": Eval,
    "RUN": Run,
}
SCHEMA = {name: settings_in(section) for name, section in SECTIONS.items()}
OPTIONS = settings_in(Options)


class Source(Enum):
    """Where a value comes from."""

    BUILT_IN = "the built-in default"
    DEFAULT_FILE = "configs.yml"
    GIVEN_FILE = "the file given by -c"
    COMMAND_LINE = "the command line"
    CHECKPOINT = "the checkpoint"


class Given(NamedTuple):
    """A value that somebody gave; `where` is for messages: a flag, or the file and key."""

    where: str
    section: str
    key: str
    value: object
    source: Source


@dataclass(frozen=True)
class Config:
    """All settings of one call, by section: `config.TRAIN.lr`. What follows from them is here too.

    Attributes:
        sources: {"SECTION.key": where its value comes from}; without an entry it is built in.
    """

    TRAIN: Train = field(default_factory=Train)
    ADV: Adv = field(default_factory=Adv)
    DATA: Data = field(default_factory=Data)
    HE: Hypersphere = field(default_factory=Hypersphere)
    EVAL: Eval = field(default_factory=Eval)
    RUN: Run = field(default_factory=Run)
    OPTIONS: Options = field(default_factory=Options)
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)

    @cached_property
    def eps(self) -> float:
        """Radius of the l-infinity ball, in [0, 1]."""
        return self.ADV.clip_eps / self.DATA.max_color_value

    @cached_property
    def step(self) -> float:
        """Step of the noise in training, in [0, 1]."""
        return self.ADV.fgsm_step / self.DATA.max_color_value

    @cached_property
    def passes(self) -> int:
        """Passes over the data, in all."""
        return number_of_passes(self.TRAIN.method, self.TRAIN.epochs, self.ADV.n_repeats)

    @cached_property
    def schedule(self) -> str:
        """`TRAIN.schedule`, with `auto` resolved."""
        kind = self.TRAIN.schedule
        return kind if kind != "auto" else "linear" if self.TRAIN.lr_epochs else "step"

    @cached_property
    def output_name(self) -> str:
        """`resnet50_free_adv_step4_eps4_repeat4_bs256`, with HE `_FN_WN_s10.0_margin0.2`.

        Of another seed than 0, with `_seed1`; of a phase with `_phase2`.
        """
        train, adv, he = self.TRAIN, self.ADV, self.HE
        name = f"{train.arch}_{self.RUN.output_prefix}"
        name += f"_{train.method}" * (train.method not in ("free", *name.split("_")))
        if train.method != "natural":
            name += f"_step{adv.fgsm_step:g}_eps{adv.clip_eps:g}"
            name += f"_steps{adv.train_steps}" * (train.method == "pgd")
            name += f"_repeat{adv.n_repeats}" * (train.method != "pgd")
        name += f"_bs{self.DATA.batch_size}" + "_FN" * he.FN + "_WN" * he.WN
        name += f"_s{he.s_HE}_margin{he.angular_margin_HE}" * (he.FN or he.WN)
        name += f"_seed{self.RUN.seed}" * (self.RUN.seed != 0)
        return name + f"_phase{train.phase}" * (train.phase > 0)

    @cached_property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path("trained_models", self.output_name)

    def value(self, key: str) -> object:
        """The value of `SECTION.key`."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)

    def source(self, key: str) -> Source:
        """Where the value of `SECTION.key` comes from."""
        return self.sources.get(key, Source.BUILT_IN)

    def given(self, key: str) -> bool:
        """Whether `SECTION.key` stands on the command line."""
        return self.source(key) is Source.COMMAND_LINE

    def changed(self, values: Mapping[str, object], source: Source) -> Config:
        """The same with other values of some `SECTION.key`, which are not checked again."""
        sections: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.partition(".")
            before = sections.get(section, getattr(self, section))
            sections[section] = replace(before, **{name: value})
        return replace(self, **sections, sources={**self.sources, **dict.fromkeys(values, source)})

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as plain values: what config.yml, checkpoints and results keep."""
        return {
            name: {key: plain(getattr(getattr(self, name), key)) for key in keys}
            for name, keys in SCHEMA.items()
        }


def number_of_passes(method: str, epochs: int, n_repeats: int) -> int:
    """Passes over the data; free's m replays count as m epochs (arXiv:1904.12843, Sec. 4)."""
    return math.ceil(epochs / n_repeats) if method == "free" else epochs


def plain(value: Any) -> Any:
    """Tuples as lists, which YAML, JSON and checkpoints hold."""
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value
