"""What a training method means for the settings: its defaults, and its published keys."""

from __future__ import annotations

from collections.abc import Iterable

from utils.config.readers import strict_bool
from utils.config.schema import SCHEMA, Config, Given, Source

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
