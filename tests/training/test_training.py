"""Whole trainings through the command: what they leave, select, what they refuse."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import settings
from in_process import call, only_error
from processes import rows_of, the_run

from lib.algorithm.schedules import step_lr
from lib.training.checkpointing import Progress
from lib.training.epoch_end import keep_best, quick_attack
from lib.training.run import describe_method
from utils.config.load import merge
from utils.distributed.context import DistributedContext
from utils.storage.run_folder import BEST, BEST_EMA

SHORT = {"TRAIN__epochs": 2, "DATA__batch_size": 32, "ADV__pgd_attack": "[[1, 8/255]]"}
SHORT |= {"DATA__img_size": 16, "DATA__crop_size": 16}  # quicker than 32
METRICS = "metrics.csv"
pytestmark = pytest.mark.usefixtures("here")


def test_what_a_run_leaves(trained: Path) -> None:
    assert trained.name == "resnet18_free_adv_step16_eps16_repeat2_bs16_FN_WN_s10.0_margin0.2"
    expected = {"checkpoint.pth.tar", "checkpoint.previous.pth.tar", "model_best.pth.tar"}
    expected |= {".lock", "config.yml", "log.txt", "metrics.csv", "training_curves.png"}
    expected |= {"training_curves.pdf", "attack_standard.json", "attack_standard_images.csv"}
    expected |= {"attack_standard_classes.csv"}
    assert {path.name for path in trained.iterdir()} == expected
    rows = rows_of(trained / METRICS)
    assert [row["epoch"] for row in rows] == ["1", "2"]  # 4 epochs / 2 repeats
    assert [float(row["lr"]) for row in rows] == [step_lr(i, 0.02, 2) for i in range(2)]
    assert all(float(row["images_per_second"]) > 0 and not row["val_pgd_top1"] for row in rows)
    best = torch.load(trained / "model_best.pth.tar", weights_only=True)
    assert best["best_prec1"] == max(float(row["val_top1"]) for row in rows)
    assert best["model"]["classes"] == [f"digit_{i}" for i in range(4)]
    weight = best["state_dict"]["fc.weight"]
    assert torch.allclose(weight.norm(dim=1), torch.ones(len(weight)), atol=1e-6)
    log = (trained / "log.txt").read_text()
    assert "FN, WN, s 10, margin 0.2" in log
    assert "PGD-2 (margin)" in log


@pytest.mark.slow
def test_the_loss_falls_and_classes_are_learnt(digits: Path) -> None:
    changes = {"TRAIN__epochs": 16, "ADV__clip_eps": 4, "ADV__fgsm_step": 4, "TRAIN__lr": 0.004}
    changes |= {"DATA__min_area": 0.6, "DATA__flip": False}  # a digit mirrored is none
    done = call("main_free.py", digits, *settings(**changes))
    assert done.status == 0, done.err
    rows = rows_of(the_run() / METRICS)
    assert float(rows[-1]["train_loss"]) < 0.6 * float(rows[0]["train_loss"])
    assert max(float(row["val_top1"]) for row in rows) > 80


@pytest.mark.slow
def test_select_pgd_keeps_the_most_robust(digits: Path) -> None:
    changes = {**SHORT, "TRAIN__epochs": 6, "TRAIN__select": "pgd", "TRAIN__select_examples": 18}
    assert call("main_free.py", digits, *settings(**changes)).status == 0
    robust = [float(row["val_pgd_top1"]) for row in rows_of(the_run() / METRICS)]
    best = torch.load(the_run() / "model_best.pth.tar", weights_only=True)
    assert best["best_prec1"] == max(robust)
    assert best["epoch"] == 1 + robust.index(max(robust))
    # The same number from a hand-made evaluation of that file.
    done = call(
        *("evaluate.py", digits, "-e", "--resume", the_run() / "model_best.pth.tar"),
        *("--attack", "pgd10", "--n_examples", 18, *settings(**changes)),
    )
    assert done.status == 0, done.err
    result = json.loads((the_run() / "attack_standard_pgd10_n18.json").read_text())
    assert 100 * result["attacks"][0]["top1"]["accuracy"] == pytest.approx(max(robust))
    assert any("chosen by PGD-10 on 18" in warning for warning in result["warnings"])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(digits: Path) -> None:
    message = only_error(call("main_free.py", digits, *settings(**SHORT, TRAIN__lr=1e30)))
    assert "not finite" in message
    assert message.endswith("and start from scratch")
    assert not (the_run() / "checkpoint.pth.tar").exists()
    # A run folder that holds no result is no obstacle.
    assert call("main_free.py", digits, *settings(**SHORT)).status == 0
    good = (the_run() / "checkpoint.pth.tar").read_bytes()
    changes = {**SHORT, "TRAIN__epochs": 8, "TRAIN__lr": 1e30}
    message = only_error(call("main_free.py", digits, *settings(**changes), "--resume", "auto"))
    assert "TRAIN.lr" in message
    assert message.endswith("and --resume auto")
    assert (the_run() / "checkpoint.pth.tar").read_bytes() == good
    message = only_error(call("main_free.py", digits, *settings(**changes), "--overwrite"))
    assert message.endswith("and start from scratch")
    assert not (the_run() / "checkpoint.pth.tar").exists()


@pytest.mark.slow
def test_start_epoch_sets_the_schedule(digits: Path) -> None:
    changes = {**SHORT, "TRAIN__epochs": 32, "TRAIN__start_epoch": 15, "TRAIN__print_freq": 1}
    assert call("main_free.py", digits, *settings(**changes)).status == 0
    rows = rows_of(the_run() / METRICS)
    assert [row["epoch"] for row in rows] == ["16"]
    assert float(rows[0]["lr"]) == pytest.approx(0.002)


@pytest.mark.slow
def test_tensorboard_holds_the_same_numbers_at_every_line_of_progress(digits: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ["--tensorboard", "--print_gradients", "True"]
    assert call("main_free.py", digits, *flags, *settings(**SHORT)).status == 0
    events = accumulator.EventAccumulator(str(the_run() / "tensorboard"))
    events.Reload()
    row = rows_of(the_run() / METRICS)[0]
    for tag, name in {"loss/train": "train_loss", "top1/val": "val_top1", "run/lr": "lr"}.items():
        events_of = events.Scalars(tag)
        assert events_of[-1].value == pytest.approx(float(row[name]), rel=1e-6)
        assert [event.step for event in events_of] == ([2] if "val" in tag else [1, 2])
    rows = rows_of(the_run() / "gradient_norms.csv")
    ratios = {r["group"]: r for r in rows if r["parameter"] == "all"}
    for group, entry in ratios.items():
        (event,) = events.Scalars(f"gradient_ratio/{group}")
        assert event.value == pytest.approx(float(entry["ratio"]), rel=1e-6)
    assert len(events.Images("adversarial")) == 1


def test_tensorboard_that_is_missing_is_said_before_work(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    done = call("main_free.py", digits, "--tensorboard", *settings(**SHORT))
    assert "requirements-extra.txt" in only_error(done)
    assert not Path("trained_models").exists()


@pytest.mark.parametrize(
    ("classes", "flags", "said"),
    [
        (4, ["--FN", "--WN"], "weights and momentum of"),
        (4, [], "the last layer is new, of 4 classes"),
        (3, ["--FN", "--WN"], "the last layer is new, of 3 classes"),
    ],
)
def test_fine_tuning_starts_from_weights(
    classes: int, flags: list[str], said: str, trained: Path, digits: Path, tmp_path: Path
) -> None:
    """Steps that change nothing leave the file's weights, and its momentum where all of it fits."""
    data = tmp_path / "data"
    for split in ("train", "val"):
        for label in range(classes):
            shutil.copytree(digits / split / f"digit_{label}", data / split / f"digit_{label}")
    still = {"TRAIN__lr": 1e-20, "TRAIN__momentum": 1 - 1e-9, "TRAIN__weight_decay": 0}
    still |= {"TRAIN__mean": [0.5] * 3, "TRAIN__epochs": 1, "ADV__n_repeats": 1}
    start = trained / "checkpoint.pth.tar"
    done = call("main_free.py", data, *flags, "--init_from", start, *settings(**still))
    assert (done.status, done.err) == (0, "")
    assert said in done.out
    before, after = (
        torch.load(path, weights_only=True) for path in (start, the_run() / "checkpoint.pth.tar")
    )
    weights = {name for name in before["state_dict"] if name.endswith(".weight")}
    for name in weights - {"fc.weight"} | ({"fc.weight"} if "momentum" in said else set()):
        torch.testing.assert_close(after["state_dict"][name], before["state_dict"][name])
    assert after["state_dict"]["fc.weight"].shape[0] == classes
    assert (after["model"]["mean"], after["model"]["std"]) == ([0.5] * 3, before["model"]["std"])
    assert len(rows_of(the_run() / METRICS)) == 1
    buffers = [c["optimizer"]["state"][0]["momentum_buffer"].norm() for c in (before, after)]
    assert (buffers[1] > 0.5 * buffers[0]) == ("momentum" in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"DATA": {"max_color_value": 1}, "ADV": {"clip_eps": 4 / 255, "fgsm_step": 2 / 255}},
            "free training, eps 4/255, step 2/255, 4 replays, 23 epochs of the data"
            " (TRAIN.epochs 90)",
        ),
        (
            {"TRAIN": {"method": "pgd"}, "ADV": {"train_steps": 1}},
            "pgd training, eps 4/255, step 4/255, 1 step of PGD, 90 epochs of the data",
        ),
        ({"TRAIN": {"method": "natural", "epochs": 1}}, "natural training, 1 epoch of the data"),
    ],
    ids=str,
)
def test_what_is_done_is_said_in_numbers(change: dict[str, Any], words: str) -> None:
    assert describe_method(merge(change)).startswith(words)


def test_the_attack_that_chooses_the_best_model_reaches_every_radius() -> None:
    for eps in (2, 16):
        run: Any = SimpleNamespace(config=merge({"ADV": {"clip_eps": eps}}))
        spec, threat = quick_attack(run)
        assert spec.step_size == pytest.approx(threat.eps / 4) == pytest.approx(eps / 4 / 255)


def test_waiting_for_images_is_told_once(
    digits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four fifths of the time: five times as many workers would keep up."""

    def gather(context: DistributedContext, value: Any) -> list[Any]:
        return [0.8 if isinstance(value, float) else value]

    monkeypatch.setattr(DistributedContext, "gather", gather)
    done = call("main_free.py", digits, *settings(DATA__workers=1))
    assert done.status == 0
    assert done.out.count("80% of the epoch went by waiting for images: 1 worker") == 1
    assert "about 5 would keep up" in done.out


def test_the_best_model_is_the_first_of_the_largest_score() -> None:
    """Neither a worse one nor an equal one replaces it; the averaged weights have their own."""
    run: Any = SimpleNamespace(progress=Progress())
    epochs = [(40.0, 60.0), (50.0, 30.0), (50.0, 60.0), (45.0, 70.0)]
    validations = [
        {name: {"score": score} for name, score in zip((BEST, BEST_EMA), pair, strict=True)}
        for pair in epochs
    ]
    kept = [keep_best(run, validation) for validation in validations]
    names = [[name.removesuffix(".pth.tar") for name in files] for files in kept]
    assert names == [["model_best", "model_ema_best"], ["model_best"], [], ["model_ema_best"]]
    assert (run.progress.best, run.progress.best_ema) == (50.0, 70.0)
