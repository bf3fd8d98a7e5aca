"""`python -m tools.compare` on evaluation files written for the purpose."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import environment
from in_process import Done, call, only_error
from PIL import Image
from records import PGD10, attack, attack_result, imagenet_c_result, provenance, write
from scipy import stats

from lib.evaluation.task import Task
from tools.comparison import values_of
from tools.paired import bootstrap_interval, holm, sign_test_exact
from utils.figures.comparison import DIFFERENCE, Panel, comparison
from utils.storage.conditions import BY_FILE, PGD_ALONE
from utils.storage.results import Accuracy, Estimate, Result, ShiftAccuracies, ShiftResult

Compare = Callable[..., Done]
FREE = "resnet18_free_adv_step4_eps4_repeat4_bs256"
HE = f"{FREE}_FN_WN_s10.0_margin0.2"
HE_NAME = "FreeAT + HE (s = 10, m = 0.2)"
OFFICIAL = "FreeAT ResNet-50 (official weights, eps 4/255, m 4)"
WNIDS = [f"n{number:08d}" for number in range(1000)]
PGD50 = attack("pgd50", "PGD-50 (ce)", 50)
# Wilson's 95 % intervals in percent, as scipy's binomtest(...).proportion_ci(method='wilson') says.
OF_100 = {90: "90.0 [82.6, 94.5]", 50: "50.0 [40.4, 59.6]", 40: "40.0 [30.9, 49.8]"}


@pytest.fixture
def compare(here: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """The command within this process; without its figure, which takes the longest."""
    monkeypatch.setattr("tools.compare.comparison", lambda *_: None)
    monkeypatch.setattr("utils.figures.style.save_figure", lambda *_: [])
    return partial(call, "tools.compare")


def refused(done: Done) -> str:
    """The one line of a call that did not succeed."""
    assert done.out == ""
    return only_error(done)


def write_all(results: dict[str, Result]) -> None:
    """`RUN/FILE` to its record; `RUN` alone is RUN/attack_standard.json."""
    for name, result in results.items():
        write(Path(f"{name}.json" if "/" in name else f"{name}/attack_standard.json"), result)


def tables(markdown: str) -> list[dict[str, dict[str, str]]]:
    """{row: {column: cell}} of every Markdown table."""
    found = []
    for text in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
        cells = [[cell.strip() for cell in row] for row in rows]
        found.append({row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]})
    return found


def table(done: Done) -> dict[str, dict[str, str]]:
    """The only table of a call that succeeded."""
    assert done.status == 0, done.err
    only, *others = tables(done.out)
    assert all("Snow" in columns for other in others for columns in other.values())
    return only


WITHOUT_TORCH = """
import sys
from tools.compare import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(status)
"""


@pytest.mark.slow
def test_one_table_in_three_formats_and_a_figure(here: Path) -> None:
    warnings = ["gradients are zero on 30 images", "few steps"]
    stronger = [attack("pgd10", "PGD-10 (ce)", 90)]
    he = attack_result("b", attacks=stronger, worst=50, warnings=warnings[1:])
    write_all({FREE: attack_result(warnings=warnings), HE: he})
    for run, letter in ((FREE, "a"), (HE, "b")):
        corrupted = imagenet_c_result(2 / 3, n=100, sha256=letter, classes=WNIDS)
        write_all({f"{run}/imagenet_c_standard": corrupted})
    Path(HE, "other.json").write_text('{"kind": "something else"}')
    Path(HE, "list.json").write_text("[1, 2]")
    command = [sys.executable, "-c", WITHOUT_TORCH, FREE, HE, "-o", "out/both"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True)
    rows = table(Done(ended.returncode, ended.stdout, ended.stderr))
    assert list(rows["FreeAT"].items()) == [
        ("Clean", OF_100[90]),
        ("PGD-10 (ce)", OF_100[50]),
        ("Worst of PGD", OF_100[40]),
        ("ImageNet-C mean", OF_100[40]),
        ("mCE", f"{corrupted.summary.mCE:.1f}"),
    ]
    robust = [OF_100[90], OF_100[90], OF_100[50]]
    assert list(rows[HE_NAME].values()) == [*robust, *list(rows["FreeAT"].values())[3:]]
    for note in (
        "Clean: all 100 images; resize 256, crop 224.",
        "PGD-10 (ce): protocol standard; eps 4/255; search in fp32; seed 0; step 1/255;",
        f"- Worst of PGD: {PGD_ALONE}.",
        "Warning, FreeAT: gradients are zero on 30 images",
        f"Warning, FreeAT, {HE_NAME}: few steps",
    ):
        assert note in ended.stdout
    stem = here / "out" / "both"
    assert stem.with_suffix(".md").read_text() == ended.stdout
    with stem.with_suffix(".csv").open() as file:
        lines = {(row["run"], row["measure"]): row for row in csv.DictReader(file)}
    assert len(lines) == 40
    assert float(lines[HE_NAME, "Bright"]["percent"]) == pytest.approx(
        100 * (0.67 + 0.53 + 0.4 + 0.27 + 0.13) / 5
    )
    line = lines[HE_NAME, "PGD-10 (ce)"]
    assert float(line["low95"]) == pytest.approx(82.56, abs=0.01)
    assert (line["percent"], line["eps"], line["step"]) == ("90.0", "4/255", "1/255")
    assert line["file"] == f"{HE}/attack_standard.json"
    latex = stem.with_suffix(".tex").read_text().splitlines()
    body = [line for line in latex if line.endswith(r"\\")]
    assert [line.count(" & ") for line in body] == [5, 5, 5, 15, 15, 15]
    assert "50.0 [40.4, 59.6]" in body[1]
    assert body[3].startswith(" & Gauss. & Shot & Impulse & Defocus & Glass & Motion & Zoom & Snow")
    captions = [line for line in latex if line.startswith(r"\caption")]
    assert "Protocol standard. Radius 4/255." in captions[0]
    assert "Of each corruption, mean over the severities, all 100 images." in captions[1]
    assert all(len(line) < 310 for line in captions)
    labels = [line for line in latex if line.startswith(r"\label")]
    assert labels == [r"\label{tab:both}", r"\label{tab:both-2}"]
    with Image.open(stem.with_suffix(".png")) as image:
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "paper"}, ("protocol standard", "protocol paper")),
        ({"eps": 8 / 255}, ("eps 4/255", "eps 8/255")),
        ({"eps": 0.5, "norm": "L2"}, ("eps 4/255", "eps 0.5 (L2)")),
        ({"seed": 1}, ("seed 0", "seed 1")),
        ({"attacks": [attack("pgd10", "PGD-10 (ce)", 50, step=2 / 255)]}, ("step 1/255", "step 2")),
        ({"crop": 160}, ("crop 224", "crop 160")),
        ({"starts": BY_FILE}, ("start by number in the list", "start by CLASS/FILE")),
        ({"attacks": [PGD10, PGD50]}, ("over pgd10", "over pgd10 + pgd50")),
        ({"images": "100 of 50000 images"}, ("all 100 images", "100 of 50000 images")),
    ],
)
def test_what_does_not_compare_is_refused_or_told(
    compare: Compare, changes: dict[str, Any], said: tuple[str, str]
) -> None:
    write_all({"one": attack_result(), "two": attack_result("b", **changes)})
    message = refused(compare("one", "two", "-o", "out/"))
    assert all(text in message for text in (*said, "--allow_mixed"))
    assert not Path("out").exists()
    done = compare("one", "two", "-o", "out/", "--allow_mixed")
    assert done.status == 0, done.err
    if "images" in changes:  # a table for each list of images
        first, second = tables(done.out)
        assert (list(first), list(second)) == (["one"], ["two"])
        assert f"**{said[1]}**" in done.out
        return
    rows = table(done)
    for text, (row, other) in zip(said, (("one", "two"), ("two", "one")), strict=True):
        columns = [c for c in rows[row] if re.search(rf"{re.escape(text)}(/255)?(,|$)", c)]
        assert columns
        for column in columns:
            assert (rows[row][column] != "-", rows[other][column]) == (True, "-")


def test_columns_carry_what_distinguishes_them_in_order(compare: Compare) -> None:
    """One variant of each measure, and yet not under the same conditions; radii in their norm."""
    other = attack_result(attacks=[PGD50], eps=24 / 255, clean=90, worst=40)
    write_all({"a/1": attack_result(eps=16 / 255), "a/2": attack_result(), "a/3": other})
    assert list(table(compare("a"))["a"]) == [
        "Clean", "PGD-10 (ce), eps 4/255", "PGD-10 (ce), eps 16/255", "PGD-50 (ce), eps 24/255",
        "Worst of PGD, eps 4/255", "Worst of PGD, eps 16/255", "Worst of PGD, eps 24/255",
    ]  # fmt: skip
    for eps, step in ((10.0, 2.5), (0.5, 0.125)):
        one = attack(f"pgd10@{step}", f"PGD-10 (ce, step {step})", 50, step=step)
        write_all({f"b/{eps}": attack_result(attacks=[one], eps=eps, norm="L2")})
    conditions = ("eps 0.5 (L2), step 0.125 (L2)", "eps 10 (L2), step 2.5 (L2)")
    columns = [f"{what}, {c}" for what in ("PGD-10 (ce)", "Worst of PGD") for c in conditions]
    assert list(table(compare("b"))["b"]) == ["Clean", *columns]
    write_all({"a/4": imagenet_c_result(), "b/4": imagenet_c_result(protocol="freeat")})
    assert "protocol freeat" in refused(compare("a/4.json", "b/4.json"))


def test_values_with_a_warning_of_their_own_are_hollow() -> None:
    few = ["PGD-10 (ce), PGD-10 (margin): 10 x 1/255 reach 10/255 of a radius of 16/255"]
    result = attack_result(attacks=[PGD10, PGD50], warnings=few)
    warned = {column.measure: v.warned for column, v in values_of(Path("a"), result)}
    hollow = {"Clean": False, "PGD-10 (ce)": True, "PGD-50 (ce)": False, "Worst case": True}
    assert warned == hollow
    odd = attack_result(attacks=[PGD10, PGD50], warnings=["outputs change"])
    assert [v.warned for _, v in values_of(Path("a"), odd)] == [False, True, True, True]
    values = [(name, {"A": Estimate(50, warned=value)}) for name, value in warned.items()]
    fig = comparison([Panel("", "", values)])
    faces = [line.get_markerfacecolor() == "white" for line in fig.axes[0].get_lines()]
    assert faces == list(hollow.values())
    assert fig.legends[0].get_texts()[-1].get_text() == "hollow: evaluated with a warning"


def test_what_one_column_alone_has_distinguishes_it(compare: Compare) -> None:
    transferred = attack_result(worst=60, surrogate="d" * 64)
    write_all({"one/a": attack_result(), "one/b": transferred, "two": attack_result("b")})
    titles = [f"{name}{of}" for name in ("PGD-10 (ce)", "Worst of PGD")
              for of in ("", f", surrogate {'d' * 12}")]  # fmt: skip
    assert list(table(compare("one", "two"))["one"]) == ["Clean", *titles]
    Path("one/a.json").unlink()
    says = refused(compare("one", "two"))
    assert f"of one (surrogate {'d' * 12}) and of two (no surrogate) do not compare" in says


def test_a_check_on_a_few_images_has_a_table_of_its_own(compare: Compare) -> None:
    few = attack_result(clean=2, attacks=[attack("pgd10", "PGD-10 (ce)", 1, n=2)], worst=1, n=2,
                        images="2 evenly spread of 100 images")  # fmt: skip
    write_all({"one/a": attack_result(), "one/few": few, "two/a": attack_result("b")})
    write_all({"two/c": imagenet_c_result(n=50, sha256="b"), "one/c": imagenet_c_result(n=50)})
    done = compare("one", "two")
    assert done.status == 0, done.err
    first, _, second = tables(done.out)
    assert list(first) == ["one", "two"]
    columns = ["Clean", "PGD-10 (ce)", "Worst of PGD", "Mean over 15 corruptions"]
    assert list(first["one"]) == columns
    half = "50.0 [9.5, 90.5]"
    assert second == {
        "one": {"Clean": "100.0 [34.2, 100.0]", "PGD-10 (ce)": half, "Worst of PGD": half}
    }
    assert "**2 evenly spread of 100 images**" in done.out


def test_rows_are_checkpoints_and_names_can_be_given(compare: Compare) -> None:
    best = attack_result("b", attacks=[attack("pgd10", "PGD-10 (ce)", 90)])
    write_all({"run/last": attack_result(checkpoint="checkpoint.pth.tar"), "run/best": best})
    rows = table(compare("run"))
    assert rows["run (checkpoint.pth.tar)"]["PGD-10 (ce)"] == OF_100[50]
    assert rows["run (model_best.pth.tar)"]["PGD-10 (ce)"] == OF_100[90]
    write_all({"one/a": attack_result(), "one/c": imagenet_c_result(n=100)})
    files = ["one/a.json", "one/c.json"]
    rows = table(compare(*files, *files, "-o", "x", "--names", "Mine & only"))
    assert list(map(len, rows.values())) == [4]
    assert compare(*files, "--columns", "corruptions").status == 0  # which no figure shows
    assert r"Mine \& only" in Path("x.tex").read_text()
    says = refused(compare(*files, "--names", "A", "B"))
    assert "(A, B) for 1 rows (one/model_best.pth.tar)" in says
    assert "(A, A) for 2 rows" in refused(compare("run", "--names", "A", "A"))
    write_all({"one/again": attack_result(attacks=[attack("pgd10", "PGD-10 (ce)", 40)])})
    assert "two values of PGD-10 (ce)" in refused(compare("one"))


def test_a_cascade_has_a_worst_case_alone_and_autoattack_is_one_column(compare: Compare) -> None:
    write_all({"fast": attack_result(cascade=["pgd10"]), "slow": attack_result("b")})
    row = table(compare("fast", "slow"))["fast"]
    assert (row["Worst of PGD"], row["PGD-10 (ce)"]) == (OF_100[40], "-")
    parts = [
        attack("autoattack-apgd-ce", "AutoAttack, after apgd-ce", 90, step=0),
        attack("autoattack", "AutoAttack", 40, step=0),
    ]
    write_all({"run": attack_result(attacks=[PGD10, *parts])})
    done = compare("run")
    columns = ["Clean", "PGD-10 (ce)", "AutoAttack", "Worst of PGD, AutoAttack"]
    assert list(table(done)["run"]) == columns
    assert PGD_ALONE not in done.out


def seeds(robust: dict[int, int], run: str = FREE) -> list[str]:
    """Runs of these training seeds, with so many robust images."""
    names = []
    for seed, correct in robust.items():
        names.append(run + (f"_seed{seed}" if seed else ""))
        attacks = [attack("pgd10", "PGD-10 (ce)", correct)]
        write_all({names[-1]: attack_result(str(seed), attacks=attacks)})
    return names


def test_runs_that_differ_in_seed_alone_are_one_row(compare: Compare) -> None:
    names = seeds({0: 50, 1: 53, 7: 55})
    write_all({HE: attack_result("b")})
    rows = table(compare(*names, HE))
    assert list(rows) == ["FreeAT, 3 seeds", HE_NAME]
    # mean 52.667, standard deviation sqrt((2.667^2 + 0.333^2 + 2.333^2) / 2) = 2.517
    assert rows["FreeAT, 3 seeds"]["PGD-10 (ce)"] == "52.7 ± 2.5 [43.0, 62.2] (3)"
    with open("comparison.csv") as file:
        line = next(row for row in csv.DictReader(file) if row["measure"] == "PGD-10 (ce)")
    assert float(line["std"]) == pytest.approx(2.516611, abs=1e-6)
    for name, sha256 in zip(names[:2], "01", strict=True):  # values of fewer seeds say so
        write_all({f"{name}/more": attack_result(sha256, attacks=[PGD50])})
    write_all({f"{names[0]}/eps": attack_result("0", eps=16 / 255, attacks=[PGD50])})
    row = table(compare(*names))["FreeAT, 3 seeds"]
    assert {cell.rpartition(" ")[2] for cell in row.values()} == {"(1)", "(2)", "(3)"}
    assert row["PGD-50 (ce), eps 4/255"] == "50.0 ± 0.0 [40.4, 59.6] (2)"
    assert row["PGD-50 (ce), eps 16/255"] == f"{OF_100[50]} (1)"


def test_runs_that_differ_in_more_than_the_seed_are_rows_of_their_own(compare: Compare) -> None:
    names = seeds({0: 50, 1: 53, 2: 54})
    for seed, (name, lr) in enumerate(zip(names, (0.1, 0.1, 0.2), strict=True)):
        content = {"TRAIN": {"lr": lr, "print_freq": seed}, "RUN": {"seed": seed}}
        Path(name, "config.yml").write_text(json.dumps(content))
    assert list(table(compare(*names))) == ["FreeAT, 2 seeds", "FreeAT, seed 2"]
    for name in names:  # the same seed twice: not a sample of seeds
        Path(name, "config.yml").write_text(json.dumps({"RUN": {"seed": 0}}))
    assert len(table(compare(*names))) == 3


def test_holms_correction() -> None:
    """The smallest p times 4, the next times 3, and so on, never below one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 71), (700, 600)])
def test_of_one_seed_the_exact_test_is_mcnemars(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert sign_test_exact(np.repeat([1, -1, 0], [b, c, 7])) == pytest.approx(expected, rel=1e-9)


def test_of_several_seeds_it_is_the_randomisation_test_and_the_interval_scipys() -> None:
    """All 2^9 signs of the differences, and scipy's bootstrap of images."""
    differences = np.array([3, -1, 2, 2, 0, 1, -2, 3, 1, 0])
    sizes = np.abs(differences[differences != 0])
    sums = [np.dot(signs, sizes) for signs in product((-1, 1), repeat=len(sizes))]
    expected = np.mean(np.abs(sums) >= differences.sum())
    assert sign_test_exact(differences) == pytest.approx(expected, rel=1e-12)
    assert sign_test_exact(-differences) == pytest.approx(expected, rel=1e-12)
    many = np.repeat(differences, 20)
    of_scipy = stats.bootstrap((100 * many / 3,), np.mean, method="percentile", rng=0)
    expected_interval = tuple(of_scipy.confidence_interval)
    assert bootstrap_interval(many, 3) == pytest.approx(expected_interval, abs=0.4)


def write_outcomes(run: str, robust: str) -> None:
    """The per-image file beside attack_standard.json: one digit an image."""
    lines = [f"x/{i}.png,1,{r},{r}" for i, r in enumerate(robust)]
    header = "image,clean_correct,pgd10_robust,worst_case_robust"
    Path(run, "attack_standard_images.csv").write_text("\n".join([header, *lines]) + "\n")


def test_paired_outcomes(compare: Compare) -> None:
    write_all({"one": attack_result(), "two": attack_result("b")})
    write_outcomes("one", "1111111000")
    write_outcomes("two", "0000001100")
    text = compare("two", "one", "--paired", "two/attack_standard.json", "one").out
    # 6 images against 1: 2 (1 + 7) / 2^7 = 0.125
    assert "PGD-10 (ce), eps 4/255: one better on 6 images, worse on 1; of 10" in text
    # PGD-10 and the worst case, beside the clean images, on which p is 1.
    assert text.count("of 10, p = 0.125, corrected 0.375") == 2
    for command in (("two", "one", "--paired"), ("--paired", "two", "one")):
        assert compare(*command).out == text
    both = compare("two", "one", "--paired", "two", "one", "--paired", "one", "two")
    assert "[10.0, 90.0], p = 0.75" in table(both)["one minus two"]["PGD-10 (ce)"]
    assert "[-90.0, -10.0], p = 0.75" in table(both)["two minus one"]["PGD-10 (ce)"]
    assert both.out.count("of 10, p = 0.125, corrected 0.75") == 4  # of six tests
    assert "takes two rows, not 1: one" in refused(compare("one", "--paired"))
    assert "which runs?" in refused(compare("--paired"))
    assert "of two rows" in refused(compare("one", "two", "--paired", "one", "one"))
    assert "no such row" in refused(compare("one", "two", "--paired", "one", "three"))
    write_outcomes("two", "00")
    assert "of other images" in refused(compare("one", "two", "--paired", "one", "two"))
    Path("two", "attack_standard_images.csv").unlink()
    assert "cannot read" in refused(compare("one", "two", "--paired", "one", "two"))


def test_the_effect_over_seeds_is_a_row(compare: Compare) -> None:
    """Of 100 images PGD-10 leaves 20 and 22 with the seeds of one method, of the other 29, 33."""
    plain, he = seeds({0: 20, 1: 22}), seeds({0: 29, 1: 33}, HE)
    for run, robust in zip([*plain, *he], (20, 22, 29, 33), strict=True):
        write_outcomes(run, "1" * robust + "0" * (100 - robust))
    done = compare(*he, *plain, "--paired", plain[0], he[1], "--columns", "pgd10,clean")
    assert done.status == 0, done.err
    row = table(done)[f"{HE_NAME}, 2 seeds minus FreeAT, 2 seeds"]
    assert list(row) == ["PGD-10 (ce)", "Clean"]
    # 7 images with both seeds and 6 with one, all of one sign: p is twice 2^-13, of two tests.
    interval = bootstrap_interval(np.repeat([2, 1, 0], [7, 6, 87]), 2)
    cell = f"+10.0 ± 1.4 [{interval[0]:.1f}, {interval[1]:.1f}] (2), p < 0.001"
    assert row["PGD-10 (ce)"] == cell
    latex = Path("comparison.tex").read_text()
    assert "standard deviation over 2 seeds" in latex
    assert rf"+10.0 $\pm$ 1.4 [{interval[0]:.1f}, {interval[1]:.1f}], p $<$ 0.001 &" in latex
    assert row["Clean"] == "+0.0 ± 0.0 [0.0, 0.0] (2), p = 1"
    with open("comparison.csv") as file:
        p = [row["p"] for row in csv.DictReader(file)]
    assert p[:4] == [""] * 4
    assert [float(x) for x in p[4:]] == pytest.approx([4 * 2**-13, 1])
    assert "is of 2 seeds and" in refused(compare(*plain, he[0], "--paired"))


def test_bold_is_what_the_exact_test_does_not_tell_from_the_best(compare: Compare) -> None:
    """Against ten robust images three lost leave p = 0.25, nine lost 0.004."""
    for run, (lost, correct) in {"best": (0, 90), "near": (3, 70), "far": (9, 50)}.items():
        write_all({run: attack_result(run[0], attacks=[attack("pgd10", "PGD-10 (ce)", correct)])})
        write_outcomes(run, "1" * (10 - lost) + "0" * lost)
    assert compare("best", "near", "far", "--columns", "worst,pgd10-ce").status == 0
    text = Path("comparison.tex").read_text()
    assert r" & Worst of PGD & PGD-10 (ce) \\" in text
    assert r"(p $\geq$ 0.05, uncorrected)" in text
    assert r"near & \textbf{40.0} [30.9, 49.8] & \textbf{70.0} [" in text
    assert r"far & 40.0 [30.9, 49.8] & 50.0 [" in text
    done = compare("best", "near", "far", "--columns", "worst,pgd10-ce", "--transposed")
    assert list(table(done)) == ["Worst of PGD", "PGD-10 (ce)"]
    pgd = next(x for x in Path("comparison.tex").read_text().splitlines() if x.startswith("PGD"))
    assert ["textbf" in cell for cell in pgd.split(" & ")] == [False, True, True, False]
    assert "there are Clean, PGD-10 (ce)" in refused(compare("best", "--columns", "pgd1"))


def test_the_figure_of_the_effect_has_both_signs() -> None:
    values = {"HE minus plain": Estimate(-4, (-6, -2), spread=3)}
    panel = Panel("", DIFFERENCE, [("PGD", values)])
    (axes,) = comparison([panel]).axes
    assert axes.get_xlim()[0] < -7
    assert axes.texts[0].get_text() == " -4.0"
    assert "bootstrap" in axes.figure._supxlabel.get_text()


def imagenet(**conditions: Any) -> Result:
    """An evaluation of the whole of ImageNet, under the `paper` protocol."""
    attacks = [attack("pgd10", "PGD-10 (ce)", 16000, n=50000)]
    counts = {"clean": 30000, "worst": 15000, "n": 50000}
    return attack_result(attacks=attacks, protocol="paper", **counts, **conditions)


def test_published_results_stand_in_columns_of_their_conditions_alone(compare: Compare) -> None:
    he = "FreeAT + HE ResNet-50 (HE paper, unverified)"
    write_all({"run/a": imagenet(), "run/c": imagenet_c_result(n=50000, classes=WNIDS)})
    done = compare("run", "--published")
    rows = table(done)
    assert rows[OFFICIAL]["Clean"] == "60.5"
    assert rows[OFFICIAL]["ImageNet-C mean"] == "-"  # resized before the crop, and ours is not
    assert rows["ResNet-50 baseline (Hendrycks)"]["mCE"] == "76.7"
    assert (rows[he]["PGD-10 (ce)"], rows[he]["Worst of PGD"]) == ("40.2", "-")
    assert "modestyachts/imagenet-testbed" in done.out
    elsewhere = next(line for line in done.out.splitlines() if "of no column" in line)
    assert "AutoAttack at eps 4/255" in elsewhere
    assert "PGD-50 (ce) at eps 4/255" in elsewhere
    resized = imagenet_c_result(n=50000, protocol="freeat", resize=256, classes=WNIDS)
    write_all({"run/a": imagenet(eps=2 / 255), "run/c": resized})
    rows = table(compare("run", "--published"))
    assert rows[OFFICIAL]["ImageNet-C mean"] == "28.0"
    assert rows[he]["PGD-10 (ce)"] == "-"
    autoattack = [attack("autoattack", "AutoAttack", 1400, n=5000, step=0)]
    counts = {"clean": 3000, "worst": 1400, "n": 5000}
    options = SimpleNamespace(OPTIONS=SimpleNamespace(image_ids="robustbench"))
    subset = Task.subset(cast(Any, SimpleNamespace(config=options)), 5000, 50000, "0" * 64)
    images = subset["description"]
    write_all({"few": attack_result(attacks=autoattack, images=images, **counts)})
    rows = table(compare("few", "--published"))
    free = rows["FreeAT ResNet-50 (official weights)"]
    assert (free["Clean"], free["AutoAttack"]) == ("60.0", "28.6")
    assert OFFICIAL not in rows  # on all images, so in no column


def test_published_numbers_of_shifted_sets_need_name_and_number_of_images(compare: Compare) -> None:
    conditions = attack_result(images="x").conditions
    sizes = {"imagenet-a": 7500, "imagenetv2-matched-frequency-format-val": 5}
    sizes |= {"ImageNet-Sketch": 50889}
    sets = {k: ShiftAccuracies(200, k, *[Accuracy(n // 5, n)] * 4) for k, n in sizes.items()}
    result = ShiftResult(replace(conditions, kind="shift"), provenance("x", "images", 5), (), sets)
    write_all({"run/shift": result})
    row = table(compare("run", "--published"))[OFFICIAL]
    numbers = {title: cell for title, cell in row.items() if cell != "-"}
    assert numbers == {"imagenet-a, of its 200 classes": "1.7", "ImageNet-Sketch": "20.1"}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "is no whole evaluation"),
        ('{"kind": "training"}', "is no evaluation"),
        ('{"kind": "attack", "provenance": 3}', "is no whole evaluation"),
    ],
)
def test_bad_files_are_one_line(compare: Compare, content: str, cause: str) -> None:
    assert "holds no evaluation" in refused(compare("."))
    assert "cannot read" in refused(compare("x.json"))
    Path("x.json").write_text(content)
    assert cause in refused(compare("x.json"))


def test_results_with_parts_of_other_kinds(compare: Compare) -> None:
    write_all({"run": attack_result()})
    (path,) = Path("run").glob("*.json")
    whole = json.loads(path.read_text())
    for part, others in (
        ("provenance", {"checkpoint": {}, "subset": {"description": 5}}),
        ("conditions", {"eps": "4/255", "images": None, "attacks": [10], "protocol": ["x"]}),
        ("clean", {"top1": 3}),
    ):
        for key, value in others.items():
            path.write_text(json.dumps(whole | {part: whole[part] | {key: value}}))
            assert "is no whole evaluation" in refused(compare("run"))


@pytest.mark.usefixtures("here")
def test_names_that_mean_something_elsewhere() -> None:
    """To matplotlib, Markdown, LaTeX, spreadsheets, terminals."""
    name = "=a|b $x_1^$ \x1b[31m\udcff"
    write_all({"run": attack_result(warnings=["\x1b[2Jgone"])})
    done = call("tools.compare", "run", "--names", name)
    assert list(table(done)) == [r"=a\|b $x_1^$ \x1b[31m\udcff"]
    assert "\x1b" not in done.out
    assert r"$x_1^$" not in Path("comparison.tex").read_text()
    with open("comparison.csv", newline="") as file:
        assert next(csv.DictReader(file))["run"].startswith("'=a|b")
