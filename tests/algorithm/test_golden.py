"""The published code's numbers, to a relative 1e-9: every trace in tests/golden is replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_inputs import drawn_noise, minibatch, start, weights
from torch.nn import functional as F

from lib.algorithm.free_training import Trainer, TrainingSettings, free_step, make_noise
from lib.algorithm.pgd import attacking, pgd
from lib.algorithm.schedules import Schedule
from lib.algorithm.training_methods import fast_step
from lib.training.assembly import make_optimizer
from models.resnet import build_model, load_weights
from utils.config.merge import merge

GOLDEN = Path(__file__).parents[1] / "golden"
TRACES = sorted(GOLDEN.glob("freeat*.json"))
TOLERANCE = 1e-9
EPS, PGD_STEP, PGD_STEPS = 4 / 255, 1 / 255, 5


@pytest.fixture(scope="module", params=TRACES, ids=lambda path: path.stem)
def trace(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text())


def golden_trainer(spec: dict, bn_weight_decay: bool = True) -> Trainer:
    """A trainer with the trace's network and settings, in float64."""
    hypersphere = spec.get("FN", False) or spec.get("WN", False)
    he = (spec["FN"], spec["WN"], spec["s_HE"]) if hypersphere else ()
    model = build_model(spec["arch"], 1000, *he).double()
    load_weights(model, weights(model))
    model.train().to(memory_format=torch.channels_last)
    settings = TrainingSettings(
        eps=spec.get("clip_eps", 4) / 255,
        step=spec["fgsm_step"] / 255,
        scaled_margin=spec["s_HE"] * spec["angular_margin_HE"] if hypersphere else 0.0,
    )
    train = {"lr": spec.get("lr", 0.1), "weight_decay": spec.get("weight_decay", 1e-4)}
    config = merge({"TRAIN": {**train, "bn_weight_decay": bn_weight_decay}})
    noise = make_noise(spec["batch_size"], spec["crop_size"], "cpu", torch.float64)
    return Trainer(model, make_optimizer(model, config, "cpu"), noise, settings)


@pytest.fixture(scope="module")
def replayed(trace: dict) -> tuple[Trainer, list[float]]:
    """The trace's training through the suite's free step; the trainer and the losses."""
    spec = trace["spec"]
    trainer = golden_trainer(spec)
    losses = []
    for j, n in enumerate(spec["batches"]):
        images, labels = minibatch(j, n, spec["crop_size"])
        for _ in range(spec["n_repeats"]):
            losses.append(free_step(trainer, images, labels)[0].item())
    return trainer, losses


def figures(tensor: torch.Tensor) -> list[float]:
    """Sum, l2 norm and the first six values, as recorded."""
    flat = tensor.detach().contiguous().flatten()
    return [flat.sum().item(), flat.norm().item(), *flat[:6].tolist()]


def recorded(entry: dict) -> list[float]:
    return [entry["sum"], entry["l2"], *entry["first"]]


def close(recorded_values: list[float]) -> object:
    """Relative 1e-9; sums that cancel to nothing are compared on the scale of their terms."""
    return pytest.approx(recorded_values, rel=TOLERANCE, abs=1e-13)


def test_training_losses(trace: dict, replayed: tuple[Trainer, list[float]]) -> None:
    assert replayed[1] == close(trace["train_losses"])


def test_noise(trace: dict, replayed: tuple[Trainer, list[float]]) -> None:
    noise = replayed[0].noise
    assert figures(noise) == close(recorded(trace["noise"]))
    # A buffer clamped by other arithmetic than the recorder's may miss the bound by one rounding.
    at_bounds = [((noise - bound).abs() < 1e-12).double().mean().item() for bound in (EPS, -EPS)]
    assert at_bounds == close(trace["noise_at_bounds"])


@pytest.mark.parametrize("kind", ["params", "buffers"])
def test_weights_and_statistics(
    trace: dict, replayed: tuple[Trainer, list[float]], kind: str
) -> None:
    state = replayed[0].model.state_dict()
    assert trace[kind]
    for key, entry in trace[kind].items():
        assert figures(state[key]) == close(recorded(entry)), key


def test_clean_outputs(trace: dict, replayed: tuple[Trainer, list[float]]) -> None:
    model = replayed[0].model
    images, labels = minibatch(77, 6, trace["spec"]["crop_size"])
    with torch.no_grad(), attacking(model):
        outputs, logits = model.outputs(images), model(images)
    assert F.cross_entropy(outputs, labels).item() == close(trace["clean_eval_loss"])
    assert outputs[0, :6].tolist() == close(trace["clean_logits_first"])
    hypersphere = trace["spec"]["FN"] or trace["spec"]["WN"]
    assert torch.equal(logits, outputs * (trace["spec"]["s_HE"] if hypersphere else 1.0))


@pytest.mark.parametrize(
    ("key", "ball_around_start"), [("pgd_freeat_losses", False), ("pgd_paper_losses", True)]
)
def test_pgd(
    trace: dict,
    replayed: tuple[Trainer, list[float]],
    key: str,
    ball_around_start: bool,
) -> None:
    model = replayed[0].model
    images, labels = minibatch(77, 6, trace["spec"]["crop_size"])
    losses = []

    def loss_of(outputs: torch.Tensor) -> float:
        return F.cross_entropy(outputs, labels).item()

    outputs_of: Callable = model.outputs  # recorded on the raw outputs, cosines with HE
    with attacking(model):
        for adversarial, _, outputs in pgd(
            outputs_of,
            images,
            labels,
            start(images, EPS),
            steps=PGD_STEPS,
            step_size=PGD_STEP,
            eps=EPS,
            ball_around_start=ball_around_start,
        ):
            losses.append(loss_of(outputs))
        losses.append(loss_of(outputs_of(adversarial)))
    assert losses == close(trace[key])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("fast*.json")), ids=lambda path: path.stem)
def test_fast_adversarial_training(path: Path) -> None:
    trace = json.loads(path.read_text())
    spec = trace["spec"]
    trainer = golden_trainer(spec, bn_weight_decay=False)
    schedule = Schedule("linear", 0.1, epochs=spec["lr_epochs"], values=spec["lr_values"])
    rates, ascents, losses = [], [], []
    criterion = trainer.loss

    def noted(*arguments: object) -> object:
        result = criterion(*arguments)
        ascents.append(result[0].item())
        return result

    trainer.loss = noted
    for j, n in enumerate(spec["batches"]):
        images, labels = minibatch(j, n, spec["crop_size"])
        trainer.noise.copy_(drawn_noise(trainer.noise, j, trainer.settings.eps))
        for replay in range(spec["n_repeats"]):
            share = (j * spec["n_repeats"] + replay + 1) / len(spec["batches"])
            rates.append(schedule(spec["epoch"], share))
            for group in trainer.optimizer.param_groups:
                group["lr"] = rates[-1]
            losses.append(fast_step(trainer, images, labels)[0].item())
    assert rates == close(trace["learning_rates"])
    assert ascents[::2] == close(trace["ascend_losses"])
    assert losses == close(trace["train_losses"])
    assert figures(trainer.noise) == close(recorded(trace["noise"]))
    state = trainer.model.state_dict()
    for key, entry in {**trace["params"], **trace["buffers"]}.items():
        assert figures(state[key]) == close(recorded(entry)), key
