"""Trainings that are killed, signalled and damaged, against one that nothing happens to."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import settings
from processes import Done, differences, forked, outcome, script, the_run

from utils.distributed.signals import (
    SignalRequests,
    StoppedAtOnce,
    handling,
    stopping_at_once,
)
from utils.storage.checkpoint import is_whole

pytestmark = pytest.mark.slow

# Seven minibatches a pass, two passes; the last one of a pass is smaller. Every column filled.
SETTINGS = settings(
    TRAIN__epochs=4, TRAIN__select="pgd", TRAIN__select_examples=8, DATA__batch_size=10
)
ALWAYS = ("--set", "TRAIN.checkpoint_minutes=1e-9")  # a checkpoint after every minibatch
LATEST = "checkpoint.pth.tar"


def arguments(data: Path, *more: object) -> list[object]:
    return [data, "--FN", "--WN", "--print_gradients", *SETTINGS, *more]


def state_of(folder: Path, name: str = LATEST) -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)["training"]


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a training that nothing happens to; it reads in line."""
    cwd = tmp_path_factory.mktemp("whole")
    with forked("main_free.py", *arguments(digits), cwd=cwd) as running:
        done = running.end()
    assert done.status == 0, done
    found = outcome(the_run(cwd))
    assert len(found["metrics.csv"]) == 2
    assert len(found["gradient_norms.csv"]) == 2 * (61 + 3)  # parameters, groups
    assert all(row["val_pgd_top1"] for row in found["metrics.csv"])
    assert found["noise"].abs().max() == pytest.approx(16 / 255)
    return found


def finish(data: Path, cwd: Path, *more: object) -> Done:
    """Resume and train to the end."""
    with forked("main_free.py", *arguments(data, "--resume", "auto", *more), cwd=cwd) as running:
        done = running.end()
    assert done.status == 0, done
    return done


# Killed


def test_kill_9_at_random_instants(digits: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    """Killed three times and resumed, with 0 and 2 workers in turn: the same to the last bit."""
    chance = random.Random(int(os.environ.get("SEED", 0)))
    places = []
    for attempt in range(3):
        words = arguments(digits, "--resume", "auto", *ALWAYS)
        words += ["--set", f"DATA.workers={2 * (attempt % 2)}"]
        with forked("main_free.py", *words, cwd=tmp_path) as running:
            running.saw(r"epoch \d/2 \[\d/7\]", times=chance.randint(1, 4))
            time.sleep(chance.uniform(0, 0.5))  # in a step or while a file is being written
            running.send(signal.SIGKILL)
            assert running.end().status == -signal.SIGKILL
        state = state_of(the_run(tmp_path))
        places.append((state["epoch"], state["position"]))
    assert places == sorted(places)  # every start goes on from where the one before had come to
    assert places[0] < (1, 7)
    done = finish(digits, tmp_path, "--set", "DATA.workers=2")
    assert "resumed trained_models" in done.out
    assert differences(outcome(the_run(tmp_path)), whole) == []
    assert not [p.name for p in the_run(tmp_path).iterdir() if p.name.endswith(".jsonl")]


def make_fifos(folder: Path) -> None:
    """Images that no reader comes to the end of, as on a disk that does not answer."""
    for path in folder.glob("*/*.png"):
        os.mkfifo(path.with_suffix(".fifo"))
        path.with_suffix(".fifo").replace(path)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_is_answered_while_images_are_waited_for(
    processes: int, digits: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    words = arguments(data, "--nproc", processes, "--set", f"DATA.workers={2 * processes}")
    start = forked if processes == 1 else script
    with start("main_free.py", *words, cwd=tmp_path) as running:
        running.saw(r"epoch 1/2 \[1/7\]")
        make_fifos(data / "train")  # after which what has been read ahead is trained on
        running.saw("epoch 1/2: train loss" if processes == 1 else r"\[4/7\]")
        time.sleep(3)
        done = running.send(signal.SIGTERM).end()
    assert done.status == 143, done
    assert done.err == ""
    assert "stopped by SIGTERM; saved" in done.out
    state = state_of(the_run(tmp_path))
    if processes == 2:
        assert state["epoch"] == 0
        assert f"[{state['position']}/7]" in done.out
        assert f"[{state['position'] + 1}/7]" not in done.out
    else:
        assert (state["epoch"], state["position"]) == (1, 0)
        finish(digits, tmp_path)
        assert differences(outcome(the_run(tmp_path)), whole) == []


def test_a_reader_that_is_killed_ends_the_training_in_one_line(
    digits: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    with script(
        "main_free.py", *arguments(data, "--set", "DATA.workers=1"), cwd=tmp_path
    ) as running:
        running.saw(r"epoch 1/2 \[1/7\]")
        make_fifos(data / "train")
        running.saw(r"\[4/7\]")
        for child in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        done = running.end()
    assert done.status == 2, done
    assert re.fullmatch("error: a process that reads images was killed by SIGKILL.*\n", done.err)


def test_gradients_do_not_change_the_training(
    digits: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    with forked("main_free.py", digits, "--FN", "--WN", *SETTINGS, cwd=tmp_path) as running:
        assert running.end().status == 0
    without = outcome(the_run(tmp_path))
    assert "gradient_norms.csv" not in without
    rest = {key: value for key, value in whole.items() if key != "gradient_norms.csv"}
    assert differences(without, rest) == []


# Signals and damage


def test_signals_save_in_the_middle_of_a_pass(
    digits: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """USR1 saves and goes on, TERM and INT save and stop; a damaged file is passed over."""
    words = arguments(digits, "--resume", "auto")
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        running.saw(r"\[2/7\]")
        folder = the_run(tmp_path)
        assert not (folder / LATEST).exists()  # the next one is due in ten minutes
        running.send(signal.SIGUSR1).saw(r"\[5/7\]")
        assert 2 <= state_of(folder)["position"] < 6
        done = running.send(signal.SIGTERM).end()
    assert done.status == 143
    assert done.err == ""
    assert "nothing to resume" in done.out
    assert re.findall("stopped.*", done.out) == [
        "stopped by SIGTERM; saved. Resume with --resume auto"
    ]
    first = state_of(folder)["position"]
    assert f"[{first}/7]" in done.out  # the step was finished, and what was finished was saved
    assert f"[{first + 1}/7]" not in done.out
    assert state_of(folder, "checkpoint.previous.pth.tar")["position"] < first

    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw(r"epoch 2/2 \[2/7\]").send(signal.SIGINT).end()
    assert done.status == 130
    assert done.err == ""
    assert f"epoch 1, minibatch {first}\n" in done.out
    assert "stopped by SIGINT; saved. Resume with --resume auto" in done.out
    position = state_of(folder)["position"]
    assert state_of(folder)["epoch"] == 1
    assert 1 < position < 7

    flip_byte(folder / LATEST, inside_data(folder / LATEST))
    done = finish(digits, tmp_path)
    assert f"warning: {folder.relative_to(tmp_path) / LATEST} is damaged; skipping it" in (done.out)
    assert differences(outcome(folder), whole) == []


def inside_data(path: Path) -> int:
    """A place in the largest tensor: a flipped bit in the padding between two means nothing."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    return largest.header_offset + largest.file_size // 2


def flip_byte(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0xFF]))


def truncate(path: Path, place: int) -> None:
    os.truncate(path, place)


def without_pickle(path: Path, _: int) -> None:
    """An entry is missing: all checksums match, and torch cannot read it."""
    with zipfile.ZipFile(path) as archive:
        kept = {i: archive.read(i) for i in archive.infolist() if not i.filename.endswith(".pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in kept.items():
            archive.writestr(entry.filename, content)
    assert is_whole(path)


def remove_newest(path: Path, place: int) -> None:
    """Only the one before it is left, and damaged."""
    path.unlink() if path.name == LATEST else truncate(path, place)


@pytest.mark.parametrize("damage", [flip_byte, truncate, without_pickle, remove_newest])
def test_damaged_checkpoints(damage: Callable, digits: Path, trained: Path, tmp_path: Path) -> None:
    """With both files damaged there is one clear error, and nothing is overwritten."""
    folder = tmp_path / "trained_models" / trained.name
    shutil.copytree(trained, folder)
    for path in (folder / LATEST, folder / "checkpoint.previous.pth.tar"):
        damage(path, inside_data(path))
    before = {path.name: path.read_bytes() for path in folder.glob("check*")}
    words = [digits, "--FN", "True", "--WN", "True", *settings(TRAIN__epochs=6)]
    with forked("main_free.py", *words, "--resume", "auto", cwd=tmp_path) as running:
        done = running.end()
    assert done.status == 2
    assert done.err == (
        f"error: no checkpoint in {folder.relative_to(tmp_path)} is intact;"
        " start from scratch with --overwrite\n"
    )
    assert {path.name: path.read_bytes() for path in folder.glob("check*")} == before


def test_a_signal_while_the_figures_are_drawn(digits: Path, tmp_path: Path) -> None:
    """It came after the last minibatch, and must keep the attacks from starting all the same."""
    with forked("main_free.py", *arguments(digits), cwd=tmp_path) as running:
        done = running.saw("training done").send(signal.SIGTERM).end()
    assert done.status == 143
    assert "stopped by SIGTERM" in done.out + done.err
    assert not (the_run(tmp_path) / "attack_standard.json").exists()


def test_signals_to_the_reading_processes_too(
    digits: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """A terminal that closes signals the workers as well; the step is still finished."""
    words = arguments(digits, "--resume", "auto", "--set", "DATA.workers=2")
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw(r"\[2/7\]").send(signal.SIGHUP, everyone=True).end()
    assert done.status == 129
    assert done.err == ""
    folder = the_run(tmp_path)
    position = state_of(folder)["position"]
    assert f"[{position}/7]" in done.out
    assert f"[{position + 1}/7]" not in done.out

    # Validation keeps what was saved before it; PGD-10 makes it long enough to be stopped in.
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw(r"validation 1/2 \[1/").send(signal.SIGINT, everyone=True).end()
    assert done.status == 130
    state = state_of(folder)
    assert (state["epoch"], state["position"]) in ((0, 7), (1, 1))
    assert "stopped by SIGINT" in done.out

    # The evaluation at the end goes on, too.
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw("attacks on all 36 images").send(signal.SIGTERM).end()
    assert done.status == 143, done
    assert done.err == "stopped by SIGTERM\n"
    assert not (folder / "attack_standard.json").exists()
    finish(digits, tmp_path)
    assert differences(outcome(folder), whole) == []


# The parts


def test_a_stop_that_a_destructor_swallows_is_sent_again() -> None:
    class Slow:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # the handler's exception is raised in here and goes no further

    def work() -> None:
        with stopping_at_once():
            slow = Slow()
            del slow
            time.sleep(5)

    with pytest.raises(StoppedAtOnce) as stop:
        work()
    assert stop.value.signum == signal.SIGINT


def test_requests_are_noted_and_handlers_given_back() -> None:
    before = {number: signal.getsignal(number) for number in (2, 10, 15)}
    with SignalRequests().noted() as requests:
        assert (requests.stop, requests.save) == (0, False)
        signal.raise_signal(signal.SIGUSR1)
        assert (requests.stop, requests.save) == (0, True)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # at once after it: another way of the same request
        assert requests.stop == signal.SIGTERM
        requests.since -= 2
        with pytest.raises(StoppedAtOnce):
            signal.raise_signal(signal.SIGINT)  # impatience
    assert before == {number: signal.getsignal(number) for number in (2, 10, 15)}


def test_handlers_are_given_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail() -> None:
        with handling({"SIGTERM": print, "SIGNONE": print}):
            assert signal.getsignal(signal.SIGTERM) is print
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(signal.SIGTERM) is before


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalRequests().noted() as requests:
            signal.raise_signal(signal.SIGHUP)
        with handling({"SIGHUP": print}):
            signal.raise_signal(signal.SIGHUP)
        assert requests.stop == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
