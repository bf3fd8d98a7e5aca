"""One run, one folder: found again, repeated, and never replaced silently; whole files."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import copy_run, environment, settings
from in_process import call, only_error, user_error

from utils.errors import UserError
from utils.storage import run_folder
from utils.storage.checkpoint import read_checkpoint
from utils.storage.files import atomic_write, file_sha256, replacing, write_json
from utils.storage.run_folder import CHECKPOINTS, LATEST, claim, find_checkpoint, lock_folder


@pytest.fixture
def again(trained: Path, here: Path) -> Path:
    """The trained run in a folder of its own, to go on with."""
    return copy_run(trained, here / "trained_models" / trained.name)


def make_files(*names: str) -> None:
    """Empty files, and their folders."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_resume_takes_a_path_as_given_else_under_trained_models(here: Path) -> None:
    inside = "trained_models/run/model_best.pth.tar"
    (here / inside).parent.mkdir(parents=True)
    assert user_error(find_checkpoint, "run").endswith("is a folder, not a checkpoint")
    make_files(inside, "trained_models/run/checkpoint.pth.tar")
    assert user_error(find_checkpoint, "run").endswith(f"give {inside}")
    assert f", {inside}" in user_error(find_checkpoint, "run/other.pth")
    assert find_checkpoint("run/model_best.pth.tar") == find_checkpoint(inside) == inside
    make_files("run/model_best.pth.tar")
    assert find_checkpoint("run/model_best.pth.tar") == "run/model_best.pth.tar"


# A run is never replaced silently


@pytest.mark.parametrize(
    "file",
    [*CHECKPOINTS, "metrics.csv", "gradient_norms.csv", "attack_paper_n100_images.csv",
     "imagenet_c_freeat.json", "shift_standard.json", "unfinished_1a2b3c4d.rank0.jsonl"],
)  # fmt: skip
def test_whatever_took_work_makes_a_run(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("kept")
    message = user_error(claim, tmp_path, resumed=False, overwrite=False)
    assert f"{tmp_path} already holds a run" in message
    claim(tmp_path, resumed=True, overwrite=False).close()
    assert (tmp_path / file).read_text() == "kept"


def test_overwrite_removes_the_run_and_nothing_else(here: Path) -> None:
    written = [*CHECKPOINTS, "config.yml", "log.txt", "metrics.csv", "training_curves.png", "a.pdf",
               "attack_standard.json", "attack_standard_images.csv", "imagenet_c_standard.csv",
               "shift_standard.json", "attack_standard_images/000_original.png",
               ".checkpoint.pth.tar.abcd1234", ".metrics.csv.abcd1234"]  # fmt: skip
    make_files(*written, "notes.txt", "mine/thoughts.md")
    claim(here, resumed=False, overwrite=True).close()
    left = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert left == [".lock", "mine/thoughts.md", "notes.txt"]


def test_a_start_that_failed_is_no_run(tmp_path: Path) -> None:
    """What killed trainings have left of half a file is removed, and nothing else."""
    kept = ["config.yml", "log.txt", ".notes.abcd1234", ".attack_standard.json.abcd1234"]
    halves = [*CHECKPOINTS, "metrics.csv", "training_curves.pdf"]
    for name in (*kept, *(f".{name}.abcd1234" for name in halves)):
        (tmp_path / name).touch()
    claim(tmp_path, resumed=False, overwrite=False).close()
    assert sorted(os.listdir(tmp_path)) == sorted([".lock", *kept])


def test_training_does_not_replace_or_resume_another_run(digits: Path, again: Path) -> None:
    before = {path.name: file_sha256(path) for path in again.iterdir()}
    words = ("main_free.py", digits, "--FN", "--WN", *settings(DATA__crop_size=24))
    message = only_error(call(*words))
    assert f"trained_models/{again.name} already holds a run" in message
    assert "DATA.crop_size 32, now 24" in only_error(call(*words, "--resume", "auto"))
    assert {path.name: file_sha256(path) for path in again.iterdir()} == before


def test_what_a_training_saves_at_its_end_is_resumed(
    digits: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is requeued starts while the one before still saves, and waits for its lock."""
    (again / LATEST).rename("saved")

    def save_then_lock(folder: Path) -> Any:
        Path("saved").rename(folder / LATEST)
        return lock_folder(folder)

    monkeypatch.setattr("lib.training.run.lock_folder", save_then_lock)
    words = ("--FN", "--WN", "--resume", "auto", *settings(TRAIN__epochs=4))
    done = call("main_free.py", digits, *words)
    assert (done.status, done.err) == (0, "")
    assert f"resumed trained_models/{again.name}/{LATEST}" in done.out


HOLDER = """
import os, sys, time
from pathlib import Path
from utils.storage.run_folder import lock_folder
lock = lock_folder(Path(sys.argv[1]))
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_one_training_in_a_folder_at_a_time(
    digits: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by SIGKILL, it leaves no lock, although a forked worker outlives it."""
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.0)
    words = ("main_free.py", digits, "--FN", "--WN", *settings(TRAIN__epochs=6))
    other = [sys.executable, "-c", HOLDER, str(again)]
    with subprocess.Popen(other, env=environment(), stdout=subprocess.PIPE, text=True) as holder:
        worker = int(holder.stdout.readline())
        for flag in (("--resume", "auto"), ("--overwrite",)):
            message = only_error(call(*words, *flag))
            assert message.startswith(f"another training is at work in trained_models/{again.name}")
        holder.kill()
        holder.wait()
        try:
            lock_folder(again).close()
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.slow
def test_config_yml_repeats_the_run(trained: Path, here: Path) -> None:
    done = call("main_free.py", "-c", trained / "config.yml")
    assert done.status == 0, done.err
    repeated = here / "trained_models" / trained.name
    first, second = (read_checkpoint(str(run / LATEST)).state_dict for run in (repeated, trained))
    assert all(torch.equal(first[key], second[key]) for key in first | second)
    texts = [(run / "config.yml").read_text().splitlines() for run in (repeated, trained)]
    assert texts[0][1:] == texts[1][1:]  # the first line is the command
    images = "attack_standard_images.csv"
    assert (repeated / images).read_text() == (trained / images).read_text()


@pytest.mark.slow
def test_a_finished_run_is_resumed_and_left_as_it_is(digits: Path, again: Path) -> None:
    content = (again / LATEST).read_bytes()
    words = (digits, "--FN", "--WN", "--resume", "auto", *settings(TRAIN__epochs=4))
    done = call("main_free.py", *words)
    assert done.status == 0, done.err
    assert f"resumed trained_models/{again.name}/checkpoint.pth.tar" in done.out
    assert (again / LATEST).read_bytes() == content


def test_resume_auto_in_evaluation_takes_the_best(digits: Path, again: Path) -> None:
    arguments = (digits, "-e", "--FN", "--WN", "--resume", "auto", "--n_examples", "4")
    done = call("evaluate.py", *arguments, "--attack", "pgd1", *settings())
    assert done.status == 0, done.err
    assert f"trained_models/{again.name}/model_best.pth.tar: resnet18, FN, WN" in done.out


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space"), UserError, "cannot write PATH: No space;"),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    ],
)
def test_a_failed_write_leaves_the_old_file(
    error: Exception, expected: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    atomic_write(path, "old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half of the new")
            raise error

    with pytest.raises(expected, match=re.escape(message.replace("PATH", str(path)))):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.json") as one, replacing(tmp_path / "a.json") as other:
        one.write(b"first, whole")
        other.write(b"second")
    assert (tmp_path / "a.json").read_text() == "first, whole"
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_holds_no_nan_and_files_have_ordinary_permissions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []
    mask = os.umask(0o027)
    try:
        write_json(tmp_path / "file", {})
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
