"""All training methods through the command: exact resumption, phases, averages, selection."""

import json
from pathlib import Path

import pytest
import torch
from conftest import settings
from in_process import call, only_error
from processes import differences, outcome, rows_of
from test_state import interrupted

from lib.algorithm.pgd import Search, pgd, random_start
from lib.data.datasets import DistributedBatchSampler, ImageBatches, train_transform
from lib.data.folders import read_split
from lib.data.loader import to_device
from models.resnet import ResNet

SHORT = {"TRAIN__epochs": 2, "ADV__pgd_attack": "[[1, 8/255]]"}
SHORT |= {"DATA__img_size": 16, "DATA__crop_size": 16}  # quicker than 32
HE = ("--FN", "--WN")
METRICS = "metrics.csv"
pytestmark = pytest.mark.usefixtures("here")


def run_folder(name: str) -> Path:
    return Path("trained_models", f"resnet18_{name}")


METHODS = {
    "pgd": (
        "pgd_adv_step4_eps16_steps2_bs32",
        {"ADV__train_steps": 2, "ADV__fgsm_step": 4, "TRAIN__schedule": "cosine"}
        | {"TRAIN__ema": 0.9, "TRAIN__label_smoothing": 0.1},
    ),
    "natural": ("natural_bs32", {"TRAIN__lr_epochs": "[0, 2]", "TRAIN__lr_values": "[0.02, 0]"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_bit_by_bit(
    method: str, digits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under HE; each with some of the other options. 2 minibatches an epoch, two epochs."""
    name, options = METHODS[method]
    changes = {**SHORT, "TRAIN__method": method, "ADV__n_repeats": 1, **options}
    changes["DATA__batch_size"] = 32
    words = (digits, *HE, *settings(**changes), "--resume", "auto", "--attack", "pgd1")
    done = call("main_free.py", *words)
    assert done.status == 0, done.err
    folder = run_folder(name + "_FN_WN_s10.0_margin0.2")
    whole = outcome(folder)
    assert len(rows_of(folder / METRICS)) == 2
    (here / "again").mkdir()
    monkeypatch.chdir(here / "again")
    interrupted(3, monkeypatch, *words, method=method)
    assert call("main_free.py", *words).status == 0
    assert differences(outcome(folder), whole) == []
    if method == "pgd":
        assert (folder / "attack_standard_model_ema_best_pgd1.json").exists()
        assert float(rows_of(folder / METRICS)[1]["val_ema_top1"]) > 0
    if method == "natural":
        rates = [float(row["lr"]) for row in rows_of(folder / METRICS)]
        assert rates == pytest.approx([0.01, 0.0])


PHASES = """
TRAIN:
  method: fast
  arch: resnet18
  phases:
  - {TRAIN.epochs: 1, TRAIN.lr_epochs: [0, 1], TRAIN.lr_values: [0.02, 0.01], DATA.batch_size: 32}
  - {TRAIN.epochs: 2, TRAIN.lr_epochs: [1, 2], TRAIN.lr_values: [0.01, 0.004], DATA.crop_size: 12}
ADV: {n_repeats: 2, clip_eps: 16, fgsm_step: 20, pgd_attack: [[1, 8/255]]}
HE: {FN: true, WN: true}
DATA: {batch_size: 16, img_size: 0, crop_size: 16, workers: 0}
"""


@pytest.mark.slow
def test_phases_in_turn_and_resumed(
    digits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minibatches of 32 images and then of 16: 2 in one epoch, then 4 in the next."""
    Path("phases.yml").write_text(PHASES)
    words = (digits, "-c", here / "phases.yml", "--resume", "auto", "--attack", "pgd1")
    done = call("main_free.py", *words)
    assert done.status == 0, done.err
    name = "fast_adv_step20_eps16_repeat2_bs{}_FN_WN_s10.0_margin0.2_phase{}"
    folders = [run_folder(name.format(32, 1)), run_folder(name.format(16, 2))]
    rows = [rows_of(folder / METRICS) for folder in folders]
    assert [[row["epoch"] for row in part] for part in rows] == [["1"], ["2"]]
    assert [float(part[0]["lr"]) for part in rows] == pytest.approx([0.01, 0.004])
    assert "from here on" not in done.out  # what a phase sets is no change of mind
    assert not (folders[0] / "attack_standard_pgd1.json").exists()
    assert (folders[1] / "attack_standard_pgd1.json").exists()
    whole = outcome(folders[1])
    (here / "again").mkdir()
    monkeypatch.chdir(here / "again")
    interrupted(7, monkeypatch, *words, method="fast")  # two minibatches before, the second here
    assert len(rows_of(folders[0] / METRICS)) == 1
    assert call("main_free.py", *words).status == 0
    assert differences(outcome(folders[1]), whole) == []
    # By hand, as published: a file for each phase, and the checkpoint of the one before.
    text = PHASES.replace("method: fast", "method: fast\n  epochs: 2")
    Path("second.yml").write_text(text[: text.index("  phases")] + text[text.index("ADV") :])
    by_hand = ("--set", "TRAIN.lr_epochs=[1, 2]", "--set", "TRAIN.lr_values=[0.01, 0.004]")
    by_hand += ("--set", "DATA.crop_size=12", "--resume", folders[0] / "checkpoint.pth.tar")
    done = call("main_free.py", digits, "-c", "second.yml", *by_hand, "--attack", "pgd1")
    assert done.status == 0, done.err
    other = run_folder("fast_adv_step20_eps16_repeat2_bs16_FN_WN_s10.0_margin0.2")
    assert differences(outcome(other), whole) == []


@pytest.mark.slow
def test_selection_on_images_held_out_of_training(digits: Path) -> None:
    changes = {**SHORT, "TRAIN__val_every": 2, "TRAIN__select_examples": 16}
    changes |= {"TRAIN__select": "pgd", "TRAIN__select_from": "train", "TRAIN__method": "pgd"}
    changes |= {"ADV__n_repeats": 1, "ADV__train_steps": 1, "TRAIN__epochs": 3}
    done = call("main_free.py", digits, *settings(**changes), "--attack", "pgd1")
    assert done.status == 0, done.err
    assert "on 48 images" in done.out
    folder = run_folder("pgd_adv_step16_eps16_steps1_bs16")
    rows = rows_of(folder / METRICS)
    assert [bool(row["val_top1"]) for row in rows] == [False, True, True]
    robust = [float(row["val_pgd_top1"]) for row in rows[1:]]
    assert all(value * 16 / 100 == int(value * 16 / 100) for value in robust)
    best = torch.load(folder / "model_best.pth.tar", weights_only=True)
    assert best["best_prec1"] == max(robust)
    result = json.loads((folder / "attack_standard_pgd1.json").read_text())
    assert not any("chosen" in warning for warning in result["warnings"])


@pytest.mark.slow
def test_fast_measures_pgd_on_a_minibatch_of_its_own(digits: Path) -> None:
    changes = {**SHORT, "TRAIN__method": "fast", "TRAIN__ema": 0.5, "ADV__n_repeats": 1}
    done = call("main_free.py", digits, *settings(**changes))
    assert done.status == 0, done.err
    folder = run_folder("fast_adv_step16_eps16_repeat1_bs16")
    found = [float(row["train_pgd_top1"]) for row in rows_of(folder / METRICS)]
    assert f"a training minibatch under PGD-10 top-1 {found[1]:.2f} %" in done.out
    tree, order = read_split(str(digits), "train"), DistributedBatchSampler(64, 16, seed=0)
    order.set_position(1)
    read = ImageBatches([tree], train_transform(16), 16, 0).__getitems__(next(iter(order)))
    images, labels, indices = to_device(read, torch.device("cpu"))
    starts = [random_start(tree.image_number(i), (3, 16, 16), 16 / 255, 0) for i in indices]
    model = ResNet("resnet18", 4).eval()
    model.load_state_dict(torch.load(folder / "checkpoint.pth.tar")["state_dict"])
    *_, last = pgd(model, images, labels, torch.stack(starts), Search(10, 8 / 255, 16 / 255))
    right = model(last.adversarial).argmax(1) == labels
    assert found[1] == pytest.approx(100 * float(right.double().mean()))


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (("TRAIN.method=pgd", "ADV.n_repeats=2"), "TRAIN.method pgd takes ADV.n_repeats 1"),
        (("TRAIN.method=natural", "print_gradients"), "natural takes --print_gradients False"),
        (("TRAIN.method=pgd", "ADV.random_init=False"), "ADV.random_init"),
        (("TRAIN.lr_epochs=[1, 0]", "TRAIN.lr_values=[0, 1]"), "ascending"),
        (("TRAIN.schedule=linear",), "TRAIN.lr_epochs"),
        (("TRAIN.compile=reduce-overhead", "RUN.device=cpu"), "compile reduce-overhead needs CUDA"),
        (("TRAIN.sync_bn=True", "RUN.device=cpu"), "TRAIN.sync_bn needs CUDA; leave it out"),
        (("TRAIN.schedule=cosine", "TRAIN.warmup_epochs=90"), "warmup_epochs"),
        (("TRAIN.method=fast", "TRAIN.phases=[{crop_size: 3}]"), "did you mean DATA.crop_size"),
        (("TRAIN.phases=[{DATA.crop_size: 32}]",), "TRAIN.method free takes TRAIN.phases []"),
        (
            ("TRAIN.method=fast", "TRAIN.phases=[{TRAIN.epochs: 2}, {TRAIN.epochs: 2}]"),
            "TRAIN.phases, 2: TRAIN.epochs 2 must be more than the 2 of the phase before",
        ),
    ],
)
def test_wrong_combinations_are_refused_by_name(
    words: tuple[str, ...], about: str, digits: Path
) -> None:
    flags = [f"--set={word}" if "=" in word else f"--{word}" for word in words]
    assert about in only_error(call("main_free.py", digits, *flags))
