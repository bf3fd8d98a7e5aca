"""What is printed and logged: safe to show, no matter what the disk does."""

from pathlib import Path

import pytest

from utils.logging import Logger, ProgressBar


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
    bar = ProgressBar(Logger(), 7, "epoch 1", 3, done=2)
    for _ in range(5):
        bar.advance()
    places = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert places == ["[3/7]", "[6/7]", "[7/7]"]
    for _ in ProgressBar(Logger(active=False), 3, "nothing", 1).over(range(3)):
        pass
    assert capsys.readouterr().out == ""
