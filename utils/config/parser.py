"""argparse with errors of one line, and flags from the schema."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from utils.config.readers import whole
from utils.config.schema import OPTIONS, SCHEMA
from utils.config.setting import SWITCH, Setting
from utils.errors import UserError


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
