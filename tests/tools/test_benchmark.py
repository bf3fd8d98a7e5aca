"""The benchmark as people run it, tiny: its JSON holds what its medians and ratios are made of."""

import json
import subprocess
from statistics import median

import pytest
from conftest import command, environment

from tools.benchmark import main

pytestmark = pytest.mark.slow

ACTIONS = {
    "free": {"free", "natural"},
    "pgd": {"pgd"},
    "standard": {"evaluation"},
    "reading": {"crop", "resize and crop"},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """JSON and stdout of one run of every part."""
    cwd = tmp_path_factory.mktemp("benchmark")
    arguments = ("--quick", "--precisions", "bf16", "--output", "out/speed.json")
    done = subprocess.run(
        command("tools.benchmark", *arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((cwd / "out/speed.json").read_text()), done.stdout


def rates(row: dict) -> list[float]:
    return [images / seconds for images, seconds in row["takes"]]


def find(rows: list[dict], part: str, name: str, action: str) -> dict:
    (row,) = [r for r in rows if (r["part"], r["name"], r["action"]) == (part, name, action)]
    return row


def test_every_part_has_the_plain_loop_and_the_suite(report):
    rows = report[0]["rows"]
    for part, actions in ACTIONS.items():
        for action in actions:
            suite = find(rows, part, "suite" if part == "reading" else "suite bf16", action)
            assert suite["precision"] == ("fp32" if part == "reading" else "bf16")
            if action != "natural":
                assert find(rows, part, "plain", action)["precision"] == "fp32"
    assert len(rows) == 1 + sum(2 * len(actions) for actions in ACTIONS.values()) - 2


def test_medians_spreads_and_ratios_follow_from_the_takes(report):
    rows = report[0]["rows"]
    for row in rows:
        own = rates(row)
        assert len(own) == 2
        shown = row["images_per_second"]
        assert shown == {"median": median(own), "min": min(own), "max": max(own)}
        assert row["peak_memory_bytes"] > 2**26
        if row["action"] == "natural":
            assert "ratio_to_plain" not in row
            continue
        plain = rates(find(rows, row["part"], "plain", row["action"]))
        pairs = [a / b for a, b in zip(own, plain, strict=True)]
        assert row["ratio_to_plain"]["median"] == pytest.approx(median(own) / median(plain))
        assert row["ratio_to_plain"]["min"] == pytest.approx(min(pairs))
        assert row["ratio_to_plain"]["max"] == pytest.approx(max(pairs))


def test_a_free_step_is_compared_with_a_natural_step_in_time(report):
    rows = report[0]["rows"]
    free, natural = (find(rows, "free", "suite bf16", action) for action in ("free", "natural"))
    expected = median(rates(natural)) / median(rates(free))
    assert free["time_over_natural_step"]["median"] == pytest.approx(expected)
    assert [row for row in rows if "time_over_natural_step" in row] == [free]


def test_the_json_says_where_the_numbers_come_from_and_the_table_shows_them(report):
    result, out = report
    provenance = result["provenance"]
    assert provenance["command"].startswith("python -m tools.benchmark --quick")
    assert {"device", "processor", "cores", "threads", "versions", "date"} <= set(provenance)
    assert provenance["settings"]["crop_size"] == 32
    for row in result["rows"]:
        assert f"{row['images_per_second']['median']:.1f}"[:2] in out
    assert out.count("###") == len(ACTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "free,speed"], "--parts: no speed; there are free, pgd, standard, reading"),
        (["--device", "gpu"], "--device gpu: "),
        (["--standard_images", "7"], "--standard_images 7: half of them are to fall"),
        (["--repeats", "0"], "--repeats 0: at least 1 is needed"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
