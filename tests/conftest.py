"""Shared by the tests: tiny real data, and the commands run as people run them."""

import os
import shutil

# One thread: tiny networks only wait for a second one, and tests may share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT as ROOT
from tests.commands import command as command
from tests.commands import environment as environment
from tests.commands import settings as settings


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real handwritten digits, 32 px: 4 classes of 16 training and 9 validation images each."""
    from sklearn.datasets import load_digits  # which a GPU machine may lack

    root, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for label in range(4):
        numbers = np.flatnonzero(digits.target == label)
        for split, chosen in (("train", numbers[:16]), ("val", numbers[16:25])):
            folder = root / split / f"digit_{label}"
            folder.mkdir(parents=True)
            for i in chosen:
                pixels = (digits.images[i] * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).resize((32, 32)).convert("RGB").save(folder / f"{i}.png")
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy_run(folder: Path, to: Path) -> Path:
    """A copy of a folder; checkpoints are links, for they are replaced and never written into."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".pth.tar") else shutil.copy)(source, target)

    return Path(shutil.copytree(folder, to, copy_function=copy))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Where one short FreeAT + HE training has run: its run folder. Not to be written to."""
    from in_process import call

    cwd = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        done = call("main_free.py", digits, "--FN", "--WN", *settings(TRAIN__epochs=4))
    assert done.status == 0, done
    (folder,) = (cwd / "trained_models").iterdir()
    return folder


@pytest.fixture(scope="module")
def short_autoattack() -> Iterator[type]:
    """AutoAttack in fewer iterations, for whoever uses its package: the suite and tests alike.

    Returns:
        The package's own class.
    """
    package = pytest.importorskip("pyautoattack")
    original = package.AutoAttack

    class Short(original):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.apgd.n_iter = self.apgd_targeted.n_iter = 30
            self.fab.n_iter, self.square.n_queries = 10, 300

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "AutoAttack", Short)
        yield original


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: a long file at the end would keep one worker alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
