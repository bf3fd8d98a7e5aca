"""YAML files and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.settings`. Everything
wrong is reported together, before any work. In your own scripts: `configs = load_configs()`, then
`configs.TRAIN.lr`.
"""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml
from easydict import EasyDict

from utils.config.rules import contradictions, translate_published, with_method_defaults
from utils.config.settings import EVERY, SECTIONS, SETTINGS, Config, GivenValue, Options, Source
from utils.config.validators import show
from utils.errors import UserError
from utils.text import printable

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs.yml"
NO_OPTIONS = Options()


def merge(
    content: Mapping[str, Any],
    flags: Iterable[GivenValue] = (),
    file: str = "",
    file_source: Source = Source.GIVEN_FILE,
    options: Options = NO_OPTIONS,
) -> Config:
    """Defaults, then the YAML's content, then the command line's flags, each checked.

    Args:
        content: {section: {key: value}} from `read_yaml`.
        flags: what the command line gives; the last of two counts.
        file: the YAML's name, for messages.
        file_source: whether that is the default file or one given by `-c`.
        options: of the call, which flags go over.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    problems: list[str] = []
    config = Config(OPTIONS=options)
    for value in translate_published([*flatten(content, file, file_source, problems), *flags]):
        try:
            checked = EVERY[value.key].validate(value.value)
            config = config.changed({value.key: checked}, value.source)
        except KeyError:
            problems.append(f"{value.where}: unknown key{nearest(value.key, SETTINGS)}")
        except ValueError as error:
            problems.append(f"{value.where}: {error}")
    config = with_method_defaults(config)
    problems += contradictions(config, calls=not problems)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def flatten(
    content: Mapping[str, Any], file: str, source: Source, problems: list[str]
) -> list[GivenValue]:
    """{section: {key: value}} to values with where they stand."""
    values = []
    for section, keys in content.items():
        if section not in SECTIONS:
            name = printable(str(section))
            problems.append(f"{file}: unknown section {name}{nearest(name, SECTIONS)}")
        elif not isinstance(keys, Mapping):
            problems.append(f"{file}: {section} must hold keys, not {show(keys)}")
        else:
            for name, value in keys.items():
                key = f"{section}.{printable(str(name))}"
                values.append(GivenValue(f"{file}: {key}", key, value, source))
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name whose last part is closest, then whose section is."""
    section, _, word = name.lower().rpartition(".")

    def likeness(candidate: str) -> tuple[float, bool]:
        its_section, _, its_word = candidate.lower().rpartition(".")
        return difflib.SequenceMatcher(None, word, its_word).ratio(), its_section == section

    closest = max(known, key=likeness)
    return f"; did you mean {closest}?" if likeness(closest)[0] >= 0.5 else "; --help lists all"


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads the published files' !!python/tuple as lists, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"{printable(key.value)} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def construct_list(loader: PlainLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", construct_list)


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
        raise UserError(f"cannot read the configuration {path}: {reason}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f":{mark.line + 1}" if mark else ""
        if isinstance(error, yaml.constructor.ConstructorError):
            problem = f"{problem}; only plain values are read, no Python objects"
        raise UserError(
            f"{path}{line} is not valid YAML: {problem or 'it cannot be parsed'}"
        ) from error
    except (ValueError, OverflowError, RecursionError) as error:  # the 13th month, [[[[...
        reason = str(error).partition(";")[0]
        raise UserError(f"{path} holds a value that cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; write TRAIN:, ADV:, DATA: with keys below them")
    return content


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML; `-c` with it repeats the run."""
    return yaml.safe_dump(config.as_dict(), sort_keys=False, default_flow_style=None)


class Configs(EasyDict):  # type: ignore[misc]
    """An EasyDict that is read-only."""

    def __init__(self, content: Mapping[str, object]) -> None:
        for name, value in content.items():
            super().__setattr__(name, Configs(value) if isinstance(value, dict) else value)

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """Instead of every way of changing it."""
        raise AttributeError("the settings are frozen; load_configs reads another file")

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = update = pop = setdefault = refuse


def load_configs(path: str | Path = DEFAULT_CONFIG) -> Configs:
    """A checked YAML file of settings over the defaults, as configs.TRAIN.lr.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    return Configs(merge(read_yaml(str(path)), file=Path(path).name).as_dict())
