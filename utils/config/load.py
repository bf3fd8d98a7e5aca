"""YAML files and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.settings`. Everything
wrong is reported together, before any work. In your own scripts: `configs = load_configs()`, then
`configs.TRAIN.lr`.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from easydict import EasyDict

from utils.config.rules import (
    contradictions,
    impossible_calls,
    translate_published,
    with_method_defaults,
)
from utils.config.settings import OPTIONS, SCHEMA, SECTIONS, Config, Given, Options, Setting, Source
from utils.config.validators import one_line, show
from utils.errors import UserError

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs.yml"
NO_OPTIONS = Options()


def merge(
    content: Mapping[str, Any],
    flags: Iterable[Given] = (),
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
    options = replace(options, **values.pop("OPTIONS"))
    sections = {name: SECTIONS[name](**found) for name, found in values.items()}
    config = with_method_defaults(Config(**sections, OPTIONS=options, sources=sources))
    problems += contradictions(config)
    problems = problems or impossible_calls(options)
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


MAX_DEPTH = 20
MAX_NODES = 10_000  # settings have some sixty


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads the published files' !!python/tuple as lists, and no key twice.

    What aliases unfold to is counted, so that a small file cannot take all memory.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.sizes: dict[int, int] = {}  # of nodes read so far, with all that is in them

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        start = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=start)
        node = super().compose_node(parent, index)
        self.depth -= 1
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        # An alias of what it stands in has no size yet.
        size = 1 + sum(self.sizes.get(id(part), MAX_NODES) for part in inside)
        if size > MAX_NODES:
            raise yaml.MarkedYAMLError(problem="its aliases unfold too far", problem_mark=start)
        self.sizes[id(node)] = size
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours, which the schema says
            if key.value in seen:
                problem = f"{one_line(key.value)} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
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
    except (ValueError, OverflowError) as error:  # the 13th month, a number of 5000 digits
        reason = str(error).partition(";")[0]
        raise UserError(f"{path} holds a value that cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; write TRAIN:, ADV:, DATA: with keys below them")
    return content


def mark(error: yaml.YAMLError) -> str:
    """Where in the file, as `:line`."""
    position = getattr(error, "problem_mark", None)
    return f":{position.line + 1}" if position else ""


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
