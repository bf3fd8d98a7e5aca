"""Every setting of a run and every flag of a call, and what follows from them.

A setting is SECTION.key, one field below; `configs.yml` shows the same with comments. TRAIN, ADV
and DATA hold the published keys and some in the same spirit; HE, EVAL and RUN hold what the
published scripts took from flags or fixed in their code.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from lib.algorithm.protocols import METHODS, NORM_NAMES, PROTOCOLS, PGDSpec
from utils.config.validators import (
    REDUCE_OVERHEAD,
    boolean,
    choice,
    list_of,
    mapping,
    matching,
    numbers,
    part_of_name,
    path,
    pgd_row,
    real,
    text,
    whole,
    word_or,
    words,
)

ARCHITECTURES = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d"
    " wide_resnet50_2 wide_resnet101_2"
).split()
PRECISIONS = ("fp32", "bf16", "fp16")
ONE_255TH = 0.00392156862  # as the published configs.yml rounds 1/255
ROBUSTBENCH = "robustbench"  # what --image_ids takes in place of a file
SWITCH = "switch"
# What takes more than a line: validators, and help texts.
SCHEDULE, ORDER = choice("auto", "step", "linear", "cosine"), choice("auto", "text", "numeric")
COMPILE = word_or("auto", word_or(REDUCE_OVERHEAD, boolean))
WAYS = choice("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos")
WORKERS = word_or("auto", whole(0))
MEAN, STD = list_of(real(0, 1), 3, 3), list_of(real(0, 1, above=True), 3, 3)
PHASES, SCALES = list_of(mapping), list_of(real(0, above=True))
DEVICE = matching(r"auto|cpu|mps|cuda(:\d+)?", "is not one of auto, cpu, cuda, cuda:1, mps")
PGD_ROWS = "list of [steps, step size in [0, 1]], optionally followed by loss and restarts"
EPS = "radii by commas: of max_color_value, in L2 and L1 of [0, 1] (default: ADV.clip_eps)"
ATTACKS = "by commas: pgd10, pgd50-margin, pgd50-dlr-r5, pgd100@1/255, autoattack, apgd, apgd-ce,"
ATTACKS += " apgd-t, fab-t, square (default: ADV.pgd_attack, in standard its longest on margin too)"
CORRUPTIONS = (
    "by commas: names, `extra` (four more, all of them), `all` of the tree (default: the 15)"
)
CLEAN_ACCURACY = "clean top-1 in [0, 1], for relative mCE (default: of an evaluation of the run)"


@dataclass(frozen=True)
class Setting:
    """What is known of a setting, in the metadata of its field."""

    default: Any
    validate: Callable[[object], object]  # text or YAML to a checked value, or a ValueError
    help: str  # one line, with the unit
    flag: str = ""  # metavar of --key; the value of BOOL may be left out, a SWITCH takes none
    script: str = ""  # the only one that the flag means something to
    short: str = ""  # another name of the flag
    resume: str = "free"  # or noted, or fixed

    @property
    def default_text(self) -> str:
        """The default in documents; nothing where it is empty."""
        return "" if self.default in (None, "", ()) else str(plain(self.default))


def free(
    default: object, validate: Callable[[object], object], help: str, *flag: str, **more: str
) -> Any:
    """A dataclass field that carries a `Setting`; it may change from a run to its resumption."""
    about = Setting(default, validate, help, *flag, **more)
    return field(default=default, metadata={"setting": about})


noted = partial(free, resume="noted")  # --resume warns of a change
fixed = partial(free, resume="fixed")  # --resume refuses a change: the saved state would not fit


@dataclass(frozen=True)
class Train:
    """TRAIN: the network and its training."""

    arch: str = fixed("resnet50", text, "torchvision architecture; evaluation also takes timm/NAME")
    method: str = fixed("free", choice(*METHODS), ", ".join(METHODS))
    epochs: int = free(90, whole(1), "epochs; free makes ceil(epochs / n_repeats) passes of them")
    start_epoch: int = free(0, whole(0), "first pass over the data, counted from 0")
    lr: float = noted(0.1, real(0, above=True), "SGD learning rate")
    momentum: float = noted(0.9, real(0, 1), "SGD momentum")
    weight_decay: float = noted(1e-4, real(0), "SGD weight decay")
    bn_weight_decay: bool = fixed(True, boolean, "decay batch-norm's parameters too; fast: false")
    label_smoothing: float = noted(0.0, real(0, 1), "share of the target for all classes alike")
    schedule: str = noted("auto", SCHEDULE, "learning rate; auto: linear with lr_epochs, else step")
    lr_epochs: tuple[float, ...] = noted(
        (), numbers, "linear: epochs, as TRAIN.epochs, at which lr_values hold"
    )
    lr_values: tuple[float, ...] = noted((), numbers, "linear: learning rates at lr_epochs")
    warmup_epochs: float = noted(0.0, real(0), "cosine: epochs of linear increase at the start")
    phases: tuple[dict[str, Any], ...] = free((), PHASES, "trainings in turn, by their settings")
    phase: int = free(0, whole(0), "number of the phase, which TRAIN.phases sets")
    ema: float = noted(0.0, real(0, 0.999999), "decay of an average of the weights; 0: none")
    val_every: int = free(1, whole(1), "epochs per validation")
    print_freq: int = free(10, whole(1), "minibatches between two lines of progress")
    mean: tuple[float, ...] = free((0.485, 0.456, 0.406), MEAN, "mean per colour, pixels in [0, 1]")
    std: tuple[float, ...] = free((0.229, 0.224, 0.225), STD, "deviation per colour")
    precision: str = noted("fp32", choice(*PRECISIONS), "arithmetic of training: fp32, bf16, fp16")
    compile: bool | str = free("auto", COMPILE, "auto: long runs on CUDA; reduce-overhead: graphs")
    sync_bn: bool = free(False, boolean, "batch statistics over all processes")
    checkpoint_minutes: float = free(10.0, real(0, above=True), "minutes between checkpoints")
    gradient_every: int = free(10, whole(1), "minibatches per sample of --print_gradients")
    select: str = noted("clean", choice("clean", "pgd"), "what model_best is best at")
    select_from: str = fixed(
        "val", choice("val", "train"), "of val, or train, held out: chooses model_best"
    )
    select_examples: int = free(1000, whole(1), "images for select pgd or select_from train")


@dataclass(frozen=True)
class Adv:
    """ADV: the adversary of training and evaluation."""

    clip_eps: float = noted(4.0, real(0), "radius of the l-infinity ball, of max_color_value")
    fgsm_step: float = noted(4.0, real(0), "step of the noise in training, same unit")
    n_repeats: int = fixed(4, whole(1), "replays of each minibatch (m); other methods than free: 1")
    random_init: bool = noted(True, boolean, "fast: draw the noise for every minibatch")
    train_steps: int = noted(3, whole(1), "pgd: steps of the attack in training")
    pgd_attack: tuple[PGDSpec, ...] = free(
        (PGDSpec(10, ONE_255TH), PGDSpec(50, ONE_255TH)), list_of(pgd_row, 1), PGD_ROWS
    )


@dataclass(frozen=True)
class Data:
    """DATA: images, and how they become batches."""

    imagenet: str = free("data/ImageNet", path, "default DIR: holds train/ and val/")
    imagenet_c: str = free("data/ImageNet-C", path, "default DIR of --eva_on_imagenet_c")
    workers: int | str = free("auto", WORKERS, "processes of a machine that load; auto: one a core")
    class_order: str = free("auto", ORDER, "auto, text or numeric: for files without class names")
    batch_size: int = fixed(256, whole(1), "images per minibatch, over all GPUs")
    img_size: int = noted(256, whole(0), "shorter side before the centre crop, pixels; 0: as it is")
    min_area: float = noted(0.08, real(0, 1, above=True), "smallest share of an image in a crop")
    flip: bool = noted(True, boolean, "mirror half of the training images")
    interpolation: str = noted("bilinear", WAYS, "of the resize before the centre crop")
    crop_size: int = fixed(224, whole(1), "side of the network's input, pixels")
    max_color_value: float = free(255.0, real(0, above=True), "unit of clip_eps and fgsm_step")


@dataclass(frozen=True)
class Hypersphere:
    """HE: hypersphere embedding; scale and margin act with either FN or WN."""

    FN: bool = fixed(False, boolean, "HE: normalise the features", "BOOL")
    WN: bool = fixed(False, boolean, "HE: normalise the last layer's weights", "BOOL")
    s_HE: float = fixed(10.0, real(0, above=True), "HE: scale of the cosines", "S")
    angular_margin_HE: float = fixed(0.2, real(0, 2), "HE: margin on the true cosine", "M")


@dataclass(frozen=True)
class Eval:
    """EVAL: how attacks and ImageNet-C are measured."""

    protocol: str = free("standard", choice(*PROTOCOLS), ", ".join(PROTOCOLS), "NAME")
    precision: str = free("fp32", choice(*PRECISIONS), "of the attack's search: fp32, bf16, fp16")
    norm: str = free("Linf", choice(*NORM_NAMES), "norm of the ball: Linf, L2, L1", "NAME")
    eps: tuple[float, ...] = free((), numbers, EPS, "EPS")
    batch_size: int = free(128, whole(1), "images of a process at once; AutoAttack takes 256")
    compile: bool | str = free("auto", word_or("auto", boolean), "auto: long runs on CUDA")
    cascade: bool = free(False, boolean, "attack only what is robust to earlier attacks")
    scales: tuple[float, ...] = free((), SCALES, "scales s of HE where cross-entropy is attacked")


@dataclass(frozen=True)
class Run:
    """RUN: seed, machine, name."""

    seed: int = fixed(0, whole(0, 2**63 - 1), "seed of weights, order, crops and attacks", "N")
    device: str = free("auto", DEVICE, "auto (the best there is), cpu, cuda, cuda:1 or mps", "NAME")
    nproc: int = free(0, whole(0), "processes; 0 is one per GPU, or one", "N")
    output_prefix: str = free("free_adv", part_of_name, "part of the run folder's name", "TEXT")


@dataclass(frozen=True)
class Options:
    """Flags of one call that describe no run; `script` and `command` say what was called."""

    script: str = ""
    command: str = ""
    data: str | None = free(None, path, "data set; default DATA.imagenet of configs.yml")
    evaluate: bool = free(False, boolean, "clean images and attacks on DIR/val", SWITCH, short="-e")
    resume: str = free("", path, "checkpoint; auto: the newest valid one of this run", "PATH")
    output: str = free(
        "", path, "folder of the results, in place of the checkpoint's", "DIR", "evaluate"
    )
    weights: str = free("", text, "of a file of others that holds several: their key", "KEY")
    pretrained: bool = free(False, boolean, "start from torchvision's ImageNet weights", "BOOL")
    print_gradients: bool = free(
        False, boolean, "adversarial/clean gradient norms while training", "BOOL", "main_free"
    )
    init_from: str = free("", path, "checkpoint whose weights a new run takes", "PATH", "main_free")
    overwrite: bool = free(False, boolean, "replace a run that is there", "BOOL", "main_free")
    tensorboard: bool = free(False, boolean, "write TensorBoard logs", "BOOL", "main_free")
    attack: tuple[str, ...] = free((), words, ATTACKS, "NAMES")
    transfer_from: str = free("", path, "checkpoint of a surrogate, attacked instead", "PATH")
    n_examples: int | None = free(None, whole(1), "only N images, evenly spread", "N")
    image_ids: str | None = free(None, path, "a class/name a line, or robustbench", "FILE")
    save_images: int = free(0, whole(0), "save N images with their adversarial twins", "N")
    eva_on_imagenet_c: bool = free(False, boolean, "ImageNet-C at DIR", SWITCH, "evaluate")
    eva_on_shift: bool = free(False, boolean, "shifted test sets at DIR", SWITCH, "evaluate")
    corruptions: tuple[str, ...] = free((), words, CORRUPTIONS, "NAMES", "evaluate")
    clean_accuracy: float | None = free(None, real(0, 1), CLEAN_ACCURACY, "A", "evaluate")
    start_from: str = ""  # the run folder of the phase before

    @property
    def evaluating(self) -> bool:
        """Whether nothing is trained."""
        return self.script == "evaluate" or self.evaluate


class Source(Enum):
    """Where a value comes from."""

    BUILT_IN = "the built-in default"
    DEFAULT_FILE = "configs.yml"
    GIVEN_FILE = "the file given by -c"
    COMMAND_LINE = "the command line"
    CHECKPOINT = "the checkpoint"


@dataclass(frozen=True)
class Config:
    """All settings of one call, by section (`config.TRAIN.lr`), and what follows from them."""

    TRAIN: Train = field(default_factory=Train)
    ADV: Adv = field(default_factory=Adv)
    DATA: Data = field(default_factory=Data)
    HE: Hypersphere = field(default_factory=Hypersphere)
    EVAL: Eval = field(default_factory=Eval)
    RUN: Run = field(default_factory=Run)
    OPTIONS: Options = field(default_factory=Options)
    sources: dict[str, Source] = field(default_factory=dict, compare=False)  # others: built in

    @property
    def eps(self) -> float:
        """Radius of the l-infinity ball, in [0, 1]."""
        return self.ADV.clip_eps / self.DATA.max_color_value

    @property
    def step(self) -> float:
        """Step of the noise in training, in [0, 1]."""
        return self.ADV.fgsm_step / self.DATA.max_color_value

    def attacks_within(self, eps: float) -> tuple[PGDSpec, ...]:
        """`ADV.pgd_attack` in a ball of Linf; `eps` in [0, 1].

        The default steps belong to the default radius, and where the protocol says so they follow
        another; steps that somebody has chosen do not.
        """
        rows, default = self.ADV.pgd_attack, Adv()
        follow = PROTOCOLS[self.EVAL.protocol].steps_follow_radius
        if self.chosen("ADV.pgd_attack") or rows != default.pgd_attack or not follow or not eps:
            return rows
        factor = eps / (default.clip_eps / Data().max_color_value)
        return tuple(replace(row, step_size=row.step_size * factor) for row in rows)

    @property
    def epochs_per_pass(self) -> int:
        """Epochs that a pass over the data counts as."""
        return METHODS[self.TRAIN.method].epochs_per_pass(self.ADV.n_repeats)

    @property
    def passes(self) -> int:
        """Passes over the data, in all."""
        return math.ceil(self.TRAIN.epochs / self.epochs_per_pass)

    @property
    def schedule(self) -> str:
        """`TRAIN.schedule`, with `auto` resolved."""
        auto = "linear" if self.TRAIN.lr_epochs else "step"
        return auto if self.TRAIN.schedule == "auto" else self.TRAIN.schedule

    @property
    def output_name(self) -> str:
        """`resnet50_free_adv_step4_eps4_repeat4_bs256_FN_WN_s10.0_margin0.2_seed1_phase2`."""
        train, adv, he, method = self.TRAIN, self.ADV, self.HE, METHODS[self.TRAIN.method]
        name = f"{train.arch}_{self.RUN.output_prefix}"
        name += f"_{train.method}" * (train.method not in (Train.method, *name.split("_")))
        if method.adversarial:
            name += f"_step{adv.fgsm_step:g}_eps{adv.clip_eps:g}"
            name += f"_steps{adv.train_steps}" if method.runs_pgd else f"_repeat{adv.n_repeats}"
        name += f"_bs{self.DATA.batch_size}" + "_FN" * he.FN + "_WN" * he.WN
        name += f"_s{he.s_HE}_margin{he.angular_margin_HE}" * (he.FN or he.WN)
        name += f"_seed{self.RUN.seed}" * (self.RUN.seed != 0)
        return name + f"_phase{train.phase}" * (train.phase > 0)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path("trained_models", self.output_name)

    def value(self, key: str) -> object:
        """The value of a key."""
        section, name = place_of(key)
        return getattr(getattr(self, section), name)

    def source(self, key: str) -> Source:
        """Where the value of a key comes from."""
        return self.sources.get(key, Source.BUILT_IN)

    def given(self, key: str) -> bool:
        """Whether a key stands on the command line."""
        return self.source(key) is Source.COMMAND_LINE

    def chosen(self, key: str) -> bool:
        """Whether a key stands on the command line or in the file given by -c."""
        return self.source(key) in (Source.COMMAND_LINE, Source.GIVEN_FILE)

    def changed(self, values: Mapping[str, object], source: Source) -> "Config":
        """The same with other values of some keys, which are not checked again."""
        sections = dict(vars(self))
        for key, value in values.items():
            section, name = place_of(key)
            sections[section] = replace(sections[section], **{name: value})
        sections["sources"] = self.sources | dict.fromkeys(values, source)
        return Config(**sections)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as plain values: what config.yml, checkpoints and results keep."""
        return {
            name: {key: plain(value) for key, value in vars(getattr(self, name)).items()}
            for name in SECTIONS
        }


def place_of(key: str) -> tuple[str, str]:
    """Section and name of a key; a flag that is no setting has no section before its name."""
    section, _, name = key.rpartition(".")
    return section or "OPTIONS", name


DEFAULTS = Config()
SECTIONS = ("TRAIN", "ADV", "DATA", "HE", "EVAL", "RUN")
# By key: what configs.yml, --set, checkpoints and results hold, as SECTION.key, and the options.
SETTINGS: dict[str, Setting] = {
    f"{name}.{f.name}": f.metadata["setting"]
    for name in SECTIONS
    for f in fields(getattr(DEFAULTS, name))
}
EVERY = SETTINGS | {f.name: f.metadata["setting"] for f in fields(Options) if f.metadata}


def plain(value: Any) -> Any:
    """Tuples and rows of `ADV.pgd_attack` as lists, which YAML, JSON and checkpoints hold."""
    if isinstance(value, PGDSpec):
        return [value.steps, value.step_size, value.loss, value.restarts]
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value
