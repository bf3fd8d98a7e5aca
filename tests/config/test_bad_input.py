"""Bad input to the real commands: one clear line, status 2, and nothing lost.

Checkpoints are in test_checkpoint.py, flags and configurations in test_command_line.py.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Run, settings
from in_process import call, only_error
from PIL import Image

from utils.storage.checkpoint import is_whole
from utils.storage.files import file_sha256

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


# Folders


def test_missing_data() -> None:
    assert "no folder nowhere" in refused("nowhere", *SHORT)
    message = refused(*SHORT)  # the default of configs.yml
    assert "no folder data/ImageNet; give the data set as DIR, or set DATA.imagenet" in message


def test_empty_data() -> None:
    Path("data").mkdir()
    assert "data has no folder train; put the images into data/train/CLASS/" in refused("data")
    Path("data/train").mkdir()
    assert "no class folders; put the images into data/train/CLASS/" in refused("data")


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split(split: str, data: Path) -> None:
    shutil.rmtree(data / split)
    assert f"data has no folder {split}; put the images into" in refused(data, *SHORT)


def test_empty_class_folder(data: Path) -> None:
    for image in (data / "train" / "digit_2").iterdir():
        image.unlink()
    message = refused(data, *SHORT)
    assert "data/train: no images in class folder digit_2; fill or remove it" in message


def test_flat_val_says_how_to_mend(data: Path, trained: Path) -> None:
    for folder in (data / "val").iterdir():
        for image in folder.iterdir():
            image.rename(data / "val" / image.name)
        folder.rmdir()
    mend = "no class folders; move each image into data/val/CLASS/"
    assert mend in refused(data, *SHORT)
    evaluation = (data, "-e", "--resume", trained / "model_best.pth.tar")
    assert mend in refused(*evaluation, *SHORT, script="evaluate.py")


def test_classes_that_differ(data: Path) -> None:
    (data / "val" / "digit_3").rename(data / "val" / "three")
    message = refused(data, *SHORT)
    assert "class digit_3 is in data/train and not in data/val" in message
    assert "both need the same class folders" in message


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "workers", "reason"),
    [(truncated_jpeg, 2, "image file is truncated"), (text_file, 0, "it is not an image")],
)
def test_unreadable_training_image(
    make: Callable[[Path], None], workers: int, reason: str, data: Path, run: Run
) -> None:
    spoil(data / "train" / "digit_1", make)
    done = run("main_free.py", "data", *settings(TRAIN__epochs=2, DATA__workers=workers))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read data/train/digit_1/bad.jpg: ")
    assert done.stderr.count("\n") == 1  # no traceback, of a worker neither
    assert reason in done.stderr
    assert done.stderr.endswith("; replace or remove it\n")


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
    bad.unlink()
    assert call("evaluate.py", *evaluation, "--attack", "pgd1").status == 0


@pytest.mark.slow
def test_images_of_every_mode_train(data: Path) -> None:
    for split in ("train", "val"):
        images = sorted((data / split).glob("*/*.png"))
        for path, mode in zip(images[::3], ["L", "CMYK", "P", "RGBA", "LA", "1"], strict=False):
            image = Image.open(path).convert(mode)
            path.unlink()
            image.save(path.with_suffix(".jpg" if mode == "CMYK" else ".png"))
            saved = path.with_suffix(".jpg" if mode == "CMYK" else ".png")
            assert Image.open(saved).mode == mode
    done = call("main_free.py", data, *SHORT, "--attack", "pgd1")
    assert (done.status, done.err) == (0, "")
    assert "on 64 images of 4 classes" in done.out


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


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond this many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
def test_full_disk_while_saving_keeps_the_checkpoints(digits: Path, trained: Path) -> None:
    folder = Path("trained_models", trained.name)
    folder.mkdir(parents=True)
    kept = ("checkpoint.pth.tar", "checkpoint.previous.pth.tar", "model_best.pth.tar")
    for name in kept:
        os.link(trained / name, folder / name)  # a link will do: they are replaced, not changed
    before = {name: file_sha256(folder / name) for name in kept}
    longer = (digits, "--FN", "--WN", "--resume", "auto", *settings(TRAIN__epochs=6))
    with room_for(1_000_000):
        message = only_error(call("main_free.py", *longer))
    assert message.startswith(f"cannot write {folder}/checkpoint.pth.tar: File too large; free")
    assert {name: file_sha256(folder / name) for name in kept} == before
    assert not list(folder.glob(".*"))
    done = call("main_free.py", *longer)  # once there is room again
    assert done.status == 0, done.err
    assert "epoch 3/3" in done.out
    assert is_whole(folder / "checkpoint.pth.tar")


def test_full_disk_while_evaluating(digits: Path, trained: Path) -> None:
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    evaluation = (digits, "-e", "--resume", "model_best.pth.tar", "--attack", "pgd1", *SHORT)
    with room_for(300):
        message = only_error(call("evaluate.py", *evaluation))
    assert message.startswith("cannot write attack_standard_pgd1.rank0of1.jsonl: File too large")
    done = call("evaluate.py", *evaluation)
    assert done.status == 0, done.err
    assert Path("attack_standard_pgd1.json").exists()
