"""The benchmark as people run it, tiny: its JSON holds what its medians and ratios are made of."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from in_process import call, only_error, unchanged

from tools import benchmark, benchmark_case
from tools.benchmark import main
from tools.benchmark_case import Case
from tools.benchmark_subject import measure

ACTIONS = {
    "free": {"free", "natural"},
    "methods": {"free", "fast", "pgd", "natural"},
    "pgd": {"pgd"},
    "standard": {"evaluation"},
    "reading": {"crop", "resize and crop"},
}


@pytest.mark.slow
def test_every_part_measures_the_plain_loop_and_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first subject in a process of its own, as all are; the others here, to be quick."""
    monkeypatch.chdir(tmp_path)
    processes: list[Case] = []

    def run(case: Case) -> dict[str, Any]:
        if processes:
            return json.loads(json.dumps(measure(case)))
        processes.append(case)
        return benchmark_case.run(case)

    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # given back afterwards
    words = ("--quick", "--precisions", "bf16", "--workers", "0", "--output", "out/speed.json")
    with unchanged():
        assert main(words) == 0
    out = capsys.readouterr().out
    result = json.loads((tmp_path / "out/speed.json").read_text())
    provenance = result["provenance"]
    assert provenance["command"].startswith("python -m tools.benchmark --quick")
    assert {"device", "processor", "cores", "threads", "versions", "date"} <= set(provenance)
    found = {(row["part"], row["name"], row["action"]): row for row in result["rows"]}
    own = {part: "suite" if part == "reading" else "suite bf16" for part in ACTIONS}
    expected = {(part, own[part], action) for part in ACTIONS for action in ACTIONS[part]}
    compared = [part for part in ACTIONS if part != "methods"]
    expected |= {(p, "plain", a) for p in compared for a in ACTIONS[p] if a != "natural"}
    assert set(found) == expected
    passes = {row["action"]: row.get("passes") for row in result["rows"] if "passes" in row}
    assert passes == {"free": 4, "fast": 2, "pgd": 4, "natural": 1}
    for row in result["rows"]:
        assert len(row["takes"]) == 1
        assert row["peak_memory_bytes"] > 2**26
        assert benchmark.cell(row["images_per_second"]) in out
    assert out.count("###") == len(ACTIONS)


def test_medians_and_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Subjects in turn, repetition by repetition; every number follows from the takes."""
    order: list[str] = []

    def run(case: Any) -> dict[str, Any]:
        order.append(case.name)
        speed = {"plain": 10.0, "suite fp32": 20.0, "suite bf16": 40.0}[case.name] + len(order)
        takes = {"free": [2 * speed, 2.0]}
        if case.subject == "suite":
            takes["natural"] = [3 * speed, 1.5]
        return {"takes": takes, "peak_memory_bytes": len(order)}

    monkeypatch.setattr(benchmark, "run", run)
    options = benchmark.parse(["--parts", "free", "--repeats", "3", "--no_compile"])
    rows = benchmark.measure("free", options, tmp_path)
    assert order == ["plain", "suite fp32", "suite bf16"] * 3
    plain, fp32, natural, bf16, _ = rows
    assert [row["name"] for row in (plain, fp32, natural, bf16)] == [
        *("plain", "suite fp32", "suite fp32", "suite bf16")
    ]
    speeds = [22, 25, 28], [11, 14, 17]
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    assert fp32["images_per_second"] == {"median": 25, "min": 22, "max": 28}
    assert fp32["ratio_to_plain"] == {"median": 25 / 14, "min": min(ratios), "max": max(ratios)}
    assert fp32["time_over_natural_step"]["median"] == median([44, 50, 56]) / 25
    assert "ratio_to_plain" not in natural
    assert plain["peak_memory_bytes"] == 7
    assert "| suite fp32, free | 25.0 (22.0-28.0) | 1.79 (1.65-2.00) |" in benchmark.table(rows)


def test_a_subject_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")  # a program that ends with status 1
    options = benchmark.parse(["--quick", "--parts", "free"])
    (case, *_) = benchmark.cases_of("free", options, Path("nowhere"))
    with pytest.raises(ValueError, match="free, plain: its process ended with status 1"):
        benchmark.run(case)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--parts", "free,speed"],
            "--parts: no speed; there are free, methods, pgd, standard, reading",
        ),
        (["--device", "gpu"], "--device gpu: "),
        (["--standard_images", "7"], "--standard_images 7: "),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    assert only_error(call("tools.benchmark", *arguments)).startswith(message)
