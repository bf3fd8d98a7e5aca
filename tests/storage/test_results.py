"""Result files: what is written is read again, and which conditions have which name."""

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from records import attack_result, imagenet_c_result
from scipy import stats

from utils.storage.conditions import Conditions, attack_text
from utils.storage.files import names_sha256, read_csv, write_csv, write_json
from utils.storage.results import read_result, record, result_stem, wilson_interval, write_result

USUAL = {"resize": 256, "crop": 224, "attacks": ("pgd10@1", "pgd50@1"), "eps": 4 / 255}
CONDITIONS = Conditions(
    kind="attack", protocol="standard", checkpoint="a" * 64, images="b" * 64, **USUAL
)


@pytest.mark.parametrize(
    "result",
    [
        attack_result(warnings=["odd"]),
        attack_result(cascade=["pgd10"]),
        imagenet_c_result(),
        imagenet_c_result(names=["fog"]),
    ],
    ids=range(4),
)
def test_what_is_written_is_read(tmp_path, result):
    write_result(tmp_path / "r.json", result)
    assert read_result(tmp_path / "r.json") == result
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == result.conditions.kind


# Every field that can change a number, another value, and the name that it makes.
OTHERS = {
    "kind": ("imagenet_c", "imagenet_c_standard"),
    "protocol": ("paper", "attack_paper"),
    "checkpoint": ("c" * 64, "attack_standard"),  # one that was replaced has no results any more
    "images": ("c" * 64, "attack_standard_DIGEST"),
    "network": ("resnet18, FN", "attack_standard_DIGEST"),
    "resize": (232, "attack_standard_resize232"),
    "crop": (160, "attack_standard_crop160"),
    "interpolation": ("bicubic", "attack_standard_bicubic"),
    "attacks": (("pgd10@1", "pgd50@2.5"), "attack_standard_pgd10+pgd50@2.5"),
    "eps": (0.5 / 255, "attack_standard_eps0.5"),
    "norm": ("L2", "attack_standard_L2"),
    "precision": ("bf16", "attack_standard_bf16"),
    "seed": (1, "attack_standard_seed1"),
    "cascade": (True, "attack_standard_cascade"),
    "surrogate": ("d" * 64, "attack_standard_from_dddddddd"),
    "checkpoint_file": ("last.pth.tar", "attack_standard_last"),
    "subset": ("n500", "attack_standard_n500"),
    "folders": ("snow+fog", "attack_standard_snow+fog"),
    "starts": ("CLASS/FILE", "attack_standard_DIGEST"),
}


@pytest.mark.parametrize("field", OTHERS)
def test_what_distinguishes_two_evaluations_is_in_the_name(tmp_path, field):
    assert {f.name for f in fields(Conditions)} == set(OTHERS)
    value, name = OTHERS[field]
    other = replace(CONDITIONS, **{field: value})
    assert record(Conditions, json.loads(json.dumps(asdict(other)))) == other
    # Neither replaces the other's file, and each its own; what is no result is in nobody's way.
    (tmp_path / "attack_standard.json").write_text("{")
    stem = result_stem(tmp_path, CONDITIONS, USUAL)
    assert stem == tmp_path / "attack_standard"
    write_result(Path(f"{stem}.json"), replace(attack_result(), conditions=CONDITIONS))
    theirs = result_stem(tmp_path, other, USUAL)
    assert theirs.name == name.replace("DIGEST", other.digest)
    write_result(Path(f"{theirs}.json"), replace(attack_result(), conditions=other))
    assert result_stem(tmp_path, other, USUAL) == theirs
    assert result_stem(tmp_path, CONDITIONS, USUAL) == stem


def test_files_of_one_stem_are_two_checkpoints(tmp_path):
    pt, pth = (replace(CONDITIONS, checkpoint_file=f"x.{ending}") for ending in ("pt", "pth"))
    stem = result_stem(tmp_path, pt, USUAL)
    assert stem.name == "attack_standard_x"
    write_result(Path(f"{stem}.json"), replace(attack_result(), conditions=pt))
    assert result_stem(tmp_path, replace(pth, checkpoint="c" * 64), USUAL) != stem


@pytest.mark.parametrize(
    ("name", "step", "norm", "text"),
    [
        ("pgd10@8/255", 8 / 255, "Linf", "pgd10@8"),
        ("pgd10", 0.00392157, "Linf", "pgd10@1"),  # as published files round 1/255
        ("pgd10", 0.031372, "Linf", "pgd10@7.99986"),
        ("pgd10-margin", 0.5, "L2", "pgd10-margin@0.5"),
        ("autoattack", 0, "Linf", "autoattack"),
    ],
)
def test_steps_are_told_apart(name, step, norm, text):
    assert attack_text(name, step, norm) == text


def test_names_have_an_order_and_fit_into_a_file_system():
    changed = {"seed": 1, "eps": 8 / 255, "attacks": ("pgd50@1",), "checkpoint_file": "x.pt"}
    name = "attack_standard_x_pgd50_eps8_seed1"
    assert replace(CONDITIONS, **changed).file_name(USUAL) == name
    long = replace(CONDITIONS, attacks=tuple(f"pgd{steps}-margin-r5@1" for steps in range(30)))
    assert len(long.file_name(USUAL)) < 200
    assert replace(long, seed=1).file_name(USUAL) != long.file_name(USUAL)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (3, 7), (49_000, 50_000)])
def test_wilsons_interval_is_scipys(correct, n):
    expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_tables_and_names_that_are_not_utf8(tmp_path):
    path, not_utf8 = tmp_path / "x.csv", os.fsdecode(b"caf\xe9/\xff.png")
    write_csv(path, ["image"], [[not_utf8], ['"="'], ["=1+1"], ["-0.5"], [-3]])
    assert path.read_bytes() == b'image\ncaf\xe9/\xff.png\n"""="""\n\'=1+1\n-0.5\n-3\n'
    assert read_csv(path, ["image"], "")[0]["image"] == not_utf8
    write_json(path, {"image": not_utf8})
    assert json.loads(path.read_text()) == {"image": not_utf8}
    assert names_sha256([not_utf8, "a"]) != names_sha256(["caf/.png", "a"])
