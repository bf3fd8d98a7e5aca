"""What settings mean for each other: a method's defaults, contradictions, what has no effect."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from utils.config.settings import ARCHITECTURES, EVERY, SETTINGS, Config, GivenValue, Source
from utils.config.validators import boolean, show

# Of the training methods, where nobody says otherwise.
METHOD_DEFAULTS: dict[str, dict[str, object]] = {
    "free": {},
    "fast": {"ADV.n_repeats": 1, "TRAIN.bn_weight_decay": False, "RUN.output_prefix": "fast_adv"},
    "pgd": {"ADV.n_repeats": 1, "RUN.output_prefix": "pgd_adv"},
    "natural": {"ADV.n_repeats": 1, "RUN.output_prefix": "natural"},
}
Rule = tuple[bool, str]


def translate_published(values: Iterable[GivenValue]) -> list[GivenValue]:
    """The keys of fast adversarial training's published files in the words of this suite.

    `TRAIN.half` is `TRAIN.precision: fp16`, `TRAIN.random_init` is `ADV.random_init`, and a file
    that draws its noise, without naming a method, is of method fast.
    """
    translated = []
    for value in values:
        if value.key == "TRAIN.half":
            value = value._replace(key="TRAIN.precision")
            with suppress(ValueError):
                value = value._replace(value="fp16" if boolean(value.value) else "fp32")
        elif value.key == "TRAIN.random_init":
            value = value._replace(key="ADV.random_init")
        translated.append(value)
    last = {value.key: value for value in translated}
    drawn = last.get("ADV.random_init")
    if drawn and "TRAIN.method" not in last:
        with suppress(ValueError):
            if boolean(drawn.value):
                translated.append(drawn._replace(key="TRAIN.method", value="fast"))
    return translated


def with_method_defaults(config: Config) -> Config:
    """The settings, with the method's defaults where nobody says otherwise."""
    for key, value in METHOD_DEFAULTS[config.TRAIN.method].items():
        unsaid = config.source(key) in (Source.BUILT_IN, Source.DEFAULT_FILE)
        if unsaid and config.value(key) == SETTINGS[key].default:
            config = config.changed({key: value}, config.source(key))
    return config


def contradictions(config: Config, calls: bool = True) -> list[str]:
    """One line for every rule that these settings break, and if none is, that the flags break."""
    # An evaluation looks at the lengths once it has the checkpoint's own values.
    sizes = [] if config.OPTIONS.evaluating else wrong_units_and_sizes(config)
    broken = sizes + [text for wrong, text in rules_of_training(config) if wrong]
    if calls and not broken:
        broken = [text for wrong, text in rules_of_calls(config) if wrong]
    return broken


def wrong_units_and_sizes(config: Config) -> list[str]:
    """One line for every radius, step and side of images that cannot be meant.

    A length in another unit than max_color_value is not amiss anywhere else: 0.0314, which is
    8/255 of the range [0, 1], would train within 0.03 of 255 grey levels.
    """
    adv, data, broken = config.ADV, config.DATA, []
    unit = data.max_color_value
    lengths = [("ADV.clip_eps", adv.clip_eps)]
    if not config.OPTIONS.evaluating:  # which takes no steps of the training
        lengths.append(("ADV.fgsm_step", adv.fgsm_step))
    if config.EVAL.norm == "Linf":
        lengths += [("--eps", eps) for eps in config.EVAL.eps]
    for key, value in lengths:
        if value > unit:
            broken.append(
                f"{key} {value:g} is more than DATA.max_color_value {unit:g}, the whole range of"
                " colours; both have the same unit"
            )
        if 0 < value < unit / 2550:
            broken.append(
                f"{key} {value:g} is less than a tenth of a grey level; its unit is"
                f" DATA.max_color_value {unit:g}, in which 4/255 of the range is"
                f" {4 * unit / 255:.4g}"
            )
    if 0 < data.img_size < data.crop_size:
        broken.append(
            f"DATA.crop_size {data.crop_size} is larger than DATA.img_size {data.img_size}, the"
            " shorter side that evaluation crops from"
        )
    return broken


def rules_of_training(config: Config) -> Iterator[Rule]:
    """What means nothing to the training's method or length, or to the attack's norm."""
    train, adv, method = config.TRAIN, config.ADV, config.TRAIN.method
    ascending = list(train.lr_epochs) == sorted(set(train.lr_epochs))
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


def rules_of_calls(config: Config) -> Iterator[Rule]:
    """Flags of one call."""
    options = config.OPTIONS
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


def ignored_settings(config: Config, hypersphere: bool) -> list[str]:
    """One line for every setting that differs from its default and has no effect.

    Args:
        hypersphere: whether the network has a hypersphere head, which in an evaluation the
            checkpoint says.
    """

    def shown(key: str) -> str:
        return f"--{key.rpartition('.')[2]}" if EVERY[key].flag else key

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
    yield not hypersphere, "HE.s_HE HE.angular_margin_HE", no_head
    yield options.evaluating, "print_gradients overwrite tensorboard", of_training
    yield resuming, "pretrained", "the weights are those of --resume"
    yield not attacking, "attack save_images transfer_from", of_attacks
    yield not attacking, "EVAL.norm EVAL.eps EVAL.cascade", of_attacks
    yield not options.eva_on_imagenet_c, "corruptions clean_accuracy", of_imagenet_c
    unused = training and not options.print_gradients
    yield unused, "TRAIN.gradient_every", "give --print_gradients"
    yield training and clean, "TRAIN.select_examples", "TRAIN.select is clean"
    yield config.schedule == "linear", "TRAIN.lr", schedule
    yield config.schedule != "linear", "TRAIN.lr_epochs", schedule
    yield config.schedule != "cosine", "TRAIN.warmup_epochs", schedule
    yield train.method != "pgd", "ADV.train_steps", method
    yield train.method == "natural", "ADV.fgsm_step", method
