"""`python -m tools.study --quick`: every training, its attacks, table, figure, and resumption."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT, environment
from in_process import call, unchanged

import tools.study
from tools.study import METHODS, all_jobs, main
from tools.study_report import training_cost
from utils.storage.run_folder import lock_folder


def study(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The command in this process."""
    with unchanged():
        assert main(words) == 0
    return capsys.readouterr().out


class Ended:
    """A command that ran in this process, as far as the study asks a process of its own."""

    def __init__(self, folder: Path, label: str, words: Sequence[str]) -> None:
        script, *arguments = words[1:] if words[0] == "-m" else (Path(words[0]).name, *words[1:])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            done = call(script, *arguments)
        assert done.status == 0, (label, done)
        self.returncode = done.status

    def poll(self) -> int:
        return self.returncode

    def wait(self) -> int:
        return self.returncode


@pytest.mark.slow
def test_quick_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tools.study, "ATTACKS", ("pgd2",))
    monkeypatch.setattr(tools.study, "start", Ended)
    words = ("study", "--quick", "--methods", "pgd")
    study(capsys, *words)
    text = (tmp_path / "study" / "STUDY.md").read_text()
    assert "| pgd |" in text
    assert "| pgd + HE |" in text
    assert "40 training and 40 validation images" in text
    costs = [row.split("|")[-2].strip() for row in text.splitlines() if "/255 |" in row]
    assert costs == ["4"]  # three steps and the update
    assert (tmp_path / "study" / "cost.png").stat().st_size > 5000
    runs = sorted((tmp_path / "study" / "trained_models").iterdir())
    assert len(runs) == 2
    # One lost result is made again; the other is kept.
    times = {run: os.stat(run / "checkpoint.pth.tar").st_mtime_ns for run in runs}
    for path in runs[0].glob("attack_*"):
        path.unlink()
    assert "2 trainings, 1 of them finished before" in study(capsys, *words)
    assert any(runs[0].glob("attack_*.json"))
    for run in runs:
        assert os.stat(run / "checkpoint.pth.tar").st_mtime_ns == times[run]


def test_costs_of_the_trainings(tmp_path: Path) -> None:
    """Forward-backward passes over the training set: epochs times updates and attack steps."""
    (tmp_path / "digits").mkdir()
    jobs = all_jobs(tmp_path, list(METHODS), 1, quick=False)
    costs = {job.name: training_cost(job.config) for job in jobs if "HE" not in job.name}
    assert costs == {"natural": 10, "free": 20, "fast": 20, "pgd": 40}


@pytest.mark.slow
def test_what_ends_the_study_ends_its_trainings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.study", str(tmp_path / "study"), "--quick"]
    command += ["--methods", "natural", "--jobs", "1"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True) as running:
        log = tmp_path / "study" / "logs" / "natural_seed_0.txt"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and "1/1" in log.read_text()):
            time.sleep(0.05)
        running.terminate()
        assert running.wait(60) == 143
    text = log.read_text()
    assert "stopped by SIGTERM" in text or "results:" in text
    for folder in (tmp_path / "study" / "trained_models").glob("*"):
        lock_folder(folder).close()  # no training is at work there any more
