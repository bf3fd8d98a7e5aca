"""Commands on names of any bytes, under a locale whose file names are UTF-8 and one with ASCII."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run, settings
from in_process import call

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
    named: Path, locale: dict[str, str], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained in one is evaluated in the other; UTF-8 is the locale of this process."""
    monkeypatch.chdir(tmp_path)
    assert sys.getfilesystemencoding() == "utf-8"

    def succeed(locale: dict[str, str], *words: object) -> str:
        if not locale:
            done = call(*words)
            assert done.status == 0, done
            return done.out
        ended = run(*words, **locale)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    succeed(locale, "main_free.py", named, *FEW)
    (folder,) = (tmp_path / "trained_models").iterdir()
    best = folder / "model_best.pth.tar"
    names = torch.load(best, weights_only=True)["model"]["classes"]
    assert names == ["digit_0", "digit_1", "digit_3", "zahl_ü"]
    own = json.loads((folder / "attack_standard.json").read_text())
    for path in folder.glob("attack*"):
        path.unlink()
    words = ("evaluate.py", named, "-e", *FEW, "--resume", best)
    words += ("--eva_on_imagenet_c", "--corruptions", "snow")
    words += ("--set", f"DATA.imagenet_c={tmp_path / 'C'}")
    succeed({} if locale else ASCII, *words)
    found = json.loads((folder / "attack_standard.json").read_text())
    assert found["provenance"]["subset"] == own["provenance"]["subset"]
    assert found["clean"] == own["clean"]
    rows = (folder / "attack_standard_images.csv").read_bytes()
    assert "zahl_ü/".encode() + b"\xe9\xff.png" in rows
    (corrupted,) = folder.glob("imagenet_c_*.json")
    counts = json.loads(corrupted.read_text())["corruptions"]["snow"]["top1"]
    assert [entry["n"] for entry in counts] == [36] * 5
    for data, count in ((named, 100), (tmp_path / "C", 180)):
        said = succeed(locale, "tools.check_data", data, "--workers", "1")
        assert f"{count} images, 4 classes, all is well" in said
