"""The contract of every network here, and torchvision's ResNet family under it.

`model(x)` takes pixels in [0, 1] of shape (B, 3, H, W), normalises them itself and returns logits
(B, classes). A ResNet has a hypersphere head if asked for; its state_dict's keys are torchvision's.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from pickle import UnpicklingError

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from models.cpu_kernels import make_pointwise_
from models.hypersphere import HypersphereHead, heads_of
from models.stem import StemConv2d, is_stem
from utils.errors import UserError

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
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
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


class ResNet(PixelNetwork):
    """A torchvision ResNet that takes pixels in [0, 1]; random weights, a head's rows projected.

    Args:
        arch: a name of torchvision's ResNet family.
        num_classes: number of outputs.
        feature_norm: FN of the hypersphere head.
        weight_norm: WN of the hypersphere head.
        scale: s; ignored without FN and WN.
        mean: per colour, pixels in [0, 1].
        std: per colour, pixels in [0, 1].
    """

    conv1: nn.Conv2d
    fc: nn.Linear
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    avgpool: nn.Module

    def __init__(
        self,
        arch: str,
        num_classes: int,
        feature_norm: bool = False,
        weight_norm: bool = False,
        scale: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        hypersphere = feature_norm or weight_norm
        super().__init__(arch, num_classes, float(scale) if hypersphere else 1.0, mean, std)
        backbone = torchvision.models.get_model(arch, num_classes=num_classes)
        make_pointwise_(backbone)
        if is_stem(backbone.conv1):
            backbone.conv1.__class__ = StemConv2d  # with the same parameters
        for name, module in backbone.named_children():  # unprefixed: keys stay torchvision's
            self.add_module(name, module)
        if hypersphere:
            self.fc = HypersphereHead(
                self.fc.in_features, num_classes, feature_norm=feature_norm, weight_norm=weight_norm
            )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to the penultimate features (B, D)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalised(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to the head's raw outputs (B, classes), before s.

        With FN and WN these are cosines.
        """
        return self.fc(self.features(x))


def load_weights(model: PixelNetwork, state_dict: dict[str, torch.Tensor]) -> None:
    """Load a state_dict with torchvision's keys, and project a head that is not projected yet."""
    own = model.body.state_dict()
    needed = [key for key in own if "num_batches" not in key]  # which old files lack
    lacking = [f"lacks {key}" for key in needed if key not in state_dict]
    unknown = [f"has {key}, which this network has not" for key in state_dict if key not in own]
    wrong = [
        f"has {key} of shape {tuple(value.shape)} where this network has {tuple(own[key].shape)}"
        for key, value in state_dict.items()
        if key in own and value.shape != own[key].shape
    ]
    if problems := [*lacking[:1], *unknown[:1], *wrong[:1]]:
        raise UserError(
            f"the checkpoint does not fit a {model.arch} with {model.num_classes} classes: it"
            f" {', and '.join(problems)}; set TRAIN.arch, --FN and --WN as in its training"
        )
    own.update(state_dict)  # it knows the versions of its layers, for which mnasnet asks
    model.body.load_state_dict(own)
    for head in heads_of(model):
        if not head.is_projected():
            head.project_()


def load_pretrained(model: ResNet) -> None:
    """Load torchvision's ImageNet weights (IMAGENET1K_V1), downloading them when needed.

    The last layer is taken over when it has 1000 outputs, without its bias in a hypersphere head;
    otherwise it keeps its random start.
    """
    weights = torchvision.models.get_model_weights(model.arch)["IMAGENET1K_V1"]
    published, own = torchvision_weights(weights), model.state_dict()
    fitting = {k: v for k, v in published.items() if k in own and own[k].shape == v.shape}
    load_weights(model, {**own, **fitting})


def torchvision_weights(weights: WeightsEnum) -> dict[str, torch.Tensor]:
    """Published weights, downloaded when needed."""
    try:
        with redirect_stderr(io.StringIO()):  # torch.hub's "Downloading"
            return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        reason = getattr(error, "reason", None) or error  # of a URLError
        file = weights.url.rpartition("/")[2]
        fix = f"connect to the internet, or put {file} into {folder}"
        if not isinstance(error, OSError) and os.path.exists(f"{folder}/{file}"):
            reason, fix = "the file is damaged", f"delete {folder}/{file}, to get it again"
        raise UserError(
            f"cannot get torchvision's weights for {file.partition('-')[0]} ({reason}); {fix}"
        ) from error


def family_member(state_dict: Mapping[str, torch.Tensor], candidates: Sequence[str]) -> str | None:
    """The architecture whose shapes these weights have, whatever their number of classes."""

    def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
        return {
            key: value.shape
            for key, value in state.items()
            if not key.startswith("fc.") and "num_batches" not in key
        }

    for arch in candidates:
        with torch.device("meta"):
            own = torchvision.models.get_model(arch).state_dict()
        if shapes_of(own) == shapes_of(state_dict):
            return arch
    return None
