"""What `models/eval_norm.py` and `models/stem.py` do, on the CPU against PyTorch's own."""

from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from lib.algorithm.pgd import frozen_eval
from models import eval_norm, stem
from models.cpu_kernels import blockwise
from models.resnet import ResNet
from tests.pretended_device import DEVICE, pretended_device


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_norm, "pays", lambda x: True)
    monkeypatch.setattr(stem, "by_own_backward", lambda x: True)


def pixels(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(shape, dtype=dtype).to(memory_format=torch.channels_last)


def gradients(forward: Callable, x: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = forward(x)
    weighting = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y)  # NCHW
    return [y.detach(), *torch.autograd.grad((y * weighting).sum(), [x, *others])]


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.bfloat16, None)])
def test_batch_norm(as_on_cuda: None, dtype: torch.dtype, bound: float | None) -> None:
    norm, x = nn.BatchNorm2d(16).eval().requires_grad_(False), pixels(8, 16, 7, 6, dtype=dtype)
    for n, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        tensor.copy_(torch.linspace(0.1, 1 + n, 16))
    exact = gradients(norm.double(), x.double())[1]
    norm = norm if dtype == torch.float64 else norm.float()
    expected = gradients(norm, x)
    with eval_norm.cheap_backward(norm):
        found = gradients(norm, x)
    assert torch.equal(found[0], expected[0])
    assert error(found[1], exact) <= (bound or error(expected[1], exact))
    assert found[1].stride() == x.stride()


@pytest.mark.parametrize("make", [get_model, timm.create_model])
def test_a_frozen_network_uses_it(
    as_on_cuda: None, make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make("densenet121", num_classes=3).double().eval()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    x, keys, hooked, calls = pixels(2, 3, 64, 64), list(network.state_dict()), [], []
    expected, apply = gradients(network, x), eval_norm.EvalBatchNorm.apply
    counted = staticmethod(lambda *arguments: (calls.append(1), apply(*arguments))[1])
    monkeypatch.setattr(eval_norm.EvalBatchNorm, "apply", counted)
    norms[0].register_forward_hook(lambda *_: hooked.append(1))
    with frozen_eval(network), frozen_eval(network):
        found = gradients(network, x)
        assert list(network.state_dict()) == keys
        norms[1].weight.requires_grad_()
        gradients(network, x, norms[1].weight)
    gradients(network, x, norms[0].weight)
    assert torch.equal(found[0], expected[0])
    assert error(found[1], expected[1]) <= 1e-12
    assert (len(calls), len(hooked)) == (2 * len(norms) - 1, 3)
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("size", [32, 33, 57])
def test_stem_in_float64(size: int) -> None:
    x, weight = pixels(2, 3, size, size + 3), pixels(8, 3, 7, 7).requires_grad_()
    expected = gradients(partial(F.conv2d, weight=weight, stride=2, padding=3), x, weight)
    found = gradients(lambda x: stem.Stem.apply(x, weight), x, weight)
    assert torch.equal(found[0], expected[0])
    assert error(found[1], expected[1]) <= 1e-13
    assert torch.equal(found[2], expected[2])
    assert [tensor.stride() for tensor in found[1:]] == [x.stride(), weight.stride()]
    by_blocks = gradients(lambda x: blockwise(x, weight), x, weight)  # the CPU's form
    assert max(map(error, by_blocks, expected)) <= 1e-12


def test_stem_under_autocast_errs_no_more_than_pytorch(as_on_cuda: None) -> None:
    conv, x = ResNet("resnet18", 3).conv1, pixels(4, 3, 64, 64, dtype=torch.float32)
    convolution = partial(F.conv2d, weight=conv.weight, stride=2, padding=3)
    exact = gradients(convolution, x)
    with torch.autocast("cpu", torch.bfloat16):
        own, theirs = (gradients(f, x, conv.weight) for f in (conv, convolution))
    assert [tensor.dtype for tensor in own] == [torch.bfloat16, torch.float32, torch.float32]
    assert error(own[1], exact[1]) <= 1.02 * error(theirs[1], exact[1])


def test_conv1_is_called_and_may_be_replaced() -> None:
    model, x = ResNet("resnet18", 3).eval(), pixels(1, 3, 32, 32, dtype=torch.float32)
    for conv in (model.conv1, nn.Conv2d(3, 64, 3, padding=1)):  # CIFAR's
        model.conv1, outputs = conv, []
        conv.register_forward_hook(lambda _, __, y, outputs=outputs: outputs.append(y))
        model(x)
        expected = F.conv2d(model.normalised(x), conv.weight, conv.bias, conv.stride, conv.padding)
        torch.testing.assert_close(outputs[0], expected)


@pytest.mark.parametrize("on_cuda", [False, True])
def test_exports_and_graphs(monkeypatch: pytest.MonkeyPatch, on_cuda: bool) -> None:
    monkeypatch.setattr(stem, "by_own_backward", lambda x: on_cuda)
    model, x = ResNet("resnet50", 5, True, True, 10.0).eval(), pixels(2, 3, 64, 64).float()
    programs = [torch.export.export(model, (x,)).module(), torch.fx.symbolic_trace(model)]
    for program in (*programs, torch.jit.trace(model, x)):  # which ONNX's older export takes
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)
    assert create_feature_extractor(model, ["layer4"])(x)["layer4"].shape == (2, 2048, 2, 2)


def test_torch_func_and_a_pretended_device(as_on_cuda: None) -> None:
    model, x = ResNet("resnet18", 3).double(), pixels(2, 3, 33, 33)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x if x.dim() == 4 else x[None]).square()[:, 1].sum()

    with frozen_eval(model):
        grad = torch.func.grad(loss)
        expected = gradients(lambda x: loss(x).view(1), x)[1] / -1
        assert error(grad(x), expected) <= 1e-12
        assert error(torch.func.vmap(grad)(x), expected) <= 1e-12
        assert torch.func.grad(lambda x: grad(x).square().sum())(x).abs().max() > 0
    with pretended_device() as device, frozen_eval(model.to(DEVICE)):
        images = x.to(DEVICE, non_blocking=True).requires_grad_()
        (found,), waits = device.counted(lambda: torch.autograd.grad(loss(images), images))
        assert waits == []
        assert error(found.cpu(), expected) <= 1e-12
        assert found.stride() == x.stride()


def test_dynamo_traces_them(as_on_cuda: None) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, x = ResNet("resnet18", 3), pixels(2, 3, 32, 32, dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):  # attacks and updates in turn
            with frozen_eval(model):
                one, other = (gradients(network, x)[1] for network in (compiled, model))
            gradients(compiled, x, model.conv1.weight)
    assert error(one, other) <= 0.05
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
