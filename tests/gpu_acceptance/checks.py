"""One line of the acceptance: what was looked at, what was found, whether it may be so."""

from __future__ import annotations

from typing import Any, NamedTuple

PASS, FAIL, SKIP, NOTE = "PASS", "FAIL", "SKIP", "note"


class Check(NamedTuple):
    """A line; `note` is of what has no bound."""

    status: str
    name: str
    value: Any
    bound: str = ""


def holds(name: str, value: Any, right: bool, bound: str) -> Check:
    """Something that must be so."""
    return Check(PASS if right else FAIL, name, value, bound)


def at_most(name: str, value: float, bound: float) -> Check:
    """A number with an upper bound; NaN is above every bound."""
    return holds(name, value, value <= bound, f"<= {bound:g}")


def at_least(name: str, value: float, bound: float) -> Check:
    """A number with a lower bound."""
    return holds(name, value, value >= bound, f">= {bound:g}")


def equal(name: str, value: Any, expected: Any) -> Check:
    """Something that must be one thing."""
    return holds(name, value, bool(value == expected), f"== {expected}")


def contains(name: str, text: str, words: str) -> Check:
    """A message that must say something."""
    return holds(name, text.strip()[-300:], words in text, f"has {words!r}")


def note(name: str, value: Any) -> Check:
    """Something to know."""
    return Check(NOTE, name, value)


def skip(name: str, reason: str) -> Check:
    """Something that cannot be looked at here."""
    return Check(SKIP, name, reason)
