"""TRAIN.compile and EVAL.compile: when, for which batches, and what if it fails.

CUDA graphs are not to be had everywhere, so their rules stand in for them: a call overwrites the
outputs and the gradients of the call before, and knows parameters by their addresses.
"""

from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import copy_run, settings
from in_process import call, only_error
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.algorithm.gradient_norms import GradientNorms
from lib.algorithm.metrics import MetricSums
from lib.algorithm.protocols import METHODS
from lib.algorithm.training import (
    TRAINING_STEP,
    Trainer,
    TrainingSettings,
    make_noise,
    update_noise_,
)
from lib.evaluation.evaluate import Evaluation
from lib.training.setup import make_networks, make_optimizer, mode_of_run, rehearse
from models.resnet import ResNet
from utils import compiling
from utils.compiling import PADDED_SIZES, WORTHWHILE, compile_mode, compiled_for, compiles
from utils.config.load import merge
from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext
from utils.logging import Logger
from utils.storage.checkpoint import Checkpoint, read_checkpoint

SIZE, BATCH = 32, 4
ALONE = DistributedContext(0, 1, torch.device("cpu"))
ON_CUDA = DistributedContext(0, 1, torch.device("cuda"))


class Graphs:
    """A network whose calls share memory, as the CUDA graphs of torch.compile do."""

    def __init__(self, network: torch.nn.Module, **how: Any) -> None:
        assert how == {"mode": REDUCE_OVERHEAD, "dynamic": False}
        self.network = network
        self.handed_out: list[torch.Tensor] = []
        self.calls = self.steps_begun = 0
        self.addresses = self.find_addresses()
        for parameter in filter(attrgetter("requires_grad"), network.parameters()):
            parameter.register_post_accumulate_grad_hook(lambda p: self.hand_out(p.grad))

    def find_addresses(self) -> list[int]:
        tensors = (*self.network.parameters(), *self.network.buffers())
        return [tensor.data_ptr() for tensor in tensors]

    def hand_out(self, tensor: torch.Tensor | None) -> None:
        assert tensor is not None
        self.handed_out.append(tensor)

    def __call__(self, x: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        assert self.steps_begun == self.calls, "a call without cudagraph_mark_step_begin"
        assert self.find_addresses() == self.addresses
        for tensor in self.handed_out:
            tensor.detach().fill_(torch.nan)
        self.handed_out.clear()
        given = [x.view_as(x) for x in (x, *noise)]  # whose gradients are the graph's
        for tensor in filter(attrgetter("requires_grad"), given):
            tensor.register_hook(lambda gradient: self.hand_out(gradient))
        logits: torch.Tensor = self.network(*given)
        self.hand_out(logits)
        return logits


def make_trainer(mode: bool | str, precision: str = "fp32") -> Trainer:
    torch.manual_seed(0)
    model = ResNet("resnet18", 4, True, True, 10.0).train()
    config = merge({"TRAIN": {"lr": 0.01, "precision": precision}})
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    return Trainer(
        model,
        make_optimizer(model, config, "cpu"),
        make_noise(BATCH, SIZE, "cpu"),
        TrainingSettings(0.1, 0.05, 2.0, precision, attack_steps=2),
        *make_networks(model, mode, BATCH, ALONE),
        average,
    )


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert trainer.average is not None
    kept = {"noise": trainer.noise, **trainer.average.state_dict()}
    momentum = trainer.optimizer.state_dict()["state"]
    kept |= {f"momentum {key}": state["momentum_buffer"] for key, state in momentum.items()}
    return {**kept, **trainer.model.state_dict(prefix="own.")}


def train(mode: bool | str, method: str, precision: str) -> dict[str, torch.Tensor]:
    """Two whole minibatches, a partial one, a whole one: all that a training keeps of them."""
    trainer = make_trainer(mode, precision)
    norms = GradientNorms(trainer, lambda _: None)
    sums = MetricSums("cpu")
    images, labels = torch.rand(BATCH, 3, SIZE, SIZE), torch.arange(BATCH)
    for n in (BATCH, BATCH, BATCH - 1, BATCH):
        hook = partial(norms.sample, images[:n], labels[:n], 1.0)
        loss, logits = TRAINING_STEP[method](trainer, images[:n], labels[:n], 1.0, hook)
        sums.update(loss, logits, labels[:n], n)
    return {"norms": norms.sums, "sums": torch.tensor(sums.totals()), **state_of(trainer)}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graphs]:
    """What is compiled from here on."""
    made: list[Graphs] = []

    def compile_(network: Any, **how: Any) -> Any:
        if network is update_noise_:  # without graphs
            return network
        made.append(Graphs(network, **how))
        return made[-1]

    def begin_step() -> None:
        for graphs in made:
            graphs.steps_begun += 1

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin_step)
    return made


def test_what_a_search_is_given_stays(graphs: list[Graphs]) -> None:
    """CUDA graphs write the next outputs and gradients where they wrote these."""
    model, kept = ResNet("resnet18", 4).double().eval().requires_grad_(False), []
    network = compiled_for(model, [4, 32], ON_CUDA.device)
    for n in (3, 4, 32):
        x = torch.rand(n, 3, SIZE, SIZE, dtype=torch.float64)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        kept += [(x, logits, *torch.autograd.grad(logits.sum(), x)) for logits in [network(x)]]
    for x, logits, gradient in kept:
        torch.testing.assert_close(logits, model(x))
        torch.testing.assert_close(gradient, *torch.autograd.grad(model(x).sum(), x))
        assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert graphs[0].calls == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision"),
    [("free", "fp32"), ("free", "bf16"), ("fast", "fp32"), ("pgd", "fp32"), ("natural", "fp32")],
)
def test_no_step_reads_what_the_next_call_overwrites(
    method: str, precision: str, graphs: list[Graphs]
) -> None:
    expected = train(False, method, precision)
    found = train(REDUCE_OVERHEAD, method, precision)
    assert graphs[0].calls == 3 * {"fast": 2, "pgd": 3}.get(method, 1)  # the partial one is eager
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("setting", "context", "steps", "mode"),
    [
        ("auto", ON_CUDA, WORTHWHILE + 1, True),
        ("auto", ON_CUDA, WORTHWHILE, False),
        ("auto", ALONE, 10**9, False),
        (True, ALONE, 1, True),
        (False, ON_CUDA, 10**9, False),
        (REDUCE_OVERHEAD, ON_CUDA, 1, REDUCE_OVERHEAD),
    ],
)
def test_compiled_where_it_pays(
    setting: Any, context: DistributedContext, steps: int, mode: bool | str
) -> None:
    """Free replays and the steps of an attack count, and a resumed run stays as it was."""
    assert compile_mode(setting, context.device, steps) == mode
    config = merge({"TRAIN": {"compile": setting, "epochs": 4}})
    for saved, kept in ((None, mode), (True, True if setting == "auto" else mode)):
        resumed = (
            None if saved is None else Checkpoint("", {}, {"training": {"compiled": saved}}, {})
        )
        kept = mode if context is ALONE else kept
        assert mode_of_run(config, -(-steps // 4), resumed, context) == kept


@pytest.mark.parametrize("method", METHODS)
def test_a_rehearsal_leaves_no_trace(method: str) -> None:
    trainer = make_trainer(False)
    images = torch.rand(BATCH, 3, SIZE, SIZE)
    TRAINING_STEP[method](trainer, images, torch.arange(BATCH))
    before = {name: value.clone() for name, value in state_of(trainer).items()}
    random_state, seen = torch.get_rng_state(), []
    trainer.model.conv1.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    assert compiles(partial(rehearse, trainer, method), "", True, ALONE, Logger(False))
    assert set(seen) == {BATCH}
    assert len(seen) == {"fast": 2, "pgd": 3}.get(method, 1)
    after = state_of(trainer)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def broken(*_: Any, **__: Any) -> Any:
    def call(*_: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation\nand many more lines")

    return call


@pytest.fixture
def as_if_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` compiles on the CPU too, for short work."""

    def mode(setting: Any, *_: Any) -> Any:
        return True if setting == "auto" else setting

    monkeypatch.setattr("lib.training.setup.compile_mode", mode)
    monkeypatch.setattr("lib.evaluation.evaluate.compile_mode", mode)


def test_a_compiler_that_fails(
    trained: Path, digits: Path, here: Path, as_if_long: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under auto a warning, and the eager network's results; else an error in one line."""
    said = "failed (Cannot find a working triton installation)"
    monkeypatch.setattr(torch, "compile", broken)
    words = "--FN", "--WN", *settings(TRAIN__epochs=4, TRAIN__compile="auto")
    done = call("main_free.py", digits, *words)
    assert (done.status, done.err) == (0, "")
    assert done.out.count(said) == 2  # of the training, and of the attacks at its end
    (folder,) = (here / "trained_models").iterdir()
    states = [
        read_checkpoint(str(run / "checkpoint.pth.tar")).state_dict for run in (folder, trained)
    ]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    words = "-e", "--resume", folder / "model_best.pth.tar", "--attack", "pgd2", "--device", "cpu"
    done = call("evaluate.py", digits, *words, *settings(EVAL__compile="auto"))
    assert (done.status, done.out.count(said)) == (0, 1)
    for name, again in (("TRAIN", []), ("EVAL", words)):
        script = "evaluate.py" if again else "main_free.py"
        change = settings(**{f"{name}__compile": True})
        done = call(script, digits, *again, *change, *["--overwrite"] * (not again))
        assert only_error(done).endswith(f"{said}; set {name}.compile to false")


def test_compiled_searches_find_what_eager_ones_do(
    trained: Path, digits: Path, here: Path, short_autoattack: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of one size alone go to PGD's graph, and of a few sizes to AutoAttack's."""
    rows, compile_ = [], torch.compile
    layouts: dict[tuple[Any, int], set[Any]] = {}  # by network and size; another is a program more
    folder = copy_run(trained, here / "run")
    words = "-e", "--resume", folder / "model_best.pth.tar", "--attack", "pgd4,pgd4-margin-r2,apgd"

    def compile_once(network: Any, **how: Any) -> Any:
        compiled = compile_(network, backend="aot_eager", **how)

        def call(*given: Any) -> Any:
            if given[0].dim() == 4:
                layouts.setdefault((network, len(given[0])), set()).add(given[0].stride())
            return compiled(*given)

        return call

    monkeypatch.setattr(torch, "compile", compile_once)
    for mode in (False, True):
        change = settings(EVAL__compile=mode, EVAL__batch_size=8)
        assert call("evaluate.py", digits, *words, *change).status == 0
        table = max(folder.glob("attack*_images.csv"), key=lambda path: path.stat().st_mtime_ns)
        rows.append(table.read_text())
    assert rows[0] == rows[1]
    assert {size for _, size in layouts} <= {8, *PADDED_SIZES}
    assert [len(strides) for strides in layouts.values()] == [1] * len(layouts)
    assert len(layouts) > 1


def test_recorded_searches_find_what_eager_ones_do(
    trained: Path, digits: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, whole batches; a GPU that cannot record them is a warning."""
    folder, rows, sizes = copy_run(trained, here / "run"), [], set()
    evaluations: list[Evaluation] = []
    words = "-e", "--resume", folder / "model_best.pth.tar", "--attack", "pgd4", "--overwrite"

    def recorded(network: Any, given: Any) -> Any:
        assert not torch.is_autocast_enabled("cpu")  # which would hold for its backward pass, too
        return lambda x: (sizes.add(len(x)), network(x))[1]

    def compile_(self: Evaluation) -> None:
        evaluations.append(self)
        self.record()

    for make in (None, recorded, broken()):
        if make is not None:
            monkeypatch.setattr(Evaluation, "compile", compile_)
            monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
        change = settings(EVAL__precision="bf16", EVAL__batch_size=8)
        done = call("evaluate.py", digits, *words, *change)
        assert (done.status, "without CUDA graphs (Cannot" in done.out) == (0, len(rows) == 2)
        table = max(folder.glob("attack*_images.csv"), key=lambda path: path.stat().st_mtime_ns)
        rows.append(table.read_text())
    assert rows[0] == rows[1] == rows[2]
    assert sizes == {8}
    assert [evaluation.outputs for evaluation in evaluations] == [None, None]


@pytest.mark.parametrize("wrong", [lambda x: 0 * x + 0.5, lambda x: x.flip(0), torch.round])
def test_searches_that_follow_other_gradients(wrong: Any) -> None:
    """Nothing else would tell a search that finds little from a network that is robust."""
    model = ResNet("resnet18", 4).eval()
    x = torch.rand(8, 3, 32, 32)
    compiling.require_alike(model, model, x)
    compiling.require_alike(*2 * [lambda x: 0 * model(x)], x)  # a network without any
    with pytest.raises(RuntimeError, match="gradients are not"):
        compiling.require_alike(lambda x: model(wrong(x)), model, x)


def test_padding_changes_no_output_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda network, dynamic, mode: network)
    model = ResNet("resnet18", 4, True, True, 10.0).double().eval()
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    for count in (3, 32, 33):
        x = torch.rand(count, 3, 32, 32, dtype=torch.float64, requires_grad=True)
        found, expected = compiled_for(model, PADDED_SIZES, ALONE.device)(x), model(x)
        torch.testing.assert_close(found, expected)
        pair = (torch.autograd.grad(logits.square().sum(), x)[0] for logits in (found, expected))
        torch.testing.assert_close(*pair)
    assert sizes == [32, 3, 32, 32, 64, 33]
