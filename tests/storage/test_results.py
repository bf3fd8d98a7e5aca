"""Result files: what is written is read again, and which measurement has which name."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import fields, replace

import pytest
from records import attack, attack_result, imagenet_c_result
from scipy import stats

from utils.errors import UserError
from utils.storage.files import atomic_write, names_sha256, write_csv, write_json
from utils.storage.intervals import wilson_interval
from utils.storage.measurement import Measurement, attack_text, filename_suffix
from utils.storage.results import read_as, read_result, result_stem, write_result

USUAL = Measurement(
    "attack", "standard", "a" * 64, "b" * 64, 256, 224, attacks=("pgd10@1", "pgd50@1"), eps=4 / 255
)


@pytest.mark.parametrize(
    "result",
    [
        attack_result(warnings=["odd"]),
        attack_result(cascade=["pgd10"]),
        attack_result(attacks=[attack("autoattack", "AutoAttack", 3, step=0)]),
        imagenet_c_result(),
        imagenet_c_result(names=["fog"]),
    ],
    ids=range(5),
)
def test_what_is_written_is_read(tmp_path, result):
    write_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == result.measurement.kind


# Every field that can change a number, another value, and the name that it makes.
OTHERS = {
    "kind": ("imagenet_c", ""),
    "protocol": ("paper", ""),
    "checkpoint": ("c" * 64, ""),
    "images": ("c" * 64, ""),
    "scale": (64.0, ""),
    "resize": (232, "_resize232"),
    "crop": (160, "_crop160"),
    "attacks": (("pgd10@1", "pgd50@2.5", "autoattack"), "_pgd10+pgd50@2.5+autoattack"),
    "eps": (0.5 / 255, "_eps0.5"),
    "norm": ("L2", "_L2"),
    "precision": ("bf16", "_bf16"),
    "scales": ((1.0, 2.5), "_scales1+2.5"),
    "seed": (1, "_seed1"),
    "cascade": (True, "_cascade"),
    "transfer": ("d" * 64, ""),
    "class_order": ("numeric", "_numeric_order"),
    "network": ("FN", "_FN"),
    "checkpoint_name": ("last.pth.tar", "_last"),
    "subset": ("n500", "_n500"),
    "corruptions": ("snow+fog", "_snow+fog"),
    "transfer_name": ("resnet18_x.pt", "_from_resnet18_x"),
}


def test_names_outside_linf_show_steps_in_the_radius_unit() -> None:
    usual = replace(USUAL, norm="L2", eps=0.5, attacks=("pgd10@31.875", "pgd50@6.375"))
    for attacks, name in (
        (("pgd10@31.875",), "_pgd10"),  # 2.5 radii / 10 steps
        (("pgd10-margin-r5@31.875",), "_pgd10-margin-r5"),
        (("pgd10@51", "apgd"), "_pgd10@0.2+apgd"),
    ):
        assert filename_suffix(replace(usual, attacks=attacks), usual) == name


@pytest.mark.parametrize("field", OTHERS)
def test_what_distinguishes_two_measurements_is_in_the_name(tmp_path, field):
    assert {f.name for f in fields(Measurement)} == set(OTHERS)
    value, suffix = OTHERS[field]
    other = replace(USUAL, **{field: value})
    assert filename_suffix(other, USUAL) == suffix
    assert read_as(Measurement, json.loads(json.dumps(other.fingerprint()))) == other
    # Neither replaces the other's file, and each its own.
    usual = attack_result()
    stem = result_stem(tmp_path, USUAL, USUAL)
    assert stem == tmp_path / "attack_standard"
    write_result(stem.with_name(f"{stem.name}.json"), replace(usual, measurement=USUAL))
    theirs = result_stem(tmp_path, other, USUAL)
    # A checkpoint that was replaced has no results any more.
    assert (theirs == stem) == (field == "checkpoint")
    write_result(theirs.with_name(f"{theirs.name}.json"), replace(usual, measurement=other))
    assert result_stem(tmp_path, other, USUAL) == theirs
    assert result_stem(tmp_path, USUAL, USUAL) == stem


def test_files_of_one_stem_are_two_checkpoints(tmp_path):
    pt, pth = (replace(USUAL, checkpoint_name=f"x.{ending}") for ending in ("pt", "pth"))
    stem = result_stem(tmp_path, pt, USUAL)
    assert stem.name == "attack_standard_x"
    write_result(stem.with_name(f"{stem.name}.json"), replace(attack_result(), measurement=pt))
    other = replace(pth, checkpoint="c" * 64)
    assert result_stem(tmp_path, other, USUAL) != stem
    assert result_stem(tmp_path, replace(pt, checkpoint="c" * 64), USUAL) == stem  # replaced


def test_steps_are_told_apart_but_for_the_rounding_of_published_files():
    assert attack_text("pgd10", 8 / 255) == "pgd10@8"
    assert attack_text("pgd10", 0.00392157) == attack_text("pgd10", 1 / 255) == "pgd10@1"
    assert attack_text("pgd10", 0.031372) == "pgd10@7.99986"
    assert attack_text("autoattack", 0) == "autoattack"


def test_what_is_no_result_is_in_nobodys_way(tmp_path):
    (tmp_path / "attack_standard.json").write_text("{")
    assert result_stem(tmp_path, USUAL, USUAL).name == "attack_standard"


def test_long_names_fit_into_a_file_system(tmp_path):
    attacks = tuple(f"pgd{steps}-margin-r5@1" for steps in range(30))
    stem = result_stem(tmp_path, replace(USUAL, attacks=attacks), USUAL)
    assert len(stem.name) < 200
    other = result_stem(tmp_path, replace(USUAL, attacks=attacks, seed=1), USUAL)
    assert other != stem


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (3, 7), (49_000, 50_000)])
def test_wilsons_interval_is_scipys(correct, n):
    expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("entry", [{"correct": 5, "n": 4}, {"correct": "1", "n": 4}, {"n": 4}, []])
def test_counts_that_are_none(tmp_path, entry):
    path = tmp_path / "r.json"
    write_result(path, attack_result())
    data = json.loads(path.read_text())
    data["worst_case"]["top1"] = entry
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="lacks what an evaluation holds"):
        read_result(path)


NOT_UTF8 = os.fsdecode(b"caf\xe9/\xff.png")


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "x.csv"
    write_csv(path, ["image"], [[NOT_UTF8], ["=1+1"], ["-0.5"], [-3], ["@x"]])
    assert path.read_bytes() == b"image\ncaf\xe9/\xff.png\n'=1+1\n-0.5\n-3\n'@x\n"
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert next(csv.DictReader(file))["image"] == NOT_UTF8
    write_json(path, {"image": NOT_UTF8})
    assert json.loads(path.read_text()) == {"image": NOT_UTF8}
    atomic_write(path, NOT_UTF8)
    assert path.read_bytes() == b"caf\xe9/\xff.png"
    assert names_sha256([NOT_UTF8, "a"]) != names_sha256(["caf/.png", "a"])
