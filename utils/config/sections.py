"""Every setting of a run; `configs.yml` shows the same with comments.

A setting is SECTION.key, one field below. TRAIN, ADV and DATA hold the published keys and some in
the same spirit; HE, EVAL and RUN hold what the published scripts took from flags or fixed in their
code. To add a setting, add a field here and its commented line to `configs.yml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.config.readers import (
    NORMS,
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
    workers,
)
from utils.config.setting import setting, switch

ARCHITECTURES = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d"
    " wide_resnet50_2 wide_resnet101_2"
).split()
PROTOCOLS = ("standard", "freeat", "paper")
PRECISIONS = ("fp32", "bf16", "fp16")
METHODS = ("free", "fast", "pgd", "natural")
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
    method: str = setting("free", choice(METHODS), ", ".join(METHODS), resume="fixed")
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
        choice(PROTOCOLS),
        f"whose evaluation: {', '.join(PROTOCOLS)}",
        metavar="NAME",
        group="evaluation",
    )
    precision: str = setting(
        "fp32", choice(PRECISIONS), "arithmetic of the attack's search: fp32, bf16, fp16"
    )
    norm: str = setting(
        "Linf", choice(NORMS), "norm of the ball: Linf, L2, L1", metavar="NAME", group="evaluation"
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
