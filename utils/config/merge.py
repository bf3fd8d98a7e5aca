"""YAML and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.schema`. Everything
wrong is reported together, before any work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from utils.config.contradictions import contradictions, impossible_calls
from utils.config.methods import translate_published, with_method_defaults
from utils.config.options import Options
from utils.config.readers import one_line, show
from utils.config.schema import OPTIONS, SCHEMA, SECTIONS, Config, Given, Source
from utils.config.setting import Setting
from utils.errors import UserError

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
