"""What is known of a setting, kept in the metadata of a dataclass's field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from utils.config.readers import strict_bool

SWITCH = "switch"
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What is known of a field.

    Attributes:
        default: its value where nobody gives another.
        read: text or YAML to a checked value; a ValueError says what is wrong.
        help: one line, with the unit.
        resume: what another value than the checkpoint's means to `--resume`: `fixed` is refused,
            because the saved state would make no sense, `noted` is warned of.
        metavar: of the flag `--key`, or none where there is no flag but `--set SECTION.key=value`.
            The value of BOOL may be left out and then is True; a SWITCH takes none.
        short: another name of the flag.
        group: of --help.
        script: the only one the flag means something to.
    """

    default: object
    read: Callable[[object], object]
    help: str
    resume: Literal["free", "noted", "fixed"] = "free"
    metavar: str = ""
    short: str = ""
    group: str = "run"
    script: Literal["", "main_free", "evaluate"] = ""


def setting(default: T, read: Callable[[object], T], help: str, **more: Any) -> T:
    """A dataclass field that carries a `Setting`."""
    about = Setting(default, read, help, **more)
    return field(default=default, metadata={"setting": about})


def switch(help: str, metavar: str = "BOOL", **more: Any) -> bool:
    """A field that is False unless its flag is given."""
    return setting(False, strict_bool, help, metavar=metavar, **more)


def settings_in(section: type) -> dict[str, Setting]:
    """{key: what is known of it} of a section's class."""
    return {f.name: f.metadata["setting"] for f in fields(section) if "setting" in f.metadata}
