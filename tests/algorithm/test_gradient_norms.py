"""Gradient norms against ones computed by hand, and that measuring them leaves no trace."""

import copy
import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import gang
from test_free_training import trainer_of
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lib.algorithm.gradient_norms import HEADER, GradientNorms, layers_of, mean_and_std
from lib.algorithm.training import Perturbed, Trainer, free_step
from lib.training.epoch_end import write_gradient_norms
from models.resnet import ResNet
from utils.distributed import context as distributed

NOBODY = distributed.DistributedContext(0, 1, torch.device("cpu"))


def minibatch(batch: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (batch,), generator=generator)


def norms_by_hand(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, margin: float
) -> dict[str, float]:
    """l2 norm of every parameter's gradient at x, on a copy in training mode."""
    model = copy.deepcopy(model).train()
    logits = model(x)
    loss = F.cross_entropy(logits - margin * F.one_hot(labels, logits.shape[1]), labels)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return {n: math.sqrt(float((g**2).sum())) for n, g in zip(names, gradients, strict=True)}


def measured_step(
    trainer: Trainer,
    norms: GradientNorms,
    images: torch.Tensor,
    labels: torch.Tensor,
    weight: float = 1.0,
) -> torch.Tensor:
    hook = partial(norms.sample, images, labels, weight)
    return free_step(trainer, images, labels, weight, hook)[0]


def summary(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


@pytest.mark.parametrize("hypersphere", [False, True])
def test_norms_are_those_computed_by_hand(hypersphere: bool) -> None:
    """Every replay: both gradients at the parameters before the update, in training mode."""
    trainer = trainer_of(hypersphere)
    model, margin = trainer.model, trainer.settings.scaled_margin
    norms = GradientNorms(trainer, NOBODY.average_)
    expected: dict[str, list[list[float]]] = {n: [[], []] for n, _ in model.named_parameters()}
    for seed in (1, 2):
        images, labels = minibatch(5, seed)
        for _ in range(2):
            adversarial = (images + trainer.noise[:5]).clamp(0, 1)
            pair = [norms_by_hand(model, x, labels, margin) for x in (images, adversarial)]
            for name in expected:
                for column, one in zip(expected[name], pair, strict=True):
                    column.append(one[name])
            measured_step(trainer, norms, images, labels)
    rows = [dict(zip(HEADER, row, strict=True)) for row in norms.rows(7)]
    assert [row["parameter"] for row in rows[:-3]] == list(expected)
    for row in rows[:-3]:
        clean, adversarial = (summary(values) for values in expected[row["parameter"]])
        found = row["clean_mean"], row["clean_std"], row["adversarial_mean"]
        assert found == pytest.approx((*clean, adversarial[0]), rel=1e-9, abs=1e-12)
        assert row["adversarial_std"] == pytest.approx(adversarial[1], rel=1e-6, abs=1e-9)
        if row["parameter"] != "conv.bias":  # zero but for rounding, ahead of a batch-norm
            assert row["ratio"] == pytest.approx(adversarial[0] / clean[0], rel=1e-9)
        assert (row["epoch"], row["samples"]) == (7, 4)
    check_groups(rows, expected)
    assert norms.rows(8) == []  # an epoch begins with nothing


def check_groups(rows: list[dict], expected: dict[str, list[list[float]]]) -> None:
    """The last three rows hold the norm of each group's gradients as one vector."""
    for row in rows[-3:]:
        assert row["parameter"] == "all"
        members = [r["parameter"] for r in rows[:-3] if r["group"] == row["group"]]
        columns = zip(*(expected[name][1] for name in members), strict=True)
        whole = [math.sqrt(math.fsum(v * v for v in column)) for column in columns]
        assert row["adversarial_mean"] == pytest.approx(summary(whole)[0], rel=1e-9)


def test_measuring_leaves_no_trace() -> None:
    """Weights, statistics, momentum, noise and gradients are those of a training without it."""
    trainers = [trainer_of() for _ in range(2)]
    norms = GradientNorms(trainers[0], NOBODY.average_)
    for seed in range(4):
        images, labels = minibatch(5, seed=seed)
        losses = [
            measured_step(trainers[0], norms, images, labels),
            free_step(trainers[1], images, labels)[0],
        ]
        gradients = [torch.cat([p.grad.flatten() for p in t.model.parameters()]) for t in trainers]
        assert torch.equal(*losses)
        assert torch.equal(*gradients)
    states = [trainer.model.state_dict() for trainer in trainers]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(trainers[0].noise, trainers[1].noise)
    assert states[0]["bn.num_batches_tracked"] == 4  # and not twice as many


def test_every_parameter_of_a_resnet_is_there() -> None:
    model = ResNet("resnet50", 4)
    found = layers_of(model)
    assert [name for name, _, _ in found] == [name for name, _ in model.named_parameters()]
    groups = {name: group for name, group, _ in found}
    assert groups["conv1.weight"] == groups["layer2.0.downsample.0.weight"] == "conv"
    assert groups["bn1.weight"] == groups["layer2.0.downsample.1.bias"] == "bn"
    assert groups["fc.weight"] == groups["fc.bias"] == "fc"
    depths = {name: depth for name, _, depth in found}
    assert (depths["conv1.weight"], depths["bn1.weight"]) == (0, 1)
    assert max(depths.values()) == depths["fc.weight"] == 53 + 53  # 53 convolutions, 53 norms


def test_rows_of_an_interrupted_epoch_give_way(tmp_path: Path) -> None:
    path = tmp_path / "gradient_norms.csv"

    def rows(epoch: int, mean: float) -> list[list]:
        return [[epoch, "conv.weight", "conv", 0, mean, 0.0, mean, 0.0, 1.0, 4]]

    for epoch, mean in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 5.0)):
        write_gradient_norms(path, epoch, rows(epoch, mean))
    with open(path, newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["epoch"], row["clean_mean"]) for row in found] == [("1", "1.0"), ("2", "5.0")]


def test_mean_and_std_never_below_zero() -> None:
    values = [0.1] * 3
    mean, std = mean_and_std(sum(values), sum(v * v for v in values), 3)
    assert mean == pytest.approx(0.1)
    assert std == pytest.approx(0, abs=1e-8)


def test_a_step_that_overflows_is_no_sample(tmp_path: Path) -> None:
    """fp16's scaler finds its scale by overflowing; those steps change nothing, nor do they count.

    The clean gradient is scaled like the adversarial one, and both are measured unscaled.
    """
    trainer = trainer_of()
    model = trainer.model.float()
    trainer.noise = trainer.noise.float()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, backoff_factor=2.0**-110)
    norms = GradientNorms(trainer, NOBODY.average_)
    images, labels = minibatch(5)
    measured_step(trainer, norms, images.float(), labels, 1e6)  # beyond float32
    assert norms.rows(1) == []
    trainer.noise.zero_()
    expected = norms_by_hand(model, images.float(), labels, 0.0)
    measured_step(trainer, norms, images.float(), labels)
    rows = [dict(zip(HEADER, row, strict=True)) for row in norms.rows(1)]
    assert {row["samples"] for row in rows} == {1}
    for row in rows[:-3]:
        if row["parameter"] != "conv.bias":  # zero but for rounding, ahead of a batch-norm
            assert row["clean_mean"] == pytest.approx(expected[row["parameter"]], rel=1e-5)
            assert row["ratio"] == pytest.approx(1.0, rel=1e-5)


# Two processes


def share_of_a_batch(context: distributed.DistributedContext) -> list[list]:
    """Rows after two replays of this process's share of five images."""
    trainer = trainer_of()
    trainer.noise.zero_()
    trainer.model.bn.eval()  # statistics of the share would be another loss
    images, labels = minibatch(5)
    mine = images[context.rank :: context.world_size], labels[context.rank :: context.world_size]
    if context.world_size == 2:
        trainer.network = DistributedDataParallel(Perturbed(trainer.model))
    norms = GradientNorms(trainer, context.average_)
    for _ in range(2):
        measured_step(trainer, norms, *mine, len(mine[0]) * context.world_size / 5)
    return norms.rows(1)


@pytest.mark.slow
def test_two_processes_average_the_gradients_before_the_norm(tmp_path: Path) -> None:
    rows = gang(2, share_of_a_batch, folder=tmp_path)
    assert rows[0] == rows[1]
    alone = share_of_a_batch(NOBODY)
    assert [row[:4] for row in rows[0]] == [row[:4] for row in alone]
    for row, other in zip(rows[0], alone, strict=True):
        mean = [HEADER.index("clean_mean"), HEADER.index("adversarial_mean")]
        assert [row[i] for i in mean] == pytest.approx([other[i] for i in mean], rel=1e-12)
        assert row[-1] == 2
