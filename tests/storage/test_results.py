"""Result files, which conditions have which name, and what interrupted evaluations leave."""

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from in_process import user_error
from records import attack_result, imagenet_c_result
from scipy import stats

from utils.distributed.context import DistributedContext
from utils.storage.conditions import Conditions, attack_text
from utils.storage.files import names_sha256, read_csv, write_csv, write_json
from utils.storage.journal import ResumableRows, remove_journals
from utils.storage.results import (
    Accuracy,
    read_result,
    record,
    result_stem,
    wilson_interval,
    write_result,
)

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


# Journals of interrupted evaluations

ONE = DistributedContext(0, 1, torch.device("cpu"))
LINE = b'\n{"phase": "pgd1", "rows": {"5": [5, false]}}'


class Pair(NamedTuple):
    number: int
    right: bool


def read_row(_: str, key: str, values: list) -> tuple[int, Pair]:
    return int(key), Pair(*values)


def opened(folder: Path, digest: str = "1a2b3c4d") -> ResumableRows:
    return ResumableRows(folder, digest, ONE, read_row)


def kept(folder: Path, digest: str = "1a2b3c4d") -> dict:
    with opened(folder, digest) as rows:
        return rows.found


def test_rows_come_back(tmp_path: Path) -> None:
    clean, folder = {0: Pair(3, True), 7: Pair(1, False)}, tmp_path / "new"
    with opened(folder) as rows:
        assert rows.found == {}
        rows.add("clean", clean)
        rows.add("pgd1", {0: Pair(2, False)})
        rows.flush()
    rows.path.write_bytes(rows.path.read_bytes() + b'\n{"phase": "pgd1", "rows": {"7')
    with opened(folder) as rows:  # behind the line that was cut short
        rows.add("pgd1", {7: Pair(4, True)})
        rows.flush()
    (folder / "unfinished_1a2b3c4d.rank2.jsonl").write_bytes(LINE)  # three processes, now it is one
    pgd = {0: Pair(2, False), 5: Pair(5, False), 7: Pair(4, True)}
    assert kept(folder) == {"clean": clean, "pgd1": pgd}
    # Those of other conditions are neither read nor removed.
    assert kept(folder, "ffffffff") == {}
    remove_journals(folder, "1a2b3c4d")
    assert [path.name for path in folder.iterdir()] == ["unfinished_ffffffff.rank0.jsonl"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_journal_that_cannot_be_read(tmp_path: Path, rank: int) -> None:
    (tmp_path / f"unfinished_1a2b3c4d.rank{rank}.jsonl").mkdir()
    assert f"rank{rank}.jsonl: Is a directory" in user_error(opened, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        *(b"what", b"[]", b"7", b"\xff", b"{}", b'{"a":' * 100_000),
        b'{"phase": "clean", "rows": []}',
        b'{"phase": "clean", "rows": {"a": [1, true]}}',
        b'{"phase": "clean", "rows": {"1": [1]}}',
        b'{"phase": "clean", "rows": {"1": 1}}',
    ],
    ids=range(10),
)
def test_what_is_damaged_is_done_again(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "unfinished_1a2b3c4d.rank0.jsonl").write_bytes(b"\n" + line + LINE)
    assert kept(tmp_path) == {"pgd1": {5: Pair(5, False)}}


@pytest.mark.parametrize("correct", [-1, 4])
def test_more_or_less_than_all_images_is_no_accuracy(correct: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} of 3 images"):
        Accuracy(correct, 3)
