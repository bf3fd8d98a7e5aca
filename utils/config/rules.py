"""What settings mean for each other: a method's defaults, contradictions, what has no effect."""

import math
from collections.abc import Iterable, Iterator

from lib.algorithm.protocols import METHODS
from utils.config.settings import ARCHITECTURES, EVERY, SETTINGS, Config, GivenValue, Source, plain
from utils.config.validators import show

# Of the training methods: values where nobody says otherwise, and settings that take no other.
METHOD_DEFAULTS: dict[str, dict[str, object]] = {
    "free": {},
    "fast": {"ADV.n_repeats": 1, "TRAIN.bn_weight_decay": False, "RUN.output_prefix": "fast_adv"},
    "pgd": {"ADV.n_repeats": 1, "RUN.output_prefix": "pgd_adv"},
    "natural": {"ADV.n_repeats": 1, "RUN.output_prefix": "natural"},
}
METHOD_FIXES = {"free": ["TRAIN.phases"], "pgd": ["ADV.n_repeats", "ADV.random_init"]}
METHOD_FIXES |= {"natural": ["ADV.n_repeats", "print_gradients"]}


def translate_published(values: Iterable[GivenValue]) -> list[GivenValue]:
    """The keys of fast adversarial training's published files in the words of this suite."""
    renamed = {"TRAIN.half": "TRAIN.precision", "TRAIN.random_init": "ADV.random_init"}
    precisions = {"True": "fp16", "False": "fp32"}
    translated = []
    for value in values:
        if value.key == "TRAIN.half":
            value = value._replace(value=precisions.get(str(value.value), value.value))
        translated.append(value._replace(key=renamed.get(value.key, value.key)))
    # A file that draws its noise, without naming a method, is of method fast.
    last = {value.key: value for value in translated}
    drawn = last.get("ADV.random_init")
    if drawn and drawn.value is True and "TRAIN.method" not in last:
        translated.append(drawn._replace(key="TRAIN.method", value="fast"))
    return translated


def with_method_defaults(config: Config) -> Config:
    """The settings, with the method's defaults where nobody says otherwise."""
    for key, value in METHOD_DEFAULTS[config.TRAIN.method].items():
        unsaid = config.source(key) in (Source.BUILT_IN, Source.DEFAULT_FILE)
        if unsaid and config.value(key) == SETTINGS[key].default:
            config = config.changed({key: value}, config.source(key))
    return config


def shown(key: str) -> str:
    """A setting by its flag, where it has one."""
    return f"--{key.rpartition('.')[2]}" if EVERY[key].flag else key


def contradictions(config: Config) -> list[str]:
    """One line for every rule that these settings and flags break."""
    # An evaluation looks at the lengths once it has the checkpoint's own values.
    broken = [] if config.OPTIONS.evaluating else wrong_lengths(config)
    method = config.TRAIN.method
    for key in METHOD_FIXES.get(method, ()):
        only = METHOD_DEFAULTS[method].get(key, EVERY[key].default)
        if config.value(key) != only:
            broken.append(f"TRAIN.method {method} takes {shown(key)} {plain(only)} alone")
    return broken + [text for wrong, text in rules(config) if wrong]


def wrong_lengths(config: Config) -> list[str]:
    """One line for every radius, step and side of images that cannot be meant.

    Nothing else would notice a length in another unit: 0.0314, for 8/255, trains all the same.
    """
    adv, data = config.ADV, config.DATA
    unit = data.max_color_value
    lengths = [("ADV.clip_eps", adv.clip_eps)]
    if not config.OPTIONS.evaluating:  # which takes no steps of the training
        lengths.append(("ADV.fgsm_step", adv.fgsm_step))
    if config.EVAL.norm == "Linf":
        lengths += [("--eps", eps) for eps in config.EVAL.eps]
    broken = [
        f"{key} {value:g} is no length in the unit of DATA.max_color_value {unit:g}, in which"
        f" 4/255 of the range of colours is {4 * unit / 255:.4g}"
        for key, value in lengths
        if value > unit or 0 < value < unit / 2550
    ]
    farthest = {"L2": math.sqrt(3) * data.crop_size, "L1": 3.0 * data.crop_size**2}
    broken += [
        f"--eps {eps:g} is no {config.EVAL.norm} radius: no two images of {data.crop_size} pixels,"
        f" whose values are in [0, 1], are farther apart than {farthest[config.EVAL.norm]:.4g}"
        for eps in config.EVAL.eps
        if eps > farthest.get(config.EVAL.norm, math.inf)
    ]
    if 0 < data.img_size < data.crop_size:
        broken.append(
            f"DATA.crop_size {data.crop_size} is larger than DATA.img_size {data.img_size}, the"
            " shorter side that evaluation crops from"
        )
    return broken


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Whether a rule is broken, and what it says."""
    train, options = config.TRAIN, config.OPTIONS
    lr_epochs, lr_values = list(train.lr_epochs), list(train.lr_values)
    piecewise = len(lr_epochs) == len(lr_values) and lr_epochs == sorted(set(lr_epochs))
    warmup = train.warmup_epochs if config.schedule == "cosine" else 0
    alone = options.evaluate or options.eva_on_imagenet_c
    anything = alone or options.eva_on_shift
    unknown = train.arch not in ARCHITECTURES and not options.evaluating
    yield unknown, f"TRAIN.arch: {show(train.arch)} is not one of {', '.join(ARCHITECTURES)}"
    no_radius = config.EVAL.norm != "Linf" and not config.EVAL.eps
    example = "--eps, such as 3 for L2 or 60 for L1 at 224 pixels"
    yield no_radius, f"--norm {config.EVAL.norm} needs a radius, ADV.clip_eps is of Linf: {example}"
    yield (
        max(train.start_epoch, warmup) >= config.passes,
        f"TRAIN.start_epoch {train.start_epoch} and TRAIN.warmup_epochs {warmup:g} must be below"
        f" {config.passes}, the passes over the data that TRAIN.epochs {train.epochs} are",
    )
    yield (
        not piecewise or (config.schedule == "linear" and not lr_epochs),
        "TRAIN.lr_epochs and TRAIN.lr_values, which TRAIN.schedule: linear goes through, are as"
        f" many as each other, epochs ascending; got {lr_epochs} and {lr_values}",
    )
    nothing = options.script == "evaluate" and not anything
    yield nothing, "nothing to evaluate: give -e, --eva_on_imagenet_c or both, or --eva_on_shift"
    no_folder = options.eva_on_shift and (alone or not options.data)
    yield no_folder, "--eva_on_shift needs a DIR of its own; give DIR, and no other -e"
    no_weights = anything and not (options.resume or options.pretrained)
    yield (
        no_weights,
        "no weights to evaluate: give --resume PATH, or --pretrained for torchvision's",
    )
    two_choices = bool(options.n_examples and options.image_ids)
    yield two_choices, "--n_examples and --image_ids both choose the images; give one"
    two_starts = options.overwrite and bool(options.resume) and not options.evaluating
    yield two_starts, "--overwrite starts from scratch and --resume continues; give one"


def ignored_settings(config: Config, hypersphere: bool) -> list[str]:
    """One line for every setting that differs from its default and has no effect."""
    return [
        f"{shown(key)} is ignored: {why}"
        for without_effect, keys, why in rules_of_effect(config, hypersphere)
        for key in keys.split()
        if without_effect and config.value(key) != EVERY[key].default
    ]


def rules_of_effect(config: Config, hypersphere: bool) -> Iterator[tuple[bool, str, str]]:
    """Whether some settings have no effect, which ones, and why."""
    options, train = config.OPTIONS, config.TRAIN
    training = not options.evaluating
    attacking = options.evaluate or training  # a training ends with the attacks
    resuming = bool(options.resume) and (options.evaluating or options.resume != "auto")
    clean = (train.select, train.select_from) == ("clean", "val")
    of_training, of_attacks = "it belongs to training", "it belongs to the attacks; give -e too"
    of_imagenet_c = "it belongs to --eva_on_imagenet_c"
    schedule, method = f"TRAIN.schedule is {config.schedule}", f"TRAIN.method is {train.method}"
    no_head = "the network has no hypersphere head (--FN, --WN)"
    yield not hypersphere, "HE.s_HE HE.angular_margin_HE EVAL.scales", no_head
    yield options.evaluating, "print_gradients overwrite tensorboard init_from", of_training
    yield resuming, "pretrained init_from", "the weights are those of --resume"
    yield bool(options.init_from), "pretrained", "the weights are those of --init_from"
    named = resuming or bool(options.init_from)
    yield not named, "weights", "it names weights in a file of --resume or --init_from"
    yield not attacking, "attack save_images transfer_from", of_attacks
    yield not attacking, "EVAL.norm EVAL.eps EVAL.cascade", of_attacks
    yield not options.eva_on_imagenet_c, "corruptions clean_accuracy", of_imagenet_c
    unused = training and not options.print_gradients
    yield unused, "TRAIN.gradient_every", "give --print_gradients"
    yield training and clean, "TRAIN.select_examples", "TRAIN.select is clean"
    yield config.schedule == "linear", "TRAIN.lr", schedule
    yield config.schedule != "linear", "TRAIN.lr_epochs", schedule
    yield config.schedule != "cosine", "TRAIN.warmup_epochs", schedule
    yield not METHODS[train.method].runs_pgd, "ADV.train_steps", method
    yield not METHODS[train.method].adversarial, "ADV.fgsm_step", method
