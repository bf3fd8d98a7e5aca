"""Flags of main_free.py and evaluate.py. Every wrong one is answered before torch is imported."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from utils.config.load import DEFAULT_CONFIG, PlainLoader, merge, read_yaml
from utils.config.phases import phases_of
from utils.config.settings import (
    OPTIONS,
    ROBUSTBENCH,
    SCHEMA,
    SWITCH,
    Config,
    Given,
    Options,
    Setting,
    Source,
)
from utils.config.validators import whole
from utils.errors import UserError
from utils.storage.run_folder import find_checkpoint


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def tool_parser(name: str, manual: str | None) -> OneLineParser:
    """The parser of `python -m tools.NAME`, whose manual is its module's docstring."""
    layout = argparse.RawDescriptionHelpFormatter
    return OneLineParser(prog=f"python -m tools.{name}", description=manual, formatter_class=layout)


def positive(text: str) -> int:
    """argparse type: a whole number from 1."""
    try:
        return whole(1)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def user_path(text: str) -> Path:
    """argparse type: a path; `~` is the home folder."""
    return Path(os.path.expanduser(text))


def names(text: str) -> list[str]:
    """argparse type: words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def flags_of_settings() -> dict[str, tuple[str, Setting]]:
    """{name of the flag without dashes: (section, its setting)}, for every setting with a flag."""
    sections = {**SCHEMA, "OPTIONS": OPTIONS}
    return {
        key: (section, setting)
        for section, keys in sections.items()
        for key, setting in keys.items()
        if setting.metavar
    }


def build_parser(script: str, manual: str) -> OneLineParser:
    """The parser of `main_free` or `evaluate`; a flag that is not given is None."""
    parser = OneLineParser(
        prog=f"{script}.py",
        description=manual,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("data", metavar="DIR", nargs="?", help=OPTIONS["data"].help)
    groups = {name: parser.add_argument_group(name) for name in ("model", "run", "evaluation")}
    groups["run"].add_argument(
        "-c", "--config", metavar="PATH", help="YAML settings (default: configs.yml of the suite)"
    )
    groups["run"].add_argument(
        "--set",
        metavar="SECTION.key=value",
        action="append",
        default=[],
        help="any setting below, repeatable: --set TRAIN.arch=resnet18 --set DATA.batch_size=128",
    )
    for key, (_, setting) in flags_of_settings().items():
        if script == "evaluate" or setting.script != "evaluate":
            add_flag(groups[setting.group], key, setting, hidden=setting.script not in ("", script))
    return parser


def add_flag(group: argparse._ArgumentGroup, key: str, setting: Setting, hidden: bool) -> None:
    """One setting's flag: a switch, `--flag [BOOL]`, or `--flag VALUE`; the text is read later."""
    default = "" if setting.default in ((), None, "") else f" (default {setting.default})"
    text = argparse.SUPPRESS if hidden else setting.help + default
    flags = [setting.short] * bool(setting.short) + [f"--{key}"]
    if setting.metavar == SWITCH:
        group.add_argument(*flags, action="store_const", const=True, help=text)
    elif setting.metavar == "BOOL":
        group.add_argument(*flags, nargs="?", const=True, metavar="BOOL", help=text)
    else:
        group.add_argument(*flags, metavar=setting.metavar, help=text)


def settings_help() -> str:
    """All settings with default and unit, for --help."""
    lines = ["settings of configs.yml, for --set (default, meaning):"]
    for section, keys in SCHEMA.items():
        for key, setting in keys.items():
            lines.append(f"  {section + '.' + key:<26} {setting.default!s:<24} {setting.help}")
    return "\n".join(lines)


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
