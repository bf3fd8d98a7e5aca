"""The deterministic inputs of the recorded traces: exact integer arithmetic, nothing random."""

import math

import torch
from torch import nn


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
