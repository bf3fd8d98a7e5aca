"""The hypersphere-embedding head: a last layer whose outputs are cosines.

Pang et al. 2020, "Boosting Adversarial Training with Hypersphere Embedding", arXiv:2002.08619,
Eq. 5: feature normalisation (FN), weight normalisation (WN), scale s and angular margin m. The
scale is applied by the network (`models.resnet`), the margin by the loss (`lib.algorithm.losses`).
"""

import torch
from torch import nn
from torch.nn import functional as F

SMALLEST_NORM = 1e-12  # as F.normalize: a zero vector stays zero instead of becoming NaN


class HypersphereHead(nn.Linear):
    """A linear layer without bias on normalised features and/or normalised weight rows.

    The weight gradient does not pass through the weight's normalisation: in the published
    procedure it is a projection of the stored weight, made before every step. `project_` is that
    projection; `forward` divides by the norm as a constant, so that it gives cosines for any
    stored weight and changes nothing.
    """

    def __init__(
        self, in_features: int, num_classes: int, feature_norm: bool, weight_norm: bool
    ) -> None:
        assert feature_norm or weight_norm, "a plain last layer is nn.Linear"
        super().__init__(in_features, num_classes, bias=False)
        self.feature_norm = feature_norm
        self.weight_norm = weight_norm
        self.project_()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, in_features) to (B, classes): cosines in [-1, 1] with both normalisations on.

        Under autocast this layer keeps the weight's precision: bfloat16 has three digits, too few
        for cosines that a scale of 10 is going to multiply.
        """
        return head_outputs(features, self.weight, self.feature_norm, self.weight_norm)

    @torch.no_grad()
    def project_(self) -> None:
        """With WN, bring every row of the stored weight back to unit l2 norm, in place."""
        if self.weight_norm:
            self.weight.div_(row_norms(self.weight))

    def is_projected(self) -> bool:
        """Whether `project_` would change nothing but last bits, which on loading would be lost."""
        deviation = (row_norms(self.weight.detach()) - 1).abs().max()
        return not self.weight_norm or bool(deviation <= 32 * torch.finfo(self.weight.dtype).eps)


torch.fx.wrap("head_outputs")  # autocast needs the device, which a graph does not know


def head_outputs(
    features: torch.Tensor, weight: torch.Tensor, feature_norm: bool, weight_norm: bool
) -> torch.Tensor:
    """The outputs (B, classes) of a `HypersphereHead`."""
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(weight.dtype)
        if feature_norm:
            features = F.normalize(features, dim=1, eps=SMALLEST_NORM)
        if weight_norm:
            weight = weight / row_norms(weight.detach())
        return F.linear(features, weight)


def row_norms(weight: torch.Tensor) -> torch.Tensor:
    """(classes, features) to the l2 norm of each row, (classes, 1), never zero."""
    return torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(SMALLEST_NORM)


def heads_of(model: nn.Module) -> list[HypersphereHead]:
    """Every hypersphere head of a network."""
    return [module for module in model.modules() if isinstance(module, HypersphereHead)]


def project_heads_(model: nn.Module) -> None:
    """Project every hypersphere head of a network; to be called after each optimizer step."""
    for head in heads_of(model):
        head.project_()
