"""YAML files of settings: reading what anybody wrote, writing what `-c` reads back."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from utils.config.readers import one_line
from utils.config.schema import Config
from utils.errors import UserError

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
