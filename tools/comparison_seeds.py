"""Runs that differ in their seed alone, as one row: mean, standard deviation, number of seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tools.comparison_values import Row, Value
from utils.storage.accuracy import Estimate, over_seeds
from utils.storage.run_folder import run_settings

# What changes no number of a run.
IRRELEVANT = {"imagenet", "imagenet_c", "workers", "print_freq", "checkpoint_minutes", "compile"}


@dataclass(frozen=True)
class Line:
    """A row of the table: one checkpoint, or the same of several seeds."""

    members: tuple[Row, ...]
    values: tuple[Value, ...]


def merge_seeds(rows: Mapping[Row, Sequence[Value]]) -> list[Line]:
    """Rows that differ in the training's seed alone become one, in the place of the first."""
    groups: dict[Any, list[tuple[Row, int]]] = {}
    for row in rows:
        setting, seed = setting_and_seed(row)
        groups.setdefault(setting, []).append((row, seed))
    lines = []
    for group in groups.values():
        members = [row for row, _ in group]
        distinct = len({seed for _, seed in group}) == len(group)
        parts = [members] if distinct else [[row] for row in members]
        lines += [Line(tuple(part), merged([rows[row] for row in part])) for part in parts]
    return sorted(lines, key=lambda line: list(rows).index(line.members[0]))


def setting_and_seed(row: Row) -> tuple[tuple[str, ...], int]:
    """What the run has in common with its like of other seeds, and its seed."""
    name, _, in_name = row.folder.name.partition("_seed")
    if not in_name.isdecimal():
        name, in_name = row.folder.name, "0"
    config = run_settings(row.folder)
    seed = config.get("RUN", {}).get("seed", int(in_name))
    training = {
        section: {k: v for k, v in config.get(section, {}).items() if k not in IRRELEVANT}
        for section in ("TRAIN", "ADV", "DATA", "HE")
    }
    return (name, row.checkpoint, json.dumps(training, sort_keys=True)), seed


def merged(parts: Sequence[Sequence[Value]]) -> tuple[Value, ...]:
    """The values of several seeds: one for each measure and conditions."""
    together: dict[Any, list[Value]] = {}
    for values in parts:
        for value in values:
            together.setdefault(value.column, []).append(value)
    return tuple(
        mean_value(values) if len(parts) > 1 else values[0] for values in together.values()
    )


def mean_value(values: Sequence[Value]) -> Value:
    """Mean and standard deviation over seeds; of a single one its value, without a spread."""
    mean = over_seeds([value.percent for value in values]) if len(values) > 1 else values[0]
    estimate = {field.name: getattr(mean, field.name) for field in fields(Estimate)}
    return replace(values[0], **estimate, seeds=len(values))
