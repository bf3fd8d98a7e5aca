"""Standard streams that are closed, full or for ASCII alone end no command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command, environment

from utils.logging import Logger, ProgressBar

PRINTS = """
import sys
from pathlib import Path
from utils.distributed.launch import run_command
from utils.logging import Logger

def work():
    logger = Logger(path=Path("log.txt"))
    logger.heading("caf\\u00e9 \\udcff")
    for _ in logger.progress(range(3), 3, "epoch", 1):
        print("x" * 100_000)
    print("said", file=sys.stderr)
    Path("done").write_text(str(sys.stdout.isatty()))
    return 7

sys.exit(run_command(work))
"""


@pytest.mark.parametrize(
    ("redirections", "encoding"),
    [
        (">&- 2>&-", "utf-8"),
        ("0<&- >&- 2>&-", "utf-8"),
        ("> /dev/full 2> /dev/full", "utf-8"),
        ("> /dev/full 2>&-", "ascii"),
        ("| head -n 1 > /dev/null; exit ${PIPESTATUS[0]}", "utf-8"),
        ("> out.txt", "ascii:strict"),
    ],
)
def test_the_work_outlives_its_streams(redirections: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    line = f"{sys.executable} prints.py {redirections}"
    environ = environment(PYTHONIOENCODING=encoding)
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environ, timeout=60)
    assert done.returncode == 7
    assert (tmp_path / "done").read_text() == "False"
    log = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert log[0].endswith("== café \\udcff")
    assert [text.split()[3] for text in log[1:]] == ["[1/3]", "[2/3]", "[3/3]"]
    assert all("x" not in text.split(maxsplit=2)[2] for text in log)  # no output went astray


def test_tools_outlive_their_readers(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"class_{number:03d}").mkdir()
        (tmp_path / f"class_{number:03d}" / "0.jpg").touch()
    words = [*command("tools.check_data", tmp_path, "--workers", 1), "> /dev/full"]
    done = subprocess.run(
        ["bash", "-c", " ".join(words)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1  # what it found, not how it could be said
    assert "Traceback" not in done.stderr
    assert "reading [300/300] 300 wrong" in done.stderr  # lines in a log, no bar
    assert "\r" not in done.stderr


def test_names_cannot_move_the_cursor(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    logger = Logger(path=tmp_path / "log.txt")
    logger.info("one\ntwo\x1b[2J\rthree\x9b")
    assert capsys.readouterr().out == "one\ntwo\\x1b[2J\\rthree\\x9b\n"
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in log] == ["one", "two\\x1b[2J\\rthree\\x9b"]


def test_a_full_disk_ends_the_log_alone(capsys: pytest.CaptureFixture) -> None:
    logger = Logger(path=Path("/dev/full"))
    for text in ("one", "two"):
        logger.info(text)
    assert capsys.readouterr().out.splitlines() == [
        "one",
        "warning: log.txt ends here: [Errno 28] No space left on device",
        "two",
    ]


def test_lines_of_progress(capsys: pytest.CaptureFixture) -> None:
    bar = ProgressBar(Logger(), 7, "epoch 1", 3)
    bar.advance(2, skipped=True)
    for _ in range(5):
        bar.advance()
    places = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert places == ["[3/7]", "[6/7]", "[7/7]"]
    for _ in Logger(active=False).progress(range(3), 3, "nothing", 1):
        pass
    assert capsys.readouterr().out == ""


def test_the_page_of_flags_on_a_full_disk() -> None:
    words = " ".join([*command("tools.flags"), "> /dev/full"])
    done = subprocess.run(["bash", "-c", words], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
