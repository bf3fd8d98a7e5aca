"""The benchmark as people run it, tiny: its JSON holds what its medians and ratios are made of."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from in_process import call, only_error, unchanged

from tools import benchmark
from tools.benchmark import Subject, main
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
    in_process, subjects = benchmark.run, []

    def run(subject: Subject) -> dict[str, Any]:
        subjects.append(subject)
        if len(subjects) == 1:
            return in_process(subject)
        return json.loads(json.dumps(measure(subject.case)))

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
    suite = {part: "suite" if part == "reading" else "suite bf16" for part in ACTIONS}
    expected = {(part, suite[part], action) for part in ACTIONS for action in ACTIONS[part]}
    compared = [part for part in ACTIONS if part != "methods"]
    expected |= {(p, "plain", a) for p in compared for a in ACTIONS[p] if a != "natural"}
    assert {(row["part"], row["name"], row["action"]) for row in result["rows"]} == expected
    for row in result["rows"]:
        assert len(row["takes"]) == 1
        assert row["peak_memory_bytes"] > 2**26
        assert benchmark.cell(row["images_per_second"]) in out


def test_medians_and_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Subjects in turn, repetition by repetition; every number follows from the takes."""
    order: list[str] = []

    def run(subject: Subject) -> dict[str, Any]:
        order.append(subject.name)
        speed = {"plain": 10.0, "suite fp32": 20.0, "suite bf16": 40.0}[subject.name] + len(order)
        takes = {"free": [2 * speed, 2.0]}
        if subject.case.subject == "suite":
            takes["natural"] = [3 * speed, 1.5]
        return {"takes": takes, "peak_memory_bytes": len(order)}

    monkeypatch.setattr(benchmark, "run", run)
    options = benchmark.parse(["--parts", "free", "--repeats", "3", "--no_compile"])
    rows = benchmark.measure("free", options, tmp_path)
    assert order == ["plain", "suite fp32", "suite bf16"] * 3
    plain, fp32, natural, _, _ = rows
    pairs = [a / b for a, b in zip([22, 25, 28], [11, 14, 17], strict=True)]
    assert fp32["images_per_second"] == {"median": 25, "min": 22, "max": 28}
    assert fp32["ratio_to_plain"] == {"median": 25 / 14, "min": min(pairs), "max": max(pairs)}
    assert fp32["time_over_natural_step"]["median"] == median([44, 50, 56]) / 25
    assert "ratio_to_plain" not in natural
    assert plain["peak_memory_bytes"] == 7
    assert "| suite fp32, free | 25.0 (22.0-28.0) | 1.79 (1.65-2.00) |" in benchmark.table(rows)


def test_another_checkout_takes_the_place_of_the_plain_loop(tmp_path: Path) -> None:
    there = tmp_path / "tools" / "benchmark_subject.py"
    there.parent.mkdir()
    there.write_text('print(\'{"takes": {"free": [8, 2.0]}, "peak_memory_bytes": 1}\')')
    words = ["--parts", "free", "--precisions", "fp32", "--no_compile", "--against", str(tmp_path)]
    other, here = benchmark.subjects_of("free", benchmark.parse(words), tmp_path)
    assert [other.checkout, here.checkout] == [tmp_path, benchmark.ROOT]
    results = {here.name: [{"takes": {"free": [8, 1.0]}, "peak_memory_bytes": 1}]}
    results[other.name] = [benchmark.run(other)]
    assert benchmark.row_of(here, results, "free")["ratio_to_other"]["median"] == 2


def test_a_subject_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")  # a program that ends with status 1
    options = benchmark.parse(["--quick", "--parts", "free"])
    subject, *_ = benchmark.subjects_of("free", options, Path("nowhere"))
    with pytest.raises(ValueError, match="free, plain: its process ended with status 1"):
        benchmark.run(subject)


@pytest.mark.parametrize(
    "words",
    [
        ("--parts", "free,speed"),
        ("--device", "gpu"),
        ("--standard_images", "7"),
        ("--against", "nowhere"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, str]) -> None:
    assert only_error(call("tools.benchmark", *words)).startswith(f"{words[0]}")
