"""Flags of both scripts: what they mean, and that every wrong one is answered at once."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment
from in_process import user_error

from utils.config.command_line import parse_command_line
from utils.config.load import ignored_settings
from utils.config.settings import Config


@pytest.fixture(autouse=True)
def folder(here: Path) -> Path:
    """An empty folder with a data folder `data` and a file `w.pth` that is some checkpoint."""
    (here / "data").mkdir()
    (here / "w.pth").touch()
    return here


def parse(line: str) -> Config:
    """Parse a command line whose first word is `main_free` or `evaluate`."""
    script, *arguments = shlex.split(line)
    return parse_command_line(arguments, script, "the manual")


def test_strict_booleans() -> None:
    assert not parse("main_free").HE.FN
    for line in ("--FN --seed 3", "--FN", "--FN=Yes data", "--FN True", "--FN true", "data --FN 1"):
        assert parse(f"main_free {line}").HE.FN is True
    for word in ("False", "false", "NO", "0"):
        assert parse(f"main_free data --FN {word}").HE.FN is False
    for word in ("maybe", "2", "on", "", "None", "data"):
        assert user_error(parse, f"main_free --FN '{word}'").startswith(f"--FN: {word!r} is ne")


def test_flags_over_yaml(folder: Path) -> None:
    (folder / "mine.yml").write_text("HE: {FN: true, s_HE: 5}\nRUN: {seed: 4}\nTRAIN: {lr: 1}\n")
    config = parse("main_free -c mine.yml")
    assert (config.HE.FN, config.HE.s_HE, config.RUN.seed) == (True, 5.0, 4)
    sets = "--set TRAIN.lr=2 --set TRAIN.lr=0.5"  # the last of two counts
    config = parse(f"main_free -c mine.yml --FN no --seed 9 {sets}")
    assert (config.HE.FN, config.HE.s_HE, config.RUN.seed, config.TRAIN.lr) == (False, 5.0, 9, 0.5)
    assert {key for key in config.sources if config.given(key)} == {"HE.FN", "RUN.seed", "TRAIN.lr"}


@pytest.mark.parametrize("value", ["123", "/a=b", "1e3", "yes"])
def test_text_stays_text_whatever_it_looks_like(value: str) -> None:
    assert parse(f"main_free --set DATA.imagenet={value}").DATA.imagenet == value


@pytest.mark.parametrize(
    ("line", "data", "imagenet", "imagenet_c"),
    [
        ("main_free -e data --resume w.pth", "data", "data", "data/ImageNet-C"),
        ("evaluate -e --resume w.pth data", "data", "data", "data/ImageNet-C"),
        ("evaluate data --eva_on_imagenet_c --resume w.pth", "data", "data/ImageNet", "data"),
        ("evaluate all -e --eva_on_imagenet_c --resume w.pth", "all", "all", "data/ImageNet-C"),
        ("evaluate data -e --eva_on_imagenet_c --resume w.pth", "data", "data/ImageNet", "data"),
    ],
)  # fmt: skip
def test_dir_may_stand_anywhere(
    line: str, data: str, imagenet: str, imagenet_c: str, folder: Path
) -> None:
    """With both evaluations it is the data set that it looks like."""
    Path("all/val").mkdir(parents=True)
    config = parse(line)
    paths = config.OPTIONS.data, config.DATA.imagenet, config.DATA.imagenet_c
    assert paths == (data, imagenet, imagenet_c)


def test_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "mine.yml").write_text("DATA: {imagenet_c: ~/c}\n")
    config = parse("evaluate ~/data -e --resume ~/w.pth -c ~/mine.yml --image_ids ~/w.pth")
    paths = [config.DATA.imagenet, config.DATA.imagenet_c, config.OPTIONS.resume]
    paths += [config.OPTIONS.data, config.OPTIONS.image_ids]
    assert paths == [f"{folder}/{name}" for name in ("data", "c", "w.pth", "data", "w.pth")]


def test_the_command_is_kept_as_it_can_be_pasted() -> None:
    line = "evaluate.py -e --resume w.pth --set 'EVAL.scales=[1, 10]'"
    assert parse(line.replace(".py", "", 1)).OPTIONS.command == f"python {line}"


@pytest.mark.parametrize(
    ("line", "hypersphere", "ignored"),
    [
        ("main_free --s_HE 64 --angular_margin_HE 0.1", False, "--angular_margin_HE --s_HE"),
        ("main_free --s_HE 64 --angular_margin_HE 0.1 --WN", True, ""),
        ("main_free --s_HE 10", False, ""),  # what it is anyway
        ("main_free --pretrained --resume w.pth", False, "--pretrained"),
        ("main_free --pretrained --resume auto", False, ""),  # for the first start
        ("main_free --weights model_ema", False, "--weights"),
        ("main_free --attack pgd3 --n_examples 5 --save_images 2", False, ""),  # at the end
        ("main_free --set TRAIN.gradient_every=3", False, "TRAIN.gradient_every"),
        ("main_free --set TRAIN.gradient_every=3 --print_gradients", False, ""),
        ("main_free --set TRAIN.select_examples=9", False, "TRAIN.select_examples"),
        ("main_free --set TRAIN.method=natural --set ADV.fgsm_step=2", False, "ADV.fgsm_step"),
        ("main_free --set TRAIN.lr_epochs=[0,1] --set TRAIN.lr_values=[0,1] --set TRAIN.lr=1",
         False, "TRAIN.lr"),
        ("main_free -e --resume w.pth --overwrite no --tensorboard", False, "--tensorboard"),
        ("evaluate -e --resume w.pth --print_gradients --overwrite", True,
         "--overwrite --print_gradients"),
        ("evaluate -e --resume w.pth --s_HE 64", True, ""),
        ("evaluate -e --resume w.pth --corruptions fog --clean_accuracy 0.5", True,
         "--clean_accuracy --corruptions"),
        ("evaluate --eva_on_imagenet_c --resume w.pth --attack pgd3 --save_images 2", True,
         "--attack --save_images"),
    ],
)  # fmt: skip
def test_what_is_given_in_vain_is_said(line: str, hypersphere: bool, ignored: str) -> None:
    lines = ignored_settings(parse(line), hypersphere)
    assert sorted(line.partition(" is ignored: ")[0] for line in lines) == ignored.split()


# What both scripts answer without torch: command lines, and words of each line of the error.
WRONG = {
    "evaluate data --resume w.pth": ["nothing to evaluate"],
    "evaluate -e": ["--resume PATH"],
    "main_free -e": ["--resume PATH"],
    "evaluate -e --resume w.pth --n_examples 5 --image_ids w.pth": ["--n_examples and --image_ids"],
    "main_free --overwrite --resume auto": ["--overwrite"],
    "main_free --eva_on_imagenet_c": ["unrecognized arguments: --eva_on_imagenet_c"],
    "main_free --lr 0.1": ["unrecognized arguments: --lr; give --set TRAIN.lr=...;"],
    "main_free --batch-size=8": ["give --set DATA.batch_size=... or --set EVAL.batch_size=...;"],
    "main_free --s_H 3": ["unrecognized arguments: --s_H"],  # no abbreviations
    "main_free --seed": ["--seed: expected one argument"],
    "main_free --protocol mine --n_examples 0": ["standard, freeat, paper", "--n_examples: 0 must"],
    "evaluate --clean_accuracy 76": ["--clean_accuracy: 76.0 must be", "nothing to evaluate"],
    "main_free --attack pgd": ["unknown attack 'pgd'"],
    "main_free --attack pgd10,,pgd50": ["--attack"],
    "main_free --norm L2": ["--norm L2 needs a radius"],
    "main_free -c none.yml": ["none.yml: No such file"],
    "main_free -c evil.yml": ["python/object/apply"],
    "main_free w.pth": ["no folder w.pth"],
    "main_free --resume none.pth": ["--resume none.pth: no such checkpoint"],
    "evaluate -e --resume w.pth --image_ids none.txt": ["--image_ids none.txt"],
    "main_free --set TRAIN.lr": ["SECTION.key=value"],
    "main_free --set lr=1": ["SECTION.key=value"],
    "main_free -c mine.yml --FN maybe --s_HE -1 --device gpu --set TRAIN.precison=bf16": [
        "mine.yml: ADV.clip_esp: unknown key; did you mean ADV.clip_eps?",
        "--FN: 'maybe'",
        "--s_HE: -1.0 must be above 0",
        "--device: 'gpu' is not one of auto, cpu, cuda, cuda:1, mps",
        "--set TRAIN.precison: unknown key; did you mean TRAIN.precision or EVAL.precision?",
    ],
}
HELP = ("main_free --help", "evaluate --help")
NEEDS_TORCH = "main_free data"
ANSWERS = """
import contextlib, importlib, io, json, sys
def answer(script, *words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = importlib.import_module(script).main(words)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()
print(json.dumps([answer(*line.split()) for line in sys.argv[1:]]))
"""
Answers = dict[str, tuple[int | str, str, str]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Status, stdout, stderr of each, where importing torch, numpy or the like ends a command."""
    folder = tmp_path_factory.mktemp("answers")
    for name in ("torch", "torchvision", "numpy", "PIL", "matplotlib"):
        package = folder / "fakes" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"raise SystemExit('{name} was imported')\n")
    (folder / "data").mkdir()
    (folder / "w.pth").touch()
    (folder / "mine.yml").write_text("ADV: {clip_esp: 4}\n")
    (folder / "evil.yml").write_text("TRAIN: !!python/object/apply:os.system ['touch pwned']\n")
    lines = [*WRONG, *HELP, NEEDS_TORCH]
    variables = environment(PYTHONPATH=f"{folder / 'fakes'}:{ROOT}", COLUMNS="100")
    command = [sys.executable, "-c", ANSWERS, *lines]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "pwned").exists()
    return dict(zip(lines, json.loads(done.stdout), strict=True))


def test_torch_is_what_a_command_would_import(answers: Answers) -> None:
    assert answers[NEEDS_TORCH][0] == "torch was imported"


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_are_answered_without_torch(line: str, answers: Answers) -> None:
    status, out, err = answers[line]
    assert (status, out) == (2, "")
    for message, words in zip(err.splitlines(), WRONG[line], strict=True):
        assert message.startswith("error: ")
        assert words in message


@pytest.mark.parametrize("line", HELP)
def test_help_answers_without_torch(line: str, answers: Answers) -> None:
    status, out, err = answers[line]
    assert (status, err) == (0, "")
    # Examples to paste, and defaults with their units, of the flags and of every setting.
    for text in (
        f"python {line.partition(' ')[0]}.py /data/ImageNet",
        "SECTION.key=value",
        "cosines (default 10.0)",
        "ADV.clip_eps               4.0                      radius of the l-infinity ball, of",
        "ADV.pgd_attack             [[10, 0.00392156862, 'ce', 1], [50,",
        "EVAL.scales                                         scales s of HE",
    ):
        assert text in out
    assert ("[--eva_on_imagenet_c]" in out) == line.startswith("evaluate")
