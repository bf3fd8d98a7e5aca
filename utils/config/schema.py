"""All settings of one call, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.options import Options
from utils.config.sections import Adv, Data, Eval, Hypersphere, Run, Train
from utils.config.setting import settings_in

# What configs.yml, --set, checkpoints and results hold.
SECTIONS: dict[str, type] = {
    "TRAIN": Train,
    "ADV": Adv,
    "DATA": Data,
    "HE": Hypersphere,
    "EVAL": Eval,
    "RUN": Run,
}
SCHEMA = {name: settings_in(section) for name, section in SECTIONS.items()}
OPTIONS = settings_in(Options)


class Source(Enum):
    """Where a value comes from."""

    BUILT_IN = "the built-in default"
    DEFAULT_FILE = "configs.yml"
    GIVEN_FILE = "the file given by -c"
    COMMAND_LINE = "the command line"
    CHECKPOINT = "the checkpoint"


class Given(NamedTuple):
    """A value that somebody gave; `where` is for messages: a flag, or the file and key."""

    where: str
    section: str
    key: str
    value: object
    source: Source


@dataclass(frozen=True)
class Config:
    """All settings of one call, by section: `config.TRAIN.lr`. What follows from them is here too.

    Attributes:
        sources: {"SECTION.key": where its value comes from}; without an entry it is built in.
    """

    TRAIN: Train = field(default_factory=Train)
    ADV: Adv = field(default_factory=Adv)
    DATA: Data = field(default_factory=Data)
    HE: Hypersphere = field(default_factory=Hypersphere)
    EVAL: Eval = field(default_factory=Eval)
    RUN: Run = field(default_factory=Run)
    OPTIONS: Options = field(default_factory=Options)
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)

    @cached_property
    def eps(self) -> float:
        """Radius of the l-infinity ball, in [0, 1]."""
        return self.ADV.clip_eps / self.DATA.max_color_value

    @cached_property
    def step(self) -> float:
        """Step of the noise in training, in [0, 1]."""
        return self.ADV.fgsm_step / self.DATA.max_color_value

    @cached_property
    def passes(self) -> int:
        """Passes over the data, in all."""
        return number_of_passes(self.TRAIN.method, self.TRAIN.epochs, self.ADV.n_repeats)

    @cached_property
    def schedule(self) -> str:
        """`TRAIN.schedule`, with `auto` resolved."""
        kind = self.TRAIN.schedule
        return kind if kind != "auto" else "linear" if self.TRAIN.lr_epochs else "step"

    @cached_property
    def output_name(self) -> str:
        """`resnet50_free_adv_step4_eps4_repeat4_bs256`, with HE `_FN_WN_s10.0_margin0.2`.

        Of another seed than 0, with `_seed1`; of a phase with `_phase2`.
        """
        train, adv, he = self.TRAIN, self.ADV, self.HE
        name = f"{train.arch}_{self.RUN.output_prefix}"
        name += f"_{train.method}" * (train.method not in ("free", *name.split("_")))
        if train.method != "natural":
            name += f"_step{adv.fgsm_step:g}_eps{adv.clip_eps:g}"
            name += f"_steps{adv.train_steps}" * (train.method == "pgd")
            name += f"_repeat{adv.n_repeats}" * (train.method != "pgd")
        name += f"_bs{self.DATA.batch_size}" + "_FN" * he.FN + "_WN" * he.WN
        name += f"_s{he.s_HE}_margin{he.angular_margin_HE}" * (he.FN or he.WN)
        name += f"_seed{self.RUN.seed}" * (self.RUN.seed != 0)
        return name + f"_phase{train.phase}" * (train.phase > 0)

    @cached_property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path("trained_models", self.output_name)

    def value(self, key: str) -> object:
        """The value of `SECTION.key`."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)

    def source(self, key: str) -> Source:
        """Where the value of `SECTION.key` comes from."""
        return self.sources.get(key, Source.BUILT_IN)

    def given(self, key: str) -> bool:
        """Whether `SECTION.key` stands on the command line."""
        return self.source(key) is Source.COMMAND_LINE

    def changed(self, values: Mapping[str, object], source: Source) -> Config:
        """The same with other values of some `SECTION.key`, which are not checked again."""
        sections: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.partition(".")
            before = sections.get(section, getattr(self, section))
            sections[section] = replace(before, **{name: value})
        return replace(self, **sections, sources={**self.sources, **dict.fromkeys(values, source)})

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """The sections as plain values: what config.yml, checkpoints and results keep."""
        return {
            name: {key: plain(getattr(getattr(self, name), key)) for key in keys}
            for name, keys in SCHEMA.items()
        }


def number_of_passes(method: str, epochs: int, n_repeats: int) -> int:
    """Passes over the data; free's m replays count as m epochs (arXiv:1904.12843, Sec. 4)."""
    return math.ceil(epochs / n_repeats) if method == "free" else epochs


def plain(value: Any) -> Any:
    """Tuples as lists, which YAML, JSON and checkpoints hold."""
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value
