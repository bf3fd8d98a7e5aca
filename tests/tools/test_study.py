"""`python -m tools.study --quick`: every training, its attacks, table, figure, and resumption."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, environment

pytestmark = pytest.mark.slow


def study(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools.study", str(folder), "--quick", "--methods", "free,pgd"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_quick_study(tmp_path: Path) -> None:
    done = study(tmp_path / "study")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "study" / "STUDY.md").read_text()
    for method in ("free", "pgd"):
        assert f"| {method} |" in text
        assert f"| {method} + HE |" in text
    assert "40 training and 40 validation images" in text
    costs = [row.split("|")[-2].strip() for row in text.splitlines() if "/255 |" in row]
    assert costs == ["1", "4"]  # free with one replay, pgd with three steps
    assert (tmp_path / "study" / "cost.png").stat().st_size > 5000
    runs = sorted((tmp_path / "study" / "trained_models").iterdir())
    assert len(runs) == 4
    # One lost result is made again; the others are kept.
    times = {run: os.stat(run / "checkpoint.pth.tar").st_mtime_ns for run in runs}
    for path in runs[0].glob("attack_*"):
        path.unlink()
    again = study(tmp_path / "study")
    assert again.returncode == 0, again.stderr
    assert "4 trainings, 3 of them finished before" in again.stdout
    assert any(runs[0].glob("attack_*.json"))
    for run in runs:
        assert os.stat(run / "checkpoint.pth.tar").st_mtime_ns == times[run]


def test_what_ends_the_study_ends_its_trainings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.study", str(tmp_path / "study"), "--quick"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), text=True) as running:
        log = tmp_path / "study" / "logs" / "natural_seed_0.txt"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and "1/1" in log.read_text()):
            time.sleep(0.05)
        running.terminate()
        assert running.wait(60) == 143
    text = log.read_text()
    assert "stopped by SIGTERM" in text or "results:" in text
    assert not list((tmp_path / "study" / "trained_models").glob("*/.lock"))
