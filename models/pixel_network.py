"""The contract of every network here: pixels in [0, 1] in, logits out, normalisation inside."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelNetwork(nn.Module):
    """A network that takes pixels (B, 3, H, W) in [0, 1] and returns logits (B, num_classes).

    Attributes:
        arch: name of the architecture.
        num_classes: number of outputs.
        scale: the factor s on the raw outputs; 1 without hypersphere embedding.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        arch: str,
        num_classes: int,
        scale: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.arch, self.num_classes, self.scale = arch, num_classes, scale
        # Not persistent, so that checkpoints can be exchanged with networks without them.
        self.normalisation = {"mean": tuple(mean), "std": tuple(std)}
        for name, values in self.normalisation.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "PixelNetwork":
        """As nn.Module, for .double(), .to(...): a widened 0.485 is not 0.485, so rewrite it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self.normalisation.items():
            buffer = getattr(self, name)
            if not buffer.is_meta:
                buffer.copy_(torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1))
        return self

    @property
    def body(self) -> nn.Module:
        """The module whose state_dict has the keys of checkpoints."""
        return self

    def normalised(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1], of mean 0 and deviation 1."""
        return (x - self.mean) / self.std

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to raw outputs (B, num_classes), before s."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to logits (B, num_classes): s * cosines with HE."""
        outputs = self.outputs(x)
        return outputs * self.scale if self.scale != 1.0 else outputs
