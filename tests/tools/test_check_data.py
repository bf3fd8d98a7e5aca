"""`python -m tools.check_data` on small trees of real files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command
from in_process import Done, call, only_error
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from lib.data.listing import IMAGE_EXTENSIONS


def check(*arguments: object) -> Done:
    return call("tools.check_data", *arguments, "--workers", "1")


def problems(result: Done) -> dict[str, list[str]]:
    """The lines by kind of problem."""
    found: dict[str, list[str]] = {}
    for line in result.out.splitlines()[:-1]:
        kind, what = line.split(maxsplit=1)
        found.setdefault(kind, []).append(what)
    return found


def save(path: Path, seed: int = 0, size: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    """A sound ImageFolder of two classes."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / "data" / split / name / f"{number}.jpg", number)
    return tmp_path / "data"


@pytest.fixture
def corrupted(tmp_path) -> Path:
    """A sound flat ImageNet-C tree of two corruptions, four images each."""
    for corruption in ("fog", "snow"):
        for severity in range(1, 6):
            for name in ("cat", "dog"):
                for number in range(2):
                    save(tmp_path / "C" / corruption / str(severity) / name / f"{number}.png")
    return tmp_path / "C"


def test_a_sound_tree_passes(tree):
    Image.new("L", (9, 9)).save(tree / "train" / "cat" / "grey.png")
    Image.new("CMYK", (9, 9)).save(tree / "train" / "cat" / "cmyk.jpg")
    Image.new("P", (9, 9)).save(tree / "val" / "dog" / "palette.png")
    Image.new("RGBA", (9, 9)).save(tree / "val" / "dog" / "alpha.PNG")
    (tree / "train" / ".DS_Store").write_bytes(b"x")
    result = check(tree)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1].endswith("14 images, 2 classes, all is well")
    assert "14/14" in result.err  # the bar came to its end


def test_what_does_not_decode_is_named(tree):
    whole = (tree / "train" / "cat" / "0.jpg").read_bytes()
    (tree / "train" / "cat" / "0.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (tree / "val" / "dog" / "1.jpg").write_text("not an image")
    (tree / "val" / "dog" / "\x1b[2J\n2.jpg").write_text("not an image")
    (tree / "val" / "cat" / "link.png").symlink_to(tree / "nowhere.png")
    png = save(tree / "train" / "dog" / "damaged.png")
    damaged = bytearray(png.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    png.write_bytes(damaged)
    result = check(tree)
    assert result.status == 1
    lines = problems(result)["unreadable"]
    named = {line.split(":")[0].removeprefix(f"{tree}/") for line in lines}
    assert named == {
        "train/cat/0.jpg",
        "val/dog/1.jpg",
        "val/dog/\\x1b[2J\\n2.jpg",
        "val/cat/link.png",
        "train/dog/damaged.png",
    }
    assert any("truncated" in line for line in lines if "0.jpg" in line)
    assert result.out.splitlines()[-1].endswith("5 problems")


def test_empty_and_misplaced(tree):
    (tree / "train" / "cat" / "none.jpg").write_bytes(b"")
    for split in ("train", "val"):
        (tree / split / "emu").mkdir()
    save(tree / "val" / "loose.jpeg")
    (tree / "train" / "dog" / "notes.txt").write_text("x")
    (tree / "train" / "dog" / "movie.gif").write_text("x")
    (tree / "README.md").write_text("x")  # above the class folders: nobody looks there
    result = check(tree)
    assert result.status == 1
    found = problems(result)
    assert [line.split(":")[0].removeprefix(f"{tree}/") for line in found["empty"]] == [
        "train/cat/none.jpg",
        "train/emu",
        "val/emu",
    ]
    assert found["misplaced"] == [
        "train/dog: 2 files of another kind, such as movie.gif",
        "val: 1 image loose in the folder, such as loose.jpeg; move each into the folder of its"
        " class, val/CLASS/loose.jpeg",
    ]


def test_other_classes_in_val_than_in_train(tree):
    (tree / "val" / "dog").rename(tree / "val" / "dogs")
    result = check(tree)
    assert result.status == 1
    assert problems(result) == {
        "different": ["class dog is in train, not in val", "class dogs is in val, not in train"]
    }


def test_flat_val_says_how_to_mend_it(tree):
    shutil.rmtree(tree / "val")
    for number in range(3):
        save(tree / "val" / f"{number}.JPEG")
    result = check(tree)
    assert result.status == 1
    assert "val: 3 images loose" in result.out
    assert "val/CLASS/0.JPEG" in result.out


def test_class_folders_alone_and_a_split_alone(tree):
    assert check(tree / "train").status == 0
    shutil.rmtree(tree / "train")
    assert check(tree).status == 0  # fit for evaluation
    (tree / "val").rename(tree / "train")
    result = check(tree)
    assert result.status == 1
    assert "val: no such folder" in result.out


def test_a_parent_of_the_data_is_noticed(tree):
    assert "is DIR a folder too high?" in check(tree.parent).out


@pytest.mark.parametrize("grouped", [False, True])
def test_a_sound_imagenet_c_tree(corrupted, grouped):
    if grouped:
        (corrupted / "weather").mkdir()
        for name in ("fog", "snow"):
            (corrupted / name).rename(corrupted / "weather" / name)
    result = check(corrupted)
    assert result.status == 0, result.out
    assert "40 images, 2 classes, all is well" in result.out
    assert "13 of the 15 corruptions are absent" in result.out


def test_severities_that_differ(corrupted):
    (corrupted / "fog" / "2" / "cat" / "1.png").unlink()
    save(corrupted / "snow" / "4" / "dog" / "extra.png")
    (corrupted / "snow" / "5" / "dog" / "0.png").rename(corrupted / "snow/5/dog/other.png")
    shutil.rmtree(corrupted / "fog" / "3")
    save(corrupted / "fog" / "6" / "cat" / "0.png")
    save(corrupted / "fgo" / "1" / "cat" / "0.png")
    result = check(corrupted)
    assert result.status == 1
    found = problems(result)
    assert [line.split(";")[0] for line in found["different"]] == [
        "fog/2: lacks 1 image, such as cat/1.png",
        "fog: severity 3 is missing",
        "snow/4: alone has 1 image, such as dog/extra.png",
        "snow/5: alone has 1 image, such as dog/other.png",
        "snow/5: lacks 1 image, such as dog/0.png",
    ]
    assert found["misplaced"] == [
        "fgo: not the name of a corruption",
        "fog/6: not a severity from 1 to 5",
    ]


def test_classes_named_like_corruptions_are_classes(tmp_path):
    for name in ("fog", "snow"):
        save(tmp_path / name / "0.png")
    assert "2 images, 2 classes, all is well" in check(tmp_path).out


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [(["nowhere"], "does not exist"), ([__file__], "is a file"), ([], "required: DIR")],
)
def test_bad_arguments_are_one_line(arguments: list[str], cause: str) -> None:
    assert cause in only_error(call("tools.check_data", *arguments))


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_at_once_and_leaves_no_process(tmp_path, whole_group):
    big = save(tmp_path / "data" / "cat" / "0.png", size=1200)
    for number in range(1, 400):
        os.link(big, big.with_name(f"{number}.png"))
    words = command("tools.check_data", tmp_path / "data", "--workers", "2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **pipes)
    while b"/400" not in os.read(process.stderr.fileno(), 4096):  # until reading has begun
        assert process.poll() is None
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    # Every process inherits the pipes, so that they end only when the last of them has gone.
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert errors.rstrip().endswith(b"stopped by SIGINT")


def test_names_agree_with_those_of_the_loaders():
    assert set(IMAGE_EXTENSIONS) == set(IMG_EXTENSIONS)
