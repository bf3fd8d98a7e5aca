"""What a command says: on stdout, and in the run's log.txt; by the first process alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from termcolor import colored
from tqdm import tqdm

from utils.errors import UserError

T = TypeVar("T")


class Logger:
    """Prints lines and appends them to a file.

    Args:
        active: False on every process but the first: nothing is printed or written.
        path: log.txt, appended to; None prints only.
    """

    def __init__(self, active: bool = True, path: Path | None = None) -> None:
        self.active = active
        self.file: TextIO | None = None
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
            self.file = open(path, "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; make it writable") from error

    def info(self, text: str = "") -> None:
        """A line for the user."""
        self._say(text, text)

    def heading(self, text: str) -> None:
        """A line that opens a part."""
        self._say(f"== {text}", colored(f"== {text}", "cyan", attrs=["bold"]))

    def warning(self, text: str) -> None:
        """Something that is carried on with, but may not be what was meant."""
        self._say(f"warning: {text}", colored(f"warning: {text}", "yellow"))

    def _say(self, plain: str, coloured: str) -> None:
        if not self.active:
            return
        try:
            tqdm.write(coloured, file=sys.stdout)  # above a bar that may be running
            sys.stdout.flush()
        except BrokenPipeError:  # its reader is gone, as in `| head`: the run matters more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if self.file is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            try:
                self.file.writelines(f"{stamp} {line}\n" for line in plain.splitlines())
                self.file.flush()
            except OSError as error:  # the run matters more than its log
                self.file = None
                self.warning(f"log.txt ends here: {error.strerror}")

    def track(
        self, items: Iterable[T], total: int, what: str, every: int, unit: str = "batch"
    ) -> Iterator[T]:
        """Pass items through: a bar with rate and time left on a terminal, else lines.

        Args:
            total: how many items there will be.
            what: words in front.
            every: items between two lines where stdout is no terminal.
        """
        bar = ProgressBar(self, total, what, every, unit)
        for item in items:
            yield item
            bar.advance()
        bar.close()


class ProgressBar:
    """A bar on a terminal, a line now and then elsewhere, nothing on the other processes."""

    def __init__(
        self, logger: Logger, total: int, what: str, every: int, unit: str = "batch"
    ) -> None:
        self.logger = logger
        self.total = total
        self.what = what
        self.every = every
        self.done = 0
        self.began = time.monotonic()
        self.fresh = 0  # items since `began`, the start or a resumption
        on_terminal = logger.active and sys.stderr.isatty()
        self.bar: Any = (
            tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False)
            if on_terminal
            else None
        )

    def advance(self, count: int = 1, detail: str = "", skipped: bool = False) -> None:
        """Count items; `detail` stands behind the rate. `skipped` ones were done before."""
        before = self.done
        self.done += count
        self.fresh += 0 if skipped else count
        if self.bar is not None:
            if detail:
                self.bar.set_postfix_str(detail, refresh=False)
            self.bar.update(count)
        elif self.done // self.every > before // self.every and not skipped:
            self.logger.info(f"{self.what} [{self.done}/{self.total}] {detail} {self.time_left()}")

    def time_left(self) -> str:
        """Estimated time to the end."""
        if not self.fresh:
            return ""
        seconds = (time.monotonic() - self.began) / self.fresh * (self.total - self.done)
        return f"eta {format_seconds(seconds)}"

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


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


def counted(n: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
