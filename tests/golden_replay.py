"""The published code's traces in `tests/golden`, replayed by the suite on a device, in float64.

Their inputs are deterministic: exact integer arithmetic, nothing random.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lib.algorithm.pgd import Search, frozen_eval, pgd
from lib.algorithm.schedules import Schedule
from lib.algorithm.training import Trainer, TrainingSettings, fast_step, free_step, make_noise
from lib.training.setup import make_optimizer
from models.resnet import ResNet, load_weights
from utils.config.load import merge

GOLDEN = Path(__file__).parent / "golden"
TRACES = [path for name in ("freeat*", "fast*") for path in sorted(GOLDEN.glob(f"{name}.json"))]
TOLERANCE = 1e-9  # relative
SMALLEST = 1e-4  # sums that cancel to less are compared on the scale of their terms
EPS, PGD_STEP, PGD_STEPS = 4 / 255, 1 / 255, 5
Comparison = tuple[str, list[float], list[float]]  # what, found, recorded


def comparisons(path: Path, device: torch.device) -> Iterator[Comparison]:
    """Everything that a trace has recorded, beside what the suite computes."""
    trace = json.loads(path.read_text())
    replay = replay_fast if "learning_rates" in trace else replay_free
    yield from replay(trace, device)


def relative_error(found: list[float], recorded: list[float]) -> float:
    """The largest of the numbers' differences in relation to what was recorded."""
    pairs = zip(found, recorded, strict=True)
    errors = [abs(f - r) / max(abs(r), SMALLEST) for f, r in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def golden_trainer(spec: dict[str, Any], device: torch.device, **train: object) -> Trainer:
    """A trainer with the trace's network and settings."""
    hypersphere = spec.get("FN", False) or spec.get("WN", False)
    he = (spec["FN"], spec["WN"], spec["s_HE"]) if hypersphere else ()
    model = ResNet(spec["arch"], 1000, *he).double()
    load_weights(model, weights(model))
    model.train().to(device).to(memory_format=torch.channels_last)
    settings = TrainingSettings(
        eps=spec.get("clip_eps", 4) / 255,
        step=spec["fgsm_step"] / 255,
        scaled_margin=spec["s_HE"] * spec["angular_margin_HE"] if hypersphere else 0.0,
    )
    train |= {"lr": spec.get("lr", 0.1), "weight_decay": spec.get("weight_decay", 1e-4)}
    noise = make_noise(spec["batch_size"], spec["crop_size"], device, torch.float64)
    optimizer = make_optimizer(model, merge({"TRAIN": train}), device.type)
    return Trainer(model, optimizer, noise, settings)


def on(device: torch.device, *numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a minibatch (its number, images in it, their side)."""
    images, labels = minibatch(*numbers)
    return images.to(device), labels.to(device)


def replay_free(trace: dict[str, Any], device: torch.device) -> Iterator[Comparison]:
    """Free training, then clean outputs and the attacks of both published protocols."""
    spec = trace["spec"]
    trainer, losses = golden_trainer(spec, device), []
    for j, n in enumerate(spec["batches"]):
        images, labels = on(device, j, n, spec["crop_size"])
        for _ in range(spec["n_repeats"]):
            losses.append(free_step(trainer, images, labels)[0].item())
    yield "losses of free steps", losses, trace["train_losses"]
    yield from compare_state(trainer, trace)
    # A buffer clamped by other arithmetic than the recorder's may miss the bound by one rounding.
    bounds = [(trainer.noise - bound).abs() < 1e-12 for bound in (EPS, -EPS)]
    shares = [at.double().mean().item() for at in bounds]
    yield "noise at its bounds", shares, trace["noise_at_bounds"]

    model: Any = trainer.model
    images, labels = on(device, 77, 6, spec["crop_size"])
    with torch.no_grad(), frozen_eval(model):
        outputs, logits = model.outputs(images), model(images)
    scale = spec["s_HE"] if spec["FN"] or spec["WN"] else 1.0
    yield "clean loss", [F.cross_entropy(outputs, labels).item()], [trace["clean_eval_loss"]]
    yield "clean outputs", outputs[0, :6].tolist(), trace["clean_logits_first"]
    yield "logits", logits.flatten().tolist(), (outputs * scale).flatten().tolist()
    for protocol in ("freeat", "paper"):
        found = pgd_losses(model, images, labels, ball_around_start=protocol == "paper")
        yield f"losses of PGD, {protocol}", found, trace[f"pgd_{protocol}_losses"]


def pgd_losses(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, ball_around_start: bool
) -> list[float]:
    """At the start and at every iterate, on the raw outputs: cosines with HE."""
    outputs_of: Any = model.outputs
    with frozen_eval(model):
        steps = pgd(
            outputs_of,
            images,
            labels,
            start(images, EPS).to(images.device),
            Search(PGD_STEPS, PGD_STEP, EPS),
            ball_around_start,
        )
        found = [(step.adversarial, step.logits) for step in steps]
        outputs = [*(logits for _, logits in found), outputs_of(found[-1][0])]
    return [F.cross_entropy(each, labels).item() for each in outputs]


def replay_fast(trace: dict[str, Any], device: torch.device) -> Iterator[Comparison]:
    """Fast adversarial training."""
    spec = trace["spec"]
    trainer = golden_trainer(spec, device, bn_weight_decay=False)
    schedule = Schedule("linear", 0.1, epochs=spec["lr_epochs"], values=spec["lr_values"])
    rates: list[float] = []
    ascents: list[float] = []
    losses: list[float] = []
    trainer.loss = partial(noted, trainer.loss, ascents)  # type: ignore[method-assign]
    for j, n in enumerate(spec["batches"]):
        images, labels = on(device, j, n, spec["crop_size"])
        trainer.noise.copy_(drawn_noise(trainer.noise, j, trainer.settings.eps))
        for replay in range(spec["n_repeats"]):
            share = (j * spec["n_repeats"] + replay + 1) / len(spec["batches"])
            rates.append(schedule(spec["epoch"], share))
            for group in trainer.optimizer.param_groups:
                group["lr"] = rates[-1]
            losses.append(fast_step(trainer, images, labels)[0].item())
    yield "learning rates", rates, trace["learning_rates"]
    yield "losses of ascents", ascents[::2], trace["ascend_losses"]
    yield "losses of fast steps", losses, trace["train_losses"]
    yield from compare_state(trainer, trace)


def noted(
    criterion: Callable[..., Any], losses: list[float], *arguments: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """A trainer's loss, written down."""
    loss, logits = criterion(*arguments)
    losses.append(loss.item())
    return loss, logits


def compare_state(trainer: Trainer, trace: dict[str, Any]) -> Iterator[Comparison]:
    """Noise, parameters and statistics at the end of training."""
    state = trainer.model.state_dict()
    assert trace["params"]
    assert trace["buffers"]
    recorded = {"noise": trace["noise"], **trace["params"], **trace["buffers"]}
    for key, entry in recorded.items():
        tensor = trainer.noise if key == "noise" else state[key]
        yield key, summary(tensor), [entry["sum"], entry["l2"], *entry["first"]]


def summary(tensor: torch.Tensor) -> list[float]:
    """Sum, l2 norm and the first six values, as recorded."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return [flat.sum().item(), flat.norm().item(), *flat[:6].tolist()]


# Inputs


def unit(n: int, k: int) -> torch.Tensor:
    """n numbers in [0, 1), float64, of sequence k."""
    modulus = 2**32
    a = (torch.arange(n, dtype=torch.int64) + k * 1000003) % modulus
    a = (a * 2654435761) % modulus
    a = a ^ (a >> 15)
    a = (a * 2246822519) % modulus
    a = a ^ (a >> 13)
    return a.double() / modulus


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state_dict for a network, each key by its position in sorted order."""
    state = model.state_dict()
    return {key: weight(key, state[key], k) for k, key in enumerate(sorted(state))}


def weight(key: str, like: torch.Tensor, k: int) -> torch.Tensor:
    """One tensor of the state_dict."""
    spread = 2 * unit(like.numel(), k).view(like.shape) - 1
    if like.dim() == 4:
        out_channels, _, height, width = like.shape
        return spread * math.sqrt(3) * math.sqrt(2 / (out_channels * height * width))
    if like.dim() == 2:
        return spread / math.sqrt(like.shape[1])
    is_one = key.endswith("running_var") or (like.dim() == 1 and key.endswith(".weight"))
    return torch.ones_like(like) if is_one else torch.zeros_like(like)


def minibatch(j: int, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, size, size) in [0, 1] and labels (n,) of 1000 classes."""
    images = unit(n * 3 * size * size, 1000 + j).view(n, 3, size, size)
    return images, (unit(n, 2000 + j) * 1000).long()


def start(like: torch.Tensor, eps: float) -> torch.Tensor:
    """The random start of PGD in [-eps, eps)."""
    return (2 * unit(like.numel(), 3000).view(like.shape) - 1) * eps


def drawn_noise(like: torch.Tensor, j: int, eps: float) -> torch.Tensor:
    """What fast adversarial training draws for minibatch j, in [-eps, eps)."""
    return (2 * unit(like.numel(), 4000 + j).view(like.shape) - 1) * eps
