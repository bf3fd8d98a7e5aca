"""`python -m tools.study --quick`: every training, its attacks, table, figure, and resumption."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment
from in_process import unchanged

import tools.study
from tools.study import METHODS, all_jobs, main, training_cost
from utils.storage.run_folder import lock_folder


def study(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The command in this process; its trainings are processes of their own."""
    with unchanged():
        assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_quick_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tools.study, "ATTACKS", "pgd2")
    words = ("study", "--quick", "--methods", "pgd")
    study(capsys, *words)
    text = (tmp_path / "study" / "STUDY.md").read_text()
    assert "| pgd | " in text
    assert "| pgd + HE | " in text
    assert "attacked on 16 others" in text
    settings = "TRAIN.epochs 1, ADV.train_steps 3, ADV.fgsm_step 16.0"
    assert f"| pgd | {settings} | 4 |" in text  # three steps and the update
    assert (tmp_path / "study" / "cost.png").stat().st_size > 5000
    # One lost result is made again; the other is kept.
    runs = sorted((tmp_path / "study" / "trained_models").iterdir())
    times = [(run / "checkpoint.pth.tar").stat().st_mtime_ns for run in runs]
    for path in runs[0].glob("attack_*"):
        path.unlink()
    assert "2 trainings, 1 of them finished before" in study(capsys, *words)
    assert any(runs[0].glob("attack_*.json"))
    assert [(run / "checkpoint.pth.tar").stat().st_mtime_ns for run in runs] == times


def test_costs_of_the_trainings(tmp_path: Path) -> None:
    """Forward-backward passes over the training set: epochs times updates and attack steps."""
    jobs = all_jobs(tmp_path, tmp_path, list(METHODS), 1, quick=False)
    costs = {job.row: training_cost(job.config) for job in jobs if "HE" not in job.row}
    assert costs == {"natural": 10, "free": 20, "fast": 20, "pgd": 40}


@pytest.mark.slow
def test_what_ends_the_study_ends_its_trainings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.study", str(tmp_path / "study"), "--quick"]
    command += ["--methods", "natural", "--jobs", "1"]
    logs, deadline = tmp_path / "study" / "logs", time.monotonic() + 120
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True) as running:
        while time.monotonic() < deadline:
            if any("1/1" in log.read_text() for log in logs.glob("*.txt")):
                break
            time.sleep(0.05)
        running.terminate()
        assert running.wait(60) == 143
    (log,) = logs.iterdir()  # no other training has started
    assert "stopped by SIGTERM" in log.read_text() or "results:" in log.read_text()
    for folder in (tmp_path / "study" / "trained_models").glob("*"):
        lock_folder(folder).close()  # no training is at work there any more
