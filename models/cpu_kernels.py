"""Convolutions that the CPU does faster in another form; the same sums in another order."""

import torch
from torch import nn
from torch.nn import functional as F


def blockwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The stem's 7 x 7 convolution of stride 2 as a 4 x 4 one of stride 1 on 2 x 2 blocks.

    With 12 channels instead of 3, the gradient at the input, which every attack needs, is a third
    faster on the CPU.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 7, 7), of stride 2, padding 3 and no bias.
    """
    height, width = x.shape[-2:]
    x = F.pixel_unshuffle(F.pad(x, (3, 3 + width % 2, 3, 3 + height % 2)), 2)
    return F.conv2d(x, F.pixel_unshuffle(F.pad(weight, (0, 1, 0, 1)), 2))


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution, which is a matrix product over the pixels.

    oneDNN's bfloat16 products are faster than its convolutions, above all for the gradients. Other
    precisions and devices, and torch.compile, have nothing to gain and keep the convolution.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        return pointwise(x, self.weight)


torch.fx.wrap("pointwise")  # its branch is of no concern to a graph


def pointwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) by weight, (O, C, 1, 1), to (B, O, H, W)."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.conv2d(x, weight)
    # Not by view: so the gradient keeps the weight's strides, as DDP's buckets expect.
    weight = weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


def make_pointwise_(network: nn.Module) -> None:
    """Turn a network's 1 x 1 convolutions into `PointwiseConv2d`, with the same parameters."""
    for module in network.modules():
        if type(module) is nn.Conv2d and is_pointwise(module):
            module.__class__ = PointwiseConv2d


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether every pixel of the output comes from one of the input, by one matrix."""
    plain = conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
    return plain and conv.padding == (0, 0) and conv.bias is None
