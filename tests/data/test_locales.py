"""Commands on names of any bytes, under a locale whose file names are UTF-8 and one with ASCII."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Run, settings

pytestmark = pytest.mark.slow

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FEW = settings(TRAIN__epochs=2, ADV__pgd_attack="[[1, 8/255]]", DATA__workers=1)


@pytest.fixture
def named(digits: Path, tmp_path: Path) -> Path:
    """Digits in a class with an umlaut, an image whose name is not UTF-8, and an ImageNet-C."""
    data = tmp_path / "dätä"
    shutil.copytree(digits, data)
    for split in ("train", "val"):
        (data / split / "digit_2").rename(data / split / "zahl_ü")
        first = min((data / split / "zahl_ü").iterdir())
        os.rename(first, os.fsencode(first.parent) + b"/\xe9\xff.png")
    for severity in range(1, 6):
        shutil.copytree(data / "val", tmp_path / "C" / "snow" / str(severity))
    return data


@pytest.mark.parametrize("locale", [{}, ASCII], ids=["UTF-8", "ASCII"])
def test_every_command_finds_the_same_images(
    named: Path, locale: dict[str, str], tmp_path: Path, run: Run
) -> None:
    trained = run("main_free.py", named, *FEW, **locale)
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "trained_models").iterdir()
    best = folder / "model_best.pth.tar"
    names = torch.load(best, weights_only=True)["model"]["classes"]
    assert names == ["digit_0", "digit_1", "digit_3", "zahl_ü"]
    own = json.loads((folder / "attack_standard.json").read_text())
    for path in folder.glob("attack*"):
        path.unlink()
    other = {} if locale else ASCII  # what was trained here is evaluated there
    words = (*FEW, "--resume", best)
    attacked = run("evaluate.py", named, "-e", *words, **other)
    assert attacked.returncode == 0, attacked.stderr
    found = json.loads((folder / "attack_standard.json").read_text())
    assert found["provenance"]["subset"] == own["provenance"]["subset"]
    assert found["clean"] == own["clean"]
    rows = (folder / "attack_standard_images.csv").read_bytes()
    assert "zahl_ü/".encode() + b"\xe9\xff.png" in rows
    words += ("--eva_on_imagenet_c", "--corruptions", "snow")
    corrupted = run("evaluate.py", tmp_path / "C", *words, **other)
    assert corrupted.returncode == 0, corrupted.stderr
    for data, count in ((named, 100), (tmp_path / "C", 180)):
        checked = run("tools.check_data", data, **locale)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert f"{count} images, 4 classes, all is well" in checked.stdout
