"""`python -m tools.check_data` on small trees of real files."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from in_process import Done, call, only_error
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from lib.data.folders import IMAGE_EXTENSIONS
from lib.imagenet_c.corruptions import STANDARD
from tools.check_data import BATCH


def check(*arguments: object) -> Done:
    return call("tools.check_data", *arguments, "--workers", "1")


def problems(tree: Path) -> dict[str, list[str]]:
    """What a check finds, by category, without the tree's own path."""
    result = check(tree)
    assert result.status == 1, result.err
    found: dict[str, list[str]] = {}
    for line in result.out.splitlines()[:-1]:
        category, text = line.split(maxsplit=1)
        found.setdefault(category, []).append(text.removeprefix(f"{tree}/"))
    return found


def save(path: Path, seed: int = 0, size: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A sound ImageFolder of two classes."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                seed = number + 10 * (name == "dog") + 100 * (split == "val")
                save(tmp_path / "data" / split / name / f"{number}.jpg", seed)
    return tmp_path / "data"


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """A sound flat ImageNet-C tree of two corruptions, four images each."""
    for corruption in ("fog", "snow"):
        for severity in range(1, 6):
            for name in ("cat/0", "cat/1", "dog/0", "dog/1"):
                save(tmp_path / "C" / corruption / str(severity) / f"{name}.png")
    return tmp_path / "C"


def test_a_sound_tree_passes(tree: Path) -> None:
    (tree / "train" / ".DS_Store").write_bytes(b"x")
    result = check(tree)
    assert result.status == 0, result.err
    assert result.out.splitlines()[-1].endswith("10 images, 2 classes, all is well")
    assert "10/10" in result.err  # the bar came to its end
    assert "is DIR a folder too high?" in check(tree.parent).out
    assert check(tree / "train").status == 0  # class folders alone
    shutil.rmtree(tree / "train")
    assert check(tree).status == 0  # fit for evaluation
    (tree / "val").rename(tree / "train")
    assert "val: no such folder" in problems(tree)["empty"][0]


def test_what_does_not_decode_is_named(tree: Path) -> None:
    cut = tree / "train" / "cat" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    (tree / "val" / "dog" / "\x1b[2J\n2.jpg").write_text("not an image")
    (tree / "val" / "cat" / "link.png").symlink_to(tree / "nowhere.png")
    texts = [line.removeprefix(f"cannot read {tree}/") for line in problems(tree)["unreadable"]]
    lines = dict(text.split(":", 1) for text in texts)
    assert set(lines) == {"train/cat/0.jpg", "val/dog/\\x1b[2J\\n2.jpg", "val/cat/link.png"}
    assert "truncated" in lines["train/cat/0.jpg"]


def test_empty_misplaced_and_different(tree: Path) -> None:
    (tree / "train" / "cat" / "none.jpg").write_bytes(b"")
    (tree / "train" / "emu").mkdir()
    save(tree / "val" / "loose.jpeg")
    (tree / "train" / "dog" / "notes.txt").write_text("x")
    (tree / "train" / "dog" / "movie.gif").write_text("x")
    (tree / "README.md").write_text("x")  # above the class folders: nobody looks there
    assert problems(tree) == {
        "empty": ["train/cat/none.jpg: file without a byte",
                  "train/emu: class folder without images; fill or remove it (readable are"
                  f" {' '.join(IMAGE_EXTENSIONS)})"],
        "misplaced": [
            "train/dog: 2 files of another kind, such as movie.gif",
            "val: 1 image beside the class folders, such as loose.jpeg; put each into"
            f" {tree}/val/CLASS/",
        ],
        "different": ["class emu is in train, not in val"],
    }  # fmt: skip


def test_a_sound_imagenet_c_tree(corrupted: Path) -> None:
    shutil.copytree(corrupted / "snow", corrupted / "sleet")
    assert "60 images, 2 classes, all is well" in check(corrupted).out
    (corrupted / "weather").mkdir()
    for seed, name in enumerate(("fog", "snow")):
        (corrupted / name).rename(corrupted / "weather" / name)
        # As names of classes they mean nothing.
        save(corrupted.parent / "classes" / name / "0.png", seed)
    assert "60 images, 2 classes, all is well" in check(corrupted).out
    assert "2 images, 2 classes, all is well" in check(corrupted.parent / "classes").out


def test_severities_that_differ(corrupted: Path) -> None:
    (corrupted / "fog" / "2" / "cat" / "1.png").unlink()
    (corrupted / "snow" / "5" / "dog" / "0.png").rename(corrupted / "snow/5/dog/other.png")
    shutil.rmtree(corrupted / "fog" / "3")
    save(corrupted / "fog" / "6" / "cat" / "0.png")
    absent = [name for name in STANDARD if name not in ("fog", "snow")]
    assert problems(corrupted) == {
        "misplaced": ["fog/6: severities are 1 to 5"],
        "different": [
            f"fog/2, against the images of {corrupted}/fog/1, lacks 1, such as cat/1.png",
            f"snow/5, against the images of {corrupted}/fog/1, lacks 1, such as dog/0.png and alone"
            " has 1, such as dog/other.png",
            "fog/3 is missing",
        ],
        "note": [f"13 of the 15 corruptions are absent: {', '.join(absent)}"],
    }


def test_folders_and_images_that_count_twice(tree: Path, corrupted: Path) -> None:
    (tree / "val" / "emu").symlink_to("../train/dog")
    shutil.copytree(tree / "train" / "dog", tree / "train" / "emu")
    shutil.copy(tree / "train" / "cat" / "2.jpg", tree / "val" / "dog" / "7.jpg")
    shutil.copy(tree / "val" / "dog" / "1.jpg", tree / "val" / "cat" / "8.jpg")
    shutil.copy(tree / "val" / "cat" / "1.jpg", tree / "val" / "cat" / "9.jpg")  # the same class
    assert problems(tree) == {
        "repeated": [
            f"{tree}: one folder counts twice (val/emu is train/dog)",
            "2 images of val stand under two classes, such as val/cat/8.jpg is val/dog/1.jpg",
            "4 images of val are in train, too, such as val/dog/7.jpg is train/cat/2.jpg",
        ],
        "note": ["6 images of train stand under two classes, such as train/dog/0.jpg is"
                 " train/emu/0.jpg"],
    }  # fmt: skip
    shutil.rmtree(corrupted / "fog")
    (corrupted / "fog").symlink_to("snow")
    (twice,) = problems(corrupted)["repeated"]
    assert "(snow/1 is fog/1, snow/2 is fog/2, snow/3 is fog/3 and 2 more)" in twice


@pytest.mark.parametrize("words", [["nowhere"], [__file__], []])
def test_bad_arguments_are_one_line(words: list[str]) -> None:
    assert only_error(call("tools.check_data", *words))


@pytest.mark.slow
def test_a_process_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = save(tmp_path / "cat" / "0.jpg")
    for copy in range(1, BATCH):
        os.link(image, image.with_name(f"{copy}.jpg"))
    monkeypatch.setattr("tools.check_data.load_rgb", lambda _: os._exit(9))
    assert only_error(check(tmp_path)).startswith("a process died at its work")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interruption(tmp_path: Path, number: int) -> None:
    image = save(tmp_path / "data" / "cat" / "0.jpg", size=512)
    for copy in range(1, 4000):
        os.link(image, image.with_name(f"{copy}.jpg"))
    command = [sys.executable, "-m", "tools.check_data", str(tmp_path / "data"), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while not process.stderr.readline().startswith("reading ["):
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)  # until the last process that holds the pipe has gone
    assert process.returncode == (130 if number == signal.SIGINT else -number)


def test_names_agree_with_those_of_the_loaders() -> None:
    assert set(IMAGE_EXTENSIONS) == set(IMG_EXTENSIONS)
