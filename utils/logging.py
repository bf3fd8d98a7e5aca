"""What a command says: on stdout, and in the run's log.txt; by rank 0 alone."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from termcolor import colored
from tqdm import tqdm

from utils.errors import UserError
from utils.text import printable

T = TypeVar("T")
HEADING = logging.INFO + 1
UNKNOWN_WIDTH = 79  # columns of a terminal that does not say, so that no bar takes two lines
PREFIXES = {HEADING: "== ", logging.WARNING: "warning: "}
COLORS = {HEADING: "cyan", logging.WARNING: "yellow"}
tqdm.monitor_interval = 0  # no thread of its own: loader workers are forked


class Logger(logging.Logger):
    """Prints lines and appends them to a file."""

    def __init__(self, active: bool = True, to_stderr: bool = False) -> None:
        super().__init__("freeat")  # known to us alone: nobody else's handlers
        self.disabled = not active
        self.addHandler(Console(to_stderr))

    def write_to(self, path: Path) -> None:
        """Append to this file from now on."""
        if self.disabled:
            return
        try:
            self.addHandler(LogFile(path))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; make it writable") from error

    def heading(self, text: str) -> None:
        """A line that opens a part."""
        self.log(HEADING, text)


def lines_of(record: logging.LogRecord) -> list[str]:
    """A record's lines, made safe to show."""
    text = PREFIXES.get(record.levelno, "") + record.getMessage()
    return [printable(line) for line in text.split("\n")]


class Console(logging.Handler):
    """Lines on stdout or stderr as it is now, above a bar that may be running."""

    def __init__(self, to_stderr: bool) -> None:
        super().__init__()
        self.to_stderr = to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if self.to_stderr else sys.stdout
        attributes = ["bold"] if record.levelno == HEADING else None
        text = colored("\n".join(lines_of(record)), COLORS.get(record.levelno), attrs=attributes)
        tqdm.write(text, file=stream)
        stream.flush()


class LogFile(logging.FileHandler):
    """log.txt: the time in front of every line; a disk that is full ends no run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.addFilter(lambda record: bool(record.getMessage()))

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return "\n".join(f"{stamp} {line}" for line in lines_of(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where `emit` has failed."""


class ProgressBar(tqdm):
    """tqdm's bar on a terminal, a line now and then elsewhere, nothing on other ranks."""

    n: int  # items so far

    def __init__(
        self,
        logger: Logger,
        total: int | None,
        label: str,
        every: int,  # items between two lines where stderr is no terminal
        unit: str = "batch",
        done: int = 0,
    ) -> None:
        terminal = not logger.disabled and sys.stderr.isatty()
        size = os.get_terminal_size(sys.stderr.fileno()).columns if terminal else 0
        super().__init__(
            total=total,
            desc=label,
            unit=unit,
            initial=done,
            ncols=None if size else UNKNOWN_WIDTH,
            dynamic_ncols=size > 0,
            leave=False,
            disable=not terminal,
        )
        self.logger, self.label, self.every = logger, label, every
        self.first, self.began = done, time.monotonic()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items through, and count them."""
        with self:
            for item in items:
                yield item
                self.advance()

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Count items; `detail` stands behind the rate."""
        if not self.disable:
            if detail:
                self.set_postfix_str(detail, refresh=False)
            self.update(count)
            if self.n == self.total:
                self.refresh()  # which update does now and then alone
            return
        before, self.n = self.n, self.n + count
        if self.n // self.every > before // self.every or self.n == self.total:
            place = str(self.n) if self.total is None else f"{self.n}/{self.total}"
            self.logger.info(f"{self.label} [{place}] {detail} {self.time_left()}".rstrip())

    def time_left(self) -> str:
        """Estimated time to the end."""
        if self.n == self.first or self.total is None:
            return ""
        seconds_each = (time.monotonic() - self.began) / (self.n - self.first)
        return f"eta {tqdm.format_interval(seconds_each * (self.total - self.n))}"
