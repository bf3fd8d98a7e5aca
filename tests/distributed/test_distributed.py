"""Several processes: the same noise, weights and counts as one; torchrun on one machine and two."""

import json
import os
import re
import shutil
import signal
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, settings
from PIL import Image
from processes import (
    Done,
    children_of,
    differences,
    forked,
    free_port,
    gang,
    image_of_rank_1,
    launched,
    outcome,
    rows_of,
    the_run,
    until,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lib.algorithm.metrics import MetricSums
from lib.algorithm.pgd import frozen_eval
from lib.algorithm.protocols import METHODS
from lib.algorithm.training import (
    TRAINING_STEP,
    Perturbed,
    Trainer,
    TrainingSettings,
    draw_noise_,
    make_noise,
)
from lib.data.datasets import (
    DistributedBatchSampler,
    ImageBatches,
    eval_transform,
    train_transform,
)
from lib.data.folders import read_split
from lib.data.loader import Loader, on_device, to_device
from models.resnet import ResNet
from tests.ddp_steps import train_two_steps
from utils.config.load import merge
from utils.config.settings import Config
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext

pytestmark = pytest.mark.slow

ALONE = DistributedContext(0, 1, torch.device("cpu"))


# What processes say to each other


def test_a_share_that_is_the_whole_is_copied() -> None:
    share = torch.arange(3)
    assert ALONE.gather_strided(share).data_ptr() != share.data_ptr()


# Training: the noise belongs to the position in the global batch


class SteadyNetwork(nn.Sequential):
    """A network whose batch-norm stays in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for module in self:
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def steady_network() -> nn.Module:
    torch.manual_seed(3)
    return SteadyNetwork(
        nn.Conv2d(3, 6, 5, stride=3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).double()


def train_steadily(
    context: DistributedContext, data: str, images: int, batch: int, name: str
) -> dict[str, Any]:
    """Two passes of a training method in float64 over the first images of a data set."""
    tree = read_split(data, "train").subset(range(images))
    model = steady_network().train()
    network = DistributedDataParallel(Perturbed(model)) if context.world_size > 1 else None
    noise = make_noise(batch // context.world_size, 24, "cpu", torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    settings = TrainingSettings(eps=16 / 255, step=5 / 255, attack_steps=2)
    trainer = Trainer(model, optimizer, noise, settings, network)
    order = DistributedBatchSampler(images, batch, context.rank, context.world_size, seed=1)
    loader = Loader(ImageBatches([tree], train_transform(24), 24, 1), order, 0, context.device)
    seen, sums = [], MetricSums("cpu")
    for epoch in range(2):
        order.set_position(epoch)
        for number, (x, labels, _) in enumerate(on_device(loader, context.device)):
            weight = order.weight(number)
            if METHODS[name].draws_noise:
                draw_noise_(noise, settings.eps, (1, epoch, number), order.positions())
            for _ in range(2):
                loss, logits = TRAINING_STEP[name](trainer, x.double(), labels, weight)
                if weight:
                    sums.update(loss, logits, labels, len(x))
            seen.append(context.gather_strided(noise))
    return {
        "weights": {key: value.numpy() for key, value in model.state_dict().items()},
        "noise": [None if tensor is None else tensor.numpy() for tensor in seen],
        "sums": context.sum(sums.totals()),
    }


# 61 = 5 * 12 + 1: the last minibatch has fewer images than processes. 64 = 5 * 12 + 4: it does not
# divide by three.
@pytest.mark.parametrize(
    ("count", "images", "method"),
    [(3, 61, "free"), (3, 64, "free"), (2, 61, "fast"), (3, 61, "pgd")],
)
def test_many_processes_train_like_one(
    count: int, images: int, method: str, digits: Path, tmp_path: Path
) -> None:
    """The same noise after every minibatch, the same weights and sums, to float64 rounding."""
    alone = train_steadily(ALONE, str(digits), images, 12, method)
    found = gang(count, train_steadily, str(digits), images, 12, method, folder=tmp_path)
    assert len(alone["noise"]) == 2 * 6
    for noise, expected in zip(found[0]["noise"], alone["noise"], strict=True):
        assert (noise == expected).all()
    assert 15 / 255 <= abs(alone["noise"][-1]).max() <= 16 / 255
    for other in found:
        assert other["sums"][1:] == alone["sums"][1:]  # top-1, top-5, images: twice each
        assert other["sums"][3] == 2 * 2 * images
        assert other["sums"][0] == pytest.approx(alone["sums"][0], rel=1e-12)
        for key, value in alone["weights"].items():
            assert other["weights"][key] == pytest.approx(value, rel=1e-10, abs=1e-13), key


def train_without_inductor(context: DistributedContext, config: Config) -> dict[str, Any]:
    """DDP matters to the front ends of torch.compile alone; kernels take long to build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
        return train_two_steps(context, config)


@pytest.mark.parametrize(
    "change", [{}, {"precision": "bf16"}, {"compile": True}, {"compile": REDUCE_OVERHEAD}], ids=str
)
def test_two_processes_train_like_one_in_ddp(change: dict[str, Any], tmp_path: Path) -> None:
    arch = "resnet18" if "compile" in change else "resnet50"
    train = {"lr": 1e-3, "arch": arch, **change}
    config = merge({"TRAIN": train})
    alone = train_two_steps(ALONE, merge({"TRAIN": {**train, "compile": False}}))
    found = gang(2, train_without_inductor, config, folder=tmp_path)
    for one in found:
        assert "strides do not match" not in one["said"]
        assert one["other strides"] == []
    low = config.TRAIN.precision == "bf16"
    for name, value in alone["weights"].items():
        assert (found[0]["weights"][name] == found[1]["weights"][name]).all(), name
        mine = found[0]["weights"][name]  # pytest.approx takes minutes for 25 million numbers
        np.testing.assert_allclose(mine, value, rtol=1e-3, atol=5e-3 if low else 1e-5, err_msg=name)


# The commands


@pytest.fixture(scope="module")
def knowing(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that knows the digits, so that its answers vary."""
    cwd = tmp_path_factory.mktemp("knowing")
    natural = settings(TRAIN__method="natural", TRAIN__epochs=8, ADV__n_repeats=1)
    with forked("main_free.py", digits, *natural, cwd=cwd) as running:
        assert running.end().status == 0
    return the_run(cwd) / "model_best.pth.tar"


@pytest.fixture(scope="module")
def corrupted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet-C's tree for two corruptions: 11 images in each folder, more or less noisy."""
    root = tmp_path_factory.mktemp("corrupted")
    generator = np.random.default_rng(0)
    for corruption, severity in product(("fog", "contrast"), range(1, 6)):
        for path in sorted(digits.glob("val/*/*"))[:33:3]:
            target = root / corruption / str(severity) / path.relative_to(digits / "val")
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.array(Image.open(path)) + generator.normal(0, 25 * severity, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)
    return root


def evaluation(count: int, checkpoint: Path, digits: Path, corrupted: Path, cwd: Path) -> Any:
    """Counts and outcomes by so many processes: clean, attacked, corrupted."""
    cwd.mkdir()
    path = shutil.copy(checkpoint, cwd)
    words = ["-e", "--eva_on_imagenet_c", "--corruptions", "fog,contrast", "--resume", path]
    changes = {"ADV__clip_eps": 1, "ADV__pgd_attack": "[[3, 1/510]]", "DATA__batch_size": 8}
    words += settings(**changes, DATA__imagenet=digits, DATA__imagenet_c=corrupted)
    done = launched(count, "evaluate.py", *words, cwd=cwd)
    assert [(one.status, one.err) for one in done] == [(0, "")] * count, done
    assert all(one.out == "" for one in done[1:])
    assert not list(cwd.glob("*.jsonl"))
    (attacked,), (corruptions,) = cwd.glob("attack_*.json"), cwd.glob("imagenet_c_*.json")
    attacks = json.loads(attacked.read_text())
    return (
        {key: attacks[key] for key in ("clean", "attacks", "worst_case")},
        rows_of(attacked.with_name(f"{attacked.stem}_images.csv")),
        json.loads(corruptions.read_text())["corruptions"],
    )


def test_evaluation_counts_the_same(
    knowing: Path, digits: Path, corrupted: Path, tmp_path: Path
) -> None:
    """36 and 11 images over 1 and 3 processes, in batches of 8 and 2 images."""
    (sums, rows, corruptions), (others, *rest) = (
        evaluation(count, knowing, digits, corrupted, tmp_path / str(count)) for count in (1, 3)
    )
    assert sums["clean"]["top1"]["n"] == len(rows) == 36
    assert sums["clean"]["top1"]["correct"] > sums["worst_case"]["top1"]["correct"] > 0
    assert len({entry["correct"] for entry in corruptions["fog"]["top1"]}) > 1
    assert [entry["n"] for entry in corruptions["fog"]["top1"]] == [11] * 5
    assert others["clean"].pop("loss") == pytest.approx(sums["clean"].pop("loss"), rel=1e-6)
    assert others == sums
    assert rest == [rows, corruptions]


TRAINING = settings(TRAIN__epochs=2, ADV__n_repeats=1)  # two passes of four minibatches
OFTEN = ("--set", "TRAIN.checkpoint_minutes=0.01")


@pytest.fixture(scope="module")
def by_two(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Done]]:
    """Where two processes have trained, with nothing happening, and what they said."""
    cwd = tmp_path_factory.mktemp("by_two")
    done = launched(2, "main_free.py", digits, *TRAINING, cwd=cwd)
    assert [one.status for one in done] == [0, 0], done
    return the_run(cwd), done


def test_ctrl_c_on_two_processes_and_going_on(
    digits: Path, by_two: tuple[Path, list[Done]], tmp_path: Path
) -> None:
    """--nproc 2; Ctrl-C in a terminal reaches every process, the reading ones, too."""
    words = [digits, "--resume", "auto", "--set", "DATA.workers=2", *TRAINING]
    with forked("main_free.py", *words, "--nproc", 2, cwd=tmp_path) as running:
        done = running.saw(r"epoch 1/2 \[1/4\]").send(signal.SIGINT, everyone=True).end()
    assert (done.status, done.err) == (130, "")
    assert done.out.count("stopped by SIGINT; saved. Resume with --resume auto") == 1
    assert "2 x cpu" in done.out

    done = launched(2, "main_free.py", *words, cwd=tmp_path)
    assert [(one.status, one.err) for one in done] == [(0, "")] * 2
    assert done[0].out.count("resumed") == 1
    assert differences(outcome(the_run(tmp_path)), outcome(by_two[0])) == []


def test_validation_is_of_the_network_that_is_saved(
    by_two: tuple[Path, list[Done]], digits: Path
) -> None:
    """Batch-norm's statistics differ among processes; all validate with the first one's."""
    folder, _ = by_two
    content = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    model = ResNet("resnet18", 4)
    model.load_state_dict(content["state_dict"])
    tree = read_split(str(digits), "val")
    images = ImageBatches([tree], eval_transform(32, 32), 32)
    batch = images.__getitems__((0, range(len(tree.files))))
    pixels, labels, _ = to_device(batch, torch.device("cpu"))
    with frozen_eval(model), torch.no_grad():
        logits = model(pixels)
    row = rows_of(folder / "metrics.csv")[-1]
    assert float(row["val_loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)
    right = (logits.argmax(1) == labels).float().mean()
    assert float(row["val_top1"]) == pytest.approx(100 * float(right))


def test_resuming_with_another_number_of_processes(digits: Path, tmp_path: Path) -> None:
    """One process begins, two go on."""
    words = [digits, "--resume", "auto", *TRAINING]
    with forked("main_free.py", *words, cwd=tmp_path) as running:
        assert running.saw(r"\[1/4\]").send(signal.SIGTERM).end().status == 143
    folder = the_run(tmp_path)
    first = torch.load(folder / "checkpoint.pth.tar", weights_only=True)["training"]
    assert first["noise"].any()

    done = launched(2, "main_free.py", *words, "--set", "DATA.workers=2", cwd=tmp_path)
    assert [one.status for one in done] == [0, 0], done
    assert f"epoch 1, minibatch {first['position']}\n" in done[0].out
    assert f"epoch 1/2 [{first['position']}/4]" not in done[0].out
    assert f"epoch 1/2 [{first['position'] + 1}/4]" in done[0].out
    totals = torch.load(folder / "checkpoint.pth.tar", weights_only=True)["training"]
    assert (totals["epoch"], totals["position"]) == (2, 0)
    assert len(totals["history"]) == 2


# Errors


@pytest.mark.parametrize(
    ("count", "more", "words"),
    [
        (3, [], "DATA.batch_size 16 is the batch over all processes and does not divide by 3"),
        (2, ["--nproc", 3], "--nproc 3: torchrun has started 2 processes"),
    ],
)
def test_what_is_refused_before_work_is_said_once(
    count: int, more: list, words: str, digits: Path, tmp_path: Path
) -> None:
    done = launched(count, "main_free.py", digits, *TRAINING, *more, cwd=tmp_path)
    assert [one.status for one in done] == [2] * count
    assert done[0].err.startswith(f"error: {words}")
    assert [one.err.count("\n") for one in done] == [1] + [0] * (count - 1)
    assert not (tmp_path / "trained_models").exists()


def test_machines_that_share_no_disk(
    digits: Path, by_two: tuple[Path, list[Done]], tmp_path: Path
) -> None:
    folder, _ = by_two
    empty = tmp_path / "other"
    empty.mkdir()
    words = [digits, *TRAINING, "--resume", "auto"]
    done = launched(2, "main_free.py", *words, cwd=[folder.parent.parent, empty])
    assert [one.status for one in done] == [2, 2]
    assert done[0].err == (
        "error: process 1 sees another checkpoint than process 0; all machines need the same"
        " files, on a shared disk\n"
    )
    assert done[1].err == ""


def test_an_image_that_only_one_process_reads(digits: Path, tmp_path: Path) -> None:
    """Its process says so; the other one says no more than that it has lost it."""
    data = tmp_path / "digits"
    shutil.copytree(digits, data)
    bad = image_of_rank_1(data, minibatch=2)
    bad.write_bytes(bad.read_bytes()[:60])
    words = [data, *TRAINING, "--set", "DATA.workers=2"]
    done = launched(2, "main_free.py", *words, cwd=tmp_path)
    assert done[1].status == 2
    assert done[1].err.startswith(f"error: cannot read {bad}: ")
    assert done[1].err.count("\n") == 1
    assert done[0].status == 1
    assert done[0].err == "error: another process has ended, or its machine cannot be reached\n"
    assert "[2/4]" in done[0].out
    assert "[3/4]" not in done[0].out


# torchrun


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_torchrun_on_two_machines_survives_a_killed_worker(
    digits: Path, by_two: tuple[Path, list[Done]], tmp_path: Path
) -> None:
    """Two agents that meet over a port, each with a process; --max-restarts and --resume auto.

    The outcome is that of a training that nothing happened to.
    """
    words = ["--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 2, "--rdzv-id", "job"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    words += [ROOT / "main_free.py", digits, "--resume", "auto", *TRAINING, *OFTEN]
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (
        forked("torch.distributed.run", *words, cwd=tmp_path, **own_store) as one,
        forked("torch.distributed.run", *words, cwd=tmp_path, **own_store) as other,
    ):
        saved = "trained_models/*/checkpoint.pth.tar"
        until(lambda: any(tmp_path.glob(saved)), one, "a checkpoint")
        os.kill(children_of(one.pid)[-1], signal.SIGKILL)
        done = [one.end(), other.end()]
    assert [d.status for d in done] == [0, 0], done
    out = "".join(d.out for d in done)  # either may get rank 0
    assert "nothing to resume" in out
    assert len(re.findall("resumed .*checkpoint.pth.tar: epoch", out)) == 1
    assert len(re.findall("epoch 2/2: train loss", out)) == 1
    assert "Traceback" not in done[0].err + done[1].err
    assert differences(outcome(the_run(tmp_path)), outcome(by_two[0])) == []
