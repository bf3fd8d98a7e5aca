"""torchvision's ResNet family with normalisation inside and, if asked for, a hypersphere head.

The contract: `model(x)` takes pixels in [0, 1] of shape (B, 3, H, W) and returns logits
(B, classes). The state_dict's keys are torchvision's.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from models.cpu_kernels import blockwise, make_pointwise_
from models.hypersphere import HypersphereHead, heads_of
from utils.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """A torchvision ResNet that eats pixels in [0, 1].

    Attributes:
        arch: torchvision's name of the architecture.
        scale: the factor s on the head's outputs; 1 without hypersphere embedding.
    """

    mean: torch.Tensor
    std: torch.Tensor
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
        super().__init__()
        self.arch = arch
        hypersphere = feature_norm or weight_norm
        self.scale = float(scale) if hypersphere else 1.0
        backbone = torchvision.models.get_model(arch, num_classes=num_classes)
        make_pointwise_(backbone)
        for name, module in backbone.named_children():  # unprefixed: keys stay torchvision's
            self.add_module(name, module)
        if hypersphere:
            self.fc = HypersphereHead(
                self.fc.in_features, num_classes, feature_norm=feature_norm, weight_norm=weight_norm
            )
        # Not persistent, so that checkpoints can be exchanged with networks without them.
        self.normalisation = {"mean": tuple(mean), "std": tuple(std)}
        for name, values in self.normalisation.items():
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ResNet:
        """As nn.Module, for .double(), .to(...): a widened 0.485 is not 0.485: write it again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self.normalisation.items():
            buffer = getattr(self, name)
            if not buffer.is_meta:
                buffer.copy_(torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1))
        return self

    @property
    def num_classes(self) -> int:
        """The number of outputs."""
        return self.fc.out_features

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to the penultimate features (B, D)."""
        x = (x - self.mean) / self.std
        stem = blockwise(self.conv1, x) if x.device.type == "cpu" else self.conv1(x)
        x = self.maxpool(self.relu(self.bn1(stem)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(self.avgpool(x), 1)

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to the head's raw outputs (B, classes), before s.

        With FN and WN these are cosines.
        """
        return self.fc(self.features(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to logits (B, classes): s * cosines with HE."""
        outputs = self.outputs(x)
        return outputs * self.scale if self.scale != 1.0 else outputs


def build_model(
    arch: str,
    num_classes: int,
    feature_norm: bool = False,
    weight_norm: bool = False,
    scale: float = 1.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ResNet:
    """Build a network with random weights, its head projected if WN is on.

    Args:
        arch: a name of torchvision's ResNet family.
        num_classes: number of outputs.
        feature_norm: FN of the hypersphere head.
        weight_norm: WN of the hypersphere head.
        scale: s; ignored without FN and WN.
        mean: per colour, pixels in [0, 1].
        std: per colour, pixels in [0, 1].
    """
    return ResNet(arch, num_classes, feature_norm, weight_norm, scale, mean, std)


def load_weights(model: ResNet, state_dict: dict[str, torch.Tensor]) -> None:
    """Load a state_dict with torchvision's keys, and project a head that is not projected yet.

    Raises:
        UserError: keys or shapes do not fit; the message names the first that does not.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and "num_batches" not in key]
    unknown = [key for key in state_dict if key not in own]
    wrong = [k for k, v in own.items() if k in state_dict and state_dict[k].shape != v.shape]
    if missing or unknown or wrong:
        what = [f"lacks {missing[0]}"] if missing else []
        what += [f"has {unknown[0]}, which this network has not"] if unknown else []
        if wrong:
            given, wanted = (tuple(d[wrong[0]].shape) for d in (state_dict, own))
            what.append(f"has {wrong[0]} of shape {given} where this network has {wanted}")
        raise UserError(
            f"the checkpoint does not fit a {model.arch} with {model.num_classes} classes: it"
            f" {', and '.join(what)}; set TRAIN.arch, --FN and --WN as in its training"
        )
    model.load_state_dict(state_dict, strict=False)  # old files have no num_batches_tracked
    for head in heads_of(model):
        if not head.is_projected():
            head.project_()


def load_pretrained(model: ResNet) -> None:
    """Load torchvision's ImageNet weights (IMAGENET1K_V1), downloading them when needed.

    The last layer is taken over when it has 1000 outputs, without its bias in a hypersphere head;
    otherwise it keeps its random start.

    Raises:
        UserError: the weights are not here and cannot be downloaded.
    """
    weights = torchvision.models.get_model_weights(model.arch)["IMAGENET1K_V1"]
    try:
        with redirect_stderr(io.StringIO()):  # torch.hub's "Downloading"
            state_dict = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = f"{torch.hub.get_dir()}/checkpoints"
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot get torchvision's weights for {model.arch} ({reason}); connect to the"
            f" internet, or put {weights.url.rpartition('/')[2]} into {folder}"
        ) from error
    own = model.state_dict()
    fitting = {k: v for k, v in state_dict.items() if k in own and own[k].shape == v.shape}
    load_weights(model, {**own, **fitting})


def family_member(state_dict: dict[str, torch.Tensor], candidates: Sequence[str]) -> str | None:
    """The architecture whose shapes these weights have, whatever their number of classes."""
    body = {k: tuple(v.shape) for k, v in state_dict.items() if not k.startswith("fc.")}
    body = {k: shape for k, shape in body.items() if "num_batches" not in k}
    for arch in candidates:
        with torch.device("meta"):
            own = torchvision.models.get_model(arch).state_dict()
        shapes = {
            k: tuple(v.shape)
            for k, v in own.items()
            if not k.startswith("fc.") and "num_batches" not in k
        }
        if shapes == body:
            return arch
    return None
