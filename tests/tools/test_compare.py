"""`python -m tools.compare` on evaluation files written for the purpose."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tools.compare import main

ROOT = Path(__file__).resolve().parents[2]
# Wilson's 95 % intervals in percent, as scipy's binomtest(...).proportion_ci(method='wilson') says.
WILSON = {
    (90, 100): (82.56, 94.48),
    (50, 100): (40.38, 59.62),
    (40, 100): (30.94, 49.80),
}


@pytest.fixture
def compare(capsys):
    """The command within this process: fast, for matplotlib is loaded once."""

    def run(*arguments: object) -> subprocess.CompletedProcess:
        status = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def accuracy(correct: int, n: int) -> dict:
    low, high = WILSON[correct, n]
    fraction = correct / n
    return {"correct": correct, "n": n, "accuracy": fraction, "interval95": [low / 100, high / 100]}


def provenance(checkpoint: str, **changes) -> dict:
    images = changes.pop("images", "all 100 images")
    name = changes.pop("name", "checkpoint.pth.tar")
    return {
        "command": "evaluate.py",
        "config": {
            "DATA": {"img_size": 256, "crop_size": changes.pop("crop", 224)},
            "ADV": {"pgd_attack": [[10, 1 / 255, "ce", 1], [50, 1 / 255, "ce", 1]]},
        },
        "checkpoint": {"path": f"trained_models/x/{name}", "sha256": checkpoint * 64},
        "protocol": "standard",
        "precision": "fp32",
        "eps": 4 / 255,
        "seed": 0,
        "subset": {"description": images, "n": 100, "sha256": f"{hash(images):x}"},
        **changes,
    }


def attack(name: str, label: str, correct: int, step: float = 1 / 255, scale: float = 1.0) -> dict:
    steps = int(re.sub(r"\D", "", name) or 0)
    entry = {"name": name, "label": label, "steps": steps, "step_size": step, "loss": "ce"}
    return entry | {"restarts": 1, "scale": scale, "top1": accuracy(correct, 100)}


def write(path: Path, data: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def write_attacks(
    folder: Path, checkpoint: str, robust: int = 50, worst: int = 40, file: str = "", **changes
) -> Path:
    """An attack evaluation with PGD-10 and a worst case."""
    step, scale = changes.pop("step", 1 / 255), changes.pop("scale", 1.0)
    extra, warnings = changes.pop("extra", []), changes.pop("warnings", [])
    data = {
        "kind": "attack",
        "provenance": provenance(checkpoint, **changes),
        "clean": {"loss": 0.5, "top1": accuracy(90, 100), "top5": accuracy(90, 100)},
        "attacks": [attack("pgd10", "PGD-10 (ce)", robust, step, scale), *extra],
        "worst_case": {"top1": accuracy(worst, 100)},
        "warnings": warnings,
    }
    return write(folder / (file or f"attack_{data['provenance']['protocol']}.json"), data)


def write_imagenet_c(folder: Path, checkpoint: str, mce: float | None = 76.7, **changes) -> Path:
    """An ImageNet-C evaluation: mean accuracy 40 % of 100 images."""
    cell = [accuracy(40, 100)] * 5
    data = {
        "kind": "imagenet_c",
        "provenance": provenance(checkpoint, **changes),
        "corruptions": {"fog": {"group": "weather", "top1": cell, "top5": cell}},
        "summary": {"mean_accuracy": 0.4, "mean_error": 0.6, "mCE": mce, "left_out": {}},
    }
    return write(folder / f"imagenet_c_{data['provenance']['protocol']}.json", data)


def table(markdown: str) -> dict[str, dict[str, str]]:
    """{row: {column: cell}} of a Markdown table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = cells[0][1:]
    return {row[0]: dict(zip(header, row[1:], strict=True)) for row in cells[2:]}


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    """Two runs, evaluated alike."""
    free = tmp_path / "resnet18_free_adv_step4_eps4_repeat4_bs256"
    he = tmp_path / f"{free.name}_FN_WN_s10.0_margin0.2"
    write_attacks(free, "a")
    write_attacks(he, "b", robust=90, worst=50, scale=10.0)
    write_imagenet_c(free, "a")
    write_imagenet_c(he, "b", mce=None)
    write(he / "other.json", {"kind": "something else"})
    write(he / "list.json", [1, 2])
    return free, he


def test_one_table_in_three_formats_and_a_figure(runs, tmp_path):
    command = [sys.executable, "-m", "tools.compare", *map(str, runs), "-o", "out/both"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    he = "FreeAT + HE (s = 10, m = 0.2)"
    expected = {
        "FreeAT": {
            "Clean": "90.0 [82.6, 94.5]",
            "PGD-10 (ce)": "50.0 [40.4, 59.6]",
            "Worst case": "40.0 [30.9, 49.8]",
            "ImageNet-C mean": "40.0 [30.9, 49.8]",
            "mCE": "76.7",
        },
        he: {
            "Clean": "90.0 [82.6, 94.5]",
            "PGD-10 (ce)": "90.0 [82.6, 94.5]",
            "Worst case": "50.0 [40.4, 59.6]",
            "ImageNet-C mean": "40.0 [30.9, 49.8]",
            "mCE": "-",
        },
    }
    assert table(result.stdout) == expected
    assert list(table(result.stdout)["FreeAT"]) == list(expected["FreeAT"])  # in this order
    stem = tmp_path / "out" / "both"
    assert stem.with_suffix(".md").read_text() == result.stdout
    with stem.with_suffix(".csv").open() as file:
        rows = {(row["run"], row["measure"]): row for row in csv.DictReader(file)}
    assert len(rows) == 9
    robust = rows[he, "PGD-10 (ce)"]
    assert float(robust["percent"]) == pytest.approx(90)
    assert float(robust["low95"]) == pytest.approx(82.56)
    assert (robust["eps"], robust["step"], robust["protocol"]) == ("4/255", "1/255", "standard")
    assert robust["file"] == str(runs[1] / "attack_standard.json")
    latex = stem.with_suffix(".tex").read_text()
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3
    assert all(line.count(" & ") == 5 for line in body)
    assert r"50.0 [40.4, 59.6]" in body[1]
    with Image.open(stem.with_suffix(".png")) as image:
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_notes_tell_conditions_scales_and_warnings(compare, runs, tmp_path):
    write_attacks(runs[0], "a", warnings=["gradients are zero on 30 images"])
    text = compare(*runs, "-o", tmp_path / "x").stdout
    assert "Clean: all 100 images; resize 256, crop 224." in text
    assert "PGD-10 (ce): protocol standard; eps 4/255; search in fp32; step 1/255;" in text
    assert "over pgd10;" in text
    assert "ImageNet-C mean, mCE: protocol standard; all 100 images; crop 224." in text
    assert "FreeAT 1; FreeAT + HE (s = 10, m = 0.2) 10" in text
    assert "Warning, FreeAT: gradients are zero on 30 images" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "paper"}, ("protocol standard", "protocol paper")),
        ({"eps": 8 / 255}, ("eps 4/255", "eps 8/255")),
        ({"precision": "bf16"}, ("search in fp32", "search in bf16")),
        ({"images": "100 of 50000 images"}, ("all 100 images", "100 of 50000 images")),
        ({"step": 2 / 255}, ("step 1/255", "step 2/255")),
        ({"crop": 160}, ("crop 224", "crop 160")),
        ({"extra": [attack("pgd50", "PGD-50 (ce)", 50)]}, ("over pgd10", "over pgd10 + pgd50")),
    ],
)
def test_what_does_not_compare_is_refused_or_told(compare, tmp_path, changes, said):
    write_attacks(tmp_path / "one", "a")
    write_attacks(tmp_path / "two", "b", **changes)
    refused = compare(tmp_path / "one", tmp_path / "two", "-o", f"{tmp_path}/out/")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert all(text in refused.stderr for text in (*said, "--allow_mixed"))
    assert refused.stdout == ""
    assert not (tmp_path / "out").exists()
    told = compare(tmp_path / "one", tmp_path / "two", "-o", f"{tmp_path}/out/", "--allow_mixed")
    assert told.returncode == 0, told.stderr
    rows = table(told.stdout)
    for text, (row, other) in zip(said, (("one", "two"), ("two", "one")), strict=True):
        columns = [name for name in rows[row] if re.search(rf"{re.escape(text)}(,|$)", name)]
        assert columns
        for column in columns:
            assert rows[row][column] != "-"
            assert rows[other][column] == "-"
    assert (tmp_path / "out" / "comparison.png").exists()


def test_protocol_and_images_of_imagenet_c_matter(compare, tmp_path):
    write_imagenet_c(tmp_path / "one", "a")
    write_imagenet_c(tmp_path / "two", "b", protocol="freeat")
    result = compare(tmp_path / "one", tmp_path / "two", "-o", tmp_path / "x")
    assert result.returncode == 2
    assert "protocol freeat" in result.stderr
    write_imagenet_c(tmp_path / "two", "b", images="other images")
    (tmp_path / "two" / "imagenet_c_freeat.json").unlink()
    result = compare(tmp_path / "one", tmp_path / "two", "-o", tmp_path / "x")
    assert result.returncode == 2
    assert "other images" in result.stderr


def test_runs_with_several_protocols_have_a_column_for_each(compare, tmp_path):
    for run, checkpoint in (("one", "a"), ("two", "b")):
        write_attacks(tmp_path / run, checkpoint)
        write_attacks(tmp_path / run, checkpoint, robust=90, protocol="freeat")
    (tmp_path / "two" / "attack_freeat.json").unlink()
    result = compare(tmp_path / "one", tmp_path / "two", "-o", tmp_path / "x")
    assert result.returncode == 0, result.stderr
    rows = table(result.stdout)
    assert rows["one"]["PGD-10 (ce), protocol standard"].startswith("50.0")
    assert rows["one"]["PGD-10 (ce), protocol freeat"].startswith("90.0")
    assert rows["two"]["PGD-10 (ce), protocol standard"].startswith("50.0")
    assert rows["two"]["PGD-10 (ce), protocol freeat"] == "-"
    assert "Clean" in rows["one"]  # taken alike under both, so one column


def test_checkpoints_of_one_folder_are_rows_of_their_own(compare, tmp_path):
    write_attacks(tmp_path / "run", "a", file="attack_last.json")
    best = {"name": "model_best.pth.tar", "file": "attack_best.json"}
    write_attacks(tmp_path / "run", "b", robust=90, **best)
    rows = table(compare(tmp_path / "run", "-o", tmp_path / "x").stdout)
    assert rows["run (checkpoint.pth.tar)"]["PGD-10 (ce)"].startswith("50.0")
    assert rows["run (model_best.pth.tar)"]["PGD-10 (ce)"].startswith("90.0")


def test_files_of_one_checkpoint_are_one_row_and_names_can_be_given(compare, tmp_path):
    files = [write_attacks(tmp_path / "run", "a"), write_imagenet_c(tmp_path / "run", "a")]
    result = compare(*files, *files, "-o", tmp_path / "x", "--names", "Mine & only")
    assert list(table(result.stdout)) == ["Mine & only"]
    assert table(result.stdout)["Mine & only"]["mCE"] == "76.7"
    assert r"Mine \& only" in (tmp_path / "x.tex").read_text()
    result = compare(*files, "-o", tmp_path / "x", "--names", "A", "B")
    assert result.returncode == 2
    assert "2 names for 1 rows" in result.stderr


def test_contradictory_files_are_refused(compare, tmp_path):
    write_attacks(tmp_path / "run", "a", robust=50)
    write_attacks(tmp_path / "run", "a", robust=40, file="attack_again.json")
    result = compare(tmp_path / "run", "-o", tmp_path / "x")
    assert result.returncode == 2
    assert "attack_again.json" in result.stderr
    assert "two values of PGD-10 (ce)" in result.stderr


def test_a_cascade_has_a_worst_case_alone(compare, tmp_path):
    path = write_attacks(tmp_path / "fast", "a")
    data = json.loads(path.read_text())
    data |= {"attacks": [], "cascade": ["pgd10"]}
    path.write_text(json.dumps(data))
    write_attacks(tmp_path / "slow", "b")
    result = compare(tmp_path / "fast", tmp_path / "slow", "-o", tmp_path / "x")
    assert result.returncode == 0, result.stderr
    row = table(result.stdout)["fast"]
    assert row["Worst case"] == "40.0 [30.9, 49.8]"
    assert row["PGD-10 (ce)"] == "-"


def test_autoattack_is_one_column(compare, tmp_path):
    parts = [
        attack("autoattack-apgd-ce", "AutoAttack, after apgd-ce", 90),
        attack("autoattack", "AutoAttack", 40, step=0.0),
    ]
    write_attacks(tmp_path / "run", "a", extra=parts)
    row = table(compare(tmp_path / "run", "-o", tmp_path / "x").stdout)["run"]
    assert list(row) == ["Clean", "PGD-10 (ce)", "AutoAttack", "Worst case"]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ('{"kind": "training"}', "is no evaluation"),
        ('{"kind": "attack", "provenance": {}}', "lacks what an evaluation holds"),
    ],
)
def test_bad_files_are_one_line(compare, tmp_path, content, cause):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    result = compare(path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert cause in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_without_evaluations_and_no_argument(compare, tmp_path):
    result = compare(tmp_path)
    assert result.returncode == 2
    assert "holds no evaluation" in result.stderr
    assert compare().returncode == 2


def test_a_wrong_flag_is_one_line(compare):
    result = compare("x", "--name", "A", "--ouput", "x")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def test_files_go_to_the_current_folder_by_default(compare, tmp_path, monkeypatch):
    write_attacks(tmp_path / "run", "a")
    monkeypatch.chdir(tmp_path)
    assert compare("run").returncode == 0
    made = {path.name for path in tmp_path.iterdir()} - {"run"}
    assert made == {f"comparison.{kind}" for kind in ("md", "csv", "tex", "png", "pdf")}


def test_tables_need_no_torch(tmp_path):
    write_attacks(tmp_path / "run", "a")
    code = (
        "import sys; from tools.compare import main; status = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), "-o", str(tmp_path / "x")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
