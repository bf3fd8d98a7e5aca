"""Bad input to the real commands: one clear line, status 2, and nothing lost.

Checkpoints are in test_checkpoint.py, flags and configurations in test_command_line.py.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

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


def flatten(split: Path) -> None:
    """Its images without class folders."""
    for image in list(split.glob("*/*")):
        image.rename(split / image.name)
    for folder in list(split.iterdir()):
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, ["no folder data", "DIR"]),
        (lambda d: shutil.rmtree(d / "train"), ["no folder train", "data/train/CLASS/"]),
        (lambda d: shutil.rmtree(d / "val"), ["no folder val", "data/val/CLASS/"]),
        (lambda d: [shutil.rmtree(c) for c in (d / "train").iterdir()], ["no class folders"]),
        (lambda d: [(d / "train" / name).mkdir() for name in ("dog", "eel", "fox", "gnu")],
         ["train/dog: class folder without images", ".jpg .jpeg .png", "3 more"]),
        (lambda d: flatten(d / "val"), ["holds 36 images", "no class folders", "data/val/CLASS/"]),
        (lambda d: (d / "val/digit_3").rename(d / "val/three"), ["class digit_3", "data/val"]),
        (lambda d: shutil.copytree(d / "val/digit_3", d / "val/x"), ["class x", "data/train"]),
    ],
)  # fmt: skip
def test_trees_of_images(spoil: Callable[[Path], object], words: list[str], data: Path) -> None:
    spoil(data)
    message = refused("data", *SHORT)
    assert all(text in message for text in words), message


def test_a_last_minibatch_of_one_image(digits: Path) -> None:
    message = refused(digits, *SHORT, *settings(DATA__batch_size=21))
    assert "choose another DATA.batch_size" in message


def spoil(folder: Path) -> Path:
    """Put half a photograph, `bad.jpg`, in the place of one image of a class."""
    next(folder.iterdir()).unlink()
    path = folder / "bad.jpg"
    Image.radial_gradient("L").convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def test_unreadable_training_image(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = spoil(data / "train" / "digit_1")
    message = only_error(call("main_free.py", data, *settings(TRAIN__epochs=2, DATA__workers=2)))
    assert message.startswith(f"cannot read {bad}: image file is truncated")
    assert capfd.readouterr().err == ""  # no traceback of a worker


@pytest.mark.slow
def test_unreadable_validation_image_loses_nothing(data: Path) -> None:
    bad = spoil(data / "val" / "digit_1")
    arguments = settings(TRAIN__epochs=2, DATA__workers=2)
    assert f"cannot read {bad}" in only_error(call("main_free.py", data, *arguments))
    (folder,) = Path("trained_models").iterdir()
    assert is_whole(folder / "checkpoint.pth.tar")  # the pass before validation
    evaluation = ("evaluate.py", data, "-e", "--resume", folder / "checkpoint.pth.tar")
    assert f"cannot read {bad}" in only_error(call(*evaluation, *arguments))
    bad.unlink()
    done = call("main_free.py", data, *arguments, "--resume", "auto")
    assert done.status == 0, done.err
    assert "epoch 1, minibatch 4" in done.out
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


def test_output_folder_that_cannot_be_made(digits: Path) -> None:
    Path("trained_models").write_text("a file of that name")
    message = only_error(call("main_free.py", digits, *SHORT))
    assert message.startswith("cannot write to trained_models/resnet18_free_adv_step16")
    assert Path("trained_models").read_text() == "a file of that name"


def test_checkpoint_in_a_folder_that_cannot_be_written(
    digits: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    best = trained / "model_best.pth.tar"
    message = only_error(call("evaluate.py", digits, "-e", "--resume", best, *SHORT))
    assert message.startswith(f"cannot write to {trained}: Read-only file system; choose another")
    assert message.endswith("--output DIR")


def test_full_disk_while_evaluating(digits: Path, trained: Path) -> None:
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    evaluation = (digits, "-e", "--resume", "model_best.pth.tar", "--attack", "pgd1", *SHORT)
    with room_for(300):
        message = only_error(call("evaluate.py", *evaluation))
    assert re.match(r"cannot write unfinished_\w{8}\.rank0\.jsonl: File too large", message)
