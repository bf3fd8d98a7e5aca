"""The data of `make demo`: the digits, their corruptions, and what an interruption leaves."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from PIL import Image

pytestmark = pytest.mark.slow
pytest.importorskip("imagecorruptions")

IMAGES = 12  # every class is among them
PROGRAM = f"""
from pathlib import Path
from tools.demo import write_corruptions, write_digits
write_digits(Path("digits"))
write_corruptions(Path("digits-C"), Path("digits/val"), {IMAGES})
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Make both trees in a folder."""
    # Compiling the glass blur takes longer than blurring this little without.
    alone = environment(NUMBA_DISABLE_JIT="1")
    return subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=folder, env=alone)


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
    folder = tmp_path_factory.mktemp("data")
    assert start(folder).wait(120) == 0
    return folder / "digits"


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


def test_a_killed_command_leaves_nothing_that_looks_complete(digits: Path, tmp_path: Path) -> None:
    tree, unfinished = tmp_path / "digits-C", tmp_path / ".digits-C.partial"
    process = start(tmp_path)
    while not any(unfinished.glob("*/*/*/*.png")):
        assert process.poll() is None
        time.sleep(0.01)
    (unfinished / "fog" / "9").mkdir(parents=True)  # must not be built upon
    process.kill()
    process.wait()
    assert not tree.exists()
    written = (tmp_path / "digits").stat().st_mtime_ns
    assert start(tmp_path).wait(120) == 0
    assert (tmp_path / "digits").stat().st_mtime_ns == written  # it was complete
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits", "digits-C"]
    assert contents(tmp_path) == contents(digits.parent)
