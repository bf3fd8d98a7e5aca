"""Adversarial against clean gradient norms, parameter by parameter.

Pang et al. 2020, arXiv:2002.08619, Fig. 6: E||grad_w L(x*)|| / E||grad_w L(x)|| over an epoch,
x* the adversarial input of training and x its clean twin. Both gradients are taken at the same
parameters, in training mode with batch statistics, and averaged over processes before the norm.
The clean one leaves no trace: no parameter gradient, no running statistic, no noise changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib.algorithm.training import Trainer

GROUPS = ("conv", "bn", "fc")
HEADER = (
    "epoch",
    "parameter",
    "group",
    "depth",
    "clean_mean",
    "clean_std",
    "adversarial_mean",
    "adversarial_std",
    "ratio",
    "samples",
)


def layers_of(model: nn.Module) -> list[tuple[str, str, int]]:
    """(name, group, depth) of every conv, batch-norm and last-layer parameter.

    Depth counts the layers that hold parameters, in the order of the forward pass as torchvision
    registers them; 0 is the first convolution.
    """
    kinds = ((nn.Conv2d, "conv"), (nn.modules.batchnorm._BatchNorm, "bn"), (nn.Linear, "fc"))
    found, depth = [], 0
    for layer_name, module in model.named_modules():
        group = next((group for kind, group in kinds if isinstance(module, kind)), None)
        if group is not None:
            found += [(f"{layer_name}.{p}", group, depth) for p, _ in module.named_parameters()]
            depth += 1
    return found


@contextmanager
def batch_statistics_without_trace(model: nn.Module) -> Iterator[None]:
    """Batch-norm in training mode leaves its running statistics and counters as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [module for module in norms if module.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


class GradientNorms:
    """Sums of gradient norms on the device, read once an epoch.

    Args:
        trainer: of the training whose steps are sampled.
        average_: averages tensors over the processes, in place.
        sums: as kept in a checkpoint, to continue from.
    """

    def __init__(
        self,
        trainer: Trainer,
        average_: Callable[[list[torch.Tensor]], None],
        sums: torch.Tensor | None = None,
    ) -> None:
        self.trainer = trainer
        self.average_ = average_
        self.layers = layers_of(trainer.model)
        parameters = dict(trainer.model.named_parameters())
        self.parameters = [parameters[name] for name, _, _ in self.layers]
        device = self.parameters[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        # Rows: each parameter, then each group as one vector. Columns: sum and sum of squares
        # of the clean norm, of the adversarial norm, and the number of samples.
        rows = len(self.layers) + len(GROUPS)
        self.sums = torch.zeros(rows, 5, dtype=wide, device=device)
        if sums is not None:
            self.sums.copy_(sums)
        members = [[g == group for _, g, _ in self.layers] for group in GROUPS]
        self.members = torch.tensor(members, dtype=wide, device=device)  # (groups, parameters)

    def sample(self, images: torch.Tensor, labels: torch.Tensor, weight: float) -> None:
        """Take one sample, as the gradient hook of a training step.

        A step that fp16's scaler skips, since a gradient has overflowed, gives none.

        Args:
            images: the clean images (B, 3, H, W) in [0, 1].
            labels: (B,).
            weight: the step's factor on the loss.
        """
        adversarial = [p.grad for p in self.parameters if p.grad is not None]
        clean = self.clean_gradients(images, labels, weight)
        values = [self.norms(clean), self.norms(adversarial)]
        columns = [column for value in values for column in (value, value.square())]
        sample = torch.stack([*columns, torch.ones_like(columns[0])], dim=1)
        self.sums += torch.where(sample.isfinite().all(), sample, torch.zeros_like(sample))

    def clean_gradients(
        self, images: torch.Tensor, labels: torch.Tensor, weight: float
    ) -> list[torch.Tensor]:
        """Gradients of the training loss on the clean images, averaged over processes."""
        model, scaler = self.trainer.model, self.trainer.scaler
        with batch_statistics_without_trace(model):
            loss, _ = self.trainer.loss(model, images, labels)
        # Scaled as the adversarial ones were, so that fp16 loses the same small values.
        scale = scaler.scale(torch.ones_like(loss))
        gradients = list(torch.autograd.grad(loss * weight * scale, self.parameters))
        if scaler.is_enabled():
            gradients = [gradient / scale for gradient in gradients]
        self.average_(gradients)
        return gradients

    def norms(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """l2 norms of the parameters' gradients, then of the groups' taken as one vector."""
        each = torch.stack(torch._foreach_norm(gradients, 2, dtype=self.sums.dtype))
        return torch.cat([each, (self.members @ each.square()).sqrt()])

    def rows(self, epoch: int) -> list[list[object]]:
        """The epoch's table, as `HEADER` says, and sums set back to zero."""
        names = [*self.layers, *(("all", group, "") for group in GROUPS)]
        table = []
        for (name, group, depth), sums in zip(names, self.sums.tolist(), strict=True):
            clean, clean_squares, adversarial, adversarial_squares, n = sums
            if not n:
                continue
            clean_mean, clean_std = mean_and_std(clean, clean_squares, n)
            mean, std = mean_and_std(adversarial, adversarial_squares, n)
            ratio = mean / clean_mean if clean_mean else float("nan")
            table.append(
                [epoch, name, group, depth, clean_mean, clean_std, mean, std, ratio, int(n)]
            )
        self.sums.zero_()
        return table


def mean_and_std(total: float, squares: float, n: float) -> tuple[float, float]:
    """Mean and standard deviation (over n - 1) from sums; of one sample there is no deviation."""
    mean = total / n
    if n < 2:
        return mean, float("nan")
    return mean, (max(squares - n * mean * mean, 0.0) / (n - 1)) ** 0.5
