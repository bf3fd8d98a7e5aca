"""Resuming: what was saved in another memory layout, precision or list of images."""

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import copy_run, settings
from in_process import Done, call, only_error
from processes import rows_of

from lib.algorithm.training import TRAINING_STEP, Trainer, TrainingSettings
from lib.training.checkpointing import Progress, machine, restore_momentum, restore_state
from lib.training.epoch_end import (
    OVERFITTING,
    begin_selection,
    selection_of,
    warn_of_collapse,
    warn_of_overfitting,
)
from lib.training.run import compare_settings
from lib.training.setup import make_optimizer
from models.resnet import ResNet
from utils.config.load import merge
from utils.config.settings import Config
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint
from utils.storage.run_folder import BEST

SHORT = {"TRAIN__epochs": 2, "DATA__batch_size": 16, "ADV__pgd_attack": "[[1, 8/255]]"}
pytestmark = pytest.mark.usefixtures("here")


def interrupted(
    step: int, monkeypatch: pytest.MonkeyPatch, *arguments: object, method: str = "free"
) -> Done:
    """main_free.py that gets SIGTERM in its n-th step."""
    original = TRAINING_STEP[method]
    steps = []

    def signalled(*given: object) -> object:
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(signal.SIGTERM)
        return original(*given)

    with monkeypatch.context() as patched:
        patched.setitem(TRAINING_STEP, method, signalled)
        done = call("main_free.py", *arguments)
    assert done.status == 143, done
    return done


def published_momentum(model: torch.nn.Module) -> dict:
    """An optimizer's state as the published code saves it: NCHW in memory."""
    generator = torch.Generator().manual_seed(0)
    buffers = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-4, "nesterov": False}
    group["params"] = list(range(len(buffers)))
    return {
        "state": {i: {"momentum_buffer": b} for i, b in enumerate(buffers)},
        "param_groups": [group],
    }


def test_momentum_in_another_memory_layout() -> None:
    """One step from a published checkpoint's momentum against SGD written out."""
    model = ResNet("resnet18", 4).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, Config(), "cpu")
    assert optimizer.defaults["fused"]
    saved = published_momentum(model)
    expected = {}
    for parameter, state in zip(model.parameters(), saved["state"].values(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        velocity = 0.9 * state["momentum_buffer"] + parameter.grad + 1e-4 * parameter.detach()
        expected[parameter] = parameter.detach() - 0.1 * velocity
    restore_momentum(optimizer, saved, "published", Logger(False))
    optimizer.step()
    for parameter, value in expected.items():
        assert torch.allclose(parameter, value, atol=1e-6)


@pytest.mark.parametrize("fault", ["shape", "adam", "groups"])
def test_momentum_that_does_not_fit_begins_at_zero(
    fault: str, capsys: pytest.CaptureFixture
) -> None:
    model = ResNet("resnet18", 4)
    optimizer = make_optimizer(model, Config(), "cpu")
    saved = published_momentum(model)
    if fault == "shape":
        saved["state"][len(saved["state"]) - 2]["momentum_buffer"] = torch.zeros(512, 4)  # turned
    elif fault == "adam":
        saved["state"][3] = {"exp_avg": torch.zeros(1)}
    else:
        saved["param_groups"].append({"params": []})
    restore_momentum(optimizer, saved, "odd.pth", Logger())
    assert "odd.pth: its optimizer state does not fit" in capsys.readouterr().out
    assert not optimizer.state


def test_settings_that_a_checkpoint_did_not_know_are_not_mentioned(
    capsys: pytest.CaptureFixture,
) -> None:
    saved = Config().as_dict()
    for key in ("lr_epochs", "lr_values", "ema"):
        del saved["TRAIN"][key]
    content = {"config": saved, "training": {"epoch": 1, "position": 0}}
    checkpoint = Checkpoint("old.pth", {}, content, {})
    compare_settings(Config(), checkpoint, Logger())
    assert "from here on" not in capsys.readouterr().out
    compare_settings(merge({"TRAIN": {"ema": 0.5}}), checkpoint, Logger())
    assert "TRAIN.ema was 0.0 and is 0.5 from here on" in capsys.readouterr().out


def test_noise_momentum_and_random_state_are_restored(capsys: pytest.CaptureFixture) -> None:
    """By the second of two processes, whose noise is every other image of the saved buffer."""
    model, buffer = ResNet("resnet18", 4), torch.rand(6, 3, 8, 8)
    optimizer = make_optimizer(model, Config(), "cpu")
    trainer = Trainer(model, optimizer, torch.zeros(3, 3, 8, 8), TrainingSettings(0.1, 0.1))
    generator = torch.get_rng_state()
    torch.manual_seed(5)
    drawn = {"random_state": torch.get_rng_state(), "value": torch.rand(3)}
    torch.set_rng_state(generator)
    training = {"epoch": 3, "position": 7, "noise": buffer, "scaler": {}, **drawn}
    content = {"training": training, "optimizer": published_momentum(model)}
    checkpoint = Checkpoint("saved.pth", model.state_dict(), content, {})
    context = DistributedContext(1, 2, torch.device("cpu"))
    content["versions"] = here = machine(context.device)
    restore_state(checkpoint, trainer, context, 0, Logger())
    assert "note" not in capsys.readouterr().out
    content["versions"] = here | {"torch": "0.1", "device": "abacus"}
    progress = restore_state(checkpoint, trainer, context, 0, Logger())
    changes = f"torch 0.1, now {here['torch']}; device abacus, now {here['device']}\n"
    assert f"note: not bit by bit as it would have gone on: {changes}" in capsys.readouterr().out
    assert torch.equal(torch.rand(3), drawn["value"])
    assert torch.equal(trainer.noise, buffer[1::2])
    assert (progress.epoch, progress.position) == (3, 7)
    saved = published_momentum(model)["state"].values()
    for parameter, state in zip(model.parameters(), saved, strict=True):
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], state["momentum_buffer"])


def test_failures_are_told_once(capsys: pytest.CaptureFixture) -> None:
    run: Any = SimpleNamespace(logger=Logger(), model_settings=SimpleNamespace(classes=range(10)))
    rows = [
        {"train_top1": top1} | ({} if pgd is None else {OVERFITTING: pgd})
        for top1, pgd in ((90, None), (29, 0), (60, 20), (60, 19.9), (90, 0))
    ]
    told = []
    for n in range(1, 6):
        warn_of_overfitting(run, rows[:n])
        told.append(capsys.readouterr().out)
    assert [bool(text) for text in told] == [False, False, False, True, False]
    assert "catastrophic overfitting" in told[3]
    for predicted in (1.0, 0.9):  # share of the class that is predicted most
        warn_of_collapse(run, BEST, predicted)
        assert ("collapsed" in capsys.readouterr().out) == (predicted == 1)


PGD = {"TRAIN": {"select": "pgd"}}
OTHERS = [
    (PGD, {"TRAIN": {"select": "clean"}}, "TRAIN.select was pgd and is clean"),
    (PGD, PGD | {"DATA": {"img_size": 288}}, "DATA.img_size was 256 and is 288"),
    (PGD, PGD | {"ADV": {"clip_eps": 8}}, "eps was 4/255 and is 8/255"),
    (PGD, PGD | {"EVAL": {"protocol": "paper"}}, "EVAL.protocol was standard and is paper"),
    (PGD, PGD | {"ADV": {"fgsm_step": 8}}, ""),
    ({}, {"ADV": {"clip_eps": 8}}, ""),  # clean images know no radius
]


def selecting(content: dict[str, Any], images: str = "a" * 64, **progress: Any) -> Any:
    """A run in an empty folder, as far as its choice of the best is concerned."""
    tree = SimpleNamespace(fingerprint=images)
    config = merge(content)
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    Path(config.run_dir, BEST).touch()
    return SimpleNamespace(
        config=config, progress=Progress(**progress), logger=Logger(),
        selection=SimpleNamespace(tree=tree, **vars(config.DATA)),
        context=DistributedContext(0, 1, torch.device("cpu")),
    )  # fmt: skip


@pytest.mark.parametrize(("before", "now", "words"), OTHERS, ids=str)
def test_a_best_value_of_something_else_starts_anew(
    before: dict, now: dict, words: str, capsys: pytest.CaptureFixture
) -> None:
    saved = selection_of(selecting(before))
    run = selecting(now, best=72.5, best_of=saved)
    begin_selection(run)
    assert run.progress.best == (-1 if words else 72.5)
    assert run.progress.best_of == selection_of(run)
    assert words in (said := capsys.readouterr().out)
    assert ("72.50 %, counts no more" in said) == bool(words)
    done = selecting(now, best=72.5, best_of=saved, epoch=run.config.passes)
    begin_selection(done)
    assert (done.progress.best, done.progress.best_of) == (72.5, saved)  # which it is for ever


def test_a_best_value_without_its_images_or_its_file(capsys: pytest.CaptureFixture) -> None:
    other = selecting({}, "b" * 64, best=50.0, best_of=selection_of(selecting({})))
    begin_selection(other)
    assert "list of images was aaaaaaaa and is bbbbbbbb" in capsys.readouterr().out
    lost = selecting({}, best=50.0, best_ema=-1.0, best_of=selection_of(selecting({})))
    (lost.config.run_dir / BEST).unlink()
    begin_selection(lost)
    assert f"{BEST} is not in {lost.config.run_dir}; the best" in capsys.readouterr().out
    older = selecting({}, best=50.0)  # of a version that did not keep what it measures
    begin_selection(older)
    assert older.progress.best == -1
    assert "does not say what it measured" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_without_its_best_model_makes_one(
    digits: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied alone into a run's folder: a finished one, and one that another prefix resumes."""
    monkeypatch.chdir(copy_run(trained.parents[1], Path("here").absolute()))
    folder = Path("trained_models", trained.name)
    (folder / BEST).unlink()
    for epochs, prefix in ((4, "free_adv"), (6, "other")):
        flags = ("--FN", "--WN", "--resume", folder / "checkpoint.pth.tar")
        flags = (*flags, "--output_prefix", prefix, *settings(TRAIN__epochs=epochs))
        done = call("main_free.py", digits, *flags)
        assert done.status == 0, done.err
        made = folder.parent / folder.name.replace("free_adv", prefix)
        last, best = (torch.load(made / name) for name in ("checkpoint.pth.tar", BEST))
        score = float(rows_of(made / "metrics.csv")[-1]["val_top1"])
        assert best["best_prec1"] == last["training"]["best"] == score  # of the last epoch alone
        assert f"best clean top-1 {score:.2f} %" in done.out
        assert all(torch.equal(v, best["state_dict"][k]) for k, v in last["state_dict"].items())


def test_a_resumption_goes_on_with_what_it_resumes(
    digits: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder and config.yml say what the network is and how it was trained."""
    monkeypatch.chdir(copy_run(trained.parents[1], Path("here").absolute()))
    best, he = trained / BEST, ("--FN", "--WN", "--resume", "auto")
    record = Path("trained_models", trained.name, "config.yml")
    before = record.read_text()
    error = only_error(call("main_free.py", digits, "--resume", best, *settings()))
    assert (
        f"{BEST} is a network of resnet18, FN, WN, s 10, margin 0.2, and the settings say" in error
    )
    assert "and TRAIN.epochs 2 are 1" in only_error(
        call("main_free.py", digits, *he, *settings(TRAIN__epochs=2))
    )
    done = call(
        "main_free.py", digits, *he, "--init_from", best, *settings(TRAIN__epochs=4, TRAIN__lr=5)
    )
    assert (done.status, done.err) == (0, "")
    assert "TRAIN.lr was 0.02 and is 5.0, too late for this training" in done.out
    assert "--init_from is of a start: this goes on from" in done.out
    assert record.read_text() == before


@pytest.mark.slow
def test_images_removed_between_interruption_and_resume(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images are 4 minibatches a pass; stopped after 2 of them, 48 are left: 3 minibatches."""
    data = shutil.copytree(digits, tmp_path / "data")
    words = (data, *settings(**SHORT), "--resume", "auto")
    interrupted(4, monkeypatch, *words)
    for path in sorted(data.glob("train/*/*"))[::4]:
        path.unlink()
    done = call("main_free.py", *words)
    assert done.status == 0, done.err
    assert "the rest of epoch 1 takes the 48 images that are there now" in done.out
    assert "epoch 1/1 [3/3]" in done.out
    assert "epoch 1/1 [2/3]" not in done.out
