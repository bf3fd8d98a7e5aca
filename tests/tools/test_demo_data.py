"""`python -m tools.demo_data`: the digits, their corruptions, and what an interruption leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.demo_data import main

pytestmark = pytest.mark.slow
pytest.importorskip("imagecorruptions")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tools.demo_data"]
# Compiling the glass blur takes each process longer than blurring this little without.
ENVIRONMENT = os.environ | {"NUMBA_DISABLE_JIT": "1"}
IMAGES = 12  # every class is among them


def make(*arguments: object) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def digest(folder: Path) -> str:
    """Of every file's path and bytes."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def images(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """The digits and a digits-C of a few images, made by one process."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    result = make(folder, "--corruptions", "--images", IMAGES, "--workers", 1)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_digit_is_there_once_and_split_evenly(digits):
    from sklearn.datasets import load_digits

    data = load_digits()
    train, val = images(digits / "train"), images(digits / "val")
    assert len(train) + len(val) == 1797
    assert not {Path(name).name for name in train} & {Path(name).name for name in val}
    per_class = Counter(data.target.tolist())
    for label, count in per_class.items():
        assert sum(name.startswith(f"{label}/") for name in val) == count // 5
    for name in [*train, *val]:
        label, number = name.removesuffix(".png").split("/")
        assert data.target[int(number)] == int(label)


def test_pictures_show_the_scans(digits):
    from sklearn.datasets import load_digits

    data = load_digits()
    for name in images(digits / "val")[::29]:
        with Image.open(digits / "val" / name) as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
            pixels = np.asarray(image, dtype=float)
        assert np.ptp(pixels, axis=2).max() == 0  # grey
        blocks = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
        scan = data.images[int(Path(name).stem)].ravel()
        assert np.corrcoef(blocks.ravel(), scan)[0, 1] > 0.95
        assert pixels.max() > 200


def test_corruptions_are_the_packages(digits):
    from imagecorruptions import corrupt, get_corruption_names

    tree = digits.with_name("digits-C")
    names = get_corruption_names("common")
    assert {path.name for path in tree.iterdir() if path.is_dir()} == set(names)
    chosen = images(tree / "fog" / "1")
    assert len(chosen) == IMAGES
    assert set(chosen) <= set(images(digits / "val"))
    assert len({name.split("/")[0] for name in chosen}) == 10  # evenly spread: every class
    for name in names:
        for severity in range(1, 6):
            assert images(tree / name / str(severity)) == chosen
    for name in ("contrast", "pixelate", "jpeg_compression", "brightness"):  # nothing random
        for severity in (1, 5):
            with Image.open(digits / "val" / chosen[3]) as image:
                expected = corrupt(np.array(image), severity, name)
            with Image.open(tree / name / str(severity) / chosen[3]) as image:
                np.testing.assert_array_equal(np.array(image), expected)


def test_severity_grows_and_every_image_has_noise_of_its_own(digits):
    tree = digits.with_name("digits-C")
    chosen = images(tree / "fog" / "1")

    def change(corruption: str, severity: int, name: str) -> np.ndarray:
        with Image.open(tree / corruption / str(severity) / name) as image:
            corrupted = np.array(image, dtype=float)
        with Image.open(digits / "val" / name) as image:
            return corrupted - np.array(image, dtype=float)

    for corruption in ("gaussian_noise", "impulse_noise", "contrast", "pixelate"):
        sizes = [
            np.mean([np.abs(change(corruption, severity, name)).mean() for name in chosen])
            for severity in (1, 3, 5)
        ]
        assert sizes[0] < sizes[1] < sizes[2], corruption
    one, other = (np.sign(change("gaussian_noise", 5, name)) for name in chosen[:2])
    assert (one == other).mean() < 0.8


def test_what_is_complete_is_left_alone(digits, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert main([str(digits), "--corruptions", "--images", str(IMAGES)]) == 0
    assert capsys.readouterr().out.count("already complete") == 2
    assert stamps == {path: path.stat().st_mtime_ns for path in digits.rglob("*")}


def test_other_trees_are_not_touched(digits, tmp_path, capsys):
    """Somebody else's, and ours with other settings."""
    (tmp_path / "photo.png").write_bytes(b"mine")
    corrupted = [str(digits), "--corruptions", "--images", str(IMAGES + 1)]
    for arguments in ([str(tmp_path)], corrupted):
        assert main(arguments) == 2
        assert "not made by this command with these settings" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_tree_never_counts_as_complete(digits, tmp_path, number):
    folder, tree = tmp_path / "digits", tmp_path / "digits-C"
    shutil.copytree(digits, folder)
    interrupt(folder, tmp_path / ".digits-C.partial", number)
    assert not tree.exists()
    left_over = sorted(path.name for path in tmp_path.iterdir())
    if number == signal.SIGINT:
        assert left_over == ["digits"]
        return
    assert left_over == [".digits-C.partial", "digits"]
    result = make(folder, "--corruptions", "--images", IMAGES, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "digits-C"]
    # Two processes, in another order than the one of the first time: the same bytes.
    assert digest(tree) == digest(digits.with_name("digits-C"))


def interrupt(folder: Path, partial: Path, number: int) -> None:
    """Send a signal as soon as corrupted images are written, and wait for every process's end."""
    command = [*COMMAND, str(folder), "--corruptions", "--images", str(IMAGES), "--workers", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes)
    while not any(partial.glob("*/*/*/*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    (partial / "fog" / "9").mkdir(parents=True)  # must not be built upon
    process.send_signal(number)
    process.communicate(timeout=20)  # ends when the last process that holds the pipes has gone
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
