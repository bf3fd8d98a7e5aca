"""The network's contract, against torchvision's own forward pass."""

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from models.cpu_kernels import PointwiseConv2d
from models.hypersphere import HypersphereHead
from models.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet, family_member, load_weights
from utils.config.settings import ARCHITECTURES
from utils.errors import UserError


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d"])
def test_same_as_torchvision_with_inputs_normalised_inside(arch: str) -> None:
    theirs = torchvision.models.get_model(arch, num_classes=7).double().eval()
    ours = ResNet(arch, 7).double().eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    load_weights(ours, theirs.state_dict())
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(normalize(x, IMAGENET_MEAN, IMAGENET_STD))
        assert torch.allclose(ours(x), expected, rtol=1e-12, atol=1e-12)


def test_pointwise_convolutions_are_the_same_in_bfloat16() -> None:
    """Values and gradients of a 1 x 1 convolution, against float64's."""
    model = ResNet("resnet50", 7).to(memory_format=torch.channels_last)
    pointwise = [module for module in model.modules() if isinstance(module, PointwiseConv2d)]
    # 16 blocks of two, the first of them each with one on its shortcut; three of those stride.
    assert len(pointwise) == 16 * 2 + 1
    conv = pointwise[1]
    x = torch.rand(3, conv.in_channels, 5, 6).to(memory_format=torch.channels_last)
    weighting = torch.rand(3, conv.out_channels, 5, 6)
    given = [tensor.detach().bfloat16() for tensor in (x, conv.weight)]
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        image, weight = (tensor.to(dtype).requires_grad_() for tensor in given)
        y = torch.func.functional_call(conv, {"weight": weight}, (image,))
        gradients = torch.autograd.grad((y * weighting).sum(), [image, weight])
        results.append([y.detach(), *gradients])
    for low, exact in zip(*results, strict=True):
        assert low.shape == exact.shape
        assert low.stride() == exact.stride()
        assert torch.allclose(low.double(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize(("fn", "wn"), [(True, True), (True, False), (False, True)])
def test_hypersphere_head_by_hand(fn: bool, wn: bool) -> None:
    model = ResNet("resnet18", 6, fn, wn, scale=7.0).double().eval()
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        z, weight = model.features(x), model.fc.weight
        z = z / z.square().sum(1, keepdim=True).sqrt() if fn else z
        weight = weight / weight.square().sum(1, keepdim=True).sqrt() if wn else weight
        expected = z @ weight.T
        assert torch.allclose(model.outputs(x), expected, rtol=1e-12)
        assert torch.allclose(model(x), 7 * expected, rtol=1e-12)
    assert "fc.bias" not in model.state_dict()
    plain = ResNet("resnet18", 3, scale=10.0).double().eval()
    assert torch.equal(plain(x), plain.outputs(x))  # where s means nothing


def test_forward_changes_nothing_and_projection_makes_unit_rows() -> None:
    head = HypersphereHead(5, 4, feature_norm=True, weight_norm=True)
    assert torch.allclose(head.weight.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        head.weight.mul_(3)
    before, z = head.weight.clone(), torch.randn(2, 5)
    outputs = head(z)
    assert torch.equal(head.weight, before)
    head.project_()
    assert torch.allclose(head.weight.norm(dim=1), torch.ones(4))
    assert torch.allclose(head(z), outputs, atol=1e-6)
    assert head(torch.zeros(1, 5)).tolist() == [[0.0] * 4]  # no NaN


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_architecture_is_told_by_its_shapes(arch: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, num_classes=3).state_dict()
    assert family_member(state, ARCHITECTURES) == arch


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    state = ResNet("resnet18", 4).state_dict()
    with pytest.raises(UserError, match=r"fc\.weight of shape \(4, 512\).*\(5, 512\)"):
        load_weights(ResNet("resnet18", 5), state)
    with pytest.raises(UserError, match=r"fc\.bias, which this network has not"):
        load_weights(ResNet("resnet18", 4, True, True), state)


def test_bf16_autocast_leaves_the_head_in_float32() -> None:
    torch.manual_seed(0)
    model = ResNet("resnet18", 50, True, True, 10.0).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, z = model(x), model.features(x)
    expected = 10 * F.normalize(z.float()) @ F.normalize(model.fc.weight).T
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loading_projects_what_is_not_projected_and_changes_no_other_bit(
    dtype: torch.dtype,
) -> None:
    """Dividing a unit row by its norm would change some: the norm is 1 but for rounding."""
    torch.manual_seed(0)
    model = ResNet("resnet18", 1000, feature_norm=True, weight_norm=True).to(dtype)
    model.fc.project_()  # in this precision
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, saved)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    model.fc.project_()
    assert not torch.equal(model.fc.weight, saved["fc.weight"])  # so this network would have shown
    load_weights(model, {**saved, "fc.weight": 1.001 * saved["fc.weight"]})
    assert torch.allclose(model.fc.weight, saved["fc.weight"], rtol=0, atol=1e-6)
