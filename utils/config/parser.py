"""argparse with errors of one line, and types from the readers of settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def argument(read: Callable[[Any], Any]) -> Callable[[str], Any]:
    """An argparse type from a reader of settings, with the reader's message."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def names(text: str) -> list[str]:
    """argparse type: words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
