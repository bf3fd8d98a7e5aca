"""The benchmark as people run it, tiny: its JSON holds what its medians and ratios are made of."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from in_process import call, only_error, unchanged

from tools import benchmark
from tools.benchmark import main
from tools.benchmark_subject import Case, measure

ACTIONS = {"free": {"free", "natural"}, "pgd": {"pgd"}, "standard": {"evaluation"}}


@pytest.mark.slow
def test_every_part_measures_the_plain_loop_and_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first subject in a process of its own, as all are; the others here, to be quick."""
    monkeypatch.chdir(tmp_path)
    in_process, subjects = benchmark.run, []

    def run(name: str, checkout: Path, case: Case) -> dict[str, Any]:
        subjects.append(name)
        if len(subjects) == 1:
            return in_process(name, checkout, case)
        return json.loads(json.dumps(measure(case)))

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
    expected = {(part, "suite bf16", a) for part in ACTIONS for a in ACTIONS[part]}
    expected |= {(p, "plain", a) for p in ACTIONS for a in ACTIONS[p] if a != "natural"}
    assert {(row["part"], row["name"], row["action"]) for row in result["rows"]} == expected
    for row in result["rows"]:
        assert len(row["takes"]) == 1
        assert benchmark.cell(row["images_per_second"]) in out


def test_medians_and_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Subjects in turn, repetition by repetition; every number follows from the takes."""
    order: list[str] = []

    def run(name: str, checkout: Path, case: Case) -> dict[str, Any]:
        order.append(name)
        speed = {"plain": 10.0, "suite fp32": 20.0, "suite bf16": 40.0}[name] + len(order)
        takes = {"free": [2 * speed, 2.0]}
        if case.subject == "suite":
            takes["natural"] = [3 * speed, 1.5]
        return {"takes": takes, "peak_memory_bytes": len(order)}

    monkeypatch.setattr(benchmark, "run", run)
    options = benchmark.parse(["--parts", "free", "--repeats", "3", "--no_compile"])
    rows = benchmark.measure("free", options, tmp_path)
    assert order == ["plain", "suite fp32", "suite bf16"] * 3
    plain, fp32, natural, _, _ = rows
    pairs = [a / b for a, b in zip([22, 25, 28], [11, 14, 17], strict=True)]
    assert fp32["images_per_second"] == {"median": 25, "min": 22, "max": 28}
    assert fp32["ratio"] == {"median": 25 / 14, "min": min(pairs), "max": max(pairs)}
    assert fp32["time_over_natural_step"]["median"] == median([44, 50, 56]) / 25
    assert "ratio" not in natural
    assert plain["peak_memory_bytes"] == 7
    assert "| suite fp32, free | 25.0 (22.0-28.0) | 1.79 (1.65-2.00) |" in benchmark.table(rows)


def test_another_checkout_takes_the_place_of_the_plain_loop(tmp_path: Path) -> None:
    there = tmp_path / "tools" / "benchmark_subject.py"
    there.parent.mkdir()
    there.write_text('print(\'{"takes": {"free": [8, 2.0]}, "peak_memory_bytes": 1}\')')
    words = ["--parts", "free", "--precisions", "fp32", "--no_compile", "--against", str(tmp_path)]
    subjects = benchmark.subjects_of("free", benchmark.parse(words), tmp_path)
    checkouts = {name: checkout for name, (checkout, _) in subjects.items()}
    assert checkouts == {"other fp32": tmp_path, "suite fp32": benchmark.ROOT}
    results = {"other fp32": [benchmark.run("other fp32", *subjects["other fp32"])]}
    results["suite fp32"] = [{"takes": {"free": [8, 1.0]}, "peak_memory_bytes": 1}]
    other, here = benchmark.rows_of(subjects, results)
    assert here["ratio"]["median"] == 2
    assert "ratio" not in other


def test_a_subject_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")  # a program that ends with status 1
    options = benchmark.parse(["--quick", "--parts", "free"])
    subjects = benchmark.subjects_of("free", options, Path("nowhere"))
    with pytest.raises(ValueError, match="free, plain: its process ended with status 1"):
        benchmark.run("plain", *subjects["plain"])


@pytest.mark.parametrize(
    "words",
    [("--parts", "free,speed"), ("--device", "gpu"), ("--against", "nowhere")],
)
def test_bad_input_is_one_line(words: tuple[str, str]) -> None:
    assert words[0] in only_error(call("tools.benchmark", *words))
