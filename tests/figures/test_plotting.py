"""Figures: what they show, that they are readable files, and the command line's errors."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from in_process import call, only_error, user_error
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from records import attack, attack_result, imagenet_c_result
from records import write as write_record

from lib.imagenet_c.corruptions import EXTRA, STANDARD
from utils.figures.attacks import AttackedImage, attack_images
from utils.figures.classes import classes, read_classes
from utils.figures.gradients import gradient_ratio, read_gradient_norms
from utils.figures.imagenet_c import imagenet_c
from utils.figures.robustness import curves_of, robustness, weak_attack_warnings
from utils.figures.style import COLOURS, marker_style, run_label, run_labels, save_figure
from utils.figures.training import draw_training, read_metrics, training_curves
from utils.storage.files import write_csv

ROOT = Path(__file__).resolve().parents[2]
FREE = "resnet18_free_adv_step4_eps4_repeat4_bs256"
HE = f"{FREE}_FN_WN_s10.0_margin0.2"
METRICS = (
    "epoch,lr,train_loss,train_top1,train_top5,val_loss,val_top1,val_top5,val_pgd_top1,"
    "images_per_second,seconds"
)
GRADIENTS = (
    "epoch,parameter,group,depth,clean_mean,clean_std,"
    "adversarial_mean,adversarial_std,ratio,samples"
)


def write(path: Path, header: str, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def write_run(folder: Path, epochs: int = 4, robust: bool = False) -> Path:
    """A run folder with both CSV files; the ratio is 10 * epoch + depth, halved for biases."""
    rows = [
        [e, 0.1 if e < 3 else 0.01, 2 / e, 20 * e, 50, 1 / e, 22 * e, 60, 9 * e if robust else ""]
        for e in range(1, epochs + 1)
    ]
    write(folder / "metrics.csv", METRICS, [[*row, 100, 5] for row in rows])
    layers = [("conv1.weight", "conv", 0), ("bn1.weight", "bn", 1), ("bn1.bias", "bn", 1)]
    layers += [("layer1.0.conv1.weight", "conv", 2), ("layer1.0.downsample.0.weight", "conv", 3)]
    layers += [("fc.weight", "fc", 4), ("all", "conv", 3), ("all", "bn", 1), ("all", "fc", 4)]
    ratios = [
        [e, name, group, depth, 1, 0, 1, 0, (10 * e + depth) / (1 + name.endswith("bias")), 9]
        for e in range(1, epochs + 1)
        for name, group, depth in layers
    ]
    write(folder / "gradient_norms.csv", GRADIENTS, ratios)
    return folder


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [write_run(tmp_path / FREE), write_run(tmp_path / HE, epochs=2, robust=True)]


def lines_of(axes) -> dict[str, list[float]]:
    """Drawn curves by label."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def texts(fig: Figure) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))


def assert_readable(paths: list[Path]) -> None:
    """A PNG that is wide enough and not empty, and a PDF."""
    png, pdf = paths
    with Image.open(png) as image:
        assert image.width >= 900
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert pdf.read_bytes().startswith(b"%PDF")


# Saving and names


@pytest.mark.slow
def test_saved_as_png_and_pdf(tmp_path):
    fig = Figure(figsize=(6, 3))
    fig.subplots().plot([0, 1], [0, 1])
    for name in ("fig", "fig.png", "fig.pdf"):
        written = save_figure(fig, tmp_path / "new" / name)
        assert [path.name for path in written] == ["fig.png", "fig.pdf"]
    assert_readable(written)
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in save_figure(fig, tmp_path / "new/fig")] == before
    dotted = save_figure(fig, tmp_path / "s10.0_margin0.2")
    assert [path.name for path in dotted] == ["s10.0_margin0.2.png", "s10.0_margin0.2.pdf"]
    assert "cannot write" in user_error(save_figure, fig, written[0] / "fig.png")


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        (FREE, "FreeAT"),
        (HE, "FreeAT + HE (s = 10, m = 0.2)"),
        (f"{FREE}_WN_s15.5_margin0.0", "FreeAT + WN (s = 15.5, m = 0)"),
        (f"{FREE}_FN_s10.0_margin0.2", "FreeAT + FN (s = 10, m = 0.2)"),
        (f"{FREE}_seed3", "FreeAT, seed 3"),
        (f"{HE}_seed12", "FreeAT + HE (s = 10, m = 0.2), seed 12"),
        ("my_run", "my_run"),
    ],
)
def test_short_names(folder, label):
    assert run_label(folder) == label


def test_names_are_distinct(tmp_path):
    assert run_labels([tmp_path / "a" / FREE / "x.json", tmp_path / "a" / HE / "x.json"]) == [
        "FreeAT",
        "FreeAT + HE (s = 10, m = 0.2)",
    ]
    other = FREE.replace("resnet18", "resnet50")
    assert run_labels([tmp_path / FREE / "x.json", tmp_path / other / "x.json"]) == [FREE, other]
    same = [tmp_path / FREE / "standard.json", tmp_path / FREE / "paper.json"]
    assert run_labels(same) == [f"{FREE}/standard", f"{FREE}/paper"]
    assert run_labels(same, ["one", "two"]) == ["one", "two"]
    assert "1 names for 2 runs" in user_error(run_labels, same, ["one"])


def test_many_runs_have_a_mark_each():
    assert len({tuple(marker_style(index).values()) for index in range(49)}) == 49


def test_colours_stay_apart_for_the_colour_blind():
    """Simulated by Viénot et al. 1999 (deuteranopia, protanopia), in linear RGB."""
    simulations = [
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
        [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    ]
    srgb = np.array([matplotlib.colors.to_rgb(colour) for colour in COLOURS])
    for matrix in simulations:
        seen = np.clip((srgb**2.2) @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        for one, other in combinations(seen, 2):
            assert np.abs(one - other).max() > 0.1


# Figures

PIXELS = np.zeros((3, 4, 4))
CLASSES = [
    {"class": f"class ${i}", "n": "50", "clean_correct": "40", "robust": str(i),
     "robust_accuracy": str(i / 50), "most_frequent_wrong_answer": "cat" if i else ""}
    for i in range(40)
]  # fmt: skip


def curve(norm="Linf", **robust) -> list:
    """Evaluations at several radii, {"_4": correct of 100}."""
    robust = robust or {"_1": 50, "_4": 30, "_64": 0}
    unit = 255 if norm == "Linf" else 1
    return [
        attack_result(worst=worst, eps=int(eps[1:]) / unit, norm=norm)
        for eps, worst in robust.items()
    ]


def curves_of_epochs(runs: list[Path], epochs: int) -> Figure:
    """Training curves of so many epochs."""
    first = read_metrics(runs[0])[0]
    return training_curves([{**first, "epoch": str(epoch + 1)} for epoch in range(epochs)])


FIGURES = {
    "training": lambda runs: training_curves(read_metrics(runs[0]), "T", margin=True),
    "one epoch": lambda runs: curves_of_epochs(runs, 1),
    "many epochs": lambda runs: curves_of_epochs(runs, 41),
    "gradients": lambda runs: gradient_ratio({"A": read_gradient_norms(runs[0])}, "T"),
    "one result": lambda _: imagenet_c({"A": imagenet_c_result(0.8, STANDARD + EXTRA)}, "T"),
    "results": lambda _: imagenet_c({"A": imagenet_c_result(), "B": imagenet_c_result()}, "T"),
    "classes": lambda _: classes(CLASSES, "T"),
    "robustness": lambda _: robustness({"A": curve(), "B": curve("L2")}, "T"),
    "images": lambda _: attack_images(
        [AttackedImage(PIXELS, PIXELS, "a", "a", "a", "PGD-10 (ce)")] * 4, 0.1, "T"
    ),
}


def test_training_curves(runs):
    fig = training_curves(read_metrics(runs[0]), "a $title$")
    loss, accuracy, rate = (axes for axes in fig.axes)
    assert lines_of(loss)["validation: clean images"] == pytest.approx([1 / e for e in range(1, 5)])
    assert lines_of(accuracy)["training: adversarial images"] == [20, 40, 60, 80]
    assert len(accuracy.get_lines()) == 2
    assert list(rate.get_lines()[0].get_ydata()) == [0.1, 0.1, 0.01, 0.01]
    assert "log" in rate.get_ylabel()
    assert loss.get_ylabel() == "cross-entropy (nats)"
    assert accuracy.get_ylabel() == "top-1 accuracy (%)"
    assert r"a \$title\$" in texts(fig)
    # With a margin the loss is no cross-entropy; a constant learning rate takes no panel.
    (runs[1] / "config.yml").write_text("HE: {FN: True, WN: True, angular_margin_HE: 0.2}")
    fig = draw_training(runs[1])
    loss, accuracy = fig.axes
    assert "margin" in texts(fig)
    assert loss.get_ylabel().startswith("loss")
    assert "learning rate 0.1" in loss.get_xlabel()
    assert lines_of(accuracy)["validation: PGD-10"] == [9, 18]


def test_training_curves_join_the_epochs_that_were_validated(runs):
    """With `TRAIN.val_every: 2`, an average of the weights, and clean images trained on."""
    rows = [
        {**row, "val_ema_top1": f"{row['val_top1']}"} if number % 2 else {**row, "val_top1": ""}
        for number, row in enumerate(read_metrics(runs[0]))
    ]
    accuracy = training_curves(rows, trained_on="clean").axes[1]
    expected = [float(row["val_top1"]) for row in rows[1::2]]
    for label in ("validation: clean images", "validation: averaged weights"):
        assert lines_of(accuracy)[label] == expected
    assert list(accuracy.get_lines()[1].get_xdata()) == [2, 4]
    assert len(lines_of(accuracy)["training: clean images"]) == 4


def test_gradient_ratio(runs):
    rows = {name: read_gradient_norms(run) for name, run in zip(("A", "B"), runs, strict=True)}
    fig = gradient_ratio(rows)
    conv, bn, fc = fig.axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in conv.get_lines()]
    assert [1, 1] in [y for _, y in drawn]  # the line at 1
    # Convolutions alone are counted: batch-norm lies between the two, and the shortcut beside.
    assert ([1, 2], [40, 42]) in drawn
    assert ([2], [43]) in drawn
    assert ([1, 2], [20, 22]) in drawn
    biases = [list(line.get_ydata()) for line in bn.get_lines() if line.get_linestyle() == ":"]
    assert [20.5] in biases
    assert [text.get_text() for text in conv.get_legend().get_texts()] == ["43.00", "23.00"]
    assert [text.get_text() for text in fc.get_legend().get_texts()] == ["44.00", "24.00"]
    assert conv.get_yscale() == "log"
    assert "log" in conv.get_ylabel()
    assert {"A", "B", "weight", "bias", "shortcut (downsample)", "equal norms"} <= {
        text.get_text() for text in fig.legends[0].get_texts()
    }
    low, high = conv.get_ylim()
    assert low < 1 < 44 < high
    assert {row["epoch"] for row in read_gradient_norms(runs[0], 2)} == {"2"}
    broken = [dict(row) for row in rows["A"]]  # ratios that are not numbers break no axis
    broken[0]["ratio"], broken[1]["ratio"] = "inf", ""
    low, high = gradient_ratio({"A": broken}).axes[0].get_ylim()
    assert 0 < low < high < math.inf


def test_imagenet_c_of_one_result():
    fig = imagenet_c({"FreeAT": imagenet_c_result(0.8)})
    noise, *_, bars = (axes for part in fig.subfigs for axes in part.axes)
    assert set(lines_of(noise)) == {"gaussian noise", "shot noise", "impulse noise"}
    assert lines_of(noise)["shot noise"] == pytest.approx([80, 64, 48, 32, 16])
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([48] * 16)
    labels = [label.get_text() for label in bars.get_xticklabels()]
    assert labels[0] == "gaussian noise"
    assert labels[-1] == "mean of the 15"
    assert noise.get_xlabel() == "severity"
    assert noise.get_ylabel() == "top-1 accuracy (%)"


def test_imagenet_c_has_room_for_every_group(tmp_path):
    result = imagenet_c_result(0.0, STANDARD + EXTRA)
    fig = imagenet_c({"FreeAT": result}, "Common corruptions")
    png, _ = save_figure(fig, tmp_path / "one")
    pixels = np.asarray(Image.open(png).convert("L"))
    assert min(edge.min() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])) == 255
    fig.draw_without_rendering()  # without room, panels shrink at each drawing
    assert fig.subfigs[0].axes[0].get_position().width > 0.13


def test_imagenet_c_of_several_results():
    levels = {"A": (0.8,), "B": (0.6, STANDARD + EXTRA), "C": (0.4, ["snow"])}
    results = {label: imagenet_c_result(*of) for label, of in levels.items()}
    fig = imagenet_c(results)
    above, below = fig.subfigs
    assert [axes.get_title() for axes in above.axes] == [
        f"{group} (mean)" for group in ("noise", "blur", "weather", "digital", "extra")
    ]
    noise, _, weather, _, extra = above.axes
    assert set(lines_of(weather)) == {"A", "B"}  # C's snow alone is no mean of the weather
    assert lines_of(weather)["B"] == pytest.approx([60, 48, 36, 24, 12])
    assert set(lines_of(noise)) == {"A", "B"}
    assert set(lines_of(extra)) == {"B"}
    assert extra.get_lines()[0].get_color() == COLOURS[1]  # B keeps its colour
    assert len(below.axes[0].patches) == 16 + 20 + 1
    assert [text.get_text() for text in above.legends[0].get_texts()] == ["A", "B", "C"]


def test_robustness_curve():
    fig = robustness({"A": curve(), "$B$": curve("L2", _1=60, _3=20)})
    linf, l2 = fig.axes
    assert (linf.get_xlabel(), l2.get_xlabel()) == ("eps (of 255)", "eps (L2 norm)")
    (line,), (other,) = linf.get_lines(), l2.get_lines()
    assert list(line.get_xdata()) == pytest.approx([0, 1, 4, 64])
    assert list(line.get_ydata()) == [90, 50, 30, 0]  # from the clean accuracy on
    assert list(other.get_xdata()) == [0, 1, 3]
    whisker = linf.collections[1].get_segments()[0][:, 1]  # at eps 1: scipy's interval of 50 of 100
    assert list(whisker) == pytest.approx([40.38, 59.62], abs=0.01)
    assert r"\$B\$" in texts(fig)


def test_curves_are_of_evaluations_that_differ_in_eps_alone():
    others = [attack_result(eps=2 / 255, seed=1), attack_result(eps=3 / 255, protocol="paper")]
    steps = attack_result(eps=8 / 255, attacks=[attack("pgd10", "PGD-10 (ce)", 9, step=2 / 255)])
    found = curves_of([*reversed(curve(_1=50, _4=30)), *others, steps])
    assert [[round(255 * r.conditions.eps) for r in one] for one in found] == [[1, 4, 8]]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (curve(), []),
        (curve(_1=50, _4=50, _8=50), []),
        (curve(_1=50, _64=2), ["still 2.0 % at eps 64/255"]),
        (curve(_1=30, _4=31), ["rises by 1.0 % from eps 1/255 to 4/255"]),
        (curve("L2", _1=50, _90=10), []),
        (curve("L2", _1=50, _97=10), ["still 10.0 % at eps 97 (L2)"]),  # 0.25 sqrt(3) 224 = 96.99
    ],
)
def test_an_attack_that_large_balls_do_not_help_is_weak(given, says):
    warnings = weak_attack_warnings(given)
    assert len(warnings) == len(says)
    for warning, words in zip(warnings, says, strict=True):
        assert words in warning


def test_classes(tmp_path):
    path = tmp_path / "x_classes.csv"
    odd = CLASSES[0] | {"class": os.fsdecode(b"\xff")}
    write_csv(path, list(odd), [list(row.values()) for row in [odd, *CLASSES[1:]]])
    least, most = classes(read_classes(path)).axes
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in (least, most)]
    assert names[0] == [r"\udcff"] + [rf"class \${i}" for i in range(1, 10)]
    assert names[1] == [rf"class \${i}" for i in range(39, 29, -1)]
    drawn = [line.get_xdata()[0] for line in most.get_lines()[1::2]]
    assert drawn == [2 * i for i in range(39, 29, -1)]
    assert len(least.texts) == 9  # the first class is never mistaken
    (few,) = classes(CLASSES[:4]).axes
    assert len(few.get_yticklabels()) == 4


def test_attack_images():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.2, 0.8, (3, 3, 16, 16))
    adversarial = clean + 8 / 255 * rng.choice([-1, 0, 1], clean.shape)
    names = zip(("cat", "$dog$", "bird"), ("cat", "cat", "bird"), strict=True)
    images = [
        AttackedImage(clean[i], adversarial[i], name, name, after, "PGD-10 (ce)")
        for i, (name, after) in enumerate(names)
    ]
    fig = attack_images(images, 8 / 255, "resnet18; protocol paper")
    shown = [axes.get_images()[0].get_array() for axes in fig.axes if axes.get_images()]
    assert len(shown) == 9
    # Black, grey and white are -eps, no change and +eps.
    assert np.unique(np.round(shown[1], 6)).tolist() == [0, 0.5, 1]
    assert np.allclose(shown[2], np.moveaxis(adversarial[0], 0, 2))
    words = texts(fig)
    for word in ("±8/255", r"\$dog\$", "✗ cat", "✓ bird", "PGD-10 (ce)", "protocol paper"):
        assert word in words


@pytest.mark.parametrize("name", FIGURES)
def test_fonts_are_readable_in_a_text_of_55_inches(runs, name):
    before = dict(matplotlib.rcParams)
    fig = FIGURES[name](runs)
    FigureCanvasAgg(fig).draw()
    assert dict(matplotlib.rcParams) == before
    assert fig.get_figwidth() <= 5.5
    sizes = [text.get_fontsize() for text in fig.findobj(Text) if text.get_text().strip()]
    assert min(sizes) >= 7


# Command line


@pytest.mark.slow
def test_commands_without_a_display(runs, tmp_path):
    for folder, level in zip(runs, (0.8, 0.7), strict=True):
        write_record(folder / "imagenet_c_standard.json", imagenet_c_result(level))
    a, b = (str(run / "imagenet_c_standard.json") for run in runs)
    commands = [
        ["imagenet_c", a, b, "-o", str(tmp_path / "c.png")],
        ["gradient_ratio", *map(str, runs), "-o", str(tmp_path / "g.png"), "--epoch", "2"],
        ["training", str(runs[0]), "-o", str(tmp_path / "t.png")],
        ["robustness", str(runs[0]), "-o", str(tmp_path / "r.png")],
        ["classes", f"{runs[0]}/attack_1.json", "-o", str(tmp_path / "k.png")],
    ]
    for place, one in enumerate(curve(_1=30, _4=40), 1):
        write_record(runs[0] / f"attack_{place}.json", one)
    write(runs[0] / "attack_1_classes.csv", ",".join(CLASSES[0]), [c.values() for c in CLASSES])
    code = f"""
import sys
from tools import plot as plotting
for command in {commands!r}:
    assert plotting.main(command) == 0
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
"""
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the attack is weak" in done.stderr
    for stem in "cgtrk":
        assert_readable([tmp_path / f"{stem}.png", tmp_path / f"{stem}.pdf"])
        assert f"{stem}.pdf" in done.stdout


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ([], "FIGURE"),
        (["pie"], "invalid choice: 'pie'"),
        (["training", "{run}"], "-o/--output"),
        (["training", "{run}/nowhere", "-o", "x"], "No such file"),
        (["training", "{run}/empty", "-o", "x"], "no rows yet"),
        (["training", "{run}/other", "-o", "x"], "has no column lr, train_loss"),
        (["training", "{run}/words", "-o", "x"], "column train_loss holds something else"),
        (["robustness", "{run}/attack.json", "-o", "x"], "--eps 1,2,4,8"),
        (["classes", "{run}/attack.json", "-o", "x"], "attack_classes.csv"),
        (["gradient_ratio", "{run}/nowhere", "-o", "x"], "--print_gradients True"),
        (["gradient_ratio", "{run}", "-o", "x", "--epoch", "9"], "epochs 1 to 4, not 9"),
        (["gradient_ratio", "{run}", "-o", "x", "--labels", "a", "b"], "2 names for 1 runs"),
        (["imagenet_c", "{run}/nowhere.json", "-o", "x"], "No such file"),
        (["imagenet_c", "{run}/metrics.csv", "-o", "x"], "is not JSON"),
        (["imagenet_c", "{run}/attack.json", "-o", "x"], "is no ImageNet-C result"),
        (["imagenet_c", "{run}/cut.json", "-o", "x"], "lacks what"),
    ],
)
def test_errors_are_one_line(runs, here, command, says):
    run = runs[0]
    write(run / "empty/metrics.csv", METRICS, [])
    write(run / "other/metrics.csv", "epoch,loss", [[1, 2]])
    write(run / "words/metrics.csv", METRICS, [[1, 0.1, "x", 1, 1, 1, 1, 1, "", 1, 1]])
    write_record(run / "attack.json", attack_result())
    (run / "cut.json").write_text(json.dumps({"kind": "imagenet_c", "provenance": {}}))
    done = call("tools.plot", *(word.format(run=run) for word in command))
    assert says in only_error(done)
    assert done.out == ""
    assert not list(here.glob("x.*"))
