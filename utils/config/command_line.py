"""Flags of main_free.py and evaluate.py. Every wrong one is answered before torch is imported."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.config.merge import Config, derive, freeze, merge, read_yaml
from utils.config.parser import OneLineParser, argument, names
from utils.config.schema import PROTOCOLS, SCHEMA, real, strict_bool, whole
from utils.errors import UserError
from utils.storage.run_folder import find_checkpoint

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs.yml"
# Flags that are settings: a value given here goes over the YAML's.
FLAG_TO_KEY = {
    "FN": "HE.FN",
    "WN": "HE.WN",
    "s_HE": "HE.s_HE",
    "angular_margin_HE": "HE.angular_margin_HE",
    "output_prefix": "RUN.output_prefix",
    "seed": "RUN.seed",
    "device": "RUN.device",
    "nproc": "RUN.nproc",
    "protocol": "EVAL.protocol",
}


def parse_command_line(argv: Sequence[str] | None, script: str, manual: str) -> Config:
    """Parse flags, merge the YAML file, check everything, derive and freeze.

    Args:
        argv: the arguments, None for sys.argv's.
        script: `main_free` or `evaluate`.
        manual: the script's docstring, shown by --help.

    Raises:
        UserError: anything wrong with a flag or a setting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = vars(build_parser(script, manual).parse_args(arguments))
    overrides = {
        key: (f"--{flag}", value)
        for flag, key in FLAG_TO_KEY.items()
        if (value := flags.pop(flag)) is not None
    }
    for assignment in flags.pop("set"):
        key, value = parse_assignment(assignment)
        overrides[key] = (f"--set {key}", value)
    if flags["data"] is not None and (key := key_of_data(flags)):
        overrides[key] = ("DIR", flags["data"])
    path = str(flags.pop("config"))
    config = merge(read_yaml(path), overrides, os.path.basename(path))
    options = Config(
        flags,
        script=script,
        command=shlex.join(["python", f"{script}.py", *arguments]),
        given=list(overrides),
    )
    check_options(options)
    config.OPTIONS = options
    derive(config)
    check_paths(options)
    return freeze(config)


def key_of_data(flags: Mapping[str, Any]) -> str:
    """The setting that DIR stands for; none where it serves two evaluations."""
    if not flags["eva_on_imagenet_c"]:
        return "DATA.imagenet"
    return "" if flags["evaluate"] else "DATA.imagenet_c"


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """`SECTION.key=value` to its name and value, typed by that key: text stays text.

    Raises:
        UserError: no `=`, or no section.
    """
    name, equals, raw = assignment.partition("=")
    name = name.strip()
    if not equals or "." not in name:
        raise UserError(f"--set {assignment}: write SECTION.key=value, such as TRAIN.lr=0.05")
    section, _, key = name.partition(".")
    setting = SCHEMA.get(section, {}).get(key)
    try:
        if setting is not None:
            return name, setting.read(raw)
    except ValueError:
        pass  # a list, or something wrong that merge explains
    try:
        return name, yaml.safe_load(raw)
    except yaml.YAMLError:
        return name, raw


def check_options(options: Config) -> None:
    """Flags that are fine alone and impossible together.

    Raises:
        UserError: says which and what to do.
    """
    if options.script == "evaluate":
        if not (options.evaluate or options.eva_on_imagenet_c):
            raise UserError(
                "nothing to evaluate: give -e for PGD attacks, --eva_on_imagenet_c for ImageNet-C,"
                " or both"
            )
        if not (options.resume or options.pretrained):
            raise UserError(
                "no weights to evaluate: give --resume PATH, or --pretrained for torchvision's"
            )
    if options.script == "main_free" and options.evaluate:
        if not (options.resume or options.pretrained):
            raise UserError("-e needs weights: give --resume PATH, or --pretrained")
    if options.n_examples and options.image_ids:
        raise UserError("--n_examples and --image_ids both choose the images; give one")
    if options.overwrite and options.resume:
        raise UserError("--overwrite starts anew and --resume goes on; give one")


def check_paths(options: Config) -> None:
    """Files and folders that the flags name must be there.

    Raises:
        UserError: one is not.
    """
    if options.data is not None and not os.path.isdir(options.data):
        raise UserError(f"no folder {options.data}; give the data set's folder as DIR")
    if options.image_ids and not os.path.isfile(options.image_ids):
        raise UserError(f"--image_ids {options.image_ids}: no such file")
    if options.resume and options.resume != "auto":
        find_checkpoint(options.resume)


def build_parser(script: str, manual: str) -> OneLineParser:
    """The parser; both scripts share all flags but --eva_on_imagenet_c and what goes with it."""
    parser = OneLineParser(
        prog=f"{script}.py",
        description=manual,
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "data", metavar="DIR", nargs="?", help="data set; default DATA.imagenet of configs.yml"
    )
    parser.add_argument(
        "-e",
        "--evaluate",
        action="store_true",
        help="evaluate on DIR/val: clean images and the attacks",
    )
    add_model_flags(parser)
    add_run_flags(parser, training=script == "main_free")
    add_evaluation_flags(parser, imagenet_c=script == "evaluate")
    return parser


def add_switch(group: argparse._ArgumentGroup, flag: str, text: str) -> None:
    """A strict boolean: `--flag`, `--flag True`, `--flag no`."""
    read = argument(strict_bool)
    group.add_argument(
        flag, nargs="?", const=True, default=False, type=read, metavar="BOOL", help=text
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Hypersphere embedding and weights."""
    group = parser.add_argument_group("model")
    for flag, what in (("--FN", "features"), ("--WN", "last layer's weights")):
        text = f"HE: normalise the {what} (default False)"
        group.add_argument(flag, nargs="?", const=True, metavar="BOOL", help=text)
    group.add_argument("--s_HE", metavar="S", help="HE: scale of the cosines (default 10.0)")
    group.add_argument(
        "--angular_margin_HE", metavar="M", help="HE: margin on the true cosine (default 0.2)"
    )
    group.add_argument(
        "--resume",
        metavar="PATH",
        default="",
        help="checkpoint, as given or under trained_models/; `auto` is this run's newest valid one",
    )
    add_switch(group, "--pretrained", "start from torchvision's ImageNet weights (default False)")


def add_run_flags(parser: argparse.ArgumentParser, training: bool) -> None:
    """Configuration, machine and, for training, the run folder."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "-c",
        "--config",
        metavar="PATH",
        default=DEFAULT_CONFIG,
        help="YAML settings (default: configs.yml beside the script)",
    )
    group.add_argument(
        "--set",
        metavar="SECTION.key=value",
        action="append",
        default=[],
        help="any setting below, repeatable: --set TRAIN.arch=resnet18 --set DATA.batch_size=128",
    )
    group.add_argument(
        "--output_prefix", metavar="TEXT", help="part of the run folder's name (default free_adv)"
    )
    group.add_argument("--seed", metavar="N", help="seed of everything random (default 0)")
    group.add_argument(
        "--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto: the best)"
    )
    group.add_argument(
        "--nproc", metavar="N", help="processes (default 0: one per visible GPU, or one)"
    )
    hidden = None if training else argparse.SUPPRESS
    add_switch(
        group,
        "--print_gradients",
        hidden or "measure adversarial/clean gradient norms while training (default False)",
    )
    add_switch(group, "--overwrite", hidden or "replace a run that is there (default False)")
    add_switch(group, "--tensorboard", hidden or "write TensorBoard logs (default False)")


def add_evaluation_flags(parser: argparse.ArgumentParser, imagenet_c: bool) -> None:
    """Protocol, attacks, subset; ImageNet-C."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--protocol",
        metavar="NAME",
        help=f"whose evaluation: {', '.join(PROTOCOLS)} (default standard)",
    )
    group.add_argument(
        "--attack",
        metavar="NAMES",
        type=names,
        default=[],
        help="attacks separated by commas: pgd10,pgd50-margin,pgd50-dlr-r5,autoattack"
        " (default: ADV.pgd_attack, and in protocol standard its longest row on margin)",
    )
    group.add_argument(
        "--n_examples",
        metavar="N",
        type=argument(whole(1)),
        help="only N images, evenly spread (default all)",
    )
    group.add_argument(
        "--image_ids", metavar="FILE", help="only the images listed, one class/filename a line"
    )
    group.add_argument(
        "--save_images",
        metavar="N",
        type=argument(whole(0)),
        default=0,
        help="save N images with their adversarial twins as PNG, and a figure (default 0)",
    )
    if imagenet_c:
        group.add_argument(
            "--eva_on_imagenet_c", action="store_true", help="evaluate on ImageNet-C at DIR"
        )
        group.add_argument(
            "--corruptions",
            metavar="NAMES",
            type=names,
            default=[],
            help="corruptions separated by commas, or `extra` for the four extra ones"
            " (default: the 15)",
        )
        group.add_argument(
            "--clean_accuracy",
            metavar="A",
            type=argument(real(0, 1)),
            help="clean top-1 as a fraction in [0, 1], for relative mCE"
            " (default: from a clean evaluation in the run folder)",
        )
    else:
        parser.set_defaults(eva_on_imagenet_c=False, corruptions=[], clean_accuracy=None)


def settings_help() -> str:
    """All settings with default and unit, for --help."""
    lines = ["settings of configs.yml, for --set (default, meaning):"]
    for section, keys in SCHEMA.items():
        for key, setting in keys.items():
            lines.append(f"  {section + '.' + key:<26} {setting.default!s:<24} {setting.help}")
    return "\n".join(lines)
