"""ImageNet-C: published figures, trees and their faults, exact and resumable counts."""

import copy
import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import user_error
from PIL import Image
from records import attack_result, write
from sklearn.datasets import load_digits
from torch import nn
from torchvision import datasets, transforms

from lib.data import folders
from lib.data.folders import list_classes
from lib.evaluation import shift, task
from lib.evaluation.load_model import EvaluatedModel, ModelSettings
from lib.evaluation.task import Task
from lib.imagenet_c.corruptions import (
    EXTRA,
    SEVERITIES,
    STANDARD,
    choose_corruptions,
    find_folders,
    group_of,
    read_corruptions,
    summarise,
)
from lib.imagenet_c.evaluate import evaluate_imagenet_c
from utils.config.settings import Config, Source
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger
from utils.storage import journal
from utils.storage.results import ImageNetCResult, read_result

GOLDEN = Path(__file__).parents[1] / "golden" / "imagenet_c_standard_r50.json"
CLASSES = ["0", "1", "2", "3"]
SIDE = 36
WNIDS = [f"n{number:08d}" for number in range(1000)]
ONE = DistributedContext(0, 1, torch.device("cpu"))


# Metrics


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_figures_are_the_published_ones(golden):
    summary = summarise(golden["accuracy"], WNIDS, golden["clean_accuracy"])
    expected = golden["expected"]
    assert summary.mCE == pytest.approx(expected["mCE"], abs=5e-5)
    assert summary.relative_mCE == pytest.approx(expected["relative_mCE"], abs=5e-5)
    assert 100 * summary.mean_accuracy == pytest.approx(expected["mean_accuracy"], abs=5e-5)
    assert summary.mean_error == 1 - summary.mean_accuracy
    assert summary.left_out == {}
    # Neither the order counts nor an extra corruption.
    backwards = dict(reversed(golden["accuracy"].items()))
    more = golden["accuracy"] | dict.fromkeys(EXTRA, [0.0] * 5)
    for accuracies in (backwards, more):
        assert summarise(accuracies, WNIDS, golden["clean_accuracy"]) == summary


NUMBERS = ("mean_accuracy", "mean_error", "mCE", "relative_mCE")


@pytest.mark.parametrize(
    ("lacks", "classes", "clean", "left_out", "words"),
    [
        ("fog", WNIDS, 0.7, (*NUMBERS, "weather"), "fog"),
        ("", WNIDS[:999], 0.7, ("mCE", "relative_mCE"), "1000 classes"),
        ("", [f"class{i}" for i in range(1000)], 0.7, ("mCE", "relative_mCE"), "1000 classes"),
        ("", WNIDS, None, ("relative_mCE",), "--clean_accuracy"),
    ],
)
def test_nothing_is_computed_over_a_part(golden, lacks, classes, clean, left_out, words):
    part = {name: values for name, values in golden["accuracy"].items() if name != lacks}
    summary = summarise(part, classes, clean)
    found = {number: getattr(summary, number) for number in NUMBERS} | dict(summary.groups)
    assert {name for name, value in found.items() if value is None} == set(left_out)
    assert set(summary.left_out) == set(left_out)
    assert all(words in summary.left_out[name] for name in left_out)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, STANDARD),
        ([], STANDARD),
        (["extra"], STANDARD + EXTRA),
        (["snow", "gaussian_noise"], ("gaussian_noise", "snow")),
        (["snow", "extra"], ("snow", *EXTRA)),
        (["mine", " fog", "flash"], ("fog", "flash", "mine")),
        (["all"], ("snow", "flash", "mine")),  # of those that are there
    ],
)
def test_choice_of_corruptions(chosen, expected):
    assert choose_corruptions(chosen, ["mine", "flash", "snow"]) == expected


# Trees


@pytest.fixture(scope="session")
def corrupted(tmp_path_factory) -> Path:
    """A flat tree: two digits of each class, with 19 kinds of noise at 5 severities."""
    root = tmp_path_factory.mktemp("digits") / "digits-C"
    digits = load_digits()
    for number, name in enumerate(STANDARD + EXTRA):
        for severity in SEVERITIES:
            random = np.random.default_rng([number, severity])
            for label in CLASSES:
                folder = root / name / str(severity) / label
                folder.mkdir(parents=True)
                for index in np.flatnonzero(digits.target == int(label))[:2]:
                    pixels = enlarge(digits.images[index])
                    pixels = pixels + random.normal(0, 40 * severity, (SIDE, SIDE, 1))
                    noisy = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                    noisy.save(folder / f"{index:04d}.png")
    return root


def enlarge(scan: np.ndarray) -> np.ndarray:
    """A scan (8, 8) of values 0 to 16 as (SIDE, SIDE, 3) uint8."""
    grey = Image.fromarray(np.round(scan * 255 / 16).astype(np.uint8))
    return np.array(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))


@pytest.fixture
def tree(corrupted, tmp_path) -> Path:
    """A copy that a test may damage: two corruptions of it."""
    for name in ("snow", "contrast"):
        shutil.copytree(corrupted / name, tmp_path / "C" / name)
    return tmp_path / "C"


def read(root: Path, names=("snow", "contrast"), prepare=lambda images: images) -> dict:
    """The images by corruption and severity."""
    return read_corruptions(str(root), find_folders(str(root), names), prepare)[0]


def test_flat_and_grouped_trees_are_the_same(corrupted, tmp_path):
    flat = read(corrupted, ["extra"])
    for name in STANDARD + EXTRA:
        folder = tmp_path / group_of(name)
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(corrupted / name)
    grouped = read(tmp_path, ["extra"])
    assert list(flat) == list(grouped)
    assert list(flat)[:6] == [*(f"gaussian_noise/{i}" for i in SEVERITIES), "shot_noise/1"]
    assert len(flat) == 95
    (files,) = {tree.files for tree in (*flat.values(), *grouped.values())}
    assert len(files) == 8
    assert len({id(tree.files) for tree in flat.values()}) == 1  # names are kept once


def first(tree: Path) -> Path:
    return next((tree / "snow/3/1").iterdir())


def remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove, "cannot read the folder .*C: No such file"),
        (lambda t: remove(t / "snow"), "no folder for snow .*--corruptions"),
        (lambda t: (t / "contrast").rename(t / "contrst"), "no folder for contrast .*complete"),
        (lambda t: remove(t / "snow/3"), "cannot read .*snow/3: No such file"),
        (lambda t: first(t).unlink(), "snow/3, against .*snow/1, lacks 1, such as 1/"),
        (lambda t: first(t).rename(first(t).with_name("other.png")),
         "snow/3.* lacks 1, .* and alone has 1, such as 1/other.png"),
        (lambda t: shutil.copytree(t / "snow", t / "weather/snow"), "snow is there twice"),
        (lambda t: [remove(t / f"{n}/1") for n in ("snow/2", "snow/3", "snow/4", "contrast/5")],
         r"snow/2, .*, .*snow/3, .* and 1 more"),
    ],
)  # fmt: skip
def test_faults_are_named_in_one_line(tree, damage, says):
    damage(tree)
    message = user_error(read, tree)
    assert re.search(says, message)
    assert len(message) < 1000


def test_a_part_needs_one_folder_listed(tree, monkeypatch):
    listed = []
    monkeypatch.setattr(
        folders, "list_classes", lambda root: listed.append(root) or list_classes(root)
    )
    whole = read(tree)
    assert len(listed) == 10
    part = read(tree, prepare=lambda images: images.subset([1, 5]))
    assert len(listed) == 11
    assert {tree.files for tree in part.values()} == {whole["snow/1"].files[1:6:4]}
    missing = Path(part["snow/4"].path(1))
    missing.unlink()
    with pytest.raises(UserError, match=f"{missing} is missing"):
        read(tree, prepare=lambda images: images.subset([1, 5]))
    read(tree, prepare=lambda images: images.subset([1]))


# Evaluation


class Glance(nn.Module):
    """The nearest mean of 8 x 8 pixels: learns digits in a moment."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(8), nn.Linear(64, 10)
        self.batches = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        return self.fc(self.pool(x.mean(dim=1, keepdim=True)).flatten(1))


@pytest.fixture(scope="module")
def model() -> Glance:
    digits, glance = load_digits(), Glance()
    images = torch.from_numpy(np.stack([enlarge(scan) for scan in digits.images[200:600]]))
    features = glance.pool(images.permute(0, 3, 1, 2).float().mean(1, keepdim=True) / 255)
    targets = torch.from_numpy(digits.target[200:600])
    means = torch.stack([features[targets == i].mean(0).flatten() for i in range(10)])
    with torch.no_grad():
        glance.fc.weight.copy_(means)
        glance.fc.bias.copy_(-0.5 * means.square().sum(1))
    return glance


@pytest.fixture
def figures() -> None:
    """For a test that wants the figure drawn."""


@pytest.fixture(autouse=True)
def small_chunks_and_no_figures(request, monkeypatch) -> None:
    """8 images as chunks of 6 and 2, each in the journal at once; drawing takes longest of all."""
    monkeypatch.setattr(shift, "CHUNK", 6)
    monkeypatch.setattr(journal, "SECONDS_BETWEEN_WRITES", -1.0)
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("lib.imagenet_c.evaluate.imagenet_c", lambda *_: None)
        monkeypatch.setattr(shift, "save_figure", lambda *_: None)


class PlainTask(Task):
    """Without command and date in its results."""

    def provenance(self, subset):
        return {"subset": subset, "checkpoint": {"path": "a"}}


def run(
    model: nn.Module,
    root: Path,
    folder: Path,
    corruptions=None,
    clean_accuracy=None,
    resize=None,
    crop=32,
    checkpoint="a",
    context=ONE,
    logger=None,
    workers=0,
    **options,
) -> ImageNetCResult:
    """An evaluation; `options` are settings of OPTIONS."""
    options |= {"corruptions": corruptions or (), "clean_accuracy": clean_accuracy}
    values = {
        "DATA.img_size": resize or 256, "DATA.crop_size": crop, "DATA.workers": workers,
        "EVAL.protocol": "freeat" if resize else "standard", "EVAL.batch_size": 4,
        **{f"OPTIONS.{name}": value for name, value in options.items()},
    }  # fmt: skip
    config = Config().changed(values, Source.COMMAND_LINE)
    settings = ModelSettings("resnet18", False, False, 1.0, 0.0, [], [], list("0123456789"))
    identity = {"path": "model_best.pth.tar", "sha256": checkpoint * 64}
    trained = {"DATA": {"img_size": resize or 256, "crop_size": crop}}
    evaluated = EvaluatedModel(model, settings, folder, identity, trained=trained)
    task = PlainTask(config, context, logger or Logger(active=False), evaluated)
    return evaluate_imagenet_c(task, str(root))


SOME = ["gaussian_noise", "snow", "fog", "contrast"]  # 20 folders, each in three batches


def written(folder: Path) -> str:
    """The only JSON, and no journal beside it."""
    (path,) = folder.glob("imagenet_c_*.json*")
    return path.read_text()


@pytest.fixture(scope="module")
def uninterrupted(model, corrupted, tmp_path_factory) -> str:
    """The JSON of a run in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(model, corrupted, folder, corruptions=SOME)
    return written(folder)


@pytest.mark.parametrize(("resize", "workers"), [(None, 2), (40, 0)])
def test_counts_are_those_of_a_plain_loop(model, corrupted, tmp_path, resize, workers, monkeypatch):
    made = []
    make = task.Loader
    monkeypatch.setattr(task, "Loader", lambda *a: made.append(a) or make(*a))
    result = run(model, corrupted, tmp_path / "r", resize=resize, workers=workers)
    steps = [transforms.Resize(resize)] if resize else []
    reading = transforms.Compose([*steps, transforms.CenterCrop(32), transforms.ToTensor()])
    for name, entry in result.corruptions.items():
        for severity, top1, top5 in zip(SEVERITIES, entry.top1, entry.top5, strict=True):
            folder = datasets.ImageFolder(corrupted / name / str(severity), reading)
            images = torch.stack([image for image, _ in folder])
            labels = torch.tensor([label for _, label in folder])
            with torch.no_grad():
                ranking = model(images).argsort(dim=1, descending=True)
            assert top1.correct == (ranking[:, 0] == labels).sum()
            assert top5.correct == (ranking[:, :5] == labels[:, None]).sum()
            assert top1.n == top5.n == len(folder)
    assert len(made) == 1  # one loader for all 75 folders


def test_what_an_evaluation_leaves(model, corrupted, tmp_path, capsys, figures):
    folder = tmp_path / "run"
    model.train()
    result = run(model, corrupted, folder, corruptions=["extra"], logger=Logger())
    assert model.training
    stem = folder / "imagenet_c_standard_extra"
    written = sorted(path.name for path in folder.iterdir())
    assert written == [f"{stem.name}.{kind}" for kind in ("csv", "json", "pdf", "png")]
    assert read_result(stem.with_suffix(".json")) == result
    assert result.provenance["subset"]["n"] == 8
    assert list(result.corruptions) == list(STANDARD + EXTRA)
    with open(stem.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 95
    for row in rows:
        entry = result.corruptions[row["corruption"]].top1[int(row["severity"]) - 1]
        assert float(row["top1_accuracy"]) == entry.fraction
    accuracies = [a.fraction for n in STANDARD for a in result.corruptions[n].top1]
    assert result.summary.mean_accuracy == pytest.approx(np.mean(accuracies))
    assert result.summary.mean_accuracy > 0.4  # chance is 0.1: something was learnt
    said = capsys.readouterr().out
    for words in ("gaussian_noise", "saturate", "weather (mean)", "all 15 (mean)"):
        assert words in said
    mean = 100 * result.summary.mean_accuracy
    assert f"mean accuracy over the 15  {mean:.2f} %" in said
    assert "mCE                        left out: needs ImageNet's 1000 classes" in said


def test_other_corruptions(model, corrupted, tmp_path, capsys):
    for name, like in (("perlin_noise", "snow"), ("mine", "frost")):
        (tmp_path / "bar").mkdir(exist_ok=True)
        (tmp_path / "bar" / name).symlink_to(corrupted / like)
    result = run(model, tmp_path / "bar", tmp_path / "r", corruptions=["all"], logger=Logger())
    groups = [(name, entry.group) for name, entry in result.corruptions.items()]
    assert groups == [("mine", "other"), ("perlin_noise", "other")]
    known = run(model, corrupted, tmp_path / "r", corruptions=["snow", "fog"])
    assert result.corruptions["perlin_noise"].top1 == known.corruptions["snow"].top1
    assert (result.summary.mCE, result.summary.mean_accuracy) == (None, None)
    accuracies = [a.fraction for entry in result.corruptions.values() for a in entry.top1]
    said = f"mean error of the 2 {100 * (1 - np.mean(accuracies)):.2f} %"
    assert said in re.sub(" +", " ", capsys.readouterr().out)


class Interrupting(Glance):
    """Something happens in the middle of batch number `after`."""

    def __init__(self, model: Glance, after: int, happen: Callable[[], None]) -> None:
        super().__init__()
        self.load_state_dict(model.state_dict())
        self.after, self.happen = after, happen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.batches == self.after:
            self.happen()
        return super().forward(x)


def stop() -> None:
    raise KeyboardInterrupt


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def test_an_interrupted_evaluation_resumes(model, corrupted, tmp_path, uninterrupted):
    finished = []

    def look_and_stop() -> None:  # a process that is killed here leaves as much
        finished.extend(rows(next(tmp_path.iterdir())))
        stop()

    for after, happen in ((10, look_and_stop), (6, stop)):
        with pytest.raises(KeyboardInterrupt):
            run(Interrupting(model, after, happen), corrupted, tmp_path, corruptions=SOME)
        (kept,) = tmp_path.iterdir()
        with open(kept, "ab") as file:
            file.write(b'\n{"phase": "counts", "rows": {"fog/1')
    assert len(finished) == 10 // 2  # of two batches each
    assert len(rows(kept)) == len(finished) + 1 + 6 // 2 + 1
    model.batches = 0
    run(model, corrupted, tmp_path, corruptions=SOME, checkpoint="b")  # nothing is mixed in
    assert model.batches == 60
    kept.rename(str(kept).replace("rank0", "rank3"))  # as of four processes, and now it is one
    run(model, corrupted, tmp_path, corruptions=SOME)
    assert written(tmp_path) == uninterrupted
    assert model.batches == 60 + 60 - 16


def test_images_smaller_than_the_crop_are_refused(model, tree, tmp_path):
    (tree / "contrast/1/1/@eaDir").mkdir()
    with pytest.raises(UserError, match="36 x 36 pixels, less than the crop of 40"):
        run(model, tree, tmp_path / "r", corruptions=["contrast"], crop=40)
    result = run(model, tree, tmp_path / "r", corruptions=["contrast"], resize=40, crop=40)
    assert len(result.warnings) == 1
    assert "do not count (1/@eaDir)" in result.warnings[0]
    cropped = run(model, tree, tmp_path / "r", corruptions=["contrast"], crop=24).warnings[1]
    assert "36 x 36 pixels, of which the middle 24 x 24 alone are seen" in cropped
    assert "--protocol freeat" in cropped


def test_outputs_that_are_not_finite_are_refused(model, tree, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.fc.bias[3] = float("nan")
    with pytest.raises(UserError, match="not finite on 6 of 6 images of snow/1"):
        run(broken, tree, tmp_path / "r", corruptions=["snow"])


def test_clean_accuracy_is_found_beside_the_results(model, tree, tmp_path):
    own, here = "a", tmp_path

    def clean(**changes):
        found = run(model, tree, here, corruptions=["snow"], **changes).clean
        return found.accuracy, found.source

    (here / "broken.json").write_text("{")
    write(here / "attack_a.json", attack_result("b", clean=5, n=50))
    write(here / "attack_b.json", attack_result(own, clean=1, worst=1, n=5))  # of too few images
    assert clean() == (None, None)
    write(here / "attack_d.json", attack_result(own, clean=20, worst=1, n=50))
    assert clean() == (0.4, "attack_d.json")
    images = read(tree, ["snow"])["snow/1"].fingerprint
    same = attack_result(own, clean=4, worst=1, n=8, images="all 8 images")
    conditions = replace(same.conditions, images=images)
    write(here / "attack_e.json", replace(same, conditions=conditions))
    assert clean() == (0.5, "attack_e.json")
    alike = attack_result(own, clean=3, worst=1, n=8, images="all 8 images")
    conditions = replace(conditions, crop=32)
    write(here / "attack_c.json", replace(alike, conditions=conditions))
    assert clean() == (0.375, "attack_c.json")
    assert clean(clean_accuracy=0.6) == (0.6, "--clean_accuracy")
