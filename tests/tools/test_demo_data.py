"""`python -m tools.demo_data`: the digits, their corruptions, and what an interruption leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from tools.demo_data import main

pytestmark = pytest.mark.slow
pytest.importorskip("imagecorruptions")

# Compiling the glass blur takes each process longer than blurring this little without.
ENVIRONMENT = os.environ | {"NUMBA_DISABLE_JIT": "1"}
IMAGES = 12  # every class is among them


def start(folder: Path, workers: int) -> subprocess.Popen[str]:
    """The command, which makes a digits-C of a few images."""
    words = [str(folder), "--corruptions", "--images", str(IMAGES), "--workers", str(workers)]
    command = [sys.executable, "-m", "tools.demo_data", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)


def finish(process: subprocess.Popen[str]) -> int:
    """The exit status, once the last process that holds the pipes has gone."""
    process.communicate(timeout=120)
    return process.returncode


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def images(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
        return np.array(image)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert finish(start(folder, workers=1)) == 0
    return folder


def test_every_digit_is_there_once_and_split_evenly(digits: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    train, val = images(digits / "train"), images(digits / "val")
    for label, count in enumerate(np.bincount(data.target)):
        assert sum(name.startswith(f"{label}/") for name in val) == count // 5
    assert sorted(name[2:] for name in train + val) == [f"{i:04d}.png" for i in range(1797)]
    for name in train + val:
        assert data.target[int(name[2:6])] == int(name[0])
    for name in val[::29]:
        image = pixels(digits / "val" / name).astype(float)
        assert np.ptp(image, axis=2).max() == 0  # grey
        blocks = image[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.corrcoef(blocks.ravel(), data.images[int(name[2:6])].ravel())[0, 1] > 0.95
        assert image.max() > 200


def test_corruptions_are_the_packages(digits: Path) -> None:
    from imagecorruptions import corrupt, get_corruption_names

    tree, names = digits.with_name("digits-C"), get_corruption_names("common")
    assert {path.name for path in tree.iterdir() if path.is_dir()} == set(names)
    chosen = images(tree / "fog" / "1")
    assert len(chosen) == IMAGES
    assert set(chosen) <= set(images(digits / "val"))
    assert len({name[0] for name in chosen}) == 10  # evenly spread: every class
    for name in names:
        for severity in range(1, 6):
            assert images(tree / name / str(severity)) == chosen
    for name in ("contrast", "pixelate", "jpeg_compression", "brightness"):  # nothing random
        for severity in (1, 5):
            expected = corrupt(pixels(digits / "val" / chosen[3]), severity, name)
            actual = pixels(tree / name / str(severity) / chosen[3])
            np.testing.assert_array_equal(actual, expected)
    clean = [pixels(digits / "val" / name).astype(float) for name in chosen[:2]]
    noisy = [pixels(tree / "gaussian_noise" / "5" / name) for name in chosen[:2]]
    one, other = np.sign(np.array(noisy) - clean)
    assert (one == other).mean() < 0.8  # every image has noise of its own


def test_what_is_complete_or_another_tree_is_left_alone(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in digits.parent.rglob("*")}
    assert main([str(digits), "--corruptions", "--images", str(IMAGES)]) == 0
    assert capsys.readouterr().out.count("already complete") == 2
    (tmp_path / "photo.png").write_bytes(b"mine")
    other_settings = [str(digits), "--corruptions", "--images", str(IMAGES + 1)]
    for arguments in ([str(tmp_path)], other_settings):
        assert main(arguments) == 2
        assert "not made by this command with these settings" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    assert stamps == {path: path.stat().st_mtime_ns for path in digits.parent.rglob("*")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_tree_never_counts_as_complete(
    digits: Path, tmp_path: Path, number: int
) -> None:
    folder, tree, partial = (tmp_path / n for n in ("digits", "digits-C", ".digits-C.partial"))
    shutil.copytree(digits, folder)
    process = start(folder, workers=1)
    while not any(partial.glob("*/*/*/*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    (partial / "fog" / "9").mkdir(parents=True)  # must not be built upon
    process.send_signal(number)
    assert finish(process) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert not tree.exists()
    assert partial.exists() == (number == signal.SIGKILL)
    if partial.exists():
        # Two processes, in another order than the one of the first time: the same bytes.
        assert finish(start(folder, workers=2)) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "digits-C"]
        assert contents(tree) == contents(digits.with_name("digits-C"))
