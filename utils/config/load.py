"""YAML files and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.settings`. Everything
wrong is reported together, before any work. In your own scripts: `configs = load_configs()`, then
`configs.TRAIN.lr`.
"""

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from easydict import EasyDict

from utils.config.rules import contradictions, with_method_defaults
from utils.config.settings import DEFAULTS, EVERY, SECTIONS, SETTINGS, Config, Source
from utils.config.validators import show
from utils.errors import UserError
from utils.text import printable

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs.yml"
Given = tuple[str, str, object]  # where a value stands, for messages; its key; the value


def merge(
    content: Mapping[str, Any],
    flags: Iterable[Given] = (),
    file: str = "",  # the YAML's name, for messages
    file_source: Source = Source.GIVEN_FILE,
    base: Config = DEFAULTS,  # what the others go over
) -> Config:
    """The YAML's content, then the command line's flags, each checked, over what there is.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    problems: list[str] = []
    config = base
    values = [(*given, file_source) for given in flatten(content, file, problems)]
    values += [(*given, Source.COMMAND_LINE) for given in flags]
    for where, key, value, source in values:
        try:
            key, value = translate_published(key, value)
            config = config.changed({key: EVERY[key].validate(value)}, source)
        except KeyError:
            problems.append(f"{where}: unknown key{nearest(key, SETTINGS)}")
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not base.TRAIN.phase:  # which says otherwise, whatever its method
        config = with_method_defaults(config)
    problems += contradictions(config)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def translate_published(key: str, value: object) -> tuple[str, object]:
    """A key and value of fast adversarial training's published files in the words of this suite."""
    if key == "TRAIN.half":
        return "TRAIN.precision", {"True": "fp16", "False": "fp32"}.get(str(value), value)
    return "ADV.random_init" if key == "TRAIN.random_init" else key, value


def flatten(content: Mapping[str, Any], file: str, problems: list[str]) -> Iterator[Given]:
    """{section: {key: value}} to values with where they stand."""
    for section, keys in content.items():
        if section not in SECTIONS:
            name = printable(str(section))
            hint = nearest(name, [*SECTIONS, *SETTINGS])
            problems.append(f"{file}: unknown section {name}{hint}")
        elif not isinstance(keys, Mapping):
            problems.append(f"{file}: {section} must hold keys, not {show(keys)}")
        else:
            for name, value in keys.items():
                key = f"{section}.{printable(str(name))}"
                yield f"{file}: {key}", key, value


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

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:python/tuple": yaml.SafeLoader.construct_yaml_seq,
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"{printable(key.value)} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file of sections; a tag that would construct a Python object is refused."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=PlainLoader) or {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the configuration {path}: {reason}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # The last three: the 13th month, a number beyond floats, [[[[...
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition(";")[0]
        raise UserError(f"{path}{line} is not valid YAML of plain values: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; write TRAIN:, ADV:, DATA: with keys below them")
    return content


def phases_of(config: Config) -> list[Config]:
    """The settings of every phase of `TRAIN.phases` in turn; without phases, these settings."""
    phases: list[Config] = []
    source, resume = config.source("TRAIN.phases"), "auto" * bool(config.OPTIONS.resume)
    for number, values in enumerate(config.TRAIN.phases, 1):
        file = f"TRAIN.phases, {number}"
        base = config.changed({"TRAIN.phases": (), "TRAIN.phase": number}, source)
        if phases:
            start = {"resume": resume, "start_from": str(phases[-1].run_dir)}
            base = base.changed(start, source)
        content: dict[str, dict[str, Any]] = {}
        for key in values:
            section, _, name = key.partition(".")
            if not config.given(key):
                content.setdefault(section, {})[name] = values[key]
        phase = merge(content, file=file, file_source=source, base=base)
        if phases and phase.passes <= phases[-1].passes:
            raise UserError(
                f"{file}: TRAIN.epochs {phase.passes} must be more than the {phases[-1].passes} of"
                " the phase before: epochs count on from phase to phase"
            )
        phases.append(phase)
    return phases or [config]


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML; `-c` with it repeats the run."""
    rows = config.attacks_within(config.eps)
    config = config.changed({"ADV.pgd_attack": rows}, Source.GIVEN_FILE)
    return yaml.safe_dump(config.as_dict(), sort_keys=False, default_flow_style=None)


def load_configs(path: str | Path = DEFAULT_CONFIG) -> EasyDict:
    """A checked YAML file of settings over the defaults, as configs.TRAIN.lr.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    return EasyDict(merge(read_yaml(str(path)), file=Path(path).name).as_dict())
