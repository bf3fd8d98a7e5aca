"""Flags of main_free.py and evaluate.py. Every wrong one is answered before torch is imported."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from utils.config.merge import merge
from utils.config.options import ROBUSTBENCH, Options
from utils.config.parser import build_parser, flags_of_settings
from utils.config.phases import phases_of
from utils.config.schema import SCHEMA, Config, Given, Source
from utils.config.yaml_files import PlainLoader, read_yaml
from utils.errors import UserError
from utils.storage.run_folder import find_checkpoint

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs.yml"


def parse_command_line(argv: Sequence[str] | None, script: str, manual: str) -> Config:
    """Parse flags, merge the YAML file, check everything.

    Args:
        argv: the arguments, None for sys.argv's.
        script: `main_free` or `evaluate`.
        manual: the script's docstring, shown by --help.

    Raises:
        UserError: anything wrong with a flag or a setting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    found = vars(build_parser(script, manual).parse_args(arguments))
    given = [
        Given(f"--{key}", section, key, found[key], Source.COMMAND_LINE)
        for key, (section, setting) in flags_of_settings().items()
        if found.get(key) is not None
    ]
    given += [parse_assignment(assignment) for assignment in found["set"]]
    if found["data"] is not None:
        given.append(Given("DIR", "OPTIONS", "data", found["data"], Source.COMMAND_LINE))
        given += data_setting(found["data"], found["evaluate"], found.get("eva_on_imagenet_c"))
    file = os.path.expanduser(found["config"] or DEFAULT_CONFIG)
    config = merge(
        read_yaml(file),
        given,
        os.path.basename(file),
        Source.GIVEN_FILE if found["config"] else Source.DEFAULT_FILE,
        Options(script, shlex.join(["python", f"{script}.py", *arguments])),
    )
    phases_of(config)  # what is wrong in the last phase is reported before the first
    check_paths(config.OPTIONS)
    return config


def data_setting(path: str, evaluate: object, imagenet_c: object) -> list[Given]:
    """The setting that DIR stands for; none where it serves two evaluations."""
    if imagenet_c and evaluate:
        return []
    key = "imagenet_c" if imagenet_c else "imagenet"
    return [Given("DIR", "DATA", key, path, Source.COMMAND_LINE)]


def parse_assignment(assignment: str) -> Given:
    """`SECTION.key=value`, typed by that key: text stays text.

    Raises:
        UserError: no `=`, or no section.
    """
    name, equals, raw = assignment.partition("=")
    name = name.strip()
    if not equals or "." not in name:
        raise UserError(f"--set {assignment}: write SECTION.key=value, such as TRAIN.lr=0.05")
    section, _, key = name.partition(".")
    return Given(f"--set {name}", section, key, typed(section, key, raw), Source.COMMAND_LINE)


def typed(section: str, key: str, raw: str) -> object:
    """The text itself where its setting reads text, else what it is in YAML, such as a list."""
    setting = SCHEMA.get(section, {}).get(key)
    try:
        if setting is not None:
            setting.read(raw)
            return raw
    except ValueError:
        pass  # a list, or something wrong that merge explains
    try:
        return yaml.load(raw, PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError):
        return raw


def check_paths(options: Options) -> None:
    """Files and folders that the flags name must be there.

    Raises:
        UserError: one is not.
    """
    if options.data is not None and not os.path.isdir(options.data):
        raise UserError(f"no folder {options.data}; give the data set's folder as DIR")
    if options.image_ids not in (None, ROBUSTBENCH) and not os.path.isfile(options.image_ids):
        raise UserError(f"--image_ids {options.image_ids}: no such file")
    if options.resume and options.resume != "auto":
        find_checkpoint(options.resume)
    if options.transfer_from:
        find_checkpoint(options.transfer_from)
