"""How the text or YAML of a setting becomes its value; a ValueError says what is wrong with it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lib.algorithm.protocols import LOSS_NAMES

MOST = 2**31 - 1  # of anything that is counted: images in a batch, epochs, steps
REDUCE_OVERHEAD = "reduce-overhead"  # torch.compile's mode of CUDA graphs


class PgdRow(NamedTuple):
    """One attack of `ADV.pgd_attack`; the step size is in units of the range [0, 1]."""

    steps: int
    step_size: float
    loss: str = "ce"
    restarts: int = 1


def show(value: object) -> str:
    """A value in a message: one line, whatever it holds, and not a long one."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}...{text[-10:]}"


def one_line(key: object) -> str:
    """A key in a message, without line breaks and escapes of the terminal."""
    return key if isinstance(key, str) and key.isprintable() else show(key)


def strict_bool(value: object) -> bool:
    """True/False, yes/no, 1/0, in any case; anything else is a ValueError."""
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
        if isinstance(value, str) and "/" in value:
            above, below = value.split("/")
            result = float(above) / float(below)
        else:
            result = float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"{show(value)} is not a number") from None
    if not math.isfinite(result):
        raise ValueError(f"{show(value)} is not finite")
    return result


def real(low: float, high: float = math.inf, *, above: bool = False) -> Callable[[object], float]:
    """A validator of numbers in [low, high], or (low, high] with `above`."""

    def read(value: object) -> float:
        result = number(value)
        if result < low or result > high or (above and result == low):
            bound = f"above {low:g}" if above else f"at least {low:g}"
            raise ValueError(f"{show(value)} must be {bound}" + limit(high))
        return result

    return read


def whole(low: int, high: int = MOST) -> Callable[[object], int]:
    """A validator of whole numbers in [low, high]."""

    def read(value: object) -> int:
        rounded = number(value)
        if rounded != int(rounded):
            raise ValueError(f"{show(value)} is not a whole number")
        try:
            result = int(str(value))  # a float holds 53 bits, and a seed may have 63
        except ValueError:  # 8.0, or text such as 1e3
            result = int(rounded)
        if not low <= result <= high:
            raise ValueError(f"{show(value)} must be at least {low}" + limit(high))
        return result

    return read


def workers(value: object) -> int | str:
    return "auto" if value == "auto" else whole(0)(value)


def compile_mode(value: object) -> bool | str:
    """Whether a network is compiled, or torch.compile's mode for it."""
    if value == REDUCE_OVERHEAD:
        return REDUCE_OVERHEAD
    try:
        return strict_bool(value)
    except ValueError:
        raise ValueError(f"{show(value)} is not one of false, true, {REDUCE_OVERHEAD}") from None


def limit(high: float) -> str:
    """The second half of a range's wording."""
    return "" if high == math.inf else f" and at most {high}"


def choice(options: Sequence[str]) -> Callable[[object], str]:
    """A validator of one of some words."""

    def read(value: object) -> str:
        if value not in options:
            raise ValueError(f"{show(value)} is not one of {', '.join(options)}")
        return str(value)

    return read


def architecture(value: object) -> str:
    """A network's name; whether there is one is known where it is built."""
    if not isinstance(value, str) or not re.fullmatch(r"(timm/)?[\w.-]{1,80}", value):
        raise ValueError(f"{show(value)} is not one of torchvision's networks, nor timm/NAME")
    return value


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{show(value)} is not text")
    return value


def path(value: object) -> str:
    """A path; `~` is the home folder."""
    return os.path.expanduser(text(value))


def output_prefix(value: object) -> str:
    """Text that can be part of a folder's name."""
    name = text(value)
    if re.search("[\udc80-\udcff]", name):
        raise ValueError(
            f"{show(name)} cannot be read as text under this locale; set LC_ALL=C.UTF-8 or"
            " PYTHONUTF8=1, or take a name of ASCII letters"
        )
    if not name.isprintable():
        raise ValueError(f"{show(name)} holds characters that cannot be printed")
    if "/" in name or "\\" in name or name in (".", ".."):
        raise ValueError(f"{show(name)} becomes part of a folder's name, so it holds no slash")
    return name


def device(value: object) -> str:
    """The name of a kind of device; whether there is one here is for torch to say."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError(f"{show(value)} is not one of auto, cpu, cuda, cuda:1, mps")
    return value


def numbers(
    count: int | None, low: float, high: float = math.inf, *, above: bool = False
) -> Callable[[object], tuple[float, ...]]:
    """A validator of a list of numbers, of a fixed length where `count` is given."""
    one = real(low, high, above=above)

    def read(value: object) -> tuple[float, ...]:
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
            raise ValueError(f"{show(value)} is not {wanted}")
        return tuple(one(entry) for entry in value)

    return read


def radii(value: object) -> tuple[float, ...]:
    """Different radii: a list, or numbers separated by commas."""
    found = numbers(None, 0)(value.split(",") if isinstance(value, str) else value)
    if len(set(found)) < len(found):
        raise ValueError(f"{show(value)} has a radius twice")
    return found


def pgd_rows(value: object) -> tuple[PgdRow, ...]:
    """The published form: a list of [steps, step size], then optionally loss and restarts."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{show(value)} is not a list of [steps, step size]")
    return tuple(pgd_row(row) for row in value)


def pgd_row(row: object) -> PgdRow:
    """[steps, step size in [0, 1], loss, restarts], with `ce` and 1 where they are left out."""
    if not isinstance(row, (list, tuple)) or not 2 <= len(row) <= 4:
        raise ValueError(
            f"{show(row)} is not [steps, step size] or [steps, step size, loss, restarts]"
        )
    attack = PgdRow(*row)
    size = real(0, above=True)(attack.step_size)
    if size >= 0.5:
        raise ValueError(
            f"the step size {size:g} of {show(list(row))} is in units of the range [0, 1], as"
            " published: write 1/255 for one grey level"
        )
    loss = choice(LOSS_NAMES)(attack.loss)
    return PgdRow(whole(1)(attack.steps), size, loss, whole(1)(attack.restarts))


def words(value: object) -> tuple[str, ...]:
    """Names separated by commas, one at least."""
    found = tuple(word.strip() for word in str(value).split(","))
    if not all(found):
        raise ValueError(f"{show(value)} has an empty name; separate names by single commas")
    return found


def phase_list(value: object) -> tuple[dict[str, Any], ...]:
    """A list of mappings {SECTION.key: value}; `utils.config.phases` makes settings of each."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{show(value)} is not a list of {{SECTION.key: value}}")
    wrong = [key for phase in value for key in phase if "." not in str(key)]
    if wrong:
        raise ValueError(f"{show(wrong[0])} in a phase is no SECTION.key, such as DATA.crop_size")
    return tuple(dict(phase) for phase in value)
