"""YAML and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.schema`. Everything
wrong is reported together, before any work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from utils.config.methods import method_problems, translate_published, with_method_defaults
from utils.config.options import Options
from utils.config.readers import one_line, show
from utils.config.schema import (
    OPTIONS,
    SCHEMA,
    SECTIONS,
    Config,
    Given,
    Source,
)
from utils.config.setting import Setting
from utils.errors import UserError


def merge(
    content: Mapping[str, Any],
    flags: Iterable[Given] = (),
    file: str = "",
    file_source: Source = Source.GIVEN_FILE,
    script: str = "",
    command: str = "",
) -> Config:
    """Defaults, then the YAML's content, then the command line's flags, each checked.

    Args:
        content: {section: {key: value}} from `read_yaml`.
        flags: what the command line gives; the last of two counts.
        file: the YAML's name, for messages.
        file_source: whether that is the default file or one given by `-c`.
        script: `main_free` or `evaluate`.
        command: the command line, for results.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in (*SECTIONS, "OPTIONS")}
    sources: dict[str, Source] = {}
    found = [*flatten(content, file, file_source, problems), *flags]
    for given in translate_published(found):
        setting = find_setting(given, problems)
        if setting is not None:
            try:
                values[given.section][given.key] = setting.read(given.value)
                sources[f"{given.section}.{given.key}"] = given.source
            except ValueError as error:
                problems.append(f"{given.where}: {error}")
    options = Options(script=script, command=command, **values.pop("OPTIONS"))
    sections = {name: SECTIONS[name](**found) for name, found in values.items()}
    config = with_method_defaults(Config(**sections, OPTIONS=options, sources=sources))
    problems += contradictions(config)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def flatten(
    content: Mapping[str, Any], file: str, source: Source, problems: list[str]
) -> list[Given]:
    """{section: {key: value}} to values with where they stand."""
    found = []
    for section, keys in content.items():
        if section not in SCHEMA:
            name = one_line(section)
            problems.append(f"{file}: unknown section {name}{nearest(section, SCHEMA)}")
        elif not isinstance(keys, Mapping):
            problems.append(f"{file}: {section} must hold keys, not {show(keys)}")
        else:
            found += [
                Given(f"{file}: {section}.{one_line(key)}", section, str(key), value, source)
                for key, value in keys.items()
            ]
    return found


def find_setting(given: Given, problems: list[str]) -> Setting | None:
    """The schema's entry, or None with the problem noted and the nearest name offered."""
    if given.section == "OPTIONS":
        return OPTIONS[given.key]
    if given.key in SCHEMA.get(given.section, {}):
        return SCHEMA[given.section][given.key]
    every = [f"{section}.{key}" for section, keys in SCHEMA.items() for key in keys]
    name = f"{given.section}.{given.key}"
    problems.append(f"{given.where}: unknown key{nearest(name, every)}")
    return None


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean X?` for the closest known name: by its last part, then in its section."""
    known = list(candidates)
    section, _, word = str(name).lower().rpartition(".")
    words = {candidate.rpartition(".")[2].lower() for candidate in known}
    match = difflib.get_close_matches(word, sorted(words), n=1, cutoff=0.5)
    if match:
        found = [c for c in known if c.rpartition(".")[2].lower() == match[0]]
        here = [c for c in found if c.lower().startswith(f"{section}.")]
        return f"; did you mean {(here or found)[0]}?"
    return f"; known are {', '.join(known)}" if len(known) < 10 else "; --help lists all keys"


def contradictions(config: Config) -> list[str]:
    """Values that are fine alone and impossible together."""
    train, adv = config.TRAIN, config.ADV
    # An evaluation looks at these once it has the checkpoint's own values.
    problems = [] if config.OPTIONS.evaluating else wrong_units_and_sizes(config)
    if config.EVAL.norm != "Linf" and not config.EVAL.eps:
        problems.append(
            f"--norm {config.EVAL.norm} needs a radius, since ADV.clip_eps is one of Linf: give"
            " --eps, such as 3 for L2 or 60 for L1 at 224 pixels"
        )
    if train.start_epoch >= config.passes:
        problems.append(
            f"TRAIN.start_epoch {train.start_epoch} leaves nothing to train: TRAIN.epochs"
            f" {train.epochs} in ADV.n_repeats {adv.n_repeats} are {config.passes} passes, counted"
            " from 0"
        )
    if train.select == "pgd" and adv.clip_eps == 0:
        problems.append("TRAIN.select: pgd attacks within ADV.clip_eps, which is 0")
    return problems + method_problems(config)


def wrong_units_and_sizes(config: Config) -> list[str]:
    """Radii and steps in another unit than colours have, and a crop larger than the image."""
    adv, data = config.ADV, config.DATA
    values = [("ADV.clip_eps", adv.clip_eps)]
    if not config.OPTIONS.evaluating:  # which takes no steps of the training
        values.append(("ADV.fgsm_step", adv.fgsm_step))
    if config.EVAL.norm == "Linf":
        values += [("--eps", eps) for eps in config.EVAL.eps]
    problems = [wrong_unit(key, value, data.max_color_value) for key, value in values]
    if 0 < data.img_size < data.crop_size:
        problems.append(
            f"DATA.crop_size {data.crop_size} is larger than DATA.img_size {data.img_size}, the"
            " shorter side that evaluation crops from"
        )
    return [problem for problem in problems if problem]


def wrong_unit(key: str, value: float, unit: float) -> str:
    """What is wrong with an eps or step that is in another unit than max_color_value, or nothing.

    0.0314, which is 8/255 in units of the range [0, 1], would train within 0.03 of 255 grey
    levels, and nothing else would look amiss.
    """
    if value > unit:
        return (
            f"{key} {value:g} is more than DATA.max_color_value {unit:g}, the whole range of"
            " colours; both have the same unit"
        )
    if 0 < value < unit / 2550:
        return (
            f"{key} {value:g} is less than a tenth of a grey level; its unit is"
            f" DATA.max_color_value {unit:g}, in which 4/255 of the range is {4 * unit / 255:.4g}"
        )
    return ""
