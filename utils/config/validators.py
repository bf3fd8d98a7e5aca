"""From the text or YAML of a setting to its value; a ValueError says what is wrong with it."""

import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from lib.algorithm.protocols import LOSS_NAMES

MOST = 2**31 - 1  # of anything that is counted: images in a batch, epochs, steps
REDUCE_OVERHEAD = "reduce-overhead"  # torch.compile's mode of CUDA graphs
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
T = TypeVar("T", int, float)


class PgdRow(NamedTuple):
    """One attack of `ADV.pgd_attack`; the step size is in units of the range [0, 1]."""

    steps: int
    step_size: float
    loss: str = "ce"
    restarts: int = 1


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
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{show(value)} is not a number") from None
    if not math.isfinite(result):
        raise ValueError(f"{show(value)} is not finite")
    return result


def within(value: T, low: float, high: float, above: bool = False) -> T:
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


def choice(*options: str) -> Callable[[object], str]:
    """A validator of one of some words."""

    def validate(value: object) -> str:
        if value not in options:
            raise ValueError(f"{show(value)} is not one of {', '.join(options)}")
        return str(value)

    return validate


def matching(pattern: str, wrong: str) -> Callable[[object], str]:
    """A validator of text of one form; `wrong` says what it is not."""

    def validate(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(f"{show(value)} {wrong}")
        return value

    return validate


text = matching(r"(?s).*\S.*", "is not text")


def path(value: object) -> str:
    """A path; `~` is the home folder."""
    return os.path.expanduser(text(value))


def part_of_name(value: object) -> str:
    """Text that can be part of a folder's name."""
    name = text(value)
    if not name.isprintable():  # bytes that are no letters under this locale neither
        raise ValueError(
            f"{show(name)} cannot be printed; set LC_ALL=C.UTF-8, or take ASCII letters"
        )
    if re.search(r"[/\\]", name) or name in (".", ".."):
        raise ValueError(f"{show(name)} becomes part of a folder's name, so it holds no slash")
    return name


def numbers(
    one: Callable[[object], float], count: int = 0
) -> Callable[[object], tuple[float, ...]]:
    """A validator of a list of numbers, of `count` numbers unless that is 0."""

    def validate(value: object) -> tuple[float, ...]:
        if not isinstance(value, (list, tuple)) or count not in (0, len(value)):
            wanted = f"{count} numbers" if count else "numbers"
            raise ValueError(f"{show(value)} is not a list of {wanted}")
        return tuple(one(entry) for entry in value)

    return validate


def radii(value: object) -> tuple[float, ...]:
    """Different radii: a list, or numbers separated by commas."""
    values = numbers(real(0))(value.split(",") if isinstance(value, str) else value)
    if len(set(values)) < len(values):
        raise ValueError(f"{show(value)} has a radius twice")
    return values


def pgd_rows(value: object) -> tuple[PgdRow, ...]:
    """The published form: a list of [steps, step size in [0, 1]], then maybe loss and restarts."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{show(value)} is not a list of [steps, step size]")
    return tuple(pgd_row(row) for row in value)


def pgd_row(row: object) -> PgdRow:
    if not isinstance(row, (list, tuple)) or not 2 <= len(row) <= 4:
        raise ValueError(
            f"{show(row)} is not [steps, step size] or [steps, step size, loss, restarts]"
        )
    steps, size, loss, restarts = PgdRow(*row)
    size = real(0, above=True)(size)
    if size >= 0.5:
        raise ValueError(
            f"the step size {size:g} of {show(list(row))} is in units of the range [0, 1], as"
            " published: write 1/255 for one grey level"
        )
    return PgdRow(whole(1)(steps), size, choice(*LOSS_NAMES)(loss), whole(1)(restarts))


def words(value: object) -> tuple[str, ...]:
    """Names separated by commas, one at least."""
    names = tuple(name.strip() for name in str(value).split(","))
    if not all(names):
        raise ValueError(f"{show(value)} has an empty name; separate names by single commas")
    return names


def phase_list(value: object) -> tuple[dict[str, Any], ...]:
    """A list of mappings {SECTION.key: value}; `utils.config.phases` makes settings of each."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{show(value)} is not a list of {{SECTION.key: value}}")
    wrong = [key for phase in value for key in phase if "." not in str(key)]
    if wrong:
        raise ValueError(f"{show(wrong[0])} in a phase is no SECTION.key, such as DATA.crop_size")
    return tuple(dict(phase) for phase in value)
