"""YAML files of settings: reading what anybody wrote, writing what `-c` reads back."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from utils.config.schema import Config
from utils.errors import UserError


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads the published files' !!python/tuple as lists, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours, which the schema says
            if key.value in seen:
                problem = f"{key.value} stands there twice"
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
