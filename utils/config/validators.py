"""From the text or YAML of a setting to its value; a ValueError says what is wrong with it."""

import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lib.algorithm.protocols import LOSS_NAMES, PGDSpec

MOST = 2**31 - 1  # of anything that is counted: images in a batch, epochs, steps
REDUCE_OVERHEAD = "reduce-overhead"  # torch.compile's mode of CUDA graphs
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
N = TypeVar("N", int, float)
T = TypeVar("T")


def show(value: object) -> str:
    """A value in a message: one line, whatever it holds, and not a long one."""
    return SHORT.repr(value)


def boolean(value: object) -> bool:
    """True/False, yes/no, 1/0, in any case."""
    word = str(value).strip().lower()
    if word in ("true", "yes", "1"):
        return True
    if word in ("false", "no", "0"):
        return False
    raise ValueError(f"{show(value)} is neither True nor False (yes/no and 1/0 work too)")


def number(value: object) -> float:
    """A finite number; strings such as 1e-4 (text to YAML 1.1), 1/255 and 0.5/255 too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{show(value)} is not a number")
    try:
        parts = [float(part) for part in str(value).split("/", maxsplit=1)]
        result = parts[0] / parts[1] if len(parts) == 2 else parts[0]
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{show(value)} is not a number") from None
    if not math.isfinite(result):
        raise ValueError(f"{show(value)} is not finite")
    return result


def within(value: N, low: float, high: float, above: bool = False) -> N:
    """The number, which must lie in [low, high], or (low, high] with `above`."""
    if value < low or value > high or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise ValueError(f"{value} must be {bound}" + f" and at most {high}" * (high < math.inf))
    return value


def real(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[object], float]:
    """A validator of numbers in [low, high], or (low, high] with `above`."""
    return lambda value: within(number(value), low, high, above)


def whole(low: int, high: int = MOST) -> Callable[[object], int]:
    """A validator of whole numbers in [low, high]."""

    def validate(value: object) -> int:
        rounded = number(value)
        if rounded != int(rounded):
            raise ValueError(f"{show(value)} is not a whole number")
        try:
            result = int(str(value))  # a float holds 53 bits, and a seed may have 63
        except ValueError:  # 8.0, or text such as 1e3
            result = int(rounded)
        return within(result, low, high)

    return validate


def word_or(word: str, otherwise: Callable[[object], Any]) -> Callable[[object], Any]:
    """A validator of one word, or of what another validator takes."""

    def validate(value: object) -> Any:
        try:
            return word if value == word else otherwise(value)
        except ValueError as error:
            raise ValueError(f"{error}, nor {word}") from None

    return validate


def matching(pattern: str, wrong: str) -> Callable[[object], str]:
    """A validator of text of one form; `wrong` says what it is not."""

    def validate(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{show(value)} {wrong}")
        return value

    return validate


def choice(*options: str) -> Callable[[object], str]:
    """A validator of one of some words."""
    return matching("|".join(map(re.escape, options)), f"is not one of {', '.join(options)}")


text = matching(r"(?s).*\S.*", "is not text")


def word(value: object) -> str:
    """One name of a list."""
    return text(value).strip()


def path(value: object) -> str:
    """A path; `~` is the home folder."""
    return os.path.expanduser(text(value))


def part_of_name(value: object) -> str:
    """Text that can be part of a folder's name."""
    name = text(value)
    if not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError(f"{show(name)} is part of a folder's name: printable and without slashes")
    return name


def list_of(
    one: Callable[[object], T], low: int = 0, high: int = MOST
) -> Callable[[object], tuple[T, ...]]:
    """A validator of a list of `low` to `high` values, or of text with commas between them."""

    def validate(value: object) -> tuple[T, ...]:
        values = value.split(",") if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not low <= len(values) <= high:
            size = f" of {low}" + " or more" * (low < high)
            raise ValueError(f"{show(value)} is not a list" + size * (low > 0))
        return tuple(one(entry) for entry in values)

    return validate


words = list_of(word)
numbers = list_of(real(0))


def pgd_row(value: object) -> PGDSpec:
    """The published form: [steps, step size in [0, 1]], then maybe loss and restarts."""
    if not isinstance(value, (list, tuple)) or not 2 <= len(value) <= 4:
        raise ValueError(f"{show(value)} is not [steps, step size], nor that, loss and restarts")
    row = PGDSpec(*value)
    size = real(0, 0.5, above=True)(row.step_size)  # 1, a grey level, is not meant
    loss, restarts = choice(*LOSS_NAMES)(row.loss), whole(1)(row.restarts)
    return PGDSpec(whole(1)(row.steps), size, loss, restarts)


def mapping(value: object) -> dict[str, Any]:
    """{SECTION.key: value}, which `utils.config.load.phases_of` looks into."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{show(value)} is not {{SECTION.key: value}}")
    return {str(key): entry for key, entry in value.items()}
