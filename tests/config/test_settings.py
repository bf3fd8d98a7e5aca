"""Settings, by table: every one in every way in which it can be given, and what follows."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from in_process import user_error

from lib.algorithm.protocols import PGDSpec
from tools.flags import page
from utils.config.command_line import FLAGS, build_parser, parse_command_line
from utils.config.load import dump_yaml, merge
from utils.config.settings import EVERY, SETTINGS, SWITCH, Config, Source, plain

SHOWN = yaml.safe_load((ROOT / "configs.yml").read_text())
# A value of each metavar that no flag has as its default.
SAMPLES = {"S": ["5.5"], "M": ["0.1"], "N": ["7"], "A": ["0.25"], "EPS": ["1,2"], SWITCH: []}
SAMPLES |= {"KEY": ["model_ema"], "DIR": ["out"], "TEXT": ["again"], "BOOL": ["yes"]}
SAMPLES |= {"PATH": ["auto"], "FILE": ["w.pth"], "NAMES": ["pgd3,fog"]}
NAMES = {"protocol": "paper", "device": "cpu", "norm": "L2"}
NAME = "resnet50_free_adv_step4_eps4_repeat4_bs256"


def set_to(key: str, value: object) -> Config:
    """A configuration with one value from the command line."""
    return merge({}, [(f"--set {key}", key, value)])


def wrong(key: str, value: object) -> str:
    """The error that a value raises, one short line."""
    message = user_error(set_to, key, value)
    assert len(message) < 400
    return message


def test_configs_yml_shows_exactly_the_defaults_each_under_a_comment() -> None:
    assert merge(SHOWN).as_dict() == Config().as_dict()
    assert {f"{section}.{key}" for section in SHOWN for key in SHOWN[section]} == set(SETTINGS)
    lines = (ROOT / "configs.yml").read_text().splitlines()
    for name in SETTINGS:
        section, _, key = name.partition(".")
        start = lines.index(f"{section}:")
        row = next(i for i in range(start, len(lines)) if lines[i].startswith(f"  {key}:"))
        assert any(line.lstrip().startswith("#") for line in lines[start + 1 : row]), key


def test_the_page_of_flags_is_of_these_settings() -> None:
    """Otherwise: python -m tools.flags"""
    assert (ROOT / "docs" / "flags.md").read_text() == page()


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_reads_its_default_and_no_nonsense(key: str) -> None:
    default = SETTINGS[key].default
    assert SETTINGS[key].validate(plain(default)) == default
    text = yaml.safe_dump(plain(default), default_flow_style=True).removesuffix("...\n").strip()
    config = parse_command_line(["--set", f"{key}={text}"], "main_free", "manual")
    assert config.value(key) == default
    assert type(config.value(key)) is type(default)
    assert config.source(key) is Source.COMMAND_LINE
    assert wrong(key, {"a": [object()] * 1000}).startswith(f"--set {key}: {{'a': [<object")


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_read_as_its_setting(name: str) -> None:
    setting = EVERY[FLAGS[name]]
    words = (SAMPLES | {"NAME": [NAMES.get(name, "")]})[setting.flag]
    parser = build_parser(setting.script or "main_free", "manual")
    parsed = vars(parser.parse_args([f"--{name}", *words]))
    values = {n: EVERY[FLAGS[n]].validate(parsed[n]) for n in parsed if parsed[n] and n in FLAGS}
    assert values == {name: setting.validate(words[0] if words else True)}
    assert values[name] != setting.default


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("TRAIN.lr", "1e-2", 0.01),  # text to YAML 1.1
        ("TRAIN.epochs", 8.0, 8),
        ("TRAIN.epochs", "1e1", 10),
        ("TRAIN.compile", "Yes", True),
        ("TRAIN.compile", "reduce-overhead", "reduce-overhead"),
        ("TRAIN.mean", [0.5, "1/4", 1], (0.5, 0.25, 1.0)),
        ("ADV.clip_eps", "8/4", 2.0),
        ("EVAL.eps", "4, 8", (4.0, 8.0)),
        ("ADV.fgsm_step", "0.5/2e-1", 2.5),
        ("ADV.pgd_attack", [[20, "1/255"], [5, 0.01, "dlr", 2]],
         (PGDSpec(20, 1 / 255), PGDSpec(5, 0.01, "dlr", 2))),
        ("EVAL.scales", [1, 10], (1.0, 10.0)),
        ("RUN.seed", 2**62 + 1, 2**62 + 1),  # a float could not hold it
        ("RUN.device", "cuda:1", "cuda:1"),
    ],
)  # fmt: skip
def test_values_in_other_spellings(key: str, given: object, value: object) -> None:
    assert set_to(key, given).value(key) == value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("TRAIN.arch", "mobilenet_v3_small", "is not one of resnet18, resnet34"),  # to train
        ("TRAIN.epochs", 0, "at least 1"),
        ("TRAIN.epochs", 2.5, "not a whole number"),
        ("TRAIN.epochs", 1e30, "at most 2147483647"),
        ("TRAIN.epochs", True, "not a number"),
        ("TRAIN.lr", 0, "above 0"),
        ("TRAIN.lr", float("nan"), "not finite"),
        ("TRAIN.lr", "1/0", "not a number"),
        ("TRAIN.mean", [0.5, 0.5], "not a list of 3"),
        ("TRAIN.momentum", 1.5, "must be at least 0 and at most 1"),
        ("TRAIN.compile", "max-autotune", "reduce-overhead"),
        ("TRAIN.start_epoch", 23, "below the 23 passes"),
        ("ADV.clip_eps", 256, "no length in the unit of DATA.max_color_value 255"),
        ("ADV.fgsm_step", 4 / 255, "in which 4/255 of the range of colours is 4"),
        ("ADV.pgd_attack", [], "not a list of 1 or more"),
        ("ADV.pgd_attack", [10, 0.004], "is not [steps, step size]"),
        ("ADV.pgd_attack", [[10, 1]], "at most 0.5"),
        ("DATA.crop_size", 300, "larger than DATA.img_size 256"),
        ("RUN.seed", 2**63, "at most"),
        ("RUN.output_prefix", "a/b", "without slashes"),
        ("RUN.output_prefix", "", "not text"),
        ("RUN.output_prefix", "a\nb", "printable"),
    ],
)
def test_unusable_values(key: str, value: object, words: str) -> None:
    message = wrong(key, value)
    assert words in message
    assert key in message


def test_eps_in_another_unit() -> None:
    content = {"ADV": {"clip_eps": 0.5, "fgsm_step": 0.25}, "DATA": {"max_color_value": 1.0}}
    assert (merge(content).eps, merge(content).step) == (0.5, 0.25)
    assert math.isclose(Config().eps, 4 / 255)


@pytest.mark.parametrize(("norm", "eps"), [("L2", 387.9), ("L1", 150528)])
def test_a_radius_beyond_the_farthest_images(norm: str, eps: float) -> None:
    """Which are sqrt(3) 224 = 387.98 and 3 224^2 apart."""
    evaluation: dict[str, Any] = {"norm": norm, "eps": [eps]}
    assert merge({"EVAL": evaluation}).EVAL.eps == (eps,)
    evaluation["eps"] = [1, eps + 0.2]
    assert f"is no {norm} radius" in user_error(merge, {"EVAL": evaluation})


def test_passes() -> None:
    for epochs, repeats, passes in ((90, 4, 23), (90, 1, 90), (90, 8, 12), (1, 4, 1), (8, 4, 2)):
        content = {"TRAIN": {"epochs": epochs}, "ADV": {"n_repeats": repeats}}
        assert merge(content).passes == passes


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({}, NAME),
        ({"HE": {"FN": True, "WN": True}}, f"{NAME}_FN_WN_s10.0_margin0.2"),
        ({"HE": {"WN": True, "s_HE": 5}}, f"{NAME}_WN_s5.0_margin0.2"),
        ({"HE": {"s_HE": 5}}, NAME),
        ({"RUN": {"seed": 1}}, f"{NAME}_seed1"),
    ],
)
def test_name_of_the_run_folder(content: dict[str, Any], name: str) -> None:
    assert merge(content).output_name == name
    assert merge(content).run_dir == Path("trained_models", name)


def test_every_value_knows_where_it_comes_from() -> None:
    content = {"ADV": {"clip_eps": 4}, "RUN": {"seed": 2}}
    config = merge(content, [("--seed", "RUN.seed", "3")], file_source=Source.DEFAULT_FILE)
    assert config.source("RUN.seed") is Source.COMMAND_LINE
    assert config.source("ADV.clip_eps") is Source.DEFAULT_FILE  # though it is the default's value
    assert config.source("TRAIN.lr") is Source.BUILT_IN
    changed = config.changed({"DATA.img_size": 64, "DATA.crop_size": 32}, Source.CHECKPOINT)
    assert (changed.DATA.img_size, changed.DATA.crop_size, changed.RUN.seed) == (64, 32, 3)
    assert changed.source("DATA.img_size") is Source.CHECKPOINT
    assert config.DATA.img_size == 256


@pytest.mark.parametrize(
    ("source", "content", "eps", "step"),
    [
        (Source.DEFAULT_FILE, {}, 4, 1),
        (Source.DEFAULT_FILE, {}, 16, 4),
        (Source.CHECKPOINT, {"clip_eps": 8}, 8, 2),
        (Source.CHECKPOINT, {"pgd_attack": [[10, "2/255"], [50, "2/255"]]}, 8, 2),
        (Source.GIVEN_FILE, {}, 8, 1),
        (Source.COMMAND_LINE, {}, 8, 1),
        (Source.DEFAULT_FILE, {"protocol": "freeat"}, 8, 1),
        (Source.DEFAULT_FILE, {"protocol": "paper"}, 8, 1),
        (Source.DEFAULT_FILE, {}, 0, 1),
    ],
)
def test_steps_that_nobody_chose_follow_the_radius(
    source: Source, content: dict[str, Any], eps: int, step: int
) -> None:
    adv = {"pgd_attack": SHOWN["ADV"]["pgd_attack"], **content}
    protocol = adv.pop("protocol", "standard")
    config = merge({"ADV": adv, "EVAL": {"protocol": protocol}}, file_source=source)
    rows = config.attacks_within(eps / 255)
    assert [255 * row.step_size for row in rows] == pytest.approx([step, step], rel=1e-6)
    again = merge(yaml.safe_load(dump_yaml(config)))  # as `-c config.yml`
    assert again.attacks_within(again.eps) == config.attacks_within(config.eps)


@pytest.mark.parametrize("part", [Config(), Config().TRAIN, Config().OPTIONS])
def test_everything_is_read_only(part: object) -> None:
    for name in ("TRAIN", "lr", "data", "new"):
        with pytest.raises(AttributeError):
            setattr(part, name, 1)
