"""Flags of main_free.py and evaluate.py. Every wrong one is answered before torch is imported."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from utils.config.load import DEFAULT_CONFIG, PlainLoader, merge, phases_of, read_yaml
from utils.config.settings import EVERY, ROBUSTBENCH, SETTINGS, SWITCH, Config, Options, Source
from utils.config.validators import whole
from utils.errors import UserError
from utils.storage.run_folder import find_checkpoint

T = TypeVar("T")
FLAGS = {key.rpartition(".")[2]: key for key, setting in EVERY.items() if setting.flag}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: --([\w-]+)", message)
        if unknown and self.prog.endswith(".py"):
            name = unknown[1].replace("-", "_")
            fixes = [f"--set {key}=..." for key in SETTINGS if key.rpartition(".")[2] == name]
            message += "; give " * bool(fixes) + " or ".join(fixes)
        raise UserError(f"{message}; see {self.prog} --help")


def tool_parser(name: str, manual: str | None) -> OneLineParser:
    """The parser of `python -m tools.NAME`, whose manual is its module's docstring."""
    layout = argparse.RawDescriptionHelpFormatter
    return OneLineParser(prog=f"python -m tools.{name}", description=manual, formatter_class=layout)


def checked(validate: Callable[[object], T]) -> Callable[[str], T]:
    """argparse type that says what a validator says."""

    def convert(text: str) -> T:
        try:
            return validate(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


positive = checked(whole(1))


def user_path(text: str) -> Path:
    """argparse type: a path; `~` is the home folder."""
    return Path(os.path.expanduser(text))


def build_parser(script: str, manual: str) -> OneLineParser:
    """The parser of `main_free` or `evaluate`; a flag that is not given is None, texts are raw."""
    lines = [f"  {key:<26} {s.default_text:<24} {s.help}" for key, s in SETTINGS.items()]
    settings = "\n".join(lines)
    parser = OneLineParser(
        prog=f"{script}.py",
        description=manual,
        epilog=f"settings of configs.yml, for --set (default, meaning):\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DIR", nargs="?", help=EVERY["data"].help)
    add("-c", "--config", metavar="PATH", help="YAML settings (default: configs.yml of the suite)")
    any_setting = "any setting below, repeatable: --set TRAIN.arch=resnet18 --set TRAIN.epochs=30"
    add("--set", metavar="SECTION.key=value", action="append", default=[], help=any_setting)
    for name, key in FLAGS.items():
        setting = EVERY[key]
        if script == "main_free" and setting.script == "evaluate":
            continue
        default = f" (default {setting.default_text})" if setting.default_text else ""
        text = setting.help + default if setting.script in ("", script) else argparse.SUPPRESS
        form: dict[str, Any] = {"metavar": setting.flag}
        if setting.flag == SWITCH:
            form = {"action": "store_const", "const": True}
        elif setting.flag == "BOOL":
            form |= {"nargs": "?", "const": True}
        add(*filter(None, (setting.short, f"--{name}")), help=text, **form)
    return parser


def parse_command_line(argv: Sequence[str] | None, script: str, manual: str) -> Config:
    """Parse the flags of `main_free` or `evaluate`, merge the YAML file, check everything.

    Raises:
        UserError: anything wrong with a flag or a setting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parsed = vars(build_parser(script, manual).parse_args(arguments))
    values = [(f"--{name}", key, parsed.get(name)) for name, key in FLAGS.items()]
    values += [parse_assignment(assignment) for assignment in parsed["set"]]
    # With -e, too, DIR is the one of both that it looks like.
    clean = parsed["evaluate"] and os.path.isdir(os.path.join(parsed["data"] or "", "val"))
    key = "DATA.imagenet_c" if parsed.get("eva_on_imagenet_c") and not clean else "DATA.imagenet"
    values += [("DIR", "data", parsed["data"]), ("DIR", key, parsed["data"])]
    file = os.path.expanduser(parsed["config"] or DEFAULT_CONFIG)
    config = merge(
        read_yaml(file),
        [given for given in values if given[-1] is not None],
        os.path.basename(file),
        Source.GIVEN_FILE if parsed["config"] else Source.DEFAULT_FILE,
        Config(OPTIONS=Options(script, shlex.join(["python", f"{script}.py", *arguments]))),
    )
    phases_of(config)  # what is wrong in the last phase is reported before the first
    options = config.OPTIONS
    if options.data is not None and not os.path.isdir(options.data):
        raise UserError(f"no folder {options.data}; give the data set's folder as DIR")
    if options.image_ids not in (None, ROBUSTBENCH) and not os.path.isfile(options.image_ids):
        raise UserError(f"--image_ids {options.image_ids}: no such file")
    for name in ("resume", "transfer_from", "init_from"):
        path = getattr(options, name)
        if path and not (name == "resume" and path == "auto"):
            find_checkpoint(path, f"--{name}")
    return config


def parse_assignment(assignment: str) -> tuple[str, str, object]:
    """`SECTION.key=value` to where, key, value: text where its setting takes text, else YAML."""
    key, equals, text = assignment.partition("=")
    key, value = key.strip(), text
    if not equals or "." not in key:
        raise UserError(f"--set {assignment}: write SECTION.key=value, such as TRAIN.lr=0.05")
    try:
        SETTINGS[key].validate(text)
    except (KeyError, ValueError):  # a list, or something wrong that merge explains
        with suppress(yaml.YAMLError, ValueError, OverflowError, RecursionError):
            value = yaml.load(text, PlainLoader)
    return f"--set {key}", key, value
