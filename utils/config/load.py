"""YAML files and command line, merged into one checked and frozen configuration.

Precedence: command line over the YAML file over the defaults of `utils.config.settings`. Whatever
is wrong, with a setting or between several, is reported together, before any work. In your own
scripts: `configs = load_configs()`, then `configs.TRAIN.lr`.
"""

import difflib
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from easydict import EasyDict

from lib.algorithm.protocols import METHODS
from utils.config.settings import (
    ARCHITECTURES,
    DEFAULTS,
    EVERY,
    SECTIONS,
    SETTINGS,
    Config,
    Source,
    plain,
)
from utils.config.validators import show
from utils.errors import UserError
from utils.text import printable

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs.yml"
# Of the training methods: values where nobody says otherwise, and settings that take no other.
METHOD_DEFAULTS: dict[str, dict[str, object]] = {
    "free": {},
    "fast": {"ADV.n_repeats": 1, "TRAIN.bn_weight_decay": False, "RUN.output_prefix": "fast_adv"},
    "pgd": {"ADV.n_repeats": 1, "RUN.output_prefix": "pgd_adv"},
    "natural": {"ADV.n_repeats": 1, "RUN.output_prefix": "natural"},
}
METHOD_FIXES = {"free": ["TRAIN.phases"], "pgd": ["ADV.n_repeats", "ADV.random_init"]}
METHOD_FIXES |= {"natural": ["ADV.n_repeats", "print_gradients"]}
Given = tuple[str, str, object]  # where a value stands, for messages; its key; the value


def merge(
    content: Mapping[str, Any],
    flags: Iterable[Given] = (),
    file: str = "",  # the YAML's name, for messages
    file_source: Source = Source.GIVEN_FILE,
    base: Config = DEFAULTS,  # what the others go over
) -> Config:
    """The YAML's content, then the command line's flags, each checked, over what there is.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    problems: list[str] = []
    config = base
    values = [(*given, file_source) for given in flatten(content, file, problems)]
    values += [(*given, Source.COMMAND_LINE) for given in flags]
    for where, key, value, source in values:
        try:
            key, value = translate_published(key, value)
            config = config.changed({key: EVERY[key].validate(value)}, source)
        except KeyError:
            problems.append(f"{where}: unknown key{nearest(key, SETTINGS)}")
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not base.TRAIN.phase:  # which says otherwise, whatever its method
        config = with_method_defaults(config)
    problems += contradictions(config)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def translate_published(key: str, value: object) -> tuple[str, object]:
    """A key and value of fast adversarial training's published files in the words of this suite."""
    if key == "TRAIN.half":
        return "TRAIN.precision", {"True": "fp16", "False": "fp32"}.get(str(value), value)
    return "ADV.random_init" if key == "TRAIN.random_init" else key, value


def flatten(content: Mapping[str, Any], file: str, problems: list[str]) -> Iterator[Given]:
    """{section: {key: value}} to values with where they stand."""
    for section, keys in content.items():
        if section not in SECTIONS:
            name = printable(str(section))
            hint = nearest(name, [*SECTIONS, *SETTINGS])
            problems.append(f"{file}: unknown section {name}{hint}")
        elif not isinstance(keys, Mapping):
            problems.append(f"{file}: {section} must hold keys, not {show(keys)}")
        else:
            for name, value in keys.items():
                key = f"{section}.{printable(str(name))}"
                yield f"{file}: {key}", key, value


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X or Y?` for the known names whose last part is closest."""
    parts = {key: key.lower().rpartition(".")[2] for key in known}
    closest = difflib.get_close_matches(name.lower().rpartition(".")[2], parts.values(), 1, 0.5)
    keys = " or ".join(key for key, part in parts.items() if part in closest)
    return f"; did you mean {keys}?" if keys else "; --help lists all"


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that reads the published files' !!python/tuple as lists, and no key twice."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:python/tuple": yaml.SafeLoader.construct_yaml_seq,
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"{printable(key.value)} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> dict[str, Any]:
    """Read a YAML file of sections; a tag that would construct a Python object is refused."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=PlainLoader) or {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the configuration {path}: {reason}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # The last three: the 13th month, a number beyond floats, [[[[...
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition(";")[0]
        raise UserError(f"{path}{line} is not valid YAML of plain values: {problem}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections; write TRAIN:, ADV:, DATA: with keys below them")
    return content


def phases_of(config: Config) -> list[Config]:
    """The settings of every phase of `TRAIN.phases` in turn; without phases, these settings."""
    phases: list[Config] = []
    source, resume = config.source("TRAIN.phases"), "auto" * bool(config.OPTIONS.resume)
    for number, values in enumerate(config.TRAIN.phases, 1):
        file = f"TRAIN.phases, {number}"
        base = config.changed({"TRAIN.phases": (), "TRAIN.phase": number}, source)
        if phases:
            start = {"resume": resume, "start_from": str(phases[-1].run_dir)}
            base = base.changed(start, source)
        content: dict[str, dict[str, Any]] = {}
        for key in values:
            section, _, name = key.partition(".")
            if not config.given(key):
                content.setdefault(section, {})[name] = values[key]
        phase = merge(content, file=file, file_source=source, base=base)
        if phases and phase.passes <= phases[-1].passes:
            raise UserError(
                f"{file}: TRAIN.epochs {phase.passes} must be more than the {phases[-1].passes} of"
                " the phase before: epochs count on from phase to phase"
            )
        phases.append(phase)
    return phases or [config]


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML; `-c` with it repeats the run."""
    rows = config.attacks_within(config.eps)
    config = config.changed({"ADV.pgd_attack": rows}, Source.GIVEN_FILE)
    return yaml.safe_dump(config.as_dict(), sort_keys=False, default_flow_style=None)


def load_configs(path: str | Path = DEFAULT_CONFIG) -> EasyDict:
    """A checked YAML file of settings over the defaults, as configs.TRAIN.lr.

    Raises:
        UserError: one line for every unknown key and unusable value.
    """
    return EasyDict(merge(read_yaml(str(path)), file=Path(path).name).as_dict())


def with_method_defaults(config: Config) -> Config:
    """The settings, with the method's defaults where nobody says otherwise."""
    draws, named = "ADV.random_init" in config.sources, "TRAIN.method" in config.sources
    if draws and config.ADV.random_init and not named:  # a published file of fast
        config = config.changed({"TRAIN.method": "fast"}, config.source("ADV.random_init"))
    for key, value in METHOD_DEFAULTS[config.TRAIN.method].items():
        if not config.chosen(key) and config.value(key) == SETTINGS[key].default:
            config = config.changed({key: value}, config.source(key))
    return config


def shown(key: str) -> str:
    """A setting by its flag, where it has one."""
    return f"--{key.rpartition('.')[2]}" if EVERY[key].flag else key


def contradictions(config: Config) -> Iterator[str]:
    """One line for every rule that these settings and flags break."""
    train, options = config.TRAIN, config.OPTIONS
    if not options.evaluating:  # which looks at them once it has the checkpoint's own values
        yield from wrong_lengths(config)
        if train.arch not in ARCHITECTURES:
            yield f"TRAIN.arch: {show(train.arch)} is not one of {', '.join(ARCHITECTURES)}"
    for key in METHOD_FIXES.get(train.method, ()):
        only = METHOD_DEFAULTS[train.method].get(key, EVERY[key].default)
        if config.value(key) != only:
            yield f"TRAIN.method {train.method} takes {shown(key)} {plain(only)} alone"
    if config.EVAL.norm != "Linf" and not config.EVAL.eps:
        example = "--eps, such as 3 for L2 or 60 for L1 at 224 pixels"
        yield f"--norm {config.EVAL.norm} needs a radius, ADV.clip_eps is of Linf: {example}"
    warmup = train.warmup_epochs if config.schedule == "cosine" else 0
    if train.start_epoch >= config.passes or warmup >= train.epochs:
        yield (
            f"TRAIN.warmup_epochs {warmup:g} must be below TRAIN.epochs {train.epochs}, and"
            f" TRAIN.start_epoch {train.start_epoch} below the {config.passes} passes over the data"
            " that they are"
        )
    lr_epochs, lr_values = list(train.lr_epochs), list(train.lr_values)
    piecewise = len(lr_epochs) == len(lr_values) and lr_epochs == sorted(set(lr_epochs))
    if not piecewise or (config.schedule == "linear" and not lr_epochs):
        yield (
            "TRAIN.lr_epochs and TRAIN.lr_values, which TRAIN.schedule: linear goes through, are as"
            f" many as each other, epochs ascending; got {lr_epochs} and {lr_values}"
        )
    on_dir = options.evaluate or options.eva_on_imagenet_c
    if options.script == "evaluate" and not (on_dir or options.eva_on_shift):
        yield "nothing to evaluate: give -e, --eva_on_imagenet_c or both, or --eva_on_shift"
    if options.eva_on_shift and (on_dir or not options.data):
        yield "--eva_on_shift needs a DIR of its own: give one, without -e and --eva_on_imagenet_c"
    if (on_dir or options.eva_on_shift) and not (options.resume or options.pretrained):
        yield "no weights to evaluate: give --resume PATH, or --pretrained for torchvision's"
    if options.n_examples and options.image_ids:
        yield "--n_examples and --image_ids both choose the images; give one"
    if options.overwrite and options.resume and not options.evaluating:
        yield "--overwrite starts from scratch and --resume continues; give one"


def wrong_lengths(config: Config) -> Iterator[str]:
    """One line for every radius, step and side of images that cannot be meant.

    Nothing else would notice a length in another unit: 0.0314, for 8/255, trains all the same.
    """
    adv, data, norm = config.ADV, config.DATA, config.EVAL.norm
    unit = data.max_color_value
    lengths = [("ADV.clip_eps", adv.clip_eps)]
    if not config.OPTIONS.evaluating:  # which takes no steps of the training
        lengths.append(("ADV.fgsm_step", adv.fgsm_step))
    if norm == "Linf":
        lengths += [("--eps", eps) for eps in config.EVAL.eps]
    for key, value in lengths:
        if value > unit or 0 < value < unit / 2550:
            yield (
                f"{key} {value:g} is no length in the unit of DATA.max_color_value {unit:g}, in"
                f" which 4/255 of the range of colours is {4 * unit / 255:.4g}"
            )
    farthest = {"L2": math.sqrt(3) * data.crop_size, "L1": 3.0 * data.crop_size**2}
    for eps in config.EVAL.eps:
        if eps > farthest.get(norm, math.inf):
            yield (
                f"--eps {eps:g} is no {norm} radius: no two images of {data.crop_size} pixels,"
                f" whose values are in [0, 1], are farther apart than {farthest[norm]:.4g}"
            )
    if 0 < data.img_size < data.crop_size:
        yield (
            f"DATA.crop_size {data.crop_size} is larger than DATA.img_size {data.img_size}, the"
            " shorter side that evaluation crops from"
        )


def ignored_settings(config: Config, hypersphere: bool) -> list[str]:
    """One line for every setting that differs from its default and has no effect."""
    options, train, method = config.OPTIONS, config.TRAIN, METHODS[config.TRAIN.method]
    training = not options.evaluating
    resuming = bool(options.resume) and (options.evaluating or options.resume != "auto")
    starting = bool(options.init_from)
    attacking = options.evaluate or training  # a training ends with the attacks
    clean = (train.select, train.select_from) == ("clean", "val")
    no_head, of_attacks = "the network has no hypersphere head (--FN, --WN)", "give -e too"
    a_file = "it names weights in a file of --resume or --init_from"
    schedule, by_method = f"TRAIN.schedule is {config.schedule}", f"TRAIN.method is {train.method}"
    rows = (  # whether some settings have no effect, which ones, and why
        (not hypersphere, "HE.s_HE HE.angular_margin_HE EVAL.scales", no_head),
        (not training, "print_gradients overwrite tensorboard init_from", "it belongs to training"),
        (resuming, "pretrained init_from", "the weights are those of --resume"),
        (starting, "pretrained", "the weights are those of --init_from"),
        (not (resuming or starting), "weights", a_file),
        (not attacking, "attack save_images transfer_from", of_attacks),
        (not attacking, "EVAL.norm EVAL.eps EVAL.cascade", of_attacks),
        (not options.eva_on_imagenet_c, "corruptions clean_accuracy", "give --eva_on_imagenet_c"),
        (
            training and not options.print_gradients,
            "TRAIN.gradient_every",
            "give --print_gradients",
        ),
        (training and clean, "TRAIN.select_examples", "TRAIN.select is clean"),
        (config.schedule == "linear", "TRAIN.lr", schedule),
        (config.schedule != "linear", "TRAIN.lr_epochs", schedule),
        (config.schedule != "cosine", "TRAIN.warmup_epochs", schedule),
        (not method.runs_pgd, "ADV.train_steps", by_method),
        (not method.adversarial, "ADV.fgsm_step", by_method),
    )
    return [
        f"{shown(key)} is ignored: {why}"
        for without_effect, keys, why in rows
        for key in keys.split()
        if without_effect and config.value(key) != EVERY[key].default
    ]
