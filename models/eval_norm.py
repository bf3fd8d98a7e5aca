"""Batch-norm in evaluation on CUDA, where only the gradient at the input is wanted.

PyTorch's backward pass there makes its result without regard to channels_last: the kernel reads
and writes apart, and the next convolution copies the gradient. Training mode does better, and so
does the CPU, which keeps PyTorch's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ZERO = "_zero_mean"  # among a module's attributes, as long as it is frozen


class EvalBatchNorm(torch.autograd.Function):
    """`F.batch_norm` with running statistics; its gradient is dy * weight / sqrt(var + eps).

    That is the same batch-norm of dy, without mean and bias: one fast kernel, where a product of
    bf16 by float32 takes two and a half times as long.

    x: (B, C, H, W); weight, bias, mean and var: (C,), without gradients; zero: (C,), of zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
        zero: torch.Tensor,
    ) -> torch.Tensor:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, _, _, var, ctx.eps, zero = inputs
        ctx.save_for_backward(weight, var, zero)
        ctx.layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (dy,), (weight, var, zero) = gradients, ctx.saved_tensors
        if not torch.is_grad_enabled():  # else a gradient's gradient, or torch.func
            dy = dy.contiguous(memory_format=ctx.layout)
        dx = F.batch_norm(dy, zero, var, weight, None, False, 0.0, ctx.eps)
        return dx, *[None] * 6


def pays(x: torch.Tensor) -> bool:
    """Whether this form is the faster one where x lies."""
    return x.is_cuda


def normalised(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """What batch-norm makes of x, (B, C, H, W), before an activation of timm's."""
    frozen = not norm.training and norm.weight is not None and norm.bias is not None
    frozen = frozen and not (norm.weight.requires_grad or norm.bias.requires_grad)
    if not frozen or not pays(x) or torch.compiler.is_compiling() or ZERO not in vars(norm):
        return nn.BatchNorm2d.forward(norm, x)
    norm._check_input_dim(x)
    arguments = norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
    y: torch.Tensor = EvalBatchNorm.apply(x, *arguments, vars(norm)[ZERO])
    return y


def normalised_and_activated(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The forward pass of timm's `BatchNormAct2d`."""
    y: torch.Tensor = norm.act(norm.drop(normalised(norm, x)))
    return y


@contextmanager
def cheap_backward(network: nn.Module) -> Iterator[None]:
    """Let a network's BatchNorm2d modules use this form wherever it applies, within a block.

    Those of SyncBatchNorm, and subclasses with a forward pass of their own, stay as they are.
    """
    changed = []
    for module in network.modules():
        forward: Any = None
        if isinstance(module, nn.BatchNorm2d) and "forward" not in vars(module):
            if type(module).forward is nn.BatchNorm2d.forward:
                forward = normalised
            elif type(module).__name__ == "BatchNormAct2d":
                forward = normalised_and_activated
        if forward is not None:
            vars(module)["forward"] = MethodType(forward, module)
            if isinstance(module.running_mean, torch.Tensor):  # once, not at every pass
                vars(module)[ZERO] = torch.zeros_like(module.running_mean)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)
            vars(module).pop(ZERO, None)
