"""Flags and settings that somebody gave and that do nothing in this call, to be warned of."""

from __future__ import annotations

from utils.config.schema import OPTIONS, SCHEMA, Config

KNOWN = {**SCHEMA, "OPTIONS": OPTIONS}


def ignored_settings(config: Config, hypersphere: bool) -> list[str]:
    """One line for every setting that differs from its default and has no effect.

    Args:
        hypersphere: whether the network has a hypersphere head, which in an evaluation the
            checkpoint says.
    """
    return [
        f"{name_of(key)} is ignored: {why}"
        for without_effect, keys, why in rules(config, hypersphere)
        if without_effect
        for key in keys.split()
        if differs(config, key)
    ]


def rules(config: Config, hypersphere: bool) -> list[tuple[bool, str, str]]:
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
