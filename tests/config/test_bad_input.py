"""Bad input to the real commands: one clear line, status 2, and nothing lost.

Checkpoints are in test_checkpoint.py, flags and configurations in test_command_line.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import settings
from in_process import call, only_error, room_for
from PIL import Image

from utils.storage.checkpoint import is_whole

SHORT = settings(TRAIN__epochs=2)  # one pass


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def data(digits: Path, here: Path) -> Path:
    """A copy of the digits, to be spoilt."""
    return Path(shutil.copytree(digits, "data"))


def refused(*arguments: object, script: str = "main_free.py") -> str:
    """What a command says that refuses its input, having left nothing behind."""
    message = only_error(call(script, *arguments))
    assert not Path("trained_models").exists()
    return message


def empty(folder: Path) -> None:
    """A folder without its content."""
    shutil.rmtree(folder)
    folder.mkdir()


def flatten(split: Path) -> None:
    """Its images without class folders."""
    for image in list(split.glob("*/*")):
        image.rename(split / image.name)
    for folder in list(split.iterdir()):
        if folder.is_dir():
            folder.rmdir()


def empty_classes(split: Path) -> None:
    """Four more classes, one of them with a file that is no photograph."""
    for name in ("dog", "eel", "fox", "gnu"):
        (split / name).mkdir()
    (split / "dog" / "1.gif").touch()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["no folder data; give the data set's folder as DIR"]),
        (lambda d: shutil.rmtree(d / "train"), ["data has no folder train", "data/train/CLASS/"]),
        (lambda d: shutil.rmtree(d / "val"), ["data has no folder val", "data/val/CLASS/"]),
        (lambda d: empty(d / "train"), ["no class folders", "put the images into data/train/CLAS"]),
        (lambda d: empty_classes(d / "train"),
         ["data/train: no images in class folder dog, eel, fox and 1 more", ".jpg .jpeg .png",
          "fill or remove it"]),
        (lambda d: flatten(d / "val"),
         ["holds 36 images such as", "no class folders; move each image into data/val/CLASS/"]),
        (lambda d: (d / "val/digit_3").rename(d / "val/three"),
         ["class digit_3 is in data/train and not in data/val", "need the same class folders"]),
        (lambda d: (shutil.copytree(d / "val/digit_3", d / "val/x")),
         ["class x is in data/val and not in data/train"]),
    ],
)  # fmt: skip
def test_trees_of_images(spoil: Callable[[Path], object], words: list[str], data: Path) -> None:
    spoil(data)
    message = refused("data", *SHORT)
    assert all(text in message for text in words), message


def test_evaluation_of_a_flat_folder(data: Path, trained: Path) -> None:
    flatten(data / "val")
    evaluation = ("data", "-e", "--resume", trained / "model_best.pth.tar")
    message = refused(*evaluation, *SHORT, script="evaluate.py")
    assert "move each image into data/val/CLASS/" in message


def test_default_folder_that_is_not_there() -> None:
    assert "no folder data/ImageNet; give the data set as DIR" in refused(*SHORT)


# Images


def truncated_jpeg(path: Path) -> None:
    """Half a photograph."""
    Image.radial_gradient("L").convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def text_file(path: Path) -> None:
    """No photograph at all."""
    path.write_text("I am a text file.\n")


def spoil(folder: Path, make: Callable[[Path], None]) -> Path:
    """Put `bad.jpg` in the place of one image of a class."""
    next(folder.iterdir()).unlink()
    make(folder / "bad.jpg")
    return folder / "bad.jpg"


@pytest.mark.parametrize(
    ("make", "workers", "reason"),
    [(truncated_jpeg, 2, "image file is truncated"), (text_file, 0, "it is not an image")],
)
def test_unreadable_training_image(
    make: Callable[[Path], None], workers: int, reason: str, data: Path, capfd: Any
) -> None:
    spoil(data / "train" / "digit_1", make)
    changed = settings(TRAIN__epochs=2, DATA__workers=workers)
    message = only_error(call("main_free.py", "data", *changed))
    assert message.startswith("cannot read data/train/digit_1/bad.jpg: ")
    assert reason in message
    assert message.endswith("; replace or remove it")
    assert capfd.readouterr().err == ""  # no traceback of a worker


@pytest.mark.slow
def test_unreadable_validation_image_loses_nothing(data: Path) -> None:
    bad = spoil(data / "val" / "digit_1", text_file)
    arguments = settings(TRAIN__epochs=2, DATA__workers=2)
    message = only_error(call("main_free.py", data, *arguments))
    assert message == f"cannot read {bad}: it is not an image; replace or remove it"
    (folder,) = Path("trained_models").iterdir()
    assert is_whole(folder / "checkpoint.pth.tar")  # the pass before validation
    bad.unlink()
    done = call("main_free.py", data, *arguments, "--resume", "auto")
    assert done.status == 0, done.err
    assert "epoch 1, minibatch 4" in done.out
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


def test_unreadable_image_in_an_evaluation(data: Path, trained: Path) -> None:
    bad = spoil(data / "val" / "digit_1", truncated_jpeg)
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    evaluation = (data, "-e", "--resume", "model_best.pth.tar", *SHORT)
    message = only_error(call("evaluate.py", *evaluation))
    assert message.startswith(f"cannot read {bad}: image file is truncated")


# The machine


def test_a_single_image_in_a_minibatch(digits: Path) -> None:
    message = refused(digits, *settings(DATA__batch_size=21))
    assert "a minibatch has a single image" in message
    assert "choose another DATA.batch_size" in message


def test_device_that_is_not_there(digits: Path) -> None:
    message = refused(digits, *SHORT, "--device", "cuda:99")
    assert "--device cuda:99: there is none here; use --device auto" in message


def test_output_folder_that_cannot_be_made(digits: Path) -> None:
    Path("trained_models").write_text("a file of that name")
    message = only_error(call("main_free.py", digits, *SHORT))
    assert message.startswith("cannot write to trained_models/resnet18_free_adv_step16")
    assert "run from a folder that is writable" in message
    assert Path("trained_models").read_text() == "a file of that name"


def test_checkpoint_in_a_folder_that_cannot_be_written(
    digits: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    best = trained / "model_best.pth.tar"
    message = only_error(call("evaluate.py", digits, "-e", "--resume", best, *SHORT))
    assert message.startswith(f"cannot write to {trained}: Read-only file system")
    assert "results go beside the checkpoint: copy it to where you can write" in message


def test_full_disk_while_evaluating(digits: Path, trained: Path) -> None:
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    evaluation = (digits, "-e", "--resume", "model_best.pth.tar", "--attack", "pgd1", *SHORT)
    with room_for(300):
        message = only_error(call("evaluate.py", *evaluation))
    assert message.startswith("cannot write attack_standard_pgd1.rank0of1.jsonl: File too large")
