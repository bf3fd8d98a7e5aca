"""Trainings that are killed, signalled and damaged, against one that nothing happens to."""

import os
import random
import re
import shutil
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import settings
from processes import Done, children_of, differences, forked, launching, outcome, the_run

from utils.distributed.signals import SIGNALS, SignalRequests, handling, stopping_at_once
from utils.errors import Interrupted
from utils.storage.checkpoint import is_whole

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", 2))  # `make soak` takes more
# Five minibatches a pass, two passes; the last one of a pass is smaller. Every column filled.
SETTINGS = settings(
    TRAIN__epochs=2 * KILLS, TRAIN__select="pgd", TRAIN__select_examples=8, DATA__batch_size=15
)
GRADIENTS = ("--print_gradients", "--set", "TRAIN.gradient_every=3")
ALWAYS = ("--set", "TRAIN.checkpoint_minutes=1e-9")  # a checkpoint after every minibatch
LATEST, PREVIOUS = "checkpoint.pth.tar", "checkpoint.previous.pth.tar"


def arguments(data: Path, *more: object) -> list[object]:
    return [data, "--FN", "--WN", *SETTINGS, *more]


def state_of(folder: Path, name: str = LATEST) -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)["training"]


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a training that nothing happens to; it reads in line."""
    cwd = tmp_path_factory.mktemp("whole")
    with forked("main_free.py", *arguments(digits, *GRADIENTS), cwd=cwd) as running:
        done = running.end()
    assert done.status == 0, done
    found = outcome(the_run(cwd))
    assert len(found["metrics.csv"]) == KILLS
    assert len(found["gradient_norms.csv"]) == KILLS * (61 + 3)  # parameters, groups
    # Two replays each of minibatches 0 and 3.
    assert {row["samples"] for row in found["gradient_norms.csv"]} == {"4"}
    assert len(found["attack_standard_images.csv"]) == 36
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
    """Killed and resumed, with 0 and 2 workers in turn: the same to the last bit."""
    chance = random.Random(int(os.environ.get("SEED", 0)))
    places = []
    for attempt in range(KILLS):
        words = arguments(digits, *GRADIENTS, "--resume", "auto", *ALWAYS)
        words += ["--set", f"DATA.workers={attempt % 2 * 2}"]
        with forked("main_free.py", *words, cwd=tmp_path) as running:
            running.saw(r"epoch \d+/\d+ \[\d/5\]", times=chance.randint(1, 3))
            time.sleep(chance.uniform(0, 0.5))  # in a step or while a file is being written
            workers = children_of(running.pid)
            running.send(signal.SIGKILL)
            assert running.end().status == -signal.SIGKILL
        assert bool(workers) == attempt % 2
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "workers outlive the training"
            time.sleep(0.1)
        state = state_of(the_run(tmp_path))
        places.append((state["epoch"], state["position"]))
    assert places == sorted(places)  # every start goes on from where the one before had come to
    assert places[0] < (KILLS - 1, 5)
    done = finish(digits, tmp_path, *GRADIENTS, "--set", "DATA.workers=2")
    assert "resumed trained_models" in done.out
    assert differences(outcome(the_run(tmp_path)), whole) == []
    assert not [p.name for p in the_run(tmp_path).iterdir() if p.name.endswith(".jsonl")]


def make_fifos(folder: Path) -> None:
    """Images that no worker comes to the end of, as on a disk that does not answer."""
    for path in folder.glob("*/*.png"):
        os.mkfifo(path.with_suffix(".fifo"))
        path.with_suffix(".fifo").replace(path)


def test_two_processes_answer_a_signal_while_images_are_waited_for(
    digits: Path, tmp_path: Path
) -> None:
    """They agree on the minibatch to stop after."""
    data = shutil.copytree(digits, tmp_path / "data")
    words = arguments(data, "--set", "DATA.workers=2", "--set", "DATA.batch_size=8")
    with launching(2, "main_free.py", *words, cwd=tmp_path) as both:
        both[0].saw(r"epoch 1/2 \[1/8\]")
        make_fifos(data / "train")
        both[0].saw(r"\[2/8\]")
        time.sleep(1)
        for running in both:
            running.send(signal.SIGTERM)
        done = [running.end() for running in both]
    assert [(one.status, one.err) for one in done] == [(143, "")] * 2, done
    assert "stopped by SIGTERM; saved" in done[0].out
    state = state_of(the_run(tmp_path))
    assert state["epoch"] == 0
    assert f"[{state['position']}/8]" in done[0].out
    assert f"[{state['position'] + 1}/8]" not in done[0].out


# Signals and damage


def test_signals_save_in_the_middle_of_a_pass(
    digits: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """USR1 saves and goes on, TERM and INT save and stop; a damaged file is passed over."""
    words = arguments(digits, *GRADIENTS, "--resume", "auto")
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        running.saw(r"\[1/5\]")
        folder = the_run(tmp_path)
        assert not (folder / LATEST).exists()  # the next one is due in ten minutes
        running.send(signal.SIGUSR1).saw(r"\[3/5\]")
        assert 1 <= state_of(folder)["position"] < 4
        done = running.send(signal.SIGTERM).end()
    assert done.status == 143
    assert done.err == ""
    assert "nothing to resume" in done.out
    assert re.findall("stopped.*", done.out) == [
        "stopped by SIGTERM; saved. Resume with --resume auto"
    ]
    first = state_of(folder)["position"]
    assert f"[{first}/5]" in done.out  # the step was finished, and what was finished was saved
    assert f"[{first + 1}/5]" not in done.out
    assert state_of(folder, PREVIOUS)["position"] < first

    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw(r"epoch 2/2 \[2/5\]").send(signal.SIGINT).end()
    assert done.status == 130
    assert done.err == ""
    assert f"epoch 1, minibatch {first}\n" in done.out
    assert "stopped by SIGINT; saved. Resume with --resume auto" in done.out
    position = state_of(folder)["position"]
    assert state_of(folder)["epoch"] == 1
    assert 1 < position < 5

    flip_byte(folder / LATEST, inside_data(folder / LATEST))
    done = finish(digits, tmp_path, *GRADIENTS)
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


def without_pickle(path: Path) -> None:
    """An entry is missing: all checksums match, and torch cannot read it."""
    with zipfile.ZipFile(path) as archive:
        kept = {i: archive.read(i) for i in archive.infolist() if not i.filename.endswith(".pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in kept.items():
            archive.writestr(entry.filename, content)
    assert is_whole(path)


@pytest.mark.parametrize("left", [(LATEST, PREVIOUS), (PREVIOUS,)])
def test_damaged_checkpoints(
    left: tuple[str, ...], digits: Path, trained: Path, tmp_path: Path
) -> None:
    """Where those that are left are damaged there is one clear error; nothing is overwritten."""
    folder = tmp_path / "trained_models" / trained.name
    folder.mkdir(parents=True)
    for name in left:
        without_pickle(Path(shutil.copy(trained / name, folder)))
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
    with forked("main_free.py", digits, *settings(TRAIN__epochs=2), cwd=tmp_path) as running:
        done = running.saw("training done").send(signal.SIGTERM).end()
    assert done.status == 143
    assert "stopped by SIGTERM" in done.out + done.err
    assert not (the_run(tmp_path) / "attack_standard.json").exists()


def test_signals_to_the_reading_processes_too(
    digits: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """As a terminal does: in validation, and in the attacks at the end."""
    words = arguments(digits, *GRADIENTS, "--resume", "auto", "--set", "DATA.workers=2")
    # Validation keeps what was saved before it; PGD-10 makes it long enough to be stopped in.
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw(r"validation 1/2 \[1/").send(signal.SIGINT, everyone=True).end()
    assert done.status == 130
    state = state_of(folder := the_run(tmp_path))
    assert (state["epoch"], state["position"]) in ((0, 5), (1, 1))
    assert "stopped by SIGINT" in done.out

    with forked("main_free.py", *words, cwd=tmp_path) as running:
        done = running.saw("attacks on all 36 images").send(signal.SIGTERM).end()
    assert done.status == 143, done
    kept = "; what is done is kept for the same evaluation"  # from the first journal on
    assert done.err in {f"stopped by SIGTERM{state}\n" for state in ("", kept)}
    assert not (folder / "attack_standard.json").exists()
    finish(digits, tmp_path, *GRADIENTS)
    assert differences(outcome(folder), whole) == []


# The parts


def test_a_stop_that_a_destructor_swallows_is_sent_again() -> None:
    class Slow:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # the handler's exception is raised in here and goes no further

    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with stopping_at_once():
            slow = Slow()
            del slow
            time.sleep(5)

    with pytest.raises(Interrupted) as stop:
        work()
    assert stop.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("save", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_requests_are_noted_and_handlers_given_back(save: int) -> None:
    before = {number: signal.getsignal(number) for number in (save, 2, 15)}
    requests = SignalRequests()
    with handling(SIGNALS, requests.note):
        assert (requests.stop, requests.save) == (0, False)
        signal.raise_signal(save)
        assert (requests.stop, requests.save) == (0, True)
        requests.save = False
        signal.raise_signal(save)
        assert requests.save == (save != signal.SIGXCPU)  # of which the kernel sends many
        requests.save = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # at once after it: another way of the same request
        assert requests.stop == signal.SIGTERM
        requests.since -= 2
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)  # impatience
    assert before == {number: signal.getsignal(number) for number in before}
    with stopping_at_once():
        signal.raise_signal(save)  # an evaluation has nothing to save


def test_nohup_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        requests = SignalRequests()
        with handling(SIGNALS, requests.note):
            signal.raise_signal(signal.SIGHUP)
        with handling([signal.SIGHUP], print):
            signal.raise_signal(signal.SIGHUP)
        assert requests.stop == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
