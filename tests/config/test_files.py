"""How YAML files are read, merged and refused."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from easydict import EasyDict
from in_process import user_error

from lib.algorithm.protocols import PGDSpec
from utils.config.load import dump_yaml, load_configs, merge, phases_of, read_yaml
from utils.config.settings import Config, Source

# Keys and values of the published configs.yml of FreeAT (and of FreeAT + HE), tuples included.
PUBLISHED = """
TRAIN:
    epochs: 90
    arch: 'resnet50'
    start_epoch: 0
    lr: 0.1
    momentum: 0.9
    weight_decay: 0.0001
    print_freq: 10
    mean: !!python/tuple [0.485, 0.456, 0.406]
    std: !!python/tuple [0.229, 0.224, 0.225]

ADV:
    clip_eps: 4.0
    fgsm_step: 4.0
    n_repeats: 4
    pgd_attack:
    - !!python/tuple [10, 0.00392156862]
    - !!python/tuple [50, 0.00392156862]

DATA:
    workers: 4
    batch_size: 256
    img_size: 256
    crop_size: 224
    max_color_value: 255.0
"""
# What fast adversarial training's published configs_fast_phase1_4px.yml has of its own.
PUBLISHED_FAST = """
TRAIN:
    epochs: 6
    lr_epochs: !!python/tuple [0, 1, 6]
    lr_values: !!python/tuple [0, 0.4, 0.04]
    half: true
    random_init: true
ADV:
    fgsm_step: 5.0
    n_repeats: 1
DATA:
    batch_size: 512
    img_size: 0
    crop_size: 128
"""
OBJECTS = [
    *(f"!!python/object/{how}:os.system ['touch pwned']" for how in ("apply", "new")),
    *("!!python/object:argparse.Namespace {a: 1}", "!!python/name:os.system", "!!python/module:os"),
]


def write(folder: Path, text: str) -> str:
    """A YAML file; its path."""
    path = folder / "some.yml"
    path.write_text(text)
    return str(path)


def resolve(text: str, folder: Path, **flags: object) -> Config:
    """A YAML text and `--set` values, merged."""
    values = [("--set", name.replace("__", "."), value) for name, value in flags.items()]
    return merge(read_yaml(write(folder, text)), values, "some.yml")


def test_published_file_loads_and_means_the_defaults(tmp_path: Path) -> None:
    published = Config().changed({"DATA.workers": 4}, Source.GIVEN_FILE)
    assert resolve(PUBLISHED, tmp_path).as_dict() == published.as_dict()
    changed = PUBLISHED.replace("[0.485, 0.456, 0.406]", "[0.5, 0.25, 0.125]").replace(
        "- !!python/tuple [10, 0.00392156862]", "- !!python/tuple [20, 0.0078]"
    )
    config = resolve(changed, tmp_path)
    assert config.TRAIN.mean == (0.5, 0.25, 0.125)
    assert config.ADV.pgd_attack[0] == PGDSpec(20, 0.0078)
    nested = "ADV:\n  pgd_attack: !!python/tuple [!!python/tuple [7, 0.01]]\n"
    assert resolve(nested, tmp_path).ADV.pgd_attack == (PGDSpec(7, 0.01),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot read the configuration", "some.yml", "No such file"]),
        (b"\xff\xfe\x00binary", ["cannot read the configuration", "not a text file"]),
        ("TRAIN:\n  lr: [1, 2\n", ["some.yml:3", "not valid YAML"]),
        ("TRAIN:\n  lr: 1\n  epochs: 3\n  lr: 2\n", ["some.yml:4", "lr is there twice"]),
        ("just words\n", ["holds no sections"]),
        ("TRAIN: 3\n", ["TRAIN must hold keys"]),
        ("TRAINING:\n  lr: 0.1\n", ["unknown section TRAINING", "did you mean TRAIN?"]),
        ("lr: 0.1\n", ["unknown section lr", "did you mean TRAIN.lr?"]),
        ("TRAIN:\n  1: 2\n", ["unknown key"]),
        ("ADV:\n  crop_size: 2\n", ["ADV.crop_size: unknown key", "did you mean DATA.crop_size?"]),
        ("TRAIN: {lr: 2001-13-45}", ["month must be in 1..12"]),
        ('TRAIN: {"l\\nr": 1}', [r"TRAIN.l\nr: unknown key"]),
        ('"TRAIN\\e[2J": {lr: 1}', [r"unknown section TRAIN\x1b[2J"]),
        *((f"TRAIN:\n  lr: 1\n  arch: {o}\n", ["some.yml:3", "plain values"]) for o in OBJECTS),
    ],
    ids=range(18),
)
def test_wrong_files_are_one_short_line(
    content: str | bytes | None, words: list[str], here: Path
) -> None:
    if content is not None:
        Path("some.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = user_error(lambda: merge(read_yaml("some.yml"), [], "some.yml"))
    assert all(word in line for word in words), line
    assert line.isprintable()
    assert len(line) < 400
    assert not Path("pwned").exists()


def test_dumped_configuration_reads_back_the_same(tmp_path: Path) -> None:
    text = """
TRAIN: {epochs: &n 8, lr: 0.00001, mean: [0.1, 0.2, 0.3]}
ADV: {n_repeats: *n, pgd_attack: [[2, 1/255, margin, 3]]}
HE: {FN: true, s_HE: 15}
RUN: {output_prefix: gr\u00f6\u00dfe, seed: 9223372036854775807}
"""
    config = resolve(text, tmp_path, DATA__imagenet="/d/caf\udce9")  # not UTF-8 on the disk
    assert (config.TRAIN.epochs, config.ADV.n_repeats, config.TRAIN.lr) == (8, 8, 1e-5)
    again = merge(read_yaml(write(tmp_path, dump_yaml(config))))
    assert again == config
    assert (again.DATA.imagenet, again.TRAIN.lr) == ("/d/caf\udce9", 1e-5)


def test_own_scripts_read_configs_as_an_easydict(tmp_path: Path) -> None:
    configs = load_configs(write(tmp_path, "TRAIN: {lr: 1e-2}\nHE: {FN: yes}\n"))
    assert isinstance(configs, EasyDict)
    assert (configs.TRAIN.lr, configs["HE"]["FN"], configs.DATA.crop_size) == (0.01, True, 224)
    assert load_configs() == resolve("", tmp_path).as_dict() == Config().as_dict()


def test_published_files_of_fast_adversarial_training(tmp_path: Path) -> None:
    config = resolve(PUBLISHED_FAST, tmp_path)
    assert (config.TRAIN.method, config.TRAIN.precision) == ("fast", "fp16")
    assert (config.schedule, config.passes) == ("linear", 6)
    assert not config.TRAIN.bn_weight_decay
    assert config.ADV.random_init
    assert config.output_name == "resnet50_fast_adv_step5_eps4_repeat1_bs512"
    full = resolve(PUBLISHED_FAST.replace("half: true", "half: false"), tmp_path)
    assert full.TRAIN.precision == "fp32"
    chosen = resolve(PUBLISHED_FAST, tmp_path, TRAIN__method="free")
    assert chosen.TRAIN.bn_weight_decay
    unclear = PUBLISHED_FAST.replace("half: true", "half: maybe")
    assert "TRAIN.half: 'maybe' is not one of fp32" in user_error(resolve, unclear, tmp_path)


def test_defaults_of_a_method_give_way_to_what_is_given(tmp_path: Path) -> None:
    shown = yaml.safe_load((ROOT / "configs.yml").read_text())
    for method, repeats in (("free", 4), ("fast", 1), ("pgd", 1), ("natural", 1)):
        shown["TRAIN"]["method"] = method
        config = merge(shown, file="configs.yml", file_source=Source.DEFAULT_FILE)
        assert config.ADV.n_repeats == repeats
    assert resolve("", tmp_path, TRAIN__method="fast", ADV__n_repeats="4").ADV.n_repeats == 4


def test_the_phases_of_the_published_schedule() -> None:
    config = merge(read_yaml(str(ROOT / "configs_fast_4px.yml")))
    phases = phases_of(config)
    sizes = [(p.DATA.crop_size, p.DATA.batch_size, p.passes) for p in phases]
    assert sizes == [(128, 512, 6), (224, 224, 12), (288, 128, 15)]
    assert [p.output_name for p in phases] == [
        f"resnet50_fast_adv_step5_eps4_repeat1_bs{batch}_phase{number}"
        for number, batch in ((1, 512), (2, 224), (3, 128))
    ]
    assert phases[1].OPTIONS.start_from == str(phases[0].run_dir)
    assert phases_of(Config()) == [Config()]


def test_a_phase_of_another_method_keeps_what_the_one_before_has() -> None:
    """Its momentum, too, which other groups of weight decay would not fit."""
    other = {"TRAIN.method": "fast", "TRAIN.epochs": 2, "ADV.n_repeats": 4}
    content = {"TRAIN": {"method": "natural", "phases": [{"TRAIN.epochs": 1}, other]}}
    phase = phases_of(merge(content, file_source=Source.DEFAULT_FILE))[1]
    assert (phase.TRAIN.bn_weight_decay, phase.ADV.n_repeats) == (True, 4)
