"""Settings for your own scripts: `configs = load_configs()`, then `configs.TRAIN.lr`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from easydict import EasyDict

from utils.config.command_line import DEFAULT_CONFIG
from utils.config.merge import merge
from utils.config.yaml_files import read_yaml


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
