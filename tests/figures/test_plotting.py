"""Figures: what they show, that they are readable files, and the command line's errors."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import environment
from in_process import call, only_error, user_error
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from records import attack, attack_result, imagenet_c_result, write

from lib.imagenet_c.corruptions import EXTRA, STANDARD
from tools.study import robustness_against_cost
from utils.figures.comparison import DIFFERENCE, Panel, comparison
from utils.figures.evaluation import (
    AttackedImage,
    attack_images,
    curves_of,
    imagenet_c,
    robustness,
    weak_attack_signs,
)
from utils.figures.style import COLOURS, run_labels, save_figure
from utils.figures.training import gradient_ratio, mean_of_seeds, read_gradients, training_curves
from utils.storage.files import read_csv, write_csv
from utils.storage.results import AttackResult, Estimate, mean_over_seeds

FREE = "resnet18_free_adv_step4_eps4_repeat4_bs256"
HE = f"{FREE}_FN_WN_s10.0_margin0.2"
HE_LABEL = "FreeAT + HE (s = 10, m = 0.2)"
METRICS = "epoch lr train_loss train_top1 val_loss val_top1 val_pgd_top1".split()
GRADIENTS = "epoch parameter group depth ratio".split()
LAYERS = [("conv1.weight", "conv", 0), ("bn1.weight", "bn", 1), ("bn1.bias", "bn", 1)]
LAYERS += [("layer1.0.conv1.weight", "conv", 2), ("layer1.0.downsample.0.weight", "conv", 3)]
LAYERS += [("fc.weight", "fc", 4), ("all", "conv", 3), ("all", "bn", 1), ("all", "fc", 4)]


def write_run(folder: Path, epochs: int = 4, robust: bool = False) -> Path:
    """A run folder with both CSV files; the ratio is 10 * epoch + depth, halved for biases."""
    folder.mkdir(exist_ok=True)
    metrics, ratios = [], []
    for e in range(1, epochs + 1):
        lr, pgd = 0.1 if e < 3 else 0.01, 9 * e if robust else ""
        metrics.append([e, lr, 2 / e, 20 * e, 1 / e, 22 * e, pgd])
        for name, group, depth in LAYERS:
            halved = 1 + name.endswith("bias")
            ratios.append([e, name, group, depth, (10 * e + depth) / halved])
    write_csv(folder / "metrics.csv", METRICS, metrics)
    write_csv(folder / "gradient_norms.csv", GRADIENTS, ratios)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / FREE), write_run(tmp_path / HE, epochs=2, robust=True)]


def lines_of(axes) -> dict[str, list[float]]:
    """Drawn curves by label, apart from those without a point."""
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    return {label: values for label, values in curves.items() if values}


def texts(fig: Figure) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(Text))


def test_saved_as_png_and_pdf(tmp_path: Path) -> None:
    fig = Figure(figsize=(6, 3))
    fig.subplots().plot([0, 1], [0, 1])
    png, pdf = save_figure(fig, tmp_path / "new" / "s1.0_m0.2")
    assert (png.name, pdf.name) == ("s1.0_m0.2.png", "s1.0_m0.2.pdf")
    before = png.read_bytes(), pdf.read_bytes()
    assert save_figure(fig, pdf) == [png, pdf]
    assert (png.read_bytes(), pdf.read_bytes()) == before
    with Image.open(png) as image:
        assert image.width == 1500
    assert before[1].startswith(b"%PDF")
    assert "cannot write" in user_error(save_figure, fig, png / "fig.png")
    save_figure(fig, tmp_path / "titled", "A $b$")
    assert fig.get_suptitle() == r"A \$b\$"
    png, _ = save_figure(fig, tmp_path / "long", 200 * "A")
    with Image.open(png) as image:  # the title is whole, between white edges
        assert image.width > 3000
        assert np.asarray(image.convert("L"))[:, [0, -1]].min() == 255


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        ([FREE, HE], ["FreeAT", HE_LABEL]),
        ([f"{FREE}_WN_s15.5_margin0.0"], ["FreeAT + WN (s = 15.5, m = 0)"]),
        (["resnet18_natural_bs16_WN_s9.0_margin0.1"], ["natural + WN (s = 9, m = 0.1)"]),
        (["resnet50_pgd_adv_step4_eps4_steps3_bs256_seed2"], ["PGD-AT, seed 2"]),
        ([f"{HE}_seed12", "my_run"], [f"{HE_LABEL}, seed 12", "my_run"]),
        ([FREE, FREE.replace("18", "50")], [FREE, FREE.replace("18", "50")]),
        ([FREE, f"{FREE}/../{FREE}"], [f"{FREE}/x0", f"{FREE}/x1"]),
    ],
)
def test_names_are_short_and_distinct(files: list[str], labels: list[str], tmp_path: Path) -> None:
    paths = [tmp_path / folder / f"x{number}.json" for number, folder in enumerate(files)]
    assert run_labels(paths) == labels


PIXELS = np.zeros((3, 4, 4))


def curve(norm: str = "Linf", **robust: int) -> list[AttackResult]:
    """Evaluations at several radii, {"_4": correct of 100}."""
    robust = robust or {"_1": 50, "_4": 30, "_64": 0}
    unit = 255 if norm == "Linf" else 1
    radii = {int(name[1:]) / unit: worst for name, worst in robust.items()}
    return [attack_result(worst=worst, eps=eps, norm=norm) for eps, worst in radii.items()]


FIGURES: dict[str, Callable[[Path], Figure]] = {
    "training": lambda run: training_curves(run),
    "one epoch": lambda run: training_curves(write_run(run, 1)),
    "gradients": lambda run: gradient_ratio({"A": read_gradients(run)}),
    "one result": lambda _: imagenet_c({"A": imagenet_c_result(0.8, STANDARD + EXTRA)}, "T"),
    "results": lambda _: imagenet_c({"A": imagenet_c_result(), "B": imagenet_c_result()}, "T"),
    "effect": lambda _: comparison(
        [Panel("T", DIFFERENCE, [("PGD", {"A": Estimate(-1, (-9, 9), 2)})])]
    ),
    "robustness": lambda _: robustness({"A": [curve()], "B": [curve("L2")]}),
    "images": lambda _: attack_images(
        [AttackedImage(PIXELS, PIXELS, "a", "a", "a", "PGD-10 (ce)")] * 4, 0.1, "T"
    ),
    "costs": lambda _: robustness_against_cost(
        {"free": (20, mean_over_seeds([50, 52])), "free + HE": (20, mean_over_seeds([55]))},
        "worst of PGD",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_fit_a_text_of_55_inches(runs: list[Path], name: str) -> None:
    """Fonts of 7 points at least, nothing cut at the edges, and no style left behind."""
    before = dict(matplotlib.rcParams)
    fig = FIGURES[name](runs[0])
    fig.draw_without_rendering()
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    assert dict(matplotlib.rcParams) == before
    assert fig.get_figwidth() <= 5.5
    sizes = [text.get_fontsize() for text in fig.findobj(Text) if text.get_text().strip()]
    assert min(sizes) >= 7
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 200


def test_training_curves(runs: list[Path]) -> None:
    loss, accuracy, rate = training_curves(runs[0]).axes
    assert lines_of(loss)["validation: clean images"] == pytest.approx([1 / e for e in range(1, 5)])
    assert loss.get_ylabel() == "cross-entropy (nats)"
    assert lines_of(accuracy)["training: adversarial images"] == [20, 40, 60, 80]
    assert list(rate.get_lines()[0].get_ydata()) == [0.1, 0.1, 0.01, 0.01]
    # With a margin the loss is no cross-entropy.
    (runs[1] / "config.yml").write_text("HE: {FN: True, WN: True, angular_margin_HE: 0.2}")
    loss, accuracy, _ = training_curves(runs[1]).axes
    assert "with margin" in loss.get_ylabel()
    assert lines_of(accuracy)["validation: PGD-10"] == [9, 18]


def test_gradient_ratio(runs: list[Path]) -> None:
    rows = {name: read_gradients(run) for name, run in zip(("A", "B"), runs, strict=True)}
    fig = gradient_ratio(rows)
    conv, bn, fc = fig.axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in conv.get_lines()]
    assert [1, 1] in [y for _, y in drawn]  # the line at 1
    # Convolutions alone are counted: batch-norm lies between the two, and the shortcut beside.
    for points in (([1, 2], [40, 42]), ([2], [43]), ([1, 2], [20, 22])):
        assert points in drawn
    biases = [list(line.get_ydata()) for line in bn.get_lines() if line.get_linestyle() == ":"]
    assert [20.5] in biases
    assert [text.get_text() for text in fc.get_legend().get_texts()] == ["44.00", "24.00"]
    assert {row["epoch"] for row in read_gradients(runs[0], 2)} == {"2"}
    rows["A"][0]["ratio"], rows["A"][1]["ratio"] = "inf", ""  # break no axis
    axes = gradient_ratio({"A": rows["A"]}).axes[0]
    low, high = axes.get_ylim()
    assert (axes.get_yscale(), low < 1 < 44 < high < math.inf) == ("log", True)


def test_gradient_ratios_of_seeds_are_their_mean(here: Path) -> None:
    """Ratios 40, 42, 43 of the first seed's last epoch, and 10 more and 26 more of the others."""
    seeds = []
    for more, name in ((0, FREE), (10, f"{FREE}_seed1"), (26, f"{FREE}_seed2")):
        rows = read_gradients(write_run(Path(name)))
        seeds.append([{**row, "ratio": f"{float(row['ratio']) + more}"} for row in rows])
        lines = [list(row.values()) for row in seeds[-1]]
        write_csv(Path(name, "gradient_norms.csv"), GRADIENTS, lines)
    means = mean_of_seeds(seeds)
    assert [float(row["ratio"]) for row in means[:2]] == [52, 53]
    assert float(means[0]["deviation"]) == pytest.approx(172**0.5)  # of -12, -2, 14 over 2
    fig = gradient_ratio({"A": means})
    conv, _, fc = fig.axes
    assert (52, 54) in {tuple(line.get_ydata()) for line in conv.get_lines()}
    ends = pytest.approx([52 - 172**0.5, 52 + 172**0.5])
    band, bar = conv.collections  # of the line, and of the shortcut
    assert sorted({y for x, y in band.get_paths()[0].vertices if x == 1}) == ends
    assert list(bar.get_segments()[0][:, 1]) == pytest.approx([55 - 172**0.5, 55 + 172**0.5])
    assert [text.get_text() for text in fc.get_legend().get_texts()] == ["56.00 ± 13.11"]
    assert "Epoch 4. Bands and bars: ± one standard deviation over the seeds (n - 1)." in texts(fig)
    one, other = write_run(Path(FREE)), write_run(Path(f"{FREE}_seed3"), epochs=2)
    assert "give --epoch" in only_error(call("tools.plot", "gradient_ratio", one, other, "-o", "x"))
    command = ("tools.plot", "gradient_ratio", one, other, "--epoch", "2", "-o", "x")
    done = call(*command)
    assert "| FreeAT, 2 seeds | fc | 2 | 24.000 | 0.000 |" in done.out
    assert [row["ratio"] for row in read_csv(Path("x.csv"), (), "")] == ["23.0", "21.0", "24.0"]


def test_imagenet_c_of_one_result() -> None:
    fig = imagenet_c({"FreeAT": imagenet_c_result(0.8, STANDARD + EXTRA)})
    noise, *_, bars = (axes for part in fig.subfigs for axes in part.axes)
    assert set(lines_of(noise)) == {"gaussian noise", "shot noise", "impulse noise"}
    assert lines_of(noise)["shot noise"] == pytest.approx([80, 64, 48, 32, 16])
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([48] * 20)
    assert bars.get_xticklabels()[-1].get_text() == "mean of the 15"
    for _ in range(2):  # without room for all names, panels shrink at each drawing
        fig.draw_without_rendering()
    assert noise.get_position().width > 0.13


def test_imagenet_c_of_several_results() -> None:
    levels = {"A": (0.8,), "B": (0.6, STANDARD + EXTRA), "C": (0.4, ["snow"])}
    results = {label: imagenet_c_result(*of) for label, of in levels.items()}
    fig = imagenet_c(results)
    above, below = fig.subfigs
    noise, _, weather, _, extra = above.axes
    assert noise.get_title() == "noise (mean)"
    assert set(lines_of(noise)) == {"A", "B"}
    assert set(lines_of(weather)) == {"A", "B"}  # C's snow alone is no mean of the weather
    assert lines_of(weather)["B"] == pytest.approx([60, 48, 36, 24, 12])
    assert set(lines_of(extra)) == {"B"}
    assert extra.get_lines()[1].get_color() == COLOURS[1]  # B keeps its colour
    assert len(below.axes[0].patches) == 16 + 20 + 1


def test_robustness_curve() -> None:
    fig = robustness({"A": [curve()], "$B$": [curve("L2", _1=60, _3=20)]})
    linf, l2 = fig.axes
    assert (linf.get_xlabel(), l2.get_xlabel()) == ("eps (of 255)", "eps (L2 norm)")
    (line,), (other,) = linf.get_lines(), l2.get_lines()
    assert list(line.get_xdata()) == pytest.approx([0, 1, 4, 64])
    assert list(line.get_ydata()) == [90, 50, 30, 0]  # from the clean accuracy on
    assert list(other.get_xdata()) == [0, 1, 3]
    whisker = linf.collections[0].get_segments()[1][:, 1]  # at eps 1: scipy's interval of 50 of 100
    assert list(whisker) == pytest.approx([40.38, 59.62], abs=0.01)
    assert r"\$B\$" in texts(fig)


def test_a_curve_says_what_it_is_of_and_draws_hollow_what_was_warned_of() -> None:
    steps = [attack("pgd10", "PGD-10 (ce)", 50, step=size / 255) for size in (1, 4)]
    weak = attack_result(attacks=steps[1:], eps=16 / 255, warnings=["PGD-10 (ce): too short"])
    fig = robustness({"A": [[attack_result(attacks=steps[:1]), weak]]})
    (axes,) = fig.axes
    _, hollow = axes.get_lines()
    assert (hollow.get_markerfacecolor(), list(hollow.get_xdata())) == ("white", [16])
    (entry,) = fig.legends[0].get_texts()
    assert entry.get_text() == "hollow: evaluated with a warning"
    assert "pgd10, steps of 1 to 4/255; protocol standard; 100 images." in texts(fig)
    assert axes.get_title() == "worst of PGD"
    doubtful = replace(imagenet_c_result(), warnings=("x",))
    above, below = imagenet_c({"A": doubtful, "B": imagenet_c_result()}).subfigs
    assert [bar.get_fill() for bar in below.axes[0].patches] == [False] * 16 + [True] * 16
    assert [x.get_markerfacecolor() == "white" for x in above.axes[0].get_lines()] == [True, False]


def test_curves_of_seeds_are_mean_and_band_by_attack_and_a_csv(here: Path) -> None:
    """PGD-10 leaves 50 and 54 of 100 at 4/255, 30 and 30 at 8/255; the step follows the radius."""
    for seed, name in enumerate((FREE, f"{FREE}_seed1")):
        for eps, robust in ((4, 50 + 4 * seed), (8, 30)):
            label = f"PGD-10 (ce, step {eps // 4}/255)"
            pgd10 = attack("pgd10", label, robust, step=eps / 1020)
            attacks = [pgd10, attack("pgd50", "PGD-50", 28)]
            result = attack_result(str(seed), attacks=attacks, worst=20, eps=eps / 255)
            write(Path(name, f"attack_{eps}.json"), result)
    write(Path("one", "attack_4.json"), attack_result(eps=4 / 255))
    done = call("tools.plot", "robustness", FREE, f"{FREE}_seed1", "one", "-o", "out/curve.png")
    assert done.status == 0, done.err
    assert "warning: one is left out" in done.err
    rows = read_csv(Path("out/curve.csv"), ("run",), "")
    assert {row["run"] for row in rows} == {"FreeAT, 2 seeds"}
    of_pgd10 = [[float(row[c]) for c in ("eps", "percent", "std", "seeds", "n")] for row in rows
                if row["attack"] == "PGD-10 (ce)"]  # fmt: skip
    at_4 = [4, 52, pytest.approx(8**0.5), 2, 100]
    assert of_pgd10 == [[0, 90, 0, 2, 100], at_4, [8, 30, 0, 2, 100]]
    runs = [[attack_result(str(seed), worst=w, eps=e / 255) for e, w in ((4, 30 + seed), (8, 20))]
            for seed in (0, 2)]  # fmt: skip
    fig = robustness({"A": runs})
    (band,) = fig.axes[0].collections
    ends = sorted({y for x, y in band.get_paths()[0].vertices if x == 4})
    assert ends == pytest.approx([31 - 2**0.5, 31 + 2**0.5])
    assert list(fig.axes[0].get_lines()[0].get_ydata()) == [90, 31, 20]


def test_curves_are_of_evaluations_that_differ_in_eps_alone() -> None:
    others = [attack_result(eps=2 / 255, seed=1), attack_result(eps=3 / 255, protocol="paper")]
    steps = attack_result(eps=8 / 255, attacks=[attack("pgd10", "PGD-10 (ce)", 9, step=2 / 255)])
    results = [*reversed(curve(_1=50, _4=30)), *others, steps]
    ((first, found),) = curves_of({Path(f"{i}"): r for i, r in enumerate(results)}).items()
    assert (first, [round(255 * r.conditions.eps) for r in found]) == (Path("1"), [1, 4, 8])


@pytest.mark.parametrize(
    ("results", "says"),
    [
        (curve(), ""),
        (curve(_1=50, _4=50, _8=50), ""),
        (curve(_1=50, _64=2), "still 2.0 % at eps 64/255"),
        (curve(_1=30, _4=31), "rises by 1.0 % from eps 1/255 to 4/255"),
        (curve("L2", _1=50, _90=10), ""),
        (curve("L2", _1=50, _97=10), "still 10.0 % at eps 97 (L2)"),  # 0.25 sqrt(3) 224 = 96.99
    ],
)
def test_an_attack_that_large_balls_do_not_help_is_weak(
    results: list[AttackResult], says: str
) -> None:
    warnings = weak_attack_signs(results)
    assert len(warnings) == bool(says)
    assert says in "".join(warnings)


def test_names_in_any_script_draw_without_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    image = AttackedImage(PIXELS, PIXELS, "金魚", "金魚", "고양이", "PGD-10 (ce)")
    save_figure(attack_images([image], 0.1, "狗"), tmp_path / "a")
    assert (list(recwarn), caplog.text) == ([], "")


def test_attack_images() -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.2, 0.8, (2, 3, 16, 16))
    adversarial = clean + 8 / 255 * rng.choice([-1, 0, 1], clean.shape)
    images = [
        AttackedImage(clean[i], adversarial[i], name, name, after, "PGD-10 (ce)")
        for i, (name, after) in enumerate((("$dog$", "cat"), ("bird", "bird")))
    ]
    fig = attack_images(images, 8 / 255, "protocol paper")
    shown = [axes.get_images()[0].get_array() for axes in fig.axes if axes.get_images()]
    assert len(shown) == 6
    # Black, grey and white are -eps, no change and +eps.
    assert np.unique(np.round(shown[1], 6)).tolist() == [0, 0.5, 1]
    assert np.allclose(shown[2], np.moveaxis(adversarial[0], 0, 2))
    for word in ("±8/255", r"\$dog\$", "✗ cat", "✓ bird", "PGD-10 (ce)", "protocol paper"):
        assert word in texts(fig)


@pytest.mark.slow
def test_commands_without_a_display(runs: list[Path], here: Path) -> None:
    for run, level in zip(runs, (0.8, 0.7), strict=True):
        write(run / "imagenet_c_standard.json", imagenet_c_result(level))
    for number, result in enumerate(curve(_1=30, _4=40)):
        write(runs[0] / f"attack_{number}.json", result)
    free, he = map(str, runs)
    commands = [
        ["imagenet_c", free, f"{he}/imagenet_c_standard.json", "-o", "c"],
        ["gradient_ratio", free, he, "-o", "g", "--epoch", "2", "--labels", "A", "B"],
        ["training", free, "-o", "t"],
        ["robustness", free, "-o", "r", "--labels", "A"],
    ]
    code = f"""
import sys
from tools import plot
assert [plot.main(command) for command in {commands!r}] == [0] * 4
assert not {{"matplotlib.pyplot", "torch"}} & sys.modules.keys()
"""
    variables = {**environment(), "DISPLAY": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the attack is weak" in done.stderr
    for stem in "cgtr":
        assert (here / f"{stem}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "FIGURE"),
        ("training RUN/empty -o x", "no rows yet"),
        ("training RUN/other -o x", "has no column lr, train_loss"),
        ("training RUN/words -o x", "column train_loss"),
        ("robustness RUN/attack.json -o x", "--eps 1,2,4,8"),
        ("gradient_ratio RUN/nowhere -o x", "--print_gradients True"),
        ("gradient_ratio RUN -o x --epoch 9", "epochs 1 to 4, not 9"),
        ("gradient_ratio RUN -o x --labels a b", "2 names (a, b) for 1 rows"),
        ("gradient_ratio RUN RUN/nowhere -o x --labels a a", "give each row its own"),
        ("imagenet_c RUN/attack.json -o x", "is no ImageNet-C result"),
    ],
)
def test_errors_are_one_line(runs: list[Path], here: Path, command: str, says: str) -> None:
    run = runs[0]
    words = [1, 0.1, "x", 1, 1, 1, 1]
    for name, columns, rows in (
        ("empty", METRICS, []),
        ("other", ["epoch", "loss"], [[1, 2]]),
        ("words", METRICS, [words]),
    ):
        (run / name).mkdir()
        write_csv(run / name / "metrics.csv", columns, rows)
    write(run / "attack.json", attack_result())
    done = call("tools.plot", *command.replace("RUN", str(run)).split())
    assert says in only_error(done)
    assert done.out == ""
    assert not list(here.glob("x.*"))
