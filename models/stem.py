"""The first convolution of a ResNet, 7 x 7 of stride 2 on colours: its gradient at the input.

Every attack and every free step needs that gradient, and libraries are slow at it with 3 channels.
Written as a convolution of stride 1, whose 12 outputs are the colours of 2 x 2 pixels, it is fast.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.cpu_kernels import blockwise

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6
TENSOR_CORES = 8  # channels of two bytes come in multiples of it


class Stem(torch.autograd.Function):
    """The convolution of x, (B, C, H, W), by weight, (O, C, 7, 7), stride 2, padding 3."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, stride=2, padding=3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (dy,), (x, weight) = gradients, ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(dy, weight, x.shape[-2], x.shape[-1])
        if ctx.needs_input_grad[1]:  # PyTorch's own
            geometry = [2, 2], [3, 3], [1, 1], False, [0, 0], 1
            dweight = torch.ops.aten.convolution_backward(
                dy, x, weight, None, *geometry, [False, True, False]
            )[1]
        return dx, dweight


def input_gradient(dy: torch.Tensor, weight: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The gradient at an input of (B, C, height, width), channels_last.

    Pixel (2h + i, 2w + j) of a colour gets a 4 x 4 convolution of dy around (h, w), by every second
    row and column of that colour's weight, reversed.

    Args:
        dy: (B, O, ceil(height / 2), ceil(width / 2)).
        weight: (O, C, 7, 7).
    """
    outputs, colours = weight.shape[:2]
    kernel = F.pad(weight, (1, 0, 1, 0)).reshape(outputs, colours, 4, 2, 4, 2)  # O C h i w j
    kernel = kernel.permute(3, 5, 1, 0, 2, 4).reshape(4 * colours, outputs, 4, 4).flip(2, 3)
    if dy.element_size() == 2:
        kernel = F.pad(kernel, (0, 0, 0, 0, 0, 0, 0, -len(kernel) % TENSOR_CORES))
    # Padded evenly, which the convolution does without a copy, the first row and column are extra.
    blocks = F.conv2d(dy, kernel, padding=2)[:, : 4 * colours, 1:, 1:]  # i j C, h, w
    pixels = blocks.permute(0, 2, 3, 1).unflatten(3, (2, 2, colours)).transpose(2, 3)  # h i w j C
    dx = pixels.reshape(len(dy), 2 * dy.shape[2], 2 * dy.shape[3], colours)
    return dx[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def by_own_backward(x: torch.Tensor) -> bool:
    """Whether the gradient at the input alone is written otherwise: on CUDA."""
    return x.is_cuda


torch.fx.wrap("stem")  # its branches are of no concern to a graph


def stem(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, O, ceil(H / 2), ceil(W / 2)), in the form that is fast where x lies."""
    # Dynamo of torch 2.11 takes every torch.compile for an export.
    exporting = is_exporting() and not torch.compiler.is_dynamo_compiling()
    if torch.jit.is_tracing() or exporting:
        return F.conv2d(x, weight, stride=2, padding=3)  # for others' programs
    if by_own_backward(x):
        kind = x.device.type
        if x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)  # as it would cast for the convolution
            x, weight = x.to(dtype), weight.to(dtype)
        y: torch.Tensor = Stem.apply(x, weight)
        return y
    if x.device.type == "cpu":
        return blockwise(x, weight)
    return F.conv2d(x, weight, stride=2, padding=3)


class StemConv2d(nn.Conv2d):
    """The stem's convolution; parameters and state_dict are those of `nn.Conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ceil(H / 2), ceil(W / 2))."""
        return stem(x, self.weight)


def is_stem(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one that `stem` computes."""
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    plain = conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros"
    return plain and geometry == ((7, 7), (2, 2), (3, 3), (1, 1))
