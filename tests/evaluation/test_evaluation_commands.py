"""Evaluation through the commands: every call of the manual, and what it leaves, recounted."""

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import copy_run, settings
from in_process import call, only_error, unchanged
from PIL import Image
from scipy.stats import binomtest
from torch import nn
from torchvision import datasets, transforms

from lib.algorithm import pgd_attack
from lib.algorithm.metrics import derived_seed
from lib.algorithm.pgd import random_start
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import FREEAT, PGDSpec, ThreatModel
from lib.data.folders import read_split
from lib.evaluation.evaluate import Evaluation
from lib.evaluation.load_model import ModelSettings
from lib.evaluation.task import EvaluationData, adversarial_examples, validate_pgd
from models.resnet import ResNet
from utils.config import command_line
from utils.config.settings import Config, Source
from utils.distributed.context import DistributedContext
from utils.storage import journal
from utils.storage.checkpoint import save_best
from utils.storage.conditions import PGD_ALONE
from utils.storage.journal import ResumableRows

EPS = 16
BEST = "resnet18_HE/model_best.pth.tar"
FOLDER = Path("trained_models/resnet18_HE")
ATTACKS = ("pgd1", "pgd3", "pgd3-margin")
CLASSES = [f"digit_{i}" for i in range(4)]
SMALL = f"""
ADV: {{clip_eps: {EPS}, pgd_attack: [[1, 8/255], [3, 8/255]]}}
DATA: {{imagenet: IMAGENET, img_size: 16, crop_size: 16, batch_size: 16, workers: 0}}
"""
RESIZED = transforms.Compose([transforms.Resize(16), transforms.ToTensor()])
Weights = dict[str, torch.Tensor]


def network() -> ResNet:
    return ResNet("resnet18", 4, feature_norm=True, weight_norm=True, scale=10.0)


@pytest.fixture(scope="module")
def weights(digits: Path) -> Weights:
    """A network that knows the digits, and that small perturbations fool now and then."""
    images = datasets.ImageFolder(str(digits / "train"), RESIZED)
    pixels, labels = torch.stack([image for image, _ in images]), torch.tensor(images.targets)
    with unchanged():  # and on one thread
        torch.manual_seed(0)
        model = network()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.3
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(10):  # by twelve, some versions of torch make no mistake any more
            chosen = torch.randperm(len(labels))[:32]
            loss = nn.functional.cross_entropy(model(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def prepared(weights: Weights, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of that network under trained_models/, and settings for small images beside."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / FOLDER).mkdir(parents=True)
    colours = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    model = ModelSettings("resnet18", True, True, 10.0, 0.2, *colours, CLASSES)
    trained = {
        "ADV.clip_eps": EPS, "ADV.pgd_attack": (PGDSpec(1, 8 / 255), PGDSpec(3, 8 / 255)),
        "DATA.img_size": 16, "DATA.crop_size": 16,
    }  # fmt: skip
    config = Config().changed(trained, Source.BUILT_IN).as_dict()
    content = {"model": asdict(model), "state_dict": weights, "config": config}
    save_best(folder / FOLDER, content)
    (folder / "small.yml").write_text(SMALL.replace("IMAGENET", str(digits)))
    return folder


@pytest.fixture(autouse=True)
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    monkeypatch.chdir(copy_run(prepared, tmp_path / "here"))
    return tmp_path / "here"


def evaluation(*flags: object, data: object = None, resume: object = BEST) -> list[object]:
    """The command line; without `data`, small.yml says where the images are."""
    place = [] if data is None else [data]
    return ["evaluate.py", *place, "-e", "--resume", resume, *flags, "-c", "small.yml"]


def evaluate(*flags: object, **more: object) -> str:
    """A call that must succeed; what it says."""
    done = call(*evaluation(*flags, **more))
    assert (done.status, done.err) == (0, ""), done
    return done.out


def result(name: str = "attack_standard", folder: Path = FOLDER) -> dict[str, Any]:
    """A result file."""
    (path,) = folder.glob(f"{name}.json")
    return json.loads(path.read_text())


def text(name: str = "attack_standard") -> str:
    """The outcomes of single images, as they stand in the file."""
    return (FOLDER / f"{name}_images.csv").read_text()


def rows(name: str = "attack_standard", of: str = "images") -> list[dict[str, str]]:
    """The outcomes of single images, or of classes."""
    return list(csv.DictReader((FOLDER / f"{name}_{of}.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def evaluated(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the standard evaluation has been, and what it has said."""
    folder = copy_run(prepared, tmp_path_factory.mktemp("evaluated") / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, evaluate()


@pytest.fixture
def said(evaluated: tuple[Path, str], here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Work beside that evaluation; what it has said."""
    monkeypatch.chdir(evaluated[0])
    return evaluated[1]


def check_entry(entry: dict[str, Any], correct: int, n: int) -> None:
    """An accuracy in a result file against a count."""
    assert (entry["correct"], entry["n"]) == (correct, n)
    assert entry["accuracy"] == pytest.approx(correct / n)
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    assert entry["interval95"] == pytest.approx([interval.low, interval.high], abs=1e-12)


def recount(name: str = "attack_standard", attacks: tuple[str, ...] = ATTACKS) -> None:
    """Count the CSV of images again, and compare the JSON and the CSV of classes with it."""
    summary, table = result(name), rows(name)
    n = len(table)
    assert list(table[0]) == [
        *("image", "label", "clean_prediction", "clean_correct"),
        *(f"{attack}_robust" for attack in attacks),
        "worst_case_robust",
    ]
    for row in table:
        assert row["clean_correct"] == str(int(row["label"] == row["clean_prediction"]))
        robust = [row[f"{attack}_robust"] == "1" for attack in attacks]
        standing = all(robust)
        if summary["conditions"]["protocol"] == "standard":
            assert not any(robust) or row["clean_correct"] == "1"
            standing = standing and row["clean_correct"] == "1"
        assert row["worst_case_robust"] == str(int(standing))
    total = {column: sum(row[column] == "1" for row in table) for column in table[0]}
    check_entry(summary["clean"]["top1"], total["clean_correct"], n)
    assert not any("top5" in entry for entry in (summary["clean"], *summary["attacks"]))
    assert [attack["name"] for attack in summary["attacks"]] == list(attacks)
    for attack in summary["attacks"]:
        check_entry(attack["top1"], total[f"{attack['name']}_robust"], n)
    check_entry(summary["worst_case"]["top1"], total["worst_case_robust"], n)
    assert summary["provenance"]["subset"]["n"] == n
    listed = "\n".join(row["image"] for row in table).encode()
    assert summary["provenance"]["subset"]["sha256"] == hashlib.sha256(listed).hexdigest()
    classes = rows(name, "classes")
    labels = sorted({int(row["label"]) for row in table})
    assert [row["class"] for row in classes] == [CLASSES[label] for label in labels]
    for label, row in zip(labels, classes, strict=True):
        members = [image for image in table if image["label"] == str(label)]
        assert int(row["n"]) == len(members)
        for count, column in (("clean_correct", "clean_correct"), ("robust", "worst_case_robust")):
            assert int(row[count]) == sum(member[column] == "1" for member in members)
            share = float(row[f"{count.removesuffix('_correct')}_accuracy"])
            assert share == pytest.approx(int(row[count]) / len(members))


# The calls of the manual


def test_a_result_says_how_to_make_it_again() -> None:
    """The command gives the same file, but for when and in how many seconds."""
    evaluate()
    results = [result()]
    _, script, *words = shlex.split(results[0]["provenance"]["command"])
    assert call(script, *words).status == 0
    results.append(result())
    for summary in results:
        provenance, tried = summary["provenance"], rows()
        assert provenance.pop("seconds") > 0
        assert provenance.pop("date").startswith("20")
        right = sum(row["clean_correct"] == "1" for row in tried)
        assert provenance["passes"]["backward"] >= right * len(ATTACKS)
        forward = len(tried) + provenance["passes"]["backward"]  # float32 needs no second look
        assert provenance["passes"]["forward"] == forward
        assert len(provenance["suite"].get("commit", 40 * "0")) == 40
    assert results[0] == results[1]


def test_the_standard_call(said: str, digits: Path) -> None:
    recount()
    summary, best = result(), FOLDER / "model_best.pth.tar"
    (warning,) = summary["warnings"]
    assert "PGD-1 (ce): 1 x 8/255 reach 8/255 of a radius of 16/255" in warning
    provenance, conditions = summary["provenance"], summary["conditions"]
    digest = hashlib.sha256(best.read_bytes()).hexdigest()
    model = {"arch": "resnet18", "FN": True, "WN": True, "s_HE": 10.0, "angular_margin_HE": 0.2}
    assert provenance["checkpoint"] == {"path": str(best), "sha256": digest, **model}
    assert provenance["command"] == f"python evaluate.py -e --resume {BEST} -c small.yml"
    assert provenance["config"]["DATA"]["imagenet"] == str(digits)
    assert {"python", "torch", "torchvision"} <= set(provenance["versions"])
    assert (summary["kind"], conditions["protocol"]) == ("attack", "standard")
    assert conditions["eps"] == pytest.approx(EPS / 255)
    assert conditions["attacks"] == ["pgd1@8", "pgd3@8", "pgd3-margin@8"]
    # A contest, so that the counts above can be wrong.
    counts = [attack["top1"]["correct"] for attack in summary["attacks"]]
    assert 36 >= summary["clean"]["top1"]["correct"] > counts[0] > counts[1] > 0
    # The table on the terminal says the same.
    for name, entry in (("clean", summary["clean"]), ("PGD-3 (ce)", summary["attacks"][1]),
                        ("worst of PGD", summary["worst_case"])):  # fmt: skip
        cells = next(x for x in said.splitlines() if x.startswith(f"{name}  ")).split()
        for share in (entry["top1"]["accuracy"], entry["top1"]["interval95"][0]):
            assert f"{100 * share:.2f}" in cells
    assert f"protocol standard, eps {EPS}/255, all 36 images" in said
    assert f"\nworst of PGD: {PGD_ALONE}\n" in said
    assert f"results: {FOLDER}/attack_standard.json" in said
    assert not list(FOLDER.glob("*.jsonl"))


def test_clean_outcomes_are_torchvisions(said: str, digits: Path, weights: Weights) -> None:
    reference = datasets.ImageFolder(str(digits / "val"), RESIZED)
    model = network().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(torch.stack([image for image, _ in reference]))
    for row, (path, label), output in zip(rows(), reference.samples, logits, strict=True):
        assert path.endswith(f"val/{row['image']}")
        assert (int(row["label"]), int(row["clean_prediction"])) == (label, int(output.argmax()))
    loss = nn.functional.cross_entropy(logits, torch.tensor(reference.targets)).item()
    assert result()["clean"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_same_outcomes_by_the_training_command(said: str, digits: Path) -> None:
    expected = text()
    (FOLDER / "attack_standard_images.csv").unlink()
    words = ("-e", digits, "--resume", f"trained_models/{BEST}", "--set", "DATA.batch_size=5")
    assert call("main_free.py", *words, "-c", "small.yml").status == 0
    assert text() == expected


# Flags, the file that they make, its attacks, and what the file says of each attack.
FEW = "--attack pgd1 --n_examples 8"
CHOICES = [
    ("--protocol freeat", "attack_freeat", "pgd1,pgd3", {}),  # the published rows, without margin
    ("--n_examples 10", "attack_standard_n10", ",".join(ATTACKS), {}),
    ("--n_examples 5000 --attack pgd1", "attack_standard_pgd1", "pgd1", {}),
    ("--image_ids ids.txt --attack pgd1-margin", "attack_standard_pgd1-margin_ids*",
     "pgd1-margin", {"loss": ["margin"]}),
    ("--attack pgd2,pgd2-dlr,pgd1-margin-r2 --n_examples 12",
     "attack_standard_pgd2+pgd2-dlr+pgd1-margin-r2_n12", "pgd2,pgd2-dlr,pgd1-margin-r2",
     {"steps": [2, 2, 1], "loss": ["ce", "dlr", "margin"], "restarts": [1, 1, 2]}),
    ("--attack pgd1,pgd1-margin --set EVAL.scales=[1,30] --n_examples 12",
     "attack_standard_pgd1+pgd1-margin+pgd1-s1+pgd1-s30_n12",
     "pgd1,pgd1-margin,pgd1-s1,pgd1-s30", {}),
    ("--attack pgd3@2/255,pgd3-margin@0.1 --n_examples 6", "attack_standard_pgd3@2*_n6",
     "pgd3@2/255,pgd3-margin@0.1", {"step_size": [2 / 255, 0.1]}),
    pytest.param("--attack apgd,apgd-ce --n_examples 6", "attack_standard_apgd+apgd-ce_n6",
                 "apgd-apgd-ce,apgd,apgd-ce", {}, marks=pytest.mark.slow),
    (f"{FEW} --seed 1 --set EVAL.precision=bf16 --set DATA.crop_size=12",
     "attack_standard_pgd1_n8_crop12_bf16_seed1", "pgd1", {"step_size": [8 / 255]}),
    (f"{FEW} --set ADV.clip_eps=8 --set ADV.pgd_attack=[[1,4/255]]",
     "attack_standard_pgd1@4_n8_eps8", "pgd1", {"step_size": [4 / 255]}),
    ("--norm L2 --eps 0.5 --n_examples 12", "attack_standard_n12_eps0.5_L2", ",".join(ATTACKS),
     {"step_size": [2.5 * 0.5, 2.5 * 0.5 / 3, 2.5 * 0.5 / 3]}),
]  # fmt: skip


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize(("flags", "name", "attacks", "fields"), CHOICES, ids=range(len(CHOICES)))
def test_choices_make_a_file_that_counts_right(
    flags: str, name: str, attacks: str, fields: dict[str, list], digits: Path
) -> None:
    every = sorted(str(path.relative_to(digits / "val")) for path in digits.glob("val/*/*"))
    Path("ids.txt").write_text("\n".join(every[i] for i in (30, 2, 11)))
    out = evaluate(*flags.split())
    (path,) = FOLDER.glob("attack_*.json")
    assert fnmatch(path.stem, name)
    recount(path.stem, tuple(attacks.split(",")))
    summary = result(path.stem)
    for field, values in fields.items():
        assert [attack[field] for attack in summary["attacks"]] == pytest.approx(values)
    images = [row["image"] for row in rows(path.stem)]
    if "ids" in flags:
        assert images == [every[i] for i in (2, 11, 30)]
    else:
        n = len(images)
        assert images == [every[i * 36 // n] for i in range(n)]
        description = "all 36 images" if n == 36 else f"{n} evenly spread of 36 images"
        assert summary["provenance"]["subset"]["description"] == description
        assert f"attacks on {description}" in out


@pytest.mark.parametrize("caller", ["evaluate", "validate_pgd", "adversarial_examples"])
def test_a_random_start_is_drawn_by_class_and_file(
    caller: str, digits: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a part of the images, in any order, meets the same starts as all of them."""
    drawn: dict[int, torch.Tensor] = {}

    def spy(image: int, *given: Any) -> torch.Tensor:
        drawn[image] = random_start(image, *given)
        return drawn[image]

    monkeypatch.setattr(pgd_attack, "random_start", spy)
    tree = read_split(str(digits), "val").subset([30, 2, 11])
    Path("ids.txt").write_text("\n".join(tree.files))
    data = EvaluationData(tree, 16, 16, 2, 0, DistributedContext(0, 1, torch.device("cpu")))
    spec, threat = PGDSpec(1, 8 / 255), ThreatModel(EPS / 255, FREEAT)
    model = network()
    model.load_state_dict(weights)
    if caller == "evaluate":
        evaluate("--attack", "pgd1", "--image_ids", "ids.txt", "--protocol", "freeat")
        assert result("attack_freeat_pgd1_ids*")["conditions"]["starts"] == "CLASS/FILE"
    elif caller == "validate_pgd":
        validate_pgd(model, data, spec, threat, 3)
    else:
        adversarial_examples(model, data, spec, threat)  # of a batch of two
    digests = [hashlib.sha256(file.encode()).hexdigest() for file in tree.files]
    numbers = [int(digest, 16) for digest in digests][: 2 if "examples" in caller else 3]
    assert drawn.keys() == set(numbers)
    for number in numbers:
        generator = torch.Generator().manual_seed(derived_seed(0, 0, number))
        expected = (torch.rand(3, 16, 16, generator=generator) * 2 - 1) * EPS / 255
        assert torch.allclose(drawn[number], expected, atol=1e-7)


REFUSED = [
    ("--set ADV.pgd_attack=[[2,0.0157,margin],[2,1e-6,margin]]",
     "pgd2-margin with two step sizes, 0.0157 and 1e-06"),
    ("--attack pgd3@2", "such as 1/255"),
    ("--norm L2", "--eps"),
    ("--image_ids ids.txt", "digit_0/nothing.png is not in"),
    ("--set DATA.crop_size=20", "DATA.crop_size 20 is larger than DATA.img_size 16"),
    ("--resume nan.pth --FN --WN --attack pgd1", "outputs are not finite on digit_0/"),
    ("--resume numbered.pth --FN --WN", "DATA.class_order=text or DATA.class_order=numeric"),
    ("--eva_on_imagenet_c --set DATA.imagenet_c=nowhere", "nowhere"),  # before the attacks
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), REFUSED)
def test_what_is_refused(flags: str, words: str, digits: Path, weights: Weights) -> None:
    Path("ids.txt").write_text("digit_0/nothing.png")
    torch.save({**weights, "bn1.bias": weights["bn1.bias"] * torch.nan}, "nan.pth")
    torch.save(weights, "numbered.pth")
    data = numbered(digits) if "numbered" in flags else digits
    assert words in only_error(call(*evaluation(*flags.split(), data=data)))
    assert not [*FOLDER.glob("attack_*"), *Path().glob("attack_*")]


def numbered(digits: Path) -> Path:
    """The images in folders named by numbers, whose order as text is another."""
    Path("numbered/val").mkdir(parents=True)
    for number, name in enumerate(("1", "2", "3", "10")):
        Path("numbered/val", name).symlink_to(digits / f"val/digit_{number}")
    return Path("numbered")


@pytest.mark.slow
def test_what_was_trained_is_evaluated_as_at_its_end(digits: Path, trained: Path) -> None:
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    words = (digits, "-e", "--resume", "model_best.pth.tar", *settings(TRAIN__epochs=4))
    assert call("evaluate.py", *words).status == 0
    images = "attack_standard_images.csv"
    assert Path(images).read_text() == (trained / images).read_text()
    first, second = (result(folder=folder) for folder in (trained, Path()))
    for part in ("clean", "attacks", "worst_case"):
        assert second[part] == first[part]


@pytest.mark.slow
def test_a_published_file_of_the_same_network_and_other_readings_of_it(
    said: str, digits: Path, weights: Weights
) -> None:
    """Head, mean and order of classes tell evaluations apart, as nothing in the file does."""
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": wrapped}, "theirs.pth.tar")
    evaluate("--FN", "--WN", "--s_HE", "10.0", resume="theirs.pth.tar")
    # Nothing says how it was trained, so names tell what is not built in.
    first = "attack_standard_theirs_pgd1@8+pgd3@8+pgd3-margin@8_eps16_resize16_crop16"
    assert Path(f"{first}_images.csv").read_text() == text()
    half = [word for name in ("mean", "std") for word in ("--set", f"TRAIN.{name}=[0.5, 0.5, 0.5]")]
    for flags in (["--FN"], ["--FN", "--WN", *half]):
        evaluate(*flags, resume="theirs.pth.tar")
    others = {path.stem for path in Path().glob("*.json")} - {first}
    assert len(others) == 2
    assert all(re.fullmatch(rf"{re.escape(first)}_[0-9a-f]{{8}}", other) for other in others)
    flags = ["--FN", "--WN", "--set", "DATA.class_order=numeric"]
    evaluate(*flags, data=numbered(digits), resume="theirs.pth.tar")
    (file,) = {path.stem for path in Path().glob("*.json")} - {first, *others}
    assert result(file, Path())["clean"]["top1"] == result()["clean"]["top1"]


def test_a_name_that_is_taken_meanwhile_stays_anothers(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations that began at the same time, of other images under one command."""
    shutil.copytree(digits / "val" / "digit_2", "part/val/digit_2")
    run = Evaluation.run

    def run_both(self: Evaluation) -> None:
        monkeypatch.setattr(Evaluation, "run", run)
        evaluate("--attack", "pgd1", data="part")
        run(self)

    monkeypatch.setattr(Evaluation, "run", run_both)
    evaluate("--attack", "pgd1")
    assert {row["label"] for row in rows("attack_standard_pgd1")} == {"2"}
    (other,) = FOLDER.glob("attack_standard_pgd1_????????.json")
    assert len(rows(other.stem)) == 36


@pytest.mark.slow
def test_cascade_finds_the_same_worst_case(said: str) -> None:
    evaluate("--set", "EVAL.cascade=True")
    whole, cascade = result(), result("attack_standard_cascade")
    table = rows("attack_standard_cascade")
    assert [row["worst_case_robust"] for row in table] == [r["worst_case_robust"] for r in rows()]
    assert (cascade["worst_case"], cascade["clean"]) == (whole["worst_case"], whole["clean"])
    # Each attack has seen a part of the images only.
    assert (cascade["attacks"], cascade["cascade"]) == ([], list(ATTACKS))
    attacked = [sum(row[f"{attack}_robust"] != "" for row in table) for attack in ATTACKS]
    assert attacked[0] > attacked[1] >= attacked[2] > 0
    standing = [sum(row[f"{attack}_robust"] == "1" for row in table) for attack in ATTACKS]
    assert attacked[1:] == standing[:2]


def test_results_of_several_folders_in_one(weights: Weights) -> None:
    content = torch.load(FOLDER / "model_best.pth.tar")
    content["state_dict"] |= {"fc.weight": -weights["fc.weight"]}
    other = FOLDER.with_name("margin0.2")
    other.mkdir()
    save_best(other, content)
    shutil.copy(other / "model_best.pth.tar", FOLDER / "last.pth.tar")
    expected = set()
    for path in (FOLDER / "model_best.pth.tar", other / "model_best.pth.tar"):
        before = sorted(path.parent.iterdir())
        evaluate(*FEW.split(), "--output", "out/here", resume=path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        expected.add(f"attack_standard_{path.parent.name}_{digest}_pgd1_n8")
        assert sorted(path.parent.iterdir()) == before
    assert {path.stem for path in Path("out/here").glob("*.json")} == expected
    clean = [result(name, Path("out/here"))["clean"]["top1"]["correct"] for name in expected]
    assert clean[0] != clean[1]


def test_a_class_that_is_one_of_training_is_told_in_the_result(digits: Path) -> None:
    shutil.copytree(digits, "data")
    shutil.rmtree("data/val/digit_2")
    Path("data/val/digit_2").symlink_to("../train/digit_2")
    note = "data: one folder counts twice (val/digit_2 is train/digit_2)"
    assert note in evaluate(*FEW.split(), data="data")
    assert note in result("attack_standard_pgd1_n8")["warnings"]


# Which ball


@pytest.mark.slow
def test_a_radius_each_and_the_curve() -> None:
    flags = ("--attack", "pgd3", "--n_examples", "12", "--eps")
    evaluate(*flags, "0,4,16,64")
    name = "attack_standard_pgd3_n12"
    robust = []
    for eps in (0, 4, 16, 64):
        stem = f"{name}_eps{eps}" if eps != EPS else name  # that of the training
        recount(stem, ("pgd3",))
        assert result(stem)["conditions"]["eps"] == pytest.approx(eps / 255)
        robust.append(result(stem)["worst_case"]["top1"]["correct"])
    assert robust[0] == result(f"{name}_eps0")["clean"]["top1"]["correct"]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[2]
    assert (FOLDER / f"{name}_curve_eps0+4+16+64.png").is_file()
    # Interrupted, and another curve beside it in any order: the others are not done again.
    (FOLDER / f"{name}_eps64.json").unlink()
    (FOLDER / f"{name}_eps4_images.png").touch()
    out = evaluate(*flags, "64,0,4", "--save_images", "1")
    assert out.count("holds this evaluation already") == 1
    assert "\n1 images: " in out
    assert out.count("\nworst of PGD  ") == 3  # its table is shown again
    assert len(list(FOLDER.glob(f"{name}_eps*_images/*.png"))) == 6
    assert result(f"{name}_eps64")["worst_case"]["top1"]["correct"] == robust[3]
    assert len(list(FOLDER.glob("*_curve_*.png"))) == 2


@pytest.mark.slow
def test_the_radius_of_the_training(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the checkpoint says goes over configs.yml, and under -c and the command line."""
    Path("configs.yml").write_text("ADV: {clip_eps: 8}")
    monkeypatch.setattr(command_line, "DEFAULT_CONFIG", Path("configs.yml"))
    words = ("evaluate.py", digits, "-e", "--resume", BEST, *FEW.split())
    Path("four.yml").write_text("ADV: {clip_eps: 4}")
    for flags, eps, origin in (
        ((), 16, "the checkpoint"),
        (("-c", "four.yml"), 4, "the file given by -c"),
        (("-c", "small.yml", "--set", "ADV.clip_eps=4"), 4, "the command line"),
    ):
        done = call(*words, "--set", "DATA.workers=0", *flags)
        assert f"eps {eps}/255, from {origin}" in done.out
        differs = "ADV.clip_eps is 16.0 as in the network's training, not 8.0" in done.out
        assert differs == (not flags)
        conditions = result(f"attack_standard_pgd1_n8{'_eps4' * (eps == 4)}")["conditions"]
        assert conditions["eps"] == pytest.approx(eps / 255)


def test_radii_are_looked_at_beside_the_checkpoints_own(digits: Path) -> None:
    content = torch.load(FOLDER / "model_best.pth.tar", weights_only=True)
    content["config"]["DATA"]["max_color_value"], content["config"]["ADV"]["clip_eps"] = 1.0, 0.06
    torch.save(content, "unit.pth.tar")
    words = ("evaluate.py", digits, "-e", "--resume", "unit.pth.tar", *FEW.split())
    assert "--eps 4 is no length" in only_error(call(*words, "--eps", "4"))
    for eps, name in (("0.04", "_eps10.2"), ("0.06", "")):
        assert call(*words, "--eps", eps, "--set", "DATA.workers=0").status == 0
        assert Path(f"attack_standard_unit_pgd1_n8{name}.json").exists()


@pytest.mark.slow
def test_a_transferred_attack(said: str, weights: Weights) -> None:
    """A network whose own gradients are masked: another one's images find what its own miss."""
    torch.save(weights, "masked.pth")
    flags = ("--FN", "--WN", "--s_HE", "1e6", "--attack", "pgd3")
    evaluate(*flags, resume="masked.pth")
    out = evaluate(*flags, "--transfer_from", BEST, resume="masked.pth")
    assert re.search(rf"all 36 images; .*images made on \S*{BEST}\n", out)
    (path,) = Path().glob("attack_standard_masked_*_from_*.json")
    transferred = result(path.stem, Path())
    own = result(path.stem.partition("_from_")[0], Path())
    surrogate = hashlib.sha256((FOLDER / "model_best.pth.tar").read_bytes()).hexdigest()
    assert path.stem.endswith(f"_from_{surrogate[:8]}")
    assert transferred["provenance"]["surrogate"]["path"].endswith(BEST)
    assert transferred["clean"] == own["clean"]
    scales = [entry["attacks"][0]["scale"] for entry in (own, transferred)]
    assert scales == [1e6, 10]  # of the network whose loss is ascended
    assert "cross-entropy at scale 10;" in out
    assert own["worst_case"]["top1"]["correct"] > transferred["worst_case"]["top1"]["correct"]
    same = result()["attacks"][1]  # s does not change the largest output
    assert (same["name"], same["top1"]) == ("pgd3", transferred["worst_case"]["top1"])


@pytest.mark.slow
def test_attacks_and_imagenet_c_together_and_apart(digits: Path, here: Path) -> None:
    corrupted = here / "corrupted"  # two corruptions, all of whose images are the clean ones
    for name in ("gaussian_noise", "fog"):
        (corrupted / name).mkdir(parents=True)
        for severity in range(1, 6):
            (corrupted / name / str(severity)).symlink_to(digits / "val")
    flags = ("--protocol", "freeat", "--corruptions", "gaussian_noise,fog")
    place = ("--set", f"DATA.imagenet_c={corrupted}")
    evaluate("--eva_on_imagenet_c", "--attack", "pgd1", *flags, *place)
    clean = result("attack_freeat_pgd1")["clean"]["top1"]["correct"]
    assert 9 < clean < 36
    (path,) = FOLDER.glob("imagenet_c_freeat*.json")
    corruptions = result(path.stem)["corruptions"]
    assert set(corruptions) == {"gaussian_noise", "fog"}
    for entry in corruptions.values():
        assert [(a["correct"], a["n"]) for a in entry["top1"]] == [(clean, 36)] * 5
    path.unlink()
    apart = ("--eva_on_imagenet_c", "--resume", BEST, *flags, "-c", "small.yml")
    assert call("evaluate.py", corrupted, *apart).status == 0
    assert result(path.stem)["corruptions"] == corruptions
    assert f"ImageNet-C in {digits}" in only_error(call("evaluate.py", digits, *apart))


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "reach"), [("standard", EPS), ("paper", 2 * EPS)])
def test_saved_images_are_within_eps(protocol: str, reach: int, digits: Path) -> None:
    evaluate("--protocol", protocol, "--save_images", "3", "--n_examples", "12")
    folder = FOLDER / f"attack_{protocol}_n12_images"
    kinds = ("original", "adversarial", "perturbation")
    small = transforms.Resize(16)
    every = [np.asarray(small(Image.open(path))) for path in (digits / "val").glob("*/*")]
    largest = []
    for number in range(3):
        original, adversarial, perturbation = (
            np.asarray(Image.open(folder / f"{number:03}_{kind}.png")).astype(int) for kind in kinds
        )
        assert any(np.array_equal(original, image) for image in every)
        change = adversarial - original
        largest.append(np.abs(change).max())
        grey = ((change / (2 * EPS) + 0.5) * 255).clip(0, 255)
        assert np.abs(perturbation - grey).max() <= 255 / (2 * EPS) / 2 + 1  # rounded to 8 bits
    assert EPS / 2 < min(largest) <= max(largest) <= reach
    assert len(list(folder.iterdir())) == 9
    for suffix in ("png", "pdf"):
        assert (FOLDER / f"attack_{protocol}_n12_images.{suffix}").stat().st_size > 5000


LONG = ("--attack", "pgd1,pgd20-margin", "--set", "ADV.clip_eps=4")  # most images stand
LONG_NAME = "attack_standard_pgd1+pgd20-margin_eps4"


@pytest.mark.slow
def test_an_evaluation_that_ends_in_the_midst_of_an_attack_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped by a signal, or killed at the same time."""
    evaluate(*LONG)
    uninterrupted = text(LONG_NAME)
    add, run, worked, written = ResumableRows.add, PGDAttack.run, [], []

    def write_and_stop(self: ResumableRows, phase: str, rows: dict) -> None:
        add(self, phase, rows)
        written.extend([phase] if phase == "pgd20-margin" else [])
        if len(written) == 1:
            shutil.copy(self.path, "as_killed")  # what a process that is killed now leaves
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "SECONDS_BETWEEN_WRITES", -1.0)
        patch.setattr(ResumableRows, "add", write_and_stop)
        done = call(*evaluation(*LONG))
    said = "stopped by SIGINT; what is done is kept for the same evaluation\n"
    assert (done.status, done.err) == (130, said)
    (kept,) = FOLDER.glob("*.jsonl")
    stopped = kept.read_bytes()

    def no_clean_pass(*_: object) -> None:
        raise AssertionError("this was done before")

    def spy(self: PGDAttack, batches: Any) -> Any:
        worked.append(self.spec.name)
        return run(self, batches)

    monkeypatch.setattr(Evaluation, "finite_rows", no_clean_pass)
    monkeypatch.setattr(PGDAttack, "run", spy)
    for content in (stopped, Path("as_killed").read_bytes()):
        (FOLDER / f"{LONG_NAME}_images.csv").unlink()
        kept.write_bytes(content)
        out = evaluate(*LONG)
        assert "PGD-20 (margin): " in out
        assert "images were done before" in out
        progress = re.findall(r"PGD-20 .* ([\d.]+) % robust so far, (\d+) images still", out)
        share = result(LONG_NAME)["worst_case"]["top1"]["accuracy"]
        assert progress[-1] == (f"{100 * share:.2f}", "0")
        assert text(LONG_NAME) == uninterrupted
        assert not list(FOLDER.glob("*.jsonl"))
    assert worked == ["pgd20-margin"] * 2
