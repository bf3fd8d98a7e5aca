"""configs.yml and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.schema`. Everything
wrong is said at once, before any work.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from easydict import EasyDict

from utils.config.schema import SCHEMA, Setting
from utils.errors import UserError


class Config(EasyDict):
    """Settings by section, `config.TRAIN.lr`; read-only once frozen.

    Beside the sections of the schema it holds DERIVED, computed once by `derive`, and OPTIONS,
    the flags of this one call that describe no run (DIR, --resume, --protocol's subset, ...).
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("__frozen__"):
            raise AttributeError(f"the configuration is frozen: {name} cannot be set")
        super().__setattr__(name, value)

    __setitem__ = __setattr__


def freeze(config: Config) -> Config:
    """Make a configuration and its sections read-only."""
    for value in config.values():
        if isinstance(value, Config):
            freeze(value)
    config.__dict__["__frozen__"] = True
    return config


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads the published files' !!python/tuple as lists, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours, which the schema says
            if key.value in seen:
                problem = f"{key.value} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


PlainLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node)
)


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file of sections.

    Raises:
        UserError: no such file, bad YAML, a tag that would construct a Python object, or
            something other than sections of keys.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=PlainLoader) or {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(
            f"cannot read the configuration {path}: {reason}; give another by -c"
        ) from error
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{path}{mark(error)}: {error.problem}; only plain values are read, no Python objects"
        ) from error
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"{path}{mark(error)} is not valid YAML: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; write TRAIN:, ADV:, DATA: with keys below them")
    return content


def mark(error: yaml.YAMLError) -> str:
    """Where in the file, as `:line`."""
    position = getattr(error, "problem_mark", None)
    return f":{position.line + 1}" if position else ""


def merge(content: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> Config:
    """Defaults, then the YAML's content, then the command line's overrides, each checked.

    Args:
        content: {section: {key: value}} from `read_yaml`.
        overrides: {"SECTION.key": (flag, value)} from the command line.
        source: the YAML's path, for messages.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    problems: list[str] = []
    config = Config({name: Config() for name in SCHEMA})
    for section, keys in SCHEMA.items():
        for key, setting in keys.items():
            config[section][key] = setting.read(setting.default)
    values = [*flatten(content, source, problems), *labelled(overrides)]
    for where, section, key, value in values:
        setting = find_setting(section, key, where, problems)
        if setting is not None:
            try:
                config[section][key] = setting.read(value)
            except ValueError as error:
                problems.append(f"{where}: {error}")
    problems += contradictions(config)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def flatten(
    content: Mapping[str, Any], source: str, problems: list[str]
) -> Iterator[tuple[str, str, str, Any]]:
    """{section: {key: value}} to (where it stands, section, key, value)."""
    for section, keys in content.items():
        if section not in SCHEMA:
            problems.append(f"{source}: unknown section {section}{nearest(section, SCHEMA)}")
        elif not isinstance(keys, Mapping):
            problems.append(f"{source}: {section} must hold keys, not {keys!r}")
        else:
            for key, value in keys.items():
                yield f"{source}: {section}.{key}", section, str(key), value


def labelled(overrides: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """{"SECTION.key": (flag, value)} to (flag, section, key, value)."""
    for name, (flag, value) in overrides.items():
        section, _, key = name.partition(".")
        yield flag, section, key, value


def find_setting(section: str, key: str, where: str, problems: list[str]) -> Setting | None:
    """The schema's entry, or None with the problem noted and the nearest name offered."""
    if key in SCHEMA.get(section, {}):
        return SCHEMA[section][key]
    every = [f"{s}.{k}" for s, keys in SCHEMA.items() for k in keys]
    problems.append(f"{where}: unknown key{nearest(f'{section}.{key}', every)}")
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
    problems = []
    train, adv, data = config.TRAIN, config.ADV, config.DATA
    if data.crop_size > data.img_size:
        problems.append(
            f"DATA.crop_size {data.crop_size} is larger than DATA.img_size {data.img_size}, the"
            " shorter side that evaluation crops from"
        )
    for key in ("clip_eps", "fgsm_step"):
        if adv[key] > data.max_color_value:
            problems.append(
                f"ADV.{key} {adv[key]:g} is more than DATA.max_color_value"
                f" {data.max_color_value:g}, the whole range of colours; both have the same unit"
            )
    passes = math.ceil(train.epochs / adv.n_repeats)
    if train.start_epoch >= passes:
        problems.append(
            f"TRAIN.start_epoch {train.start_epoch} leaves nothing to train: TRAIN.epochs"
            f" {train.epochs} in ADV.n_repeats {adv.n_repeats} are {passes} passes, counted from 0"
        )
    if config.TRAIN.select == "pgd" and config.ADV.clip_eps == 0:
        problems.append("TRAIN.select: pgd attacks within ADV.clip_eps, which is 0")
    return problems


def derive(config: Config) -> None:
    """Compute once what everything else uses: eps and step in [0, 1], the run's folder."""
    unit = config.DATA.max_color_value
    name = output_name(config)
    config.DERIVED = Config(
        eps=config.ADV.clip_eps / unit,
        fgsm_step=config.ADV.fgsm_step / unit,
        output_name=name,
        run_dir=os.path.join("trained_models", name),
    )


def output_name(config: Config) -> str:
    """`resnet50_free_adv_step4_eps4_repeat4_bs256`, and `_FN_WN_s10.0_margin0.2` with HE."""
    adv, he = config.ADV, config.HE
    name = (
        f"{config.TRAIN.arch}_{config.RUN.output_prefix}_step{adv.fgsm_step:g}_eps{adv.clip_eps:g}"
        f"_repeat{adv.n_repeats}_bs{config.DATA.batch_size}"
    )
    name += "_FN" * he.FN + "_WN" * he.WN
    return name + f"_s{he.s_HE}_margin{he.angular_margin_HE}" * (he.FN or he.WN)


def settings_only(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The schema's sections as plain dicts: what config.yml, checkpoints and results keep."""
    return {section: {k: config[section][k] for k in SCHEMA[section]} for section in SCHEMA}


def dump_yaml(config: Mapping[str, Any]) -> str:
    """The resolved configuration as YAML; `-c` with it repeats the run."""
    return yaml.safe_dump(settings_only(config), sort_keys=False, default_flow_style=None)
