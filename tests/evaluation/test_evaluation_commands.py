"""Evaluation through the commands: every call of the manual, and what it leaves, recounted."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, command, environment, settings
from in_process import Done, call, only_error, unchanged
from PIL import Image
from torch import nn
from torchvision import datasets, transforms

from lib.algorithm.pgd_attack import PGDAttack
from lib.data.datasets import ImageBatches, eval_transform
from lib.data.folders import read_split
from lib.data.to_device import to_device
from lib.evaluation.attack_list import parse_attack
from lib.evaluation.attack_run import curve_path
from lib.evaluation.model_settings import ModelSettings
from lib.evaluation.runner import AttackEvaluation
from models.resnet import build_model
from utils.config import command_line
from utils.config.readers import PgdRow
from utils.config.schema import Config, Source
from utils.storage import journal
from utils.storage.checkpoint import save_best
from utils.storage.journal import ResumableRows

EPS = 16
RUN = "resnet18_HE"
BEST = f"{RUN}/model_best.pth.tar"
FOLDER = Path("trained_models", RUN)
ATTACKS = ("pgd1", "pgd3", "pgd3-margin")
SMALL = f"""
ADV: {{clip_eps: {EPS}, pgd_attack: [[1, 8/255], [3, 8/255]]}}
DATA: {{imagenet: IMAGENET, img_size: 16, crop_size: 16, batch_size: 16, workers: 0}}
"""


@pytest.fixture(scope="module")
def weights(digits: Path) -> dict[str, torch.Tensor]:
    """A network that knows the digits, and that small perturbations fool now and then."""
    tree = read_split(str(digits), "train")
    images = ImageBatches(tree, eval_transform(16, 16), 16)
    keys = [(0, position) for position in range(len(tree.files))]
    pixels, labels, _ = to_device(images.__getitems__(keys), torch.device("cpu"))
    with unchanged():  # and on one thread
        torch.manual_seed(0)
        model = build_model("resnet18", 4, feature_norm=True, weight_norm=True, scale=10.0)
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


def prepare(weights: dict[str, torch.Tensor], digits: Path) -> None:
    """Put a run of that network under trained_models/, and settings for small images beside."""
    FOLDER.mkdir(parents=True)
    names = ModelSettings(
        "resnet18", True, True, 10.0, 0.2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225],
        [f"digit_{i}" for i in range(4)],
    )  # fmt: skip
    trained = {
        "ADV.clip_eps": EPS, "ADV.pgd_attack": (PgdRow(1, 8 / 255), PgdRow(3, 8 / 255)),
        "DATA.img_size": 16, "DATA.crop_size": 16,
    }  # fmt: skip
    config = Config().changed(trained, Source.BUILT_IN).as_dict()
    save_best(FOLDER, {"model": names.as_dict(), "state_dict": weights, "config": config})
    Path("small.yml").write_text(SMALL.replace("IMAGENET", str(digits)))


@pytest.fixture(autouse=True)
def here(
    weights: dict[str, torch.Tensor],
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A prepared folder to work in."""
    monkeypatch.chdir(tmp_path)
    prepare(weights, digits)
    return tmp_path


def evaluate(*arguments: object, script: str = "evaluate.py") -> Done:
    """A call that must succeed."""
    done = call(script, *arguments, "-c", "small.yml")
    assert (done.status, done.err) == (0, ""), done
    return done


def result(name: str = "attack_standard") -> dict[str, Any]:
    """A result file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def rows(name: str = "attack_standard") -> list[dict[str, str]]:
    """The outcomes of single images."""
    with open(FOLDER / f"{name}_images.csv", newline="") as file:
        return list(csv.DictReader(file))


def text(name: str = "attack_standard") -> str:
    """The outcomes of single images, as they stand in the file."""
    return (FOLDER / f"{name}_images.csv").read_text()


def wilson(correct: int, n: int) -> list[float]:
    """The ends of Wilson's interval: where |p - correct/n| is 1.96 standard deviations of p."""
    z, share = 1.959963984540054, correct / n
    b, a, c = -(2 * share + z * z / n), 1 + z * z / n, share * share
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return [(-b - root) / (2 * a), (-b + root) / (2 * a)]


def check_entry(entry: dict[str, Any], correct: int, n: int) -> None:
    """An accuracy in a result file against a count."""
    assert (entry["correct"], entry["n"]) == (correct, n)
    assert entry["accuracy"] == pytest.approx(correct / n)
    assert entry["interval95"] == pytest.approx(wilson(correct, n), abs=1e-12)


def recount(name: str = "attack_standard", attacks: tuple[str, ...] = ATTACKS) -> None:
    """Count the CSV again, and compare the JSON with it."""
    found, table = result(name), rows(name)
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
        if found["provenance"]["protocol"] == "standard":
            assert not any(robust) or row["clean_correct"] == "1"
            standing = standing and row["clean_correct"] == "1"
        assert row["worst_case_robust"] == str(int(standing))
    total = {column: sum(row[column] == "1" for row in table) for column in table[0]}
    check_entry(found["clean"]["top1"], total["clean_correct"], n)
    check_entry(found["clean"]["top5"], n, n)  # of four classes
    assert [attack["name"] for attack in found["attacks"]] == list(attacks)
    for attack in found["attacks"]:
        check_entry(attack["top1"], total[f"{attack['name']}_robust"], n)
    check_entry(found["worst_case"]["top1"], total["worst_case_robust"], n)
    assert found["provenance"]["subset"]["n"] == n
    listed = "\n".join(row["image"] for row in table).encode()
    assert found["provenance"]["subset"]["sha256"] == hashlib.sha256(listed).hexdigest()


# The calls of the manual


def test_the_standard_call(digits: Path) -> None:
    done = evaluate(digits, "-e", "--resume", BEST)
    recount()
    found = result()
    assert found["kind"] == "attack"
    (warning,) = found["warnings"]
    assert "PGD-1 (ce): 1 x 8/255 reach 8/255 of a radius of 16/255" in warning
    origin = found["provenance"]
    best = FOLDER / "model_best.pth.tar"
    assert origin["checkpoint"] == {
        "path": str(best),
        "sha256": hashlib.sha256(best.read_bytes()).hexdigest(),
        "arch": "resnet18",
        "FN": True,
        "WN": True,
        "s_HE": 10.0,
        "angular_margin_HE": 0.2,
    }
    assert origin["command"] == f"python evaluate.py {digits} -e --resume {BEST} -c small.yml"
    assert (origin["protocol"], origin["precision"], origin["seed"]) == ("standard", "fp32", 0)
    assert origin["eps"] == pytest.approx(EPS / 255)
    assert origin["config"]["DATA"]["imagenet"] == str(digits)
    assert origin["subset"]["description"] == "all 36 images"
    assert {"python", "torch", "torchvision"} <= set(origin["versions"])
    one = found["attacks"][2]
    assert (one["label"], one["steps"], one["loss"], one["restarts"]) == (
        "PGD-3 (margin)", 3, "margin", 1,
    )  # fmt: skip
    assert one["step_size"] == pytest.approx(8 / 255)
    # A contest, so that the counts above can be wrong.
    counts = [attack["top1"]["correct"] for attack in found["attacks"]]
    assert 36 >= found["clean"]["top1"]["correct"] > counts[0] > counts[1] > 0
    # The table on the terminal says the same.
    for name, entry in (("clean", found["clean"]), ("PGD-3 (ce)", found["attacks"][1]),
                        ("worst case", found["worst_case"])):  # fmt: skip
        line = next(x for x in done.out.splitlines() if x.startswith(f"{name}  "))
        assert f"{100 * entry['top1']['accuracy']:.2f}" in line.split()
        assert f"{100 * entry['top1']['interval95'][0]:.2f}" in line.split()
    assert f"protocol standard, eps {EPS}/255, all 36 images" in done.out
    assert f"results: {FOLDER}/attack_standard.json" in done.out
    assert not list(FOLDER.glob("*.jsonl"))


def test_classes_are_counted_one_by_one(digits: Path) -> None:
    evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd3")
    with open(FOLDER / "attack_standard_pgd3_classes.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["class"] for row in found] == [f"digit_{i}" for i in range(4)]
    table = rows("attack_standard_pgd3")
    wrong = 0
    for label, row in enumerate(found):
        members = [image for image in table if image["label"] == str(label)]
        assert int(row["n"]) == len(members) == 9
        assert int(row["clean_correct"]) == sum(m["clean_correct"] == "1" for m in members)
        robust = sum(m["worst_case_robust"] == "1" for m in members)
        assert int(row["robust"]) == robust
        assert float(row["robust_accuracy"]) == pytest.approx(robust / 9)
        assert (row["most_frequent_wrong_answer"] == "") == (robust == 9)
        assert row["most_frequent_wrong_answer"] != row["class"]
        # At least as often as the mean over the three other classes, and no more than there are.
        assert (9 - robust) / 3 <= int(row["times"]) <= 9 - robust
        wrong += 9 - robust
    assert wrong > 0


def test_clean_outcomes_are_torchvisions(digits: Path, weights: dict[str, torch.Tensor]) -> None:
    evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd1")
    small = transforms.Compose([transforms.Resize(16), transforms.ToTensor()])
    reference = datasets.ImageFolder(str(digits / "val"), small)
    model = build_model("resnet18", 4, feature_norm=True, weight_norm=True, scale=10.0).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(torch.stack([image for image, _ in reference]))
    table = rows("attack_standard_pgd1")
    for row, (path, label), output in zip(table, reference.samples, logits, strict=True):
        assert path.endswith(f"val/{row['image']}")
        assert int(row["label"]) == label
        assert int(row["clean_prediction"]) == int(output.argmax())
    loss = nn.functional.cross_entropy(logits, torch.tensor(reference.targets)).item()
    assert result("attack_standard_pgd1")["clean"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_main_free_evaluates_the_same(digits: Path) -> None:
    evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd1")
    expected = text("attack_standard_pgd1")
    for path in FOLDER.glob("attack_*"):
        path.unlink()
    arguments = ("-e", digits, "--resume", f"trained_models/{BEST}", "--attack", "pgd1")
    evaluate(*arguments, script="main_free.py")
    assert text("attack_standard_pgd1") == expected


def test_without_dir_the_configuration_says_where() -> None:
    evaluate("-e", "--resume", BEST, "--attack", "pgd1")
    recount("attack_standard_pgd1", ("pgd1",))


@pytest.mark.parametrize("protocol", ["freeat", "paper"])
def test_the_other_protocols(protocol: str, digits: Path) -> None:
    evaluate(digits, "-e", "--resume", BEST, "--protocol", protocol)
    name = f"attack_{protocol}"
    recount(name, ("pgd1", "pgd3"))  # the published rows, without one on margin
    assert result(name)["provenance"]["protocol"] == protocol


@pytest.mark.slow
def test_what_was_trained_is_evaluated_as_at_its_end(digits: Path, trained: Path) -> None:
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    done = call(
        "evaluate.py", digits, "-e", "--resume", "model_best.pth.tar", *settings(TRAIN__epochs=4)
    )
    assert done.status == 0, done.err
    again = Path("attack_standard_images.csv").read_text()
    assert again == (trained / "attack_standard_images.csv").read_text()
    first, second = (
        json.loads((folder / "attack_standard.json").read_text()) for folder in (trained, Path())
    )
    for part in ("clean", "attacks", "worst_case"):
        assert second[part] == first[part]


def test_a_published_file_of_the_same_network(
    digits: Path, weights: dict[str, torch.Tensor]
) -> None:
    evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd1")
    wrapped = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": wrapped}, "theirs.pth.tar")
    flags = ("--FN", "True", "--WN", "True", "--s_HE", "10.0")
    evaluate(digits, "-e", "--resume", "theirs.pth.tar", *flags, "--attack", "pgd1")
    # Nothing says how it was trained, so names tell what is not built in.
    theirs = "attack_standard_theirs_pgd1@8_eps16_resize16_crop16_images.csv"
    assert Path(theirs).read_text() == text("attack_standard_pgd1")


def test_numbered_folders_without_class_names(
    digits: Path, weights: dict[str, torch.Tensor]
) -> None:
    for number, name in enumerate(("1", "2", "3", "10")):
        Path("numbered/val").mkdir(parents=True, exist_ok=True)
        Path("numbered/val", name).symlink_to(digits / f"val/digit_{number}")
    torch.save({"arch": "resnet18", "state_dict": weights}, "theirs.pth.tar")
    words = ("-e", "--resume", "theirs.pth.tar", "--FN", "--WN", "--attack", "pgd1")
    refusal = only_error(call("evaluate.py", "numbered", *words, "-c", "small.yml"))
    assert "DATA.class_order=text or DATA.class_order=numeric" in refusal
    accuracies = {}
    for order in ("text", "numeric"):
        evaluate("numbered", *words, "--set", f"DATA.class_order={order}")
        (file,) = Path().glob(f"attack_standard_theirs*_{order}_order.json")
        accuracies[order] = json.loads(file.read_text())["clean"]["top1"]["accuracy"]
    evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd1")
    assert accuracies["numeric"] == result("attack_standard_pgd1")["clean"]["top1"]["accuracy"]
    assert accuracies["text"] < 0.6 < accuracies["numeric"]


# Which images


def test_n_examples(digits: Path) -> None:
    done = evaluate(digits, "-e", "--resume", BEST, "--n_examples", "10")
    name = "attack_standard_n10"
    recount(name)
    every = sorted(str(p.relative_to(digits / "val")) for p in (digits / "val").glob("*/*"))
    assert [row["image"] for row in rows(name)] == [every[i * 36 // 10] for i in range(10)]
    assert result(name)["provenance"]["subset"]["description"] == "10 evenly spread of 36 images"
    assert "10 evenly spread of 36 images" in done.out


def test_more_examples_than_images_are_all_images(digits: Path) -> None:
    done = evaluate(digits, "-e", "--resume", BEST, "--n_examples", "5000", "--attack", "pgd1")
    found = result("attack_standard_pgd1")["provenance"]["subset"]
    assert (found["description"], found["n"]) == ("all 36 images", 36)
    assert "warning: --n_examples 5000: there are only 36 images" in done.out


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_reader_that_is_killed_ends_an_evaluation_in_one_line(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ImageBatches, "load", die)
    words = [digits, "-e", "--resume", BEST, "--set", "DATA.workers=1"]
    assert "killed by SIGKILL" in only_error(call("evaluate.py", *words))


def test_image_ids(digits: Path) -> None:
    every = sorted(str(p.relative_to(digits / "val")) for p in (digits / "val").glob("*/*"))
    chosen = [every[30], every[2], every[11]]
    Path("ids.txt").write_text("\n".join(chosen))
    evaluate(digits, "-e", "--resume", BEST, "--image_ids", "ids.txt")
    (path,) = FOLDER.glob("attack_standard_ids*.json")
    recount(path.stem)
    assert [row["image"] for row in rows(path.stem)] == sorted(chosen)
    Path("ids.txt").write_text("digit_0/nothing.png")
    message = only_error(
        call("evaluate.py", digits, "-e", "--resume", BEST, "--image_ids", "ids.txt")
    )
    assert "digit_0/nothing.png is not in" in message
    words = ("evaluate.py", digits, "-e", "--resume", BEST, "--image_ids", "robustbench")
    assert "lacks 5000 of 5000 images" in only_error(call(*words))


def test_some_of_the_classes(digits: Path, here: Path) -> None:
    shutil.copytree(digits / "val" / "digit_2", here / "part" / "val" / "digit_2")
    evaluate("part", "-e", "--resume", BEST, "--attack", "pgd1")
    recount("attack_standard_pgd1", ("pgd1",))
    assert {row["label"] for row in rows("attack_standard_pgd1")} == {"2"}


def test_names_that_are_not_utf8(digits: Path, here: Path) -> None:
    shutil.copytree(digits / "val", here / "odd" / "val")
    image = sorted((here / "odd" / "val" / "digit_1").iterdir())[0]
    image.rename(image.with_name(os.fsdecode(b"caf\xe9.png")))
    evaluate("odd", "-e", "--resume", BEST, "--attack", "pgd1")
    with open(FOLDER / "attack_standard_pgd1_images.csv", "rb") as file:
        assert b"\ndigit_1/caf\xe9.png,1," in file.read()
    names = [path.relative_to(here / "odd" / "val") for path in (here / "odd").glob("val/*/*")]
    listed = b"\n".join(sorted(os.fsencode(name) for name in names))
    found = result("attack_standard_pgd1")["provenance"]["subset"]["sha256"]
    assert found == hashlib.sha256(listed).hexdigest()


def test_any_batch_size_gives_the_same_outcomes(digits: Path) -> None:
    outcomes = set()
    for size in (16, 5):
        flags = ("--attack", "pgd3", "--set", f"DATA.batch_size={size}")
        evaluate(digits, "-e", "--resume", BEST, *flags)
        outcomes.add(text("attack_standard_pgd3"))
    assert len(outcomes) == 1


# Which attacks


def test_attacks_by_name(digits: Path) -> None:
    names = "pgd2,pgd2-dlr,pgd1-margin-r2"
    evaluate(digits, "-e", "--resume", BEST, "--attack", names, "--n_examples", "12")
    name = f"attack_standard_{names.replace(',', '+')}_n12"
    recount(name, tuple(names.split(",")))
    found = result(name)["attacks"]
    assert [(a["steps"], a["loss"], a["restarts"]) for a in found] == [
        (parse_attack(name, 0.1).steps, parse_attack(name, 0.1).loss, restarts)
        for name, restarts in zip(names.split(","), (1, 1, 2), strict=True)
    ]


def test_scales_of_the_cross_entropy(digits: Path) -> None:
    flags = ("--attack", "pgd1,pgd1-margin", "--set", "EVAL.scales=[1, 30]")
    evaluate(digits, "-e", "--resume", BEST, *flags, "--n_examples", "12")
    names = ("pgd1", "pgd1-margin", "pgd1-s1", "pgd1-s30")
    recount("attack_standard_pgd1+pgd1-margin_n12_scales1+30", names)


def test_cascade_finds_the_same_worst_case(digits: Path) -> None:
    done = evaluate(digits, "-e", "--resume", BEST)
    whole = {row["image"]: row["worst_case_robust"] for row in rows()}
    done = evaluate(digits, "-e", "--resume", BEST, "--set", "EVAL.cascade=True")
    name = "attack_standard_cascade"
    assert {row["image"]: row["worst_case_robust"] for row in rows(name)} == whole
    assert result(name)["worst_case"] == result()["worst_case"]
    assert result(name)["clean"] == result()["clean"]
    assert result(name)["attacks"] == []  # each has seen a part of the images only
    assert result(name)["cascade"] == list(ATTACKS)
    attacked = [sum(row[f"{attack}_robust"] != "" for row in rows(name)) for attack in ATTACKS]
    assert attacked[0] > attacked[1] >= attacked[2] > 0
    standing = [sum(row[f"{attack}_robust"] == "1" for row in rows(name)) for attack in ATTACKS]
    assert attacked[1:] == standing[:2]
    assert "worst case" in done.out


@pytest.mark.usefixtures("short_autoattack")
def test_attacks_of_autoattack_by_name(digits: Path) -> None:
    evaluate(digits, "-e", "--resume", BEST, "--attack", "apgd,apgd-ce", "--n_examples", "6")
    recount("attack_standard_apgd+apgd-ce_n6", ("apgd-apgd-ce", "apgd", "apgd-ce"))


def test_a_step_of_its_own(digits: Path) -> None:
    names = "pgd3@2/255,pgd3-margin@0.1"
    evaluate(digits, "-e", "--resume", BEST, "--attack", names, "--n_examples", "6")
    (path,) = FOLDER.glob("attack_standard_*.json")
    recount(path.stem, tuple(names.split(",")))
    steps = [attack["step_size"] for attack in result(path.stem)["attacks"]]
    assert steps == pytest.approx([2 / 255, 0.1])
    words = (digits, "-e", "--resume", BEST, "--attack", "pgd3@2")
    assert "such as 1/255" in only_error(call("evaluate.py", *words))


# Which ball


def test_a_radius_each_and_the_curve(digits: Path) -> None:
    flags = ("--attack", "pgd3", "--eps", "0,4,16,64", "--n_examples", "12")
    done = evaluate(digits, "-e", "--resume", BEST, *flags)
    name = "attack_standard_pgd3_n12"
    robust = []
    for eps in (0, 4, 16, 64):
        stem = f"{name}_eps{eps}" if eps != EPS else name  # that of the training
        recount(stem, ("pgd3",))
        assert result(stem)["measurement"]["eps"] == pytest.approx(eps / 255)
        robust.append(result(stem)["worst_case"]["top1"]["correct"])
    assert robust[0] == result(f"{name}_eps0")["clean"]["top1"]["correct"]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[2]
    assert "the command line" in done.out
    assert (FOLDER / f"{name}_eps0_curve_eps0+4+16+64.png").is_file()
    (FOLDER / f"{name}_eps64.json").unlink()  # as if interrupted: the others are not done again
    done = evaluate(digits, "-e", "--resume", BEST, *flags)
    assert done.out.count("holds this evaluation already") == 3
    assert result(f"{name}_eps64")["worst_case"]["top1"]["correct"] == robust[3]
    flags = (*flags[:3], "64,0,4", *flags[4:])  # another curve beside it, whatever the order
    assert "_eps0_curve_eps0+4+64.png" in evaluate(digits, "-e", "--resume", BEST, *flags).out
    assert len(list(FOLDER.glob("*_curve_*.png"))) == 2
    many = [curve_path(FOLDER / name, [str(i) for i in range(n)]) for n in (98, 99)]
    assert many[0] != many[1]
    assert max(len(path.name) for path in many) < 100


@pytest.mark.parametrize(("norm", "radii"), [("L2", (0.5, 3.0)), ("L1", (10.0, 80.0))])
def test_other_norms(norm: str, radii: tuple[float, float], digits: Path) -> None:
    flags = ("--norm", norm, "--n_examples", "12")
    for eps in radii:
        evaluate(digits, "-e", "--resume", BEST, *flags, "--eps", eps)
        recount(f"attack_standard_n12_eps{eps:g}_{norm}")
    small, large = (result(f"attack_standard_n12_eps{eps:g}_{norm}") for eps in radii)
    assert small["attacks"][1]["step_size"] == pytest.approx(2.5 * radii[0] / 3)
    assert small["worst_case"]["top1"]["correct"] > large["worst_case"]["top1"]["correct"]
    message = only_error(call("evaluate.py", digits, "-e", "--resume", BEST, "--norm", norm))
    assert "--eps" in message


def test_the_radius_of_the_training(digits: Path, trained: Path) -> None:
    """What the checkpoint says goes over configs.yml, and under -c and the command line."""
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    words = ("evaluate.py", digits, "-e", "--resume", "model_best.pth.tar")
    few = ("--n_examples", "4", "--set", "DATA.workers=0")
    done = call(*words, *few)
    assert (done.status, done.err) == (0, ""), done
    assert "eps 16/255, from the checkpoint" in done.out
    found = json.loads(Path("attack_standard_n4.json").read_text())
    assert found["provenance"]["eps"] == pytest.approx(16 / 255)
    assert [attack["steps"] for attack in found["attacks"]] == [2, 2]
    done = call(*words, *few, "-c", "small.yml", "--set", "ADV.clip_eps=8")
    assert "eps 8/255, from the command line" in done.out
    Path("small.yml").write_text("ADV: {clip_eps: 2}")
    assert "eps 2/255, from the file given by -c" in call(*words, *few, "-c", "small.yml").out


def test_an_edited_default_file_that_contradicts_the_training(
    digits: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(trained / "model_best.pth.tar", "model_best.pth.tar")
    Path("configs.yml").write_text("ADV: {clip_eps: 8}")
    monkeypatch.setattr(command_line, "DEFAULT_CONFIG", Path("configs.yml"))
    words = (digits, "-e", "--resume", "model_best.pth.tar", "--n_examples", "4")
    done = call("evaluate.py", *words, "--set", "DATA.workers=0")
    assert "ADV.clip_eps is 16.0 as in the network's training, not 8.0" in done.out
    assert "eps 16/255, from the checkpoint" in done.out


def test_a_transferred_attack(digits: Path, weights: dict[str, torch.Tensor]) -> None:
    """A network whose own gradients are masked: another one's images find what its own miss."""
    masked = {k: v.clone() for k, v in weights.items()}
    torch.save(masked, "masked.pth")
    flags = ("--FN", "--WN", "--s_HE", "1e6", "--attack", "pgd3", "-c", "small.yml")
    words = ("evaluate.py", digits, "-e", "--resume", "masked.pth", *flags)
    assert call(*words).status == 0
    (path,) = Path().glob("attack_standard_masked_*.json")
    own = json.loads(path.read_text())
    done = call(*words, "--transfer_from", BEST)
    assert (done.status, done.err) == (0, ""), done
    (path,) = Path().glob("attack_standard_masked_*_from_model_best.json")
    found = json.loads(path.read_text())
    assert found["provenance"]["attacked"]["path"].endswith(BEST)
    assert found["clean"] == own["clean"]
    assert own["worst_case"]["top1"]["correct"] > found["worst_case"]["top1"]["correct"]
    evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd3")
    same = result("attack_standard_pgd3")["worst_case"]["top1"]["correct"]
    assert found["worst_case"]["top1"]["correct"] == same  # s does not change the largest output


# ImageNet-C


@pytest.fixture
def corrupted(digits: Path, here: Path) -> Path:
    """A tree of two corruptions, all of whose images are the clean ones."""
    for name in ("gaussian_noise", "fog"):
        for severity in range(1, 6):
            folder = here / "corrupted" / name / str(severity)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(digits / "val")
    return here / "corrupted"


def check_corruptions(name: str, corrupted: Path, clean: int) -> None:
    """All accuracies are the clean one."""
    found = result(name)
    assert found["kind"] == "imagenet_c"
    assert set(found["corruptions"]) == {"gaussian_noise", "fog"}
    for entry in found["corruptions"].values():
        assert [(a["correct"], a["n"]) for a in entry["top1"]] == [(clean, 36)] * 5
    assert found["provenance"]["config"]["DATA"]["imagenet_c"] == str(corrupted)


@pytest.mark.slow
def test_attacks_and_imagenet_c_together_and_apart(digits: Path, corrupted: Path) -> None:
    flags = ("--protocol", "freeat", "--corruptions", "gaussian_noise,fog", "--resume", BEST)
    both = ("-e", "--eva_on_imagenet_c", "--attack", "pgd1")
    evaluate(*both, *flags, "--set", f"DATA.imagenet_c={corrupted}")
    recount("attack_freeat_pgd1", ("pgd1",))
    clean = result("attack_freeat_pgd1")["clean"]["top1"]["correct"]
    assert 9 < clean < 36
    (path,) = FOLDER.glob("imagenet_c_freeat*.json")
    check_corruptions(path.stem, corrupted, clean)
    path.unlink()
    evaluate(corrupted, "--eva_on_imagenet_c", *flags)
    check_corruptions(path.stem, corrupted, clean)
    message = only_error(
        call("evaluate.py", digits, "--eva_on_imagenet_c", *flags, "-c", "small.yml")
    )
    assert "gaussian_noise" in message
    assert str(digits) in message


# Pictures


@pytest.mark.parametrize(("protocol", "reach"), [("standard", EPS), ("paper", 2 * EPS)])
def test_saved_images_are_within_eps(protocol: str, reach: int, digits: Path) -> None:
    flags = ("--protocol", protocol, "--save_images", "3", "--n_examples", "12")
    evaluate(digits, "-e", "--resume", BEST, *flags)
    folder = FOLDER / f"attack_{protocol}_n12_images"
    kinds = ("original", "adversarial", "perturbation")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{number:03}_{kind}.png" for number in range(3) for kind in kinds
    )
    small = transforms.Resize(16)
    every = [np.asarray(small(Image.open(path))) for path in (digits / "val").glob("*/*")]
    changes = []
    for number in range(3):
        original, adversarial, perturbation = (
            np.asarray(Image.open(folder / f"{number:03}_{kind}.png")).astype(int) for kind in kinds
        )
        assert any(np.array_equal(original, image) for image in every)
        change = adversarial - original
        changes.append(np.abs(change).max())
        grey = ((change / (2 * EPS) + 0.5) * 255).clip(0, 255)
        assert np.abs(perturbation - grey).max() <= 255 / (2 * EPS) / 2 + 1  # rounded to 8 bits
    assert max(changes) <= reach
    assert min(changes) > EPS / 2
    for suffix in ("png", "pdf"):
        assert (FOLDER / f"attack_{protocol}_n12_images.{suffix}").stat().st_size > 5000


def test_more_images_than_there_are(digits: Path) -> None:
    arguments = ("--n_examples", "2", "--attack", "pgd1", "--save_images", "9")
    evaluate(digits, "-e", "--resume", BEST, *arguments)
    originals = list((FOLDER / "attack_standard_pgd1_n2_images").glob("*_original.png"))
    assert 1 <= len(originals) <= 2


# Interruptions

LONG = ("--attack", "pgd1,pgd20-margin", "--set", "ADV.clip_eps=4")  # most images stand
LONG_NAME = "attack_standard_pgd1+pgd20-margin_eps4"


@pytest.fixture(scope="module")
def uninterrupted(
    weights: dict[str, torch.Tensor], digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """What a long evaluation gives when nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
        prepare(weights, digits)
        evaluate(digits, "-e", "--resume", BEST, *LONG)
        recount(LONG_NAME, ("pgd1", "pgd20-margin"))
        return text(LONG_NAME)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(
    uninterrupted: str, digits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (digits, "-e", "--resume", BEST, *LONG, "-c", "small.yml")
    rows_file = FOLDER / f"{LONG_NAME}.rank0of1.jsonl"
    process = subprocess.Popen(
        command("evaluate.py", *arguments), env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (rows_file.exists() and '"pgd1"' in rows_file.read_text()):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (FOLDER / f"{LONG_NAME}.json").exists()

    worked, run = [], PGDAttack.run

    def no_clean_pass(*_: object) -> None:
        raise AssertionError("this was done before")

    def spy(self: PGDAttack, batches: Any) -> Any:
        worked.append(self.spec.name)
        return run(self, batches)

    monkeypatch.setattr(AttackEvaluation, "clean", no_clean_pass)
    monkeypatch.setattr(PGDAttack, "run", spy)
    evaluate(digits, "-e", "--resume", BEST, *LONG)
    assert worked == ["pgd20-margin"]
    assert text(LONG_NAME) == uninterrupted
    recount(LONG_NAME, ("pgd1", "pgd20-margin"))
    assert not list(FOLDER.glob("*.jsonl"))


@pytest.mark.slow
def test_a_signal_in_the_midst_of_an_attack(
    uninterrupted: str, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, add = [], ResumableRows.add

    def write_and_stop(self: ResumableRows, phase: str, rows: dict) -> None:
        add(self, phase, rows)
        written.extend([phase] if phase == "pgd20-margin" else [])
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    arguments = ("evaluate.py", digits, "-e", "--resume", BEST, *LONG, "-c", "small.yml")
    with monkeypatch.context() as patch:
        patch.setattr(journal, "SECONDS_BETWEEN_WRITES", -1.0)
        patch.setattr(ResumableRows, "add", write_and_stop)
        done = call(*arguments)
    assert done.status == 130
    assert done.err == "stopped by SIGINT\n"
    assert list(FOLDER.glob("*.jsonl"))
    done = evaluate(digits, "-e", "--resume", BEST, *LONG)
    assert "PGD-20 (margin): " in done.out
    assert "images were done before" in done.out
    progress = re.findall(r"PGD-20 .* ([\d.]+) % robust so far, (\d+) images still", done.out)
    (entry,) = [a for a in result(LONG_NAME)["attacks"] if a["name"] == "pgd20-margin"]
    assert progress[-1] == (f"{100 * entry['top1']['accuracy']:.2f}", "0")
    assert all(float(robust) > 0 for robust, _ in progress)
    assert text(LONG_NAME) == uninterrupted
    assert not list(FOLDER.glob("*.jsonl"))


def test_different_measurements_never_share_a_file(digits: Path, here: Path) -> None:
    """And the same one again replaces its own file alone."""
    few = ("--attack", "pgd1", "--n_examples", "8")
    calls = {
        "pgd1_n8": few,
        "pgd1_n8_seed1": (*few, "--seed", "1"),
        "pgd1@4_n8": (*few, "--set", "ADV.pgd_attack=[[1, 4/255]]"),
        "pgd1_n8_bf16": (*few, "--set", "EVAL.precision=bf16"),
        "pgd1_n8_eps8": (*few, "--set", "ADV.clip_eps=8"),
        "pgd1_n8_crop12": (*few, "--set", "DATA.crop_size=12"),
        "pgd1_n8_scales1+5": (*few, "--set", "EVAL.scales=[1, 5]"),
        "pgd1_n9": ("--attack", "pgd1", "--n_examples", "9"),
        "pgd1": ("--attack", "pgd1", "--n_examples", "36"),
        "n8": ("--n_examples", "8"),
    }
    for flags in calls.values():
        evaluate(digits, "-e", "--resume", BEST, *flags)
    names = {f"attack_standard_{name}" for name in calls}
    assert {path.stem for path in FOLDER.glob("*.json")} == names
    before = {path: path.stat().st_mtime_ns for path in FOLDER.glob("*.json")}
    evaluate(digits, "-e", "--resume", BEST, *calls["pgd1_n8_seed1"])
    changed = [path.stem for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert changed == ["attack_standard_pgd1_n8_seed1"]
    # Other images under the same command.
    shutil.copytree(digits / "val" / "digit_2", here / "part" / "val" / "digit_2")
    evaluate("part", "-e", "--resume", BEST, "--attack", "pgd1")
    (other,) = {path.stem for path in FOLDER.glob("*.json")} - names
    assert re.fullmatch(r"attack_standard_pgd1_[0-9a-f]{8}", other)
    assert len(rows("attack_standard_pgd1")) == 36


def test_a_file_of_others_read_in_several_ways(
    digits: Path, weights: dict[str, torch.Tensor]
) -> None:
    """Its head, mean and ending tell measurements apart, as nothing in the file does."""
    for scale, name in enumerate(("x.pth.tar", "a.pt", "a.ckpt"), start=1):
        torch.save({key: scale * value for key, value in weights.items()}, name)
    features, head = ("--FN", "True"), ("--FN", "True", "--WN", "True")
    calls = {
        "x": ("x.pth.tar", *head),
        "x_FN": ("x.pth.tar", *features),
        "x_mean0.5+0.5+0.5": ("x.pth.tar", *head, "--set", "TRAIN.mean=[0.5, 0.5, 0.5]"),
        "a": ("a.pt", *head),
    }
    for path, *flags in [*calls.values(), ("a.ckpt", *head)]:
        words = (digits, "-e", "--resume", path, *flags, "--attack", "pgd1", "--n_examples", "4")
        evaluate(*words, "--set", "ADV.clip_eps=4", "--set", "ADV.pgd_attack=[[1, 1/255]]")
    ending = "_pgd1_n4_resize16_crop16"
    wanted = {f"attack_standard_{name}{ending}" for name in calls}
    stems = {path.stem for path in Path().glob("*.json")}
    assert stems > wanted, stems
    (second,) = stems - wanted
    assert re.fullmatch(rf"attack_standard_a{ending}_[0-9a-f]{{8}}", second)


def test_sizes_and_radii_are_looked_at_beside_the_checkpoints_own(digits: Path) -> None:
    words = ("evaluate.py", digits, "-e", "--resume", BEST, "--attack", "pgd1", "--n_examples", "4")
    crop = only_error(call(*words, "--set", "DATA.crop_size=20"))
    assert crop.startswith("DATA.crop_size 20 is larger than DATA.img_size 16")
    content = torch.load(FOLDER / "model_best.pth.tar", weights_only=True)
    content["config"]["DATA"]["max_color_value"], content["config"]["ADV"]["clip_eps"] = 1.0, 0.06
    torch.save(content, FOLDER / "model_best.pth.tar")
    assert "more than DATA.max_color_value 1," in only_error(call(*words, "--eps", "4"))
    done = call(*words, "--eps", "0.04", "--set", "DATA.img_size=20", "--set", "DATA.workers=0")
    assert done.status == 0, done.err
    assert (FOLDER / "attack_standard_pgd1_n4_eps10.2_resize20.json").exists()


def test_the_scripts_docstrings_show_these_calls() -> None:
    manual = (ROOT / "evaluate.py").read_text()
    assert "python evaluate.py /data/ImageNet -e --resume RUN/model_best.pth.tar" in manual
    manual = (ROOT / "main_free.py").read_text()
    assert "python main_free.py /data/ImageNet -e --resume RUN/model_best.pth.tar" in manual


# What would give wrong numbers, or lose right ones


def test_attacks_of_one_name_are_refused(digits: Path) -> None:
    rows = "ADV.pgd_attack=[[2, 0.0157, margin], [2, 1e-6, margin]]"
    message = only_error(call("evaluate.py", digits, "-e", "--resume", BEST, "--set", rows))
    assert "pgd2-margin with two step sizes, 0.0157 and 1e-06" in message


def test_outputs_that_are_not_finite(digits: Path, weights: dict[str, torch.Tensor]) -> None:
    broken = {**weights, "layer4.1.bn2.weight": weights["layer4.1.bn2.weight"] * float("nan")}
    torch.save(broken, "broken.pth")
    flags = ("--FN", "--WN", "--attack", "pgd1", "-c", "small.yml")
    message = only_error(call("evaluate.py", digits, "-e", "--resume", "broken.pth", *flags))
    assert "outputs are not finite on digit_0/" in message
    assert not list(Path().glob("attack_*.json"))
    assert not list(Path().glob("attack_*.csv"))


def test_both_folders_are_looked_for_before_the_attacks(digits: Path) -> None:
    missing = ("--set", "DATA.imagenet_c=nowhere")
    words = (digits, "-e", "--eva_on_imagenet_c", "--resume", BEST, "-c", "small.yml")
    assert "nowhere" in only_error(call("evaluate.py", *words, *missing))
    assert not list(FOLDER.glob("attack_*"))


def test_a_table_without_cross_entropy_names_no_scale(digits: Path) -> None:
    done = evaluate(digits, "-e", "--resume", BEST, "--attack", "pgd1-margin")
    assert "cross-entropy" not in done.out


@pytest.mark.slow
def test_a_reader_of_the_output_that_leaves(digits: Path) -> None:
    """`evaluate.py ... | head -1`: the evaluation goes on, and its results are kept."""
    words = command("evaluate.py", digits, "-e", "--resume", BEST, "-c", "small.yml")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment(), **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    recount()
