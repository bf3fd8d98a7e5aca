"""Every program of tools/ refuses wrong flags as the two scripts do: one line, status 2."""

import pytest
from in_process import call, only_error

TOOLS = {  # {tool: (what it needs, its counts)}
    "benchmark": ((), ("batch_size", "crop_size", "repeats")),
    "check_data": ((".",), ("workers",)),
    "compare": (("RUN",), ()),
    "demo": ((), ()),
    "plot": (("training", "RUN", "-o", "figure"), ()),
    "study": ((), ("seeds", "jobs")),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_an_unknown_flag_and_counts(tool: str) -> None:
    needed, counts = TOOLS[tool]
    message = only_error(call(f"tools.{tool}", *needed, "--nonsense"))
    assert message == f"unrecognized arguments: --nonsense; see python -m tools.{tool} --help"
    for flag in counts:
        for value in ("0", "1.5"):
            message = only_error(call(f"tools.{tool}", *needed, f"--{flag}", value))
            assert message.startswith(f"argument --{flag}: ")


@pytest.mark.parametrize("words", [("check_data",), ("compare",), ("plot", "training", "-o", "x")])
def test_tilde_is_the_home_folder(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/no/home")
    assert "/no/home/data" in only_error(call(f"tools.{words[0]}", *words[1:], "~/data"))
