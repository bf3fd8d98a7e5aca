"""Every program of tools/ refuses wrong flags as the two scripts do: one line, status 2."""

from __future__ import annotations

import pytest
from in_process import call, only_error

NEEDED = {
    "benchmark": (),
    "check_data": (".",),
    "compare": ("RUN",),
    "demo": (),
    "demo_data": ("DIR",),
    "plot": ("training", "RUN", "-o", "figure"),
    "study": (),
}
COUNTS = {
    "benchmark": ("batch_size", "crop_size", "repeats", "standard_repeats", "reading_images"),
    "check_data": ("workers",),
    "demo_data": ("images", "workers"),
    "study": ("seeds", "jobs"),
}


@pytest.mark.parametrize("tool", NEEDED)
def test_an_unknown_flag(tool: str) -> None:
    message = only_error(call(f"tools.{tool}", *NEEDED[tool], "--nonsense"))
    assert message == f"unrecognized arguments: --nonsense; see python -m tools.{tool} --help"


@pytest.mark.parametrize(
    ("tool", "flag"), [(t, flag) for t, flags in COUNTS.items() for flag in flags]
)
def test_a_count_is_a_whole_number_from_one(tool: str, flag: str) -> None:
    for value, said in ("0", "'0' must be at least 1"), ("1.5", "'1.5' is not a whole number"):
        message = only_error(call(f"tools.{tool}", *NEEDED[tool], f"--{flag}", value))
        assert message.startswith(f"argument --{flag}: {said}")


@pytest.mark.parametrize(
    "words", [("check_data",), ("compare",), ("plot", "training", "-o", "x")], ids=lambda w: w[0]
)
def test_tilde_is_the_home_folder(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/no/home")
    message = only_error(call(f"tools.{words[0]}", *words[1:], "~/data"))
    assert "/no/home/data" in message
