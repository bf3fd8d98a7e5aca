"""Commands on names of any bytes, under a locale whose file names are UTF-8 and one with ASCII."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment, settings
from in_process import call
from processes import the_run

pytestmark = pytest.mark.slow

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FEW = settings(
    TRAIN__epochs=1, ADV__n_repeats=1, ADV__pgd_attack="[[1, 8/255]]", DATA__batch_size=32,
    DATA__workers=1,
)  # fmt: skip


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


# Several commands of one process, each of which must succeed; "then" stands after each.
SEVERAL = """
import sys
from importlib import import_module
words = sys.argv[1:]
while words:
    end = words.index("then")
    name, *arguments = words[:end]
    assert import_module(name).main(arguments) == 0, name
    words = words[end + 1:]
"""


def in_ascii(*commands: tuple[object, ...], cwd: Path) -> str:
    """What commands print in a process whose locale is ASCII's."""
    words = [str(word) for command in commands for word in (*command, "then")]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, *words],
        cwd=cwd,
        env=environment(**ASCII),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_utf_8(*command: object) -> str:
    """What a command prints in this process."""
    assert sys.getfilesystemencoding() == "utf-8"
    done = call(*command)
    assert done.status == 0, done
    return done.out


def results_of(folder: Path) -> tuple[dict, dict]:
    """The images and the clean accuracy of a run's evaluation."""
    found = json.loads((folder / "attack_standard.json").read_text())
    return found["provenance"]["subset"], found["clean"]


def test_every_command_finds_the_same_images(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, evaluation, check in both; what one locale has trained the other evaluates."""
    trained, other = (tmp_path / name for name in ("utf-8", "ascii"))
    trained.mkdir()
    other.mkdir()
    corrupted = tmp_path / "C"
    more = ("--eva_on_imagenet_c", "--corruptions", "snow", "--set", f"DATA.imagenet_c={corrupted}")
    evaluate = ("evaluate", named, "-e", *FEW, *more, "--resume")
    checks = [("tools.check_data", data, "--workers", "1") for data in (named, corrupted)]
    monkeypatch.chdir(trained)
    in_utf_8("main_free", named, *FEW)
    folder, own = the_run(trained), results_of(the_run(trained))
    for path in folder.glob("attack*"):
        path.unlink()
    best = folder / "model_best.pth.tar"
    said = in_ascii(("main_free", named, *FEW), (*evaluate, best), *checks, cwd=other)
    assert results_of(folder) == own
    folder, own = the_run(other), results_of(the_run(other))
    for path in folder.glob("attack*"):
        path.unlink()
    in_utf_8(*evaluate, folder / "model_best.pth.tar")
    assert results_of(folder) == own
    for text in (said, "".join(in_utf_8(*check) for check in checks)):
        for count in (100, 180):
            assert f"{count} images, 4 classes, all is well" in text
    for folder in (the_run(trained), the_run(other)):
        best = torch.load(folder / "model_best.pth.tar", weights_only=True)
        assert best["model"]["classes"] == ["digit_0", "digit_1", "digit_3", "zahl_ü"]
        rows = (folder / "attack_standard_images.csv").read_bytes()
        assert "zahl_ü/".encode() + b"\xe9\xff.png" in rows
        (found,) = folder.glob("imagenet_c_*.json")
        counts = json.loads(found.read_text())["corruptions"]["snow"]["top1"]
        assert [entry["n"] for entry in counts] == [36] * 5
