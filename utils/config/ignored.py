"""Flags and settings that somebody gave and that do nothing in this call, to be warned of."""

from __future__ import annotations

from utils.config.schema import OPTIONS, SCHEMA, Config


def ignored_settings(config: Config, hypersphere: bool) -> list[str]:
    """One line for every setting that differs from its default and has no effect.

    Args:
        hypersphere: whether the network has a hypersphere head, which in an evaluation the
            checkpoint says.
    """
    options, train = config.OPTIONS, config.TRAIN
    attacking = options.evaluate or not options.evaluating  # a training ends with the attacks
    no_head = "the network has no hypersphere head (--FN, --WN)"
    training_only = "it belongs to training"
    imagenet_c_only = "it belongs to --eva_on_imagenet_c"
    attacks_only = "it belongs to the attacks; give -e too"
    rows = [
        ("HE.s_HE", not hypersphere, no_head),
        ("HE.angular_margin_HE", not hypersphere, no_head),
        ("OPTIONS.print_gradients", options.evaluating, training_only),
        ("OPTIONS.overwrite", options.evaluating, training_only),
        ("OPTIONS.tensorboard", options.evaluating, training_only),
        (
            "OPTIONS.pretrained",
            bool(options.resume) and (options.evaluating or options.resume != "auto"),
            "the weights are those of --resume",
        ),
        ("OPTIONS.attack", not attacking, attacks_only),
        ("OPTIONS.save_images", not attacking, attacks_only),
        ("EVAL.cascade", not attacking, attacks_only),
        ("OPTIONS.corruptions", not options.eva_on_imagenet_c, imagenet_c_only),
        ("OPTIONS.clean_accuracy", not options.eva_on_imagenet_c, imagenet_c_only),
        (
            "TRAIN.gradient_every",
            not options.evaluating and not options.print_gradients,
            "give --print_gradients",
        ),
        (
            "TRAIN.select_examples",
            not options.evaluating and (train.select, train.select_from) == ("clean", "val"),
            "TRAIN.select is clean",
        ),
        ("TRAIN.lr_epochs", config.schedule != "linear", f"TRAIN.schedule is {config.schedule}"),
        (
            "TRAIN.warmup_epochs",
            config.schedule != "cosine",
            f"TRAIN.schedule is {config.schedule}",
        ),
        ("ADV.train_steps", train.method != "pgd", f"TRAIN.method is {train.method}"),
    ]
    return [
        f"{name_of(key)} is ignored: {why}"
        for key, without_effect, why in rows
        if without_effect and differs(config, key)
    ]


def name_of(key: str) -> str:
    """How a user gives it: a flag, or SECTION.key."""
    section, _, name = key.partition(".")
    return f"--{name}" if {**SCHEMA, "OPTIONS": OPTIONS}[section][name].metavar else key


def differs(config: Config, key: str) -> bool:
    """Whether a setting is not at its default."""
    section, _, name = key.partition(".")
    return config.value(key) != {**SCHEMA, "OPTIONS": OPTIONS}[section][name].default
