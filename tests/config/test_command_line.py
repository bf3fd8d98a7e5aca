"""Flags of both scripts: what they mean, and that every wrong one is answered at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, Run

from utils.config.command_line import parse_command_line
from utils.config.ignored import ignored_settings
from utils.config.schema import Config
from utils.errors import UserError

SWITCHES = ("--FN", "--WN", "--pretrained", "--print_gradients", "--overwrite")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a data folder `data` and a file `w.pth` that is some checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "w.pth").touch()
    return tmp_path


def parse(script: str, *arguments: str) -> Config:
    """Parse the arguments of `main_free` or `evaluate`."""
    return parse_command_line(arguments, script, "the manual")


def train(*arguments: str) -> Config:
    """Parse the arguments of a training."""
    return parse("main_free", *arguments)


def error(script: str, *arguments: str) -> str:
    """The error that arguments raise."""
    with pytest.raises(UserError) as caught:
        parse(script, *arguments)
    return str(caught.value)


def value_of(config: Config, flag: str) -> bool:
    """What a switch was parsed to."""
    name = flag.removeprefix("--")
    return getattr(config.HE if name in ("FN", "WN") else config.OPTIONS, name)


@pytest.mark.parametrize("flag", SWITCHES)
def test_strict_booleans(flag: str) -> None:
    assert value_of(train(), flag) is False
    assert value_of(train(flag), flag) is True
    assert value_of(train(flag, "--seed", "3"), flag) is True
    for word in ("True", "true", "TRUE", "yes", "Yes", "1"):
        assert value_of(train("data", flag, word), flag) is True
        assert value_of(train(f"{flag}={word}", "data"), flag) is True
    for word in ("False", "false", "no", "NO", "0"):
        assert value_of(train("data", flag, word), flag) is False
    for word in ("maybe", "2", "t", "on", "", "None", "data"):
        message = error("main_free", flag, word)
        assert flag in message
        assert f"{word!r} is neither True nor False" in message
        assert "\n" not in message


def test_flags_over_yaml(folder: Path) -> None:
    (folder / "mine.yml").write_text("HE: {FN: true, s_HE: 5}\nRUN: {seed: 4}\nTRAIN: {lr: 1}\n")
    config = train("-c", "mine.yml")
    assert (config.HE.FN, config.HE.s_HE, config.RUN.seed) == (True, 5.0, 4)
    config = train("-c", "mine.yml", "--FN", "no", "--seed", "9", "--set", "TRAIN.lr=0.5")
    assert (config.HE.FN, config.HE.s_HE, config.RUN.seed, config.TRAIN.lr) == (False, 5.0, 9, 0.5)
    assert {key for key in config.sources if config.given(key)} == {"HE.FN", "RUN.seed", "TRAIN.lr"}


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        # Text stays text, whatever it looks like.
        ("DATA.imagenet=123", "123"),
        ("DATA.imagenet=/a=b", "/a=b"),
        ("RUN.output_prefix=1e3", "1e3"),
        ("RUN.output_prefix=yes", "yes"),
    ],
)  # fmt: skip
def test_text_stays_text_in_set(assignment: str, value: object) -> None:
    config = train("--set", "TRAIN.print_freq=3", "--set", assignment)
    found = config.value(assignment.partition("=")[0])
    assert found == value
    assert type(found) is type(value)
    assert config.TRAIN.print_freq == 3


def test_the_last_of_two_sets_counts() -> None:
    assert train("--set", "TRAIN.lr=1", "--set", "TRAIN.lr=2").TRAIN.lr == 2.0


@pytest.mark.parametrize("assignment", ["TRAIN.lr", "lr=1", "=1", "TRAIN"])
def test_set_without_key_or_value(assignment: str) -> None:
    assert "write SECTION.key=value, such as TRAIN.lr=0.05" in error(
        "main_free", "--set", assignment
    )


def test_all_wrong_settings_at_once(folder: Path) -> None:
    (folder / "mine.yml").write_text("ADV: {clip_esp: 4}\n")
    message = error(
        "main_free",
        *("-c", "mine.yml", "--FN", "maybe", "--s_HE", "-1", "--seed", "x", "--device", "gpu"),
        *("--set", "TRAIN.precison=bf16", "--set", "train.lr=1", "--set", "ADV.n_repeats=0"),
    )
    assert message.splitlines() == [
        "mine.yml: ADV.clip_esp: unknown key; did you mean ADV.clip_eps?",
        "--FN: 'maybe' is neither True nor False (yes/no and 1/0 work too)",
        "--s_HE: '-1' must be above 0",
        "--seed: 'x' is not a number",
        "--device: 'gpu' is not one of auto, cpu, cuda, cuda:1, mps",
        "--set TRAIN.precison: unknown key; did you mean TRAIN.precision?",
        "--set train.lr: unknown key; did you mean TRAIN.lr?",
        "--set ADV.n_repeats: 0 must be at least 1",
    ]


def test_dir_is_optional_and_recorded() -> None:
    config = parse("evaluate", "-e", "--resume", "w.pth")
    assert config.OPTIONS.data is None
    assert config.DATA.imagenet == "data/ImageNet"
    assert train("data").DATA.imagenet == "data"
    config = parse("evaluate", "data", "--eva_on_imagenet_c", "--resume", "w.pth")
    assert (config.DATA.imagenet, config.DATA.imagenet_c) == ("data/ImageNet", "data")
    config = parse("evaluate", "data", "-e", "--eva_on_imagenet_c", "--resume", "w.pth")
    assert config.OPTIONS.data == "data"  # whichever of the two it looks like
    assert (config.DATA.imagenet, config.DATA.imagenet_c) == ("data/ImageNet", "data/ImageNet-C")


@pytest.mark.parametrize(
    "arguments",
    ["data -e --resume w.pth", "-e data --resume w.pth", "-e --resume w.pth data"],
)
@pytest.mark.parametrize("script", ["main_free", "evaluate"])
def test_dir_may_stand_anywhere(script: str, arguments: str) -> None:
    options = parse(script, *arguments.split()).OPTIONS
    assert (options.data, options.evaluate, options.resume) == ("data", True, "w.pth")


def test_the_command_is_kept_as_it_can_be_pasted() -> None:
    config = parse("evaluate", "-e", "--resume", "w.pth", "--set", "EVAL.scales=[1, 10]")
    wanted = "python evaluate.py -e --resume w.pth --set 'EVAL.scales=[1, 10]'"
    assert config.OPTIONS.command == wanted


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("evaluate", "", ["-e", "--eva_on_imagenet_c"]),
        ("evaluate", "data --resume w.pth", ["-e", "--eva_on_imagenet_c"]),
        ("evaluate", "-e", ["--resume PATH", "--pretrained"]),
        ("main_free", "-e", ["--resume PATH", "--pretrained"]),
        ("evaluate", "-e --resume w.pth --n_examples 5 --image_ids w.pth",
         ["--n_examples", "--image_ids", "give one"]),
        ("main_free", "--overwrite --resume auto", ["--overwrite", "--resume", "give one"]),
        ("main_free", "--eva_on_imagenet_c", ["unrecognized", "--eva_on_imagenet_c", "--help"]),
        ("main_free", "--ful True", ["unrecognized", "--ful"]),
        ("main_free", "data more", ["unrecognized", "more"]),
        ("main_free", "--s_H 3", ["unrecognized", "--s_H"]),  # no abbreviations
        ("main_free", "--seed", ["--seed", "expected one argument"]),
        ("main_free", "--n_examples ten", ["--n_examples", "'ten' is not a number"]),
        ("main_free", "--n_examples 0", ["--n_examples", "at least 1"]),
        ("main_free", "--save_images -1", ["--save_images", "at least 0"]),
        ("evaluate", "--clean_accuracy 76", ["--clean_accuracy", "at most 1"]),
        ("main_free", "--protocol mine", ["--protocol", "standard, freeat, paper"]),
        ("main_free", "-c none.yml", ["none.yml", "No such file"]),
        ("main_free", "nowhere", ["no folder nowhere", "DIR"]),
        ("main_free", "w.pth", ["no folder w.pth", "DIR"]),
        ("main_free", "--resume none.pth", ["--resume none.pth", "no such checkpoint", "w.pth"]),
        ("evaluate", "-e --resume w.pth --image_ids none.txt", ["--image_ids none.txt", "no such"]),
    ],
)  # fmt: skip
def test_wrong_arguments(script: str, arguments: str, words: list[str]) -> None:
    message = error(script, *arguments.split())
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("script", "arguments", "hypersphere", "ignored"),
    [
        ("main_free", "--s_HE 64", False, ["--s_HE"]),
        ("main_free", "--s_HE 64 --angular_margin_HE 0.1 --WN", True, []),
        ("main_free", "--s_HE 10", False, []),  # what it is anyway
        ("main_free", "--angular_margin_HE 0.1", False, ["--angular_margin_HE"]),
        ("main_free", "--pretrained --resume w.pth", False, ["--pretrained"]),
        ("main_free", "--pretrained --resume auto", False, []),  # for the first start
        ("main_free", "--attack pgd3 --n_examples 5 --save_images 2", False, []),  # at the end
        ("main_free", "--set TRAIN.gradient_every=3", False, ["TRAIN.gradient_every"]),
        ("main_free", "--set TRAIN.gradient_every=3 --print_gradients", False, []),
        ("main_free", "--set TRAIN.select_examples=9", False, ["TRAIN.select_examples"]),
        ("main_free", "--set TRAIN.method=natural --set ADV.fgsm_step=2", False, ["ADV.fgsm_step"]),
        ("main_free", "--set TRAIN.lr_epochs=[0,1] --set TRAIN.lr_values=[0,1] --set TRAIN.lr=1",
         False, ["TRAIN.lr"]),
        ("main_free", "-e --resume w.pth --overwrite no --tensorboard", False, ["--tensorboard"]),
        ("evaluate", "-e --resume w.pth --print_gradients --overwrite", True,
         ["--print_gradients", "--overwrite"]),
        ("evaluate", "-e --resume w.pth --s_HE 64", True, []),
        ("evaluate", "-e --resume w.pth --corruptions fog --clean_accuracy 0.5", True,
         ["--corruptions", "--clean_accuracy"]),
        ("evaluate", "--eva_on_imagenet_c --resume w.pth --attack pgd3 --save_images 2", True,
         ["--attack", "--save_images"]),
    ],
)  # fmt: skip
def test_what_is_given_in_vain_is_said(
    script: str, arguments: str, hypersphere: bool, ignored: list[str]
) -> None:
    lines = ignored_settings(parse(script, *arguments.split()), hypersphere)
    assert sorted(line.partition(" is ignored: ")[0] for line in lines) == sorted(ignored)


def test_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "mine.yml").write_text("DATA: {imagenet: ~/data, imagenet_c: ~/c}\n")
    arguments = ("-e", "-c", "~/mine.yml", "--resume", "~/w.pth", "--image_ids", "~/w.pth")
    config = parse("evaluate", *arguments)
    assert (config.DATA.imagenet, config.DATA.imagenet_c) == (f"{folder}/data", f"{folder}/c")
    assert (config.OPTIONS.resume, config.OPTIONS.image_ids) == (f"{folder}/w.pth",) * 2
    config = parse("evaluate", "~/data", *arguments)
    assert (config.OPTIONS.data, config.DATA.imagenet) == (f"{folder}/data",) * 2


def test_configuration_is_frozen_and_complete() -> None:
    config = train("data")
    with pytest.raises(AttributeError):
        config.TRAIN.lr = 3
    with pytest.raises(AttributeError):
        config.OPTIONS.data = "other"
    assert config.as_dict()["ADV"]["n_repeats"] == 4


@pytest.fixture
def no_torch(folder: Path) -> dict[str, str]:
    """An environment in which importing torch, torchvision, numpy or PIL ends the command."""
    for name in ("torch", "torchvision", "numpy", "PIL", "matplotlib"):
        package = folder / "fakes" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise SystemExit('{name} was imported')\n")
    return {"PYTHONPATH": f"{folder / 'fakes'}:{ROOT}"}


def test_the_fake_torch_is_what_a_command_would_import(run: Run, no_torch: dict) -> None:
    done = run("main_free.py", "data", **no_torch)
    assert done.returncode == 1
    assert "torch was imported" in done.stderr


@pytest.mark.parametrize("script", ["main_free.py", "evaluate.py"])
def test_help_answers_without_torch(script: str, run: Run, no_torch: dict) -> None:
    done = run(script, "--help", COLUMNS="100", **no_torch)
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"python {script} /data/ImageNet" in done.stdout  # examples to paste
    assert "SECTION.key=value" in done.stdout
    # Defaults with their units, of the flags and of every setting.
    for text in (
        "cosines (default 10.0)",
        "ADV.clip_eps               4.0                      radius of the l-infinity ball, of",
        "DATA.crop_size             224                      side of the network's input, pixels",
        "TRAIN.checkpoint_minutes   10.0                     minutes between checkpoints",
    ):
        assert text in done.stdout
    assert ("[--eva_on_imagenet_c]" in done.stdout) == (script == "evaluate.py")


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("main_free.py", ["--FN", "maybe"], "--FN: 'maybe' is neither True nor False"),
        ("main_free.py", ["--bogus"], "unrecognized arguments: --bogus"),
        ("main_free.py", ["--device", "gpu"], "--device: 'gpu' is not one of"),
        ("main_free.py", ["--set", "DATA.crop_size=300"], "larger than DATA.img_size 256"),
        ("main_free.py", ["--attack", "pgd"], "unknown attack 'pgd'"),
        ("main_free.py", ["--resume", "none.pth"], "no such checkpoint"),
        ("main_free.py", ["nowhere"], "no folder nowhere"),
        ("main_free.py", ["-c", "evil.yml"], "no Python objects"),
        ("evaluate.py", [], "nothing to evaluate"),
        ("evaluate.py", ["-e"], "no weights to evaluate"),
    ],
)
def test_errors_answer_without_torch(
    script: str, arguments: list[str], words: str, run: Run, no_torch: dict, folder: Path
) -> None:
    (folder / "evil.yml").write_text("TRAIN: !!python/object/apply:os.system ['touch pwned']\n")
    done = run(script, *arguments, **no_torch)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not (folder / "pwned").exists()


def test_two_wrong_settings_are_two_lines(run: Run, no_torch: dict) -> None:
    done = run("main_free.py", "--s_HE", "0", "--set", "TRAIN.lrr=1", **no_torch)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --s_HE: '0' must be above 0",
        "error: --set TRAIN.lrr: unknown key; did you mean TRAIN.lr?",
    ]
