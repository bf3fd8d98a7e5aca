"""What a command says: on stdout, and in the run's log.txt; by the first process alone."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from termcolor import colored
from tqdm import tqdm

from utils.errors import UserError
from utils.text import printable_lines

T = TypeVar("T")


class Logger:
    """Prints lines and appends them to a file.

    Args:
        active: False on every process but the first: nothing is printed or written.
        path: log.txt, appended to; None prints only.
        to_stderr: print there, where stdout is for results.
    """

    def __init__(
        self, active: bool = True, path: Path | None = None, to_stderr: bool = False
    ) -> None:
        self.active = active
        self.records = logging.Logger("freeat")  # known to us alone: nobody else's handlers
        self.records.disabled = not active
        self.records.addHandler(Console(to_stderr))
        if path is not None:
            self.write_to(path)

    def write_to(self, path: Path) -> None:
        """Append to this file from now on.

        Raises:
            UserError: it cannot be written to.
        """
        if not self.active:
            return
        try:
            self.records.addHandler(LogFile(path, self))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; make it writable") from error

    def info(self, text: str = "") -> None:
        self.records.info(text, extra={"style": {}})

    def heading(self, text: str) -> None:
        """A line that opens a part."""
        self.records.info(f"== {text}", extra={"style": {"color": "cyan", "attrs": ["bold"]}})

    def warning(self, text: str) -> None:
        """Something that is carried on with, but may not be what was meant."""
        self.records.warning(f"warning: {text}", extra={"style": {"color": "yellow"}})

    def progress(
        self, items: Iterable[T], total: int, what: str, every: int, unit: str = "batch"
    ) -> Iterator[T]:
        """Pass items through: a bar with rate and time left on a terminal, else lines.

        Args:
            total: how many items there will be.
            what: words in front.
            every: items between two lines where stderr is no terminal.
        """
        with ProgressBar(self, total, what, every, unit) as bar:
            for item in items:
                yield item
                bar.advance()


class Console(logging.Handler):
    """Lines on stdout or stderr as it is now, above a bar that may be running."""

    def __init__(self, to_stderr: bool) -> None:
        super().__init__()
        self.to_stderr = to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if self.to_stderr else sys.stdout
        text = printable_lines(record.getMessage())
        tqdm.write(colored(text, **vars(record)["style"]), file=stream)
        stream.flush()


class LogFile(logging.FileHandler):
    """log.txt: the time in front of every line; a disk that is full ends it, not the run."""

    def __init__(self, path: Path, logger: Logger) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.logger = logger
        self.addFilter(lambda record: bool(record.getMessage()))

    def format(self, record: logging.LogRecord) -> str:
        """Every line with its time."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        lines = printable_lines(record.getMessage()).splitlines()
        return "\n".join(f"{stamp} {line}" for line in lines)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where `emit` has failed."""
        self.logger.records.removeHandler(self)
        with suppress(OSError):
            self.close()
        self.logger.warning(f"log.txt ends here: {sys.exc_info()[1]}")


class ProgressBar:
    """A bar on a terminal, a line now and then elsewhere, nothing on the other processes.

    Args:
        total: how many items there will be; None where nobody knows.
        what: words in front.
        every: items between two lines where stderr is no terminal.
    """

    def __init__(
        self, logger: Logger, total: int | None, what: str, every: int, unit: str = "batch"
    ) -> None:
        self.logger = logger
        self.total = total
        self.what = what
        self.every = every
        self.done = 0
        self.began = time.monotonic()
        self.fresh = 0  # items since `began`, the start or a resumption
        self.bar: tqdm | None = None
        if logger.active and sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False)

    def advance(self, count: int = 1, detail: str = "", skipped: bool = False) -> None:
        """Count items; `detail` stands behind the rate. `skipped` ones were done before."""
        before = self.done
        self.done += count
        self.fresh += 0 if skipped else count
        due = self.done // self.every > before // self.every or self.done == self.total
        if self.bar is not None:
            if detail:
                self.bar.set_postfix_str(detail, refresh=False)
            self.bar.update(count)
        elif due and not skipped:
            place = str(self.done) if self.total is None else f"{self.done}/{self.total}"
            self.logger.info(f"{self.what} [{place}] {detail} {self.time_left()}".rstrip())

    def time_left(self) -> str:
        """Estimated time to the end."""
        if not self.fresh or self.total is None:
            return ""
        seconds = (time.monotonic() - self.began) / self.fresh * (self.total - self.done)
        return f"eta {format_seconds(seconds)}"

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def format_seconds(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns aligned for a terminal: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool) -> str:
    """The same as Markdown; to the left are all columns where they hold no numbers."""

    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", r"\|") for cell in cells)
        return "|" + "".join(f" {cell} |" if cell else " |" for cell in escaped)

    rule = "|---|" + ("---:|" if numbers else "---|") * (len(header) - 1)
    return "\n".join([line(header), rule, *map(line, rows)])
