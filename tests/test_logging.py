"""What is printed and logged: safe to show, no matter what the disk does."""

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from utils.logging import Logger, ProgressBar


def test_names_cannot_move_the_cursor(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    logger = Logger()
    logger.write_to(tmp_path / "log.txt")
    logger.info("one\ntwo\x1b[2J\rthree\x9b")
    assert capsys.readouterr().out == "one\ntwo\\x1b[2J\\rthree\\x9b\n"
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in log] == ["one", "two\\x1b[2J\\rthree\\x9b"]


def test_a_full_disk_ends_no_run(capsys: pytest.CaptureFixture) -> None:
    logger = Logger()
    logger.write_to(Path("/dev/full"))
    for text in ("one", "two"):
        logger.info(text)
    assert tuple(capsys.readouterr()) == ("one\ntwo\n", "")


@pytest.mark.parametrize("columns", [40, 0])
def test_a_bar_fits_the_terminal_and_ends_at_the_end(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal of 0 columns, as containers have, is one of an unknown number."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with ProgressBar(Logger(), 10, "epoch 1/5", 10) as bar:
            for _ in range(10):
                bar.advance(
                    1, "loss 1.2345 top-1 12.34 % top-5 56.78 %, and whatever else is known"
                )
        seen = b""
        while not seen.endswith(b" \r"):  # which takes the bar away
            seen += os.read(main, 10_000)
    os.close(main)
    drawn = seen.decode().split("\r")
    assert max(map(len, drawn)) < (columns or 80)
    assert " 10/10 " in drawn[-3]


def test_lines_of_progress(capsys: pytest.CaptureFixture) -> None:
    bar = ProgressBar(Logger(), 7, "epoch 1", 3, done=2)
    for _ in range(5):
        bar.advance()
    places = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert places == ["[3/7]", "[6/7]", "[7/7]"]
    for _ in ProgressBar(Logger(active=False), 3, "nothing", 1).over(range(3)):
        pass
    assert capsys.readouterr().out == ""
