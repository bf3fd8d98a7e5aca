"""`evaluate.py --eva_on_shift`: against a plain loop, interrupted, and side by side."""

import csv
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import copy_run
from in_process import call, only_error
from torchvision import datasets, transforms

from lib.evaluation.shift import find_test_sets
from models.resnet import ResNet
from utils.storage.results import read_result

NAMES = [f"digit_{i}" for i in range(4)]
WORDS = ("--eva_on_shift", "--resume", "run/model_best.pth.tar", "--set", "DATA.workers=0")


@pytest.fixture(scope="module")
def evaluated(trained: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's best model, two test sets, one of two classes, one as archives have it; evaluated."""
    folder = tmp_path_factory.mktemp("shift")
    (folder / "run").mkdir()
    os.link(trained / "model_best.pth.tar", folder / "run/model_best.pth.tar")
    shutil.copytree(digits / "val", folder / "sets/sketch/inner")
    for name in ("digit_3", "digit_1"):
        shutil.copytree(digits / "train" / name, folder / f"sets/rendered/{name}")
    (folder / "sets/@eaDir").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "said.txt").write_text(evaluate())
    return folder


@pytest.fixture(autouse=True)
def here(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    monkeypatch.chdir(copy_run(evaluated, tmp_path / "here"))
    return tmp_path / "here"


def evaluate(*more: object) -> str:
    """A call that must succeed; what it says."""
    done = call("evaluate.py", "sets", *WORDS, *more)
    assert (done.status, done.err) == (0, ""), done
    return done.out


def plain_accuracies(folder: Path) -> tuple[float, float]:
    """Top-1 over all outputs, and over the folder's classes, by torchvision."""
    checkpoint = torch.load("run/model_best.pth.tar", weights_only=True)
    model = ResNet("resnet18", 4, feature_norm=True, weight_norm=True, scale=10.0)
    model.load_state_dict(checkpoint["state_dict"])
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()]
    found = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    with torch.no_grad():
        logits = model.eval()(torch.stack([image for image, _ in found]))
    outputs = [NAMES.index(name) for name in found.classes]
    labels = torch.tensor([outputs[label] for _, label in found])
    true = logits.gather(1, labels[:, None])
    above = [(each > true).sum(1) for each in (logits, logits[:, outputs])]
    return tuple(float((count == 0).double().mean()) for count in above)


def test_accuracies_are_those_of_a_plain_loop() -> None:
    said = Path("said.txt").read_text()
    result = read_result(Path("run/shift_standard_rendered+sketch.json"))
    assert list(result.sets) == ["rendered", "sketch"]
    for name, folder in find_test_sets("sets").items():
        found = result.sets[name]
        overall, present = plain_accuracies(Path(folder))
        assert found.top1.fraction == pytest.approx(overall)
        assert found.present_top1.fraction == pytest.approx(present)
        assert f"{100 * overall:.2f}" in said
    few, every = result.sets["rendered"], result.sets["sketch"]
    assert (few.classes, every.classes, few.top1.n, every.top1.n) == (2, 4, 32, 36)
    assert every.present_top1 == every.top1
    assert re.search(r"^rendered +32 +2 +[\d.]+ +- +[\d.]+ +-$", said, re.M)
    assert few.top5.fraction == few.present_top5.fraction == 1  # of four outputs
    with open("run/shift_standard_rendered+sketch.csv", newline="") as file:
        rows = {row["test_set"]: row for row in csv.DictReader(file)}
    assert float(rows["rendered"]["present_top1_accuracy"]) == few.present_top1.fraction
    assert Path("run/shift_standard_rendered+sketch.png").exists()


def test_one_set_a_part_of_it_and_what_is_wrong() -> None:
    shutil.copy("run/model_best.pth.tar", "run/last.pth.tar")
    flags = ("--n_examples", 5, "--resume", "run/last.pth.tar", "--set", "DATA.crop_size=24")
    done = call("evaluate.py", "sets/rendered", *WORDS, *flags)
    assert done.status == 0, done
    result = read_result(Path("run/shift_standard_last_rendered_n5_crop24.json"))
    assert result.sets["rendered"].top1.n == 5
    Path("empty").mkdir()
    Path("sets/rendered/digit_3").rename("sets/rendered/n00000001")
    for words, says in (
        ((), "DIR of its own"),
        (("sets", "-e"), "DIR of its own"),
        (("empty",), "holds no test set"),
        (("sets",), "class n00000001 is none of"),
    ):
        assert says in only_error(call("evaluate.py", *words, *WORDS))
