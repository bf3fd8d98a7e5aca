"""What settings mean for each other: defaults of a method, impossible and idle combinations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from utils.config.settings import ARCHITECTURES, OPTIONS, SCHEMA, Config, Given, Options, Source
from utils.config.validators import show, strict_bool

# Where nobody says otherwise.
METHOD_DEFAULTS: dict[str, dict[str, object]] = {
    "free": {},
    "fast": {
        "ADV.n_repeats": 1,
        "TRAIN.bn_weight_decay": False,
        "RUN.output_prefix": "fast_adv",
    },
    "pgd": {"ADV.n_repeats": 1, "RUN.output_prefix": "pgd_adv"},
    "natural": {"ADV.n_repeats": 1, "RUN.output_prefix": "natural"},
}


def translate_published(values: Iterable[Given]) -> list[Given]:
    """The keys of fast adversarial training's published files in the words of this suite.

    `TRAIN.half` is `TRAIN.precision: fp16`, `TRAIN.random_init` is `ADV.random_init`, and a file
    that draws its noise, without naming a method, is of method fast.
    """
    found = []
    for given in values:
        if (given.section, given.key) == ("TRAIN", "half"):
            half = truth(given.value)
            value = given.value if half is None else "fp16" if half else "fp32"
            given = given._replace(key="precision", value=value)
        elif (given.section, given.key) == ("TRAIN", "random_init"):
            given = given._replace(section="ADV")
        found.append(given)
    drawn = [one for one in found if (one.section, one.key) == ("ADV", "random_init")]
    named = any((one.section, one.key) == ("TRAIN", "method") for one in found)
    if drawn and not named and truth(drawn[-1].value):
        found.append(drawn[-1]._replace(section="TRAIN", key="method", value="fast"))
    return found


def truth(value: object) -> bool | None:
    """A truth value; None is neither, which the setting's reader refuses."""
    try:
        return strict_bool(value)
    except ValueError:
        return None


def with_method_defaults(config: Config) -> Config:
    """The settings, with the method's defaults where nobody says otherwise."""
    for key, value in METHOD_DEFAULTS[config.TRAIN.method].items():
        section, _, name = key.partition(".")
        unsaid = config.source(key) in (Source.BUILT_IN, Source.DEFAULT_FILE)
        if unsaid and config.value(key) == SCHEMA[section][name].default:
            config = config.changed({key: value}, config.source(key))
    return config


Rule = tuple[bool, str]


def contradictions(config: Config) -> list[str]:
    """One line for every rule that these settings break."""
    # An evaluation looks at the lengths once it has the checkpoint's own values.
    sizes = [] if config.OPTIONS.evaluating else wrong_units_and_sizes(config)
    rules = (*trainings(config), *schedules(config))
    return sizes + [text for broken, text in rules if broken]


def wrong_units_and_sizes(config: Config) -> list[str]:
    """One line for every length that cannot be meant."""
    return [text for broken, text in lengths(config) if broken]


def impossible_calls(options: Options) -> list[str]:
    """One line for every rule that the flags of a call break."""
    return [text for broken, text in calls(options) if broken]


def lengths(config: Config) -> Iterator[Rule]:
    """Radii, steps and sides of images.

    A length in another unit than max_color_value is not amiss anywhere else: 0.0314, which is
    8/255 of the range [0, 1], would train within 0.03 of 255 grey levels.
    """
    adv, data, norm = config.ADV, config.DATA, config.EVAL.norm
    unit = data.max_color_value
    found = [("ADV.clip_eps", adv.clip_eps)]
    if not config.OPTIONS.evaluating:  # which takes no steps of the training
        found.append(("ADV.fgsm_step", adv.fgsm_step))
    for key, value in found + [("--eps", eps) for eps in config.EVAL.eps if norm == "Linf"]:
        yield (
            value > unit,
            f"{key} {value:g} is more than DATA.max_color_value {unit:g}, the whole range of"
            " colours; both have the same unit",
        )
        yield (
            0 < value < unit / 2550,
            f"{key} {value:g} is less than a tenth of a grey level; its unit is"
            f" DATA.max_color_value {unit:g}, in which 4/255 of the range is {4 * unit / 255:.4g}",
        )
    yield (
        0 < data.img_size < data.crop_size,
        f"DATA.crop_size {data.crop_size} is larger than DATA.img_size {data.img_size}, the"
        " shorter side that evaluation crops from",
    )


def trainings(config: Config) -> Iterator[Rule]:
    """What means nothing to the training's method, or to the attack's norm."""
    train, adv, method = config.TRAIN, config.ADV, config.TRAIN.method
    yield (
        method in ("pgd", "natural") and adv.n_repeats > 1,
        f"ADV.n_repeats {adv.n_repeats} is of TRAIN.method free and fast; {method} has 1",
    )
    yield (
        method == "natural" and config.OPTIONS.print_gradients,
        "--print_gradients compares adversarial with clean gradients, and TRAIN.method natural"
        " has no adversarial ones; leave it out",
    )
    yield (
        method == "pgd" and not adv.random_init,
        "ADV.random_init False is of TRAIN.method fast; pgd starts from a uniform draw",
    )
    yield (
        method == "free" and bool(train.phases),
        "TRAIN.phases are of TRAIN.method fast, pgd and natural; a phase of free is a run of its"
        " own",
    )
    yield (
        train.arch not in ARCHITECTURES and not config.OPTIONS.evaluating,
        f"TRAIN.arch: {show(train.arch)} is not one of {', '.join(ARCHITECTURES)}, which can be"
        " trained",
    )
    yield (
        train.select == "pgd" and adv.clip_eps == 0,
        "TRAIN.select: pgd attacks within ADV.clip_eps, which is 0",
    )
    yield (
        config.EVAL.norm != "Linf" and not config.EVAL.eps,
        f"--norm {config.EVAL.norm} needs a radius, since ADV.clip_eps is one of Linf: give --eps,"
        " such as 3 for L2 or 60 for L1 at 224 pixels",
    )
    yield train.ema == 1, "TRAIN.ema 1 never moves; a usual decay is 0.9998"


def schedules(config: Config) -> Iterator[Rule]:
    """Learning rates and lengths of the training."""
    train = config.TRAIN
    ascending = list(train.lr_epochs) == sorted(set(train.lr_epochs))
    yield (
        train.start_epoch >= config.passes,
        f"TRAIN.start_epoch {train.start_epoch} leaves nothing to train: TRAIN.epochs"
        f" {train.epochs} are {config.passes} passes over the data, counted from 0",
    )
    yield (
        len(train.lr_epochs) != len(train.lr_values) or not ascending,
        "TRAIN.lr_epochs and TRAIN.lr_values are as many as each other, epochs ascending; got"
        f" {list(train.lr_epochs)} and {list(train.lr_values)}",
    )
    yield (
        config.schedule == "linear" and not train.lr_epochs,
        "TRAIN.schedule: linear goes through TRAIN.lr_epochs and TRAIN.lr_values; give both",
    )
    yield (
        config.schedule == "cosine" and train.warmup_epochs >= config.passes,
        f"TRAIN.warmup_epochs {train.warmup_epochs:g} leave nothing of the {config.passes} passes",
    )


def calls(options: Options) -> Iterator[Rule]:
    """Flags of one call."""
    alone = options.evaluate or options.eva_on_imagenet_c
    anything = alone or options.eva_on_shift
    yield (
        options.script == "evaluate" and not anything,
        "nothing to evaluate: give -e for PGD attacks, --eva_on_imagenet_c for ImageNet-C, or"
        " both; or --eva_on_shift for shifted test sets",
    )
    yield (
        options.eva_on_shift and (alone or not options.data),
        "--eva_on_shift needs a DIR of its own; give DIR, and no other -e",
    )
    yield (
        anything and not (options.resume or options.pretrained),
        "no weights to evaluate: give --resume PATH, or --pretrained for torchvision's",
    )
    yield (
        bool(options.n_examples and options.image_ids),
        "--n_examples and --image_ids both choose the images; give one",
    )
    yield (
        options.overwrite and bool(options.resume) and not options.evaluating,
        "--overwrite starts from scratch and --resume continues; give one",
    )


KNOWN = {**SCHEMA, "OPTIONS": OPTIONS}


def ignored_settings(config: Config, hypersphere: bool) -> list[str]:
    """One line for every setting that differs from its default and has no effect.

    Args:
        hypersphere: whether the network has a hypersphere head, which in an evaluation the
            checkpoint says.
    """
    return [
        f"{name_of(key)} is ignored: {why}"
        for without_effect, keys, why in idle(config, hypersphere)
        if without_effect
        for key in keys.split()
        if differs(config, key)
    ]


def idle(config: Config, hypersphere: bool) -> list[tuple[bool, str, str]]:
    """Whether some settings have no effect, which ones, and why."""
    options, train = config.OPTIONS, config.TRAIN
    training = not options.evaluating
    attacking = options.evaluate or training  # a training ends with the attacks
    resuming = bool(options.resume) and (options.evaluating or options.resume != "auto")
    clean = (train.select, train.select_from) == ("clean", "val")
    schedule, method = f"TRAIN.schedule is {config.schedule}", f"TRAIN.method is {train.method}"
    return [
        (
            not hypersphere,
            "HE.s_HE HE.angular_margin_HE",
            "the network has no hypersphere head (--FN, --WN)",
        ),
        (
            options.evaluating,
            "OPTIONS.print_gradients OPTIONS.overwrite OPTIONS.tensorboard",
            "it belongs to training",
        ),
        (resuming, "OPTIONS.pretrained", "the weights are those of --resume"),
        (
            not attacking,
            "OPTIONS.attack OPTIONS.save_images OPTIONS.transfer_from EVAL.norm EVAL.eps"
            " EVAL.cascade",
            "it belongs to the attacks; give -e too",
        ),
        (
            not options.eva_on_imagenet_c,
            "OPTIONS.corruptions OPTIONS.clean_accuracy",
            "it belongs to --eva_on_imagenet_c",
        ),
        (
            training and not options.print_gradients,
            "TRAIN.gradient_every",
            "give --print_gradients",
        ),
        (training and clean, "TRAIN.select_examples", "TRAIN.select is clean"),
        (config.schedule == "linear", "TRAIN.lr", schedule),
        (config.schedule != "linear", "TRAIN.lr_epochs", schedule),
        (config.schedule != "cosine", "TRAIN.warmup_epochs", schedule),
        (train.method != "pgd", "ADV.train_steps", method),
        (train.method == "natural", "ADV.fgsm_step", method),
    ]


def name_of(key: str) -> str:
    """How a user gives it: a flag, or SECTION.key."""
    section, _, name = key.partition(".")
    return f"--{name}" if KNOWN[section][name].metavar else key


def differs(config: Config, key: str) -> bool:
    section, _, name = key.partition(".")
    return config.value(key) != KNOWN[section][name].default
