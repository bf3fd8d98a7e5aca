"""Networks of torchvision and timm that are evaluated and never trained."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import settings
from in_process import call, only_error, user_error
from PIL import Image
from torch import nn
from torchvision.transforms.functional import normalize, pil_to_tensor

from models.any_network import build_any
from models.resnet import IMAGENET_MEAN, IMAGENET_STD, load_weights

HALF = (0.5, 0.5, 0.5)
ARCH = "mobilenet_v3_small"


@pytest.mark.parametrize(
    ("arch", "mean", "std"),
    [
        ("convnext_tiny", IMAGENET_MEAN, IMAGENET_STD),
        ("vit_b_16", IMAGENET_MEAN, IMAGENET_STD),
        ("timm/test_vit", HALF, HALF),
    ],
)
def test_own_mean_and_std_stand_in_front(arch: str, mean: tuple, std: tuple) -> None:
    model = build_any(arch, 32, 7).eval()
    nn.init.normal_(list(model.parameters())[-2])  # torchvision's transformers begin with zeros
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, model.num_classes) == (2, 7)
    assert torch.equal(logits, model.body(normalize(x, mean, std)))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


def test_pixels_are_those_of_the_published_weights() -> None:
    model = build_any("googlenet", 32, 5)
    published = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    assert model.body.transform_input  # as with weights
    assert model.normalisation["mean"] == tuple(published.transforms().mean)
    chosen = build_any(ARCH, 32, 4, mean=HALF).normalisation
    assert chosen == {"mean": HALF, "std": IMAGENET_STD}
    with torch.device("meta"):  # it is large, and of other pixels than ImageNet's usual ones
        assert build_any("efficientnet_v2_l", 32).normalisation == {"mean": HALF, "std": HALF}


def test_the_preset_is_that_of_the_published_weights(digits: Path, here: Path) -> None:
    preset = (IMAGENET_MEAN, IMAGENET_STD, 236, 224, "bilinear")
    with torch.device("meta"):
        assert build_any("convnext_tiny", 32).preset == preset
    assert build_any("timm/test_vit").preset == (HALF, HALF, 168, 160, "bicubic")
    network = torchvision.models.efficientnet_b0(num_classes=4).eval()
    torch.save(network.state_dict(), "theirs.pth")
    flags = ["-e", "--resume", "theirs.pth", "--attack", "pgd1", "--n_examples", 4]
    done = call("evaluate.py", digits, "--set", "TRAIN.arch=efficientnet_b0", *flags)
    assert done.status == 0, done.err
    assert "efficientnet_b0 as published: resize 256, crop 224, bicubic;" in done.out
    assert f"assumed are mean {IMAGENET_MEAN} and std {IMAGENET_STD}" in done.out
    result = json.loads(Path("attack_standard_theirs_pgd1_n4.json").read_text())
    conditions = result["conditions"]
    assert (conditions["resize"], conditions["interpolation"]) == (256, "bicubic")
    assert result["provenance"]["config"]["DATA"]["interpolation"] == "bicubic"
    assert str(list(IMAGENET_MEAN)) in conditions["network"]
    rows = list(csv.DictReader(next(Path().glob("attack_*_images.csv")).open()))
    take = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1.transforms()
    images = [Image.open(digits / "val" / row["image"]) for row in rows]
    logits = network(torch.stack([take(image) for image in images]))
    loss = nn.functional.cross_entropy(logits, torch.tensor([int(r["label"]) for r in rows]))
    assert result["clean"]["loss"] == pytest.approx(loss.item(), abs=1e-5)


@pytest.fixture
def theirs(here: Path) -> nn.Module:
    """A network of 4 classes; `theirs.pth` holds it as DataParallel saves it."""
    network = torchvision.models.get_model(ARCH, num_classes=4).eval()
    torch.save({"state_dict": nn.DataParallel(network).state_dict()}, "theirs.pth")
    return network


@pytest.mark.parametrize("surrogate", [False, True])
def test_attacked_from_the_command_line(
    surrogate: bool, theirs: nn.Module, digits: Path, trained: Path
) -> None:
    """Its own gradients, or those of a network of another family."""
    flags = ["-e", "--resume", "theirs.pth", "--attack", "pgd2", "--n_examples", 6]
    flags += ["--transfer_from", trained / "model_best.pth.tar"] if surrogate else []
    colours = {"TRAIN__mean": list(HALF), "TRAIN__std": list(IMAGENET_STD)}
    done = call("evaluate.py", digits, *settings(TRAIN__arch=ARCH, **colours), *flags)
    assert done.status == 0, done.err
    assert ("resnet18, FN, WN" in done.out) == surrogate
    rows = list(csv.DictReader(next(Path().glob("attack_*_images.csv")).open()))
    assert len(rows) == 6
    for row in rows:
        pixels = pil_to_tensor(Image.open(digits / "val" / row["image"])) / 255
        logits = theirs(normalize(pixels[None], HALF, IMAGENET_STD))
        assert int(row["clean_prediction"]) == int(logits.argmax())


def test_layers_that_ask_for_their_version() -> None:
    """mnasnet's state_dict is refused without its metadata, which a file's tensors have not."""
    model, other = build_any("mnasnet0_5", 32, 4), build_any("mnasnet0_5", 32, 4)
    load_weights(model, dict(other.body.state_dict()))
    values = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in values)


@pytest.mark.parametrize(
    ("arch", "more", "words"),
    [
        ("convnext_tinny", [], "there is no network 'convnext_tinny'; did you mean convnext_tiny?"),
        ("timm/test_vitt", [], "did you mean timm/test_vit"),
        ("shufflenet_v2_x0_5", [], "holds no shufflenet_v2_x0_5"),
        (ARCH, ["--FN", "True"], "has no hypersphere head"),
        ("vit_b_16", ["--set", "DATA.crop_size=20"], "does not take images of DATA.crop_size 20"),
        ("resnet18", [], "TRAIN.arch=convnext_tiny or timm/NAME"),
    ],
)
def test_what_cannot_be_evaluated(
    arch: str, more: list[str], words: str, theirs: nn.Module, digits: Path
) -> None:
    flags = ["-e", "--resume", "theirs.pth", "--attack", "pgd1"]
    done = call("evaluate.py", digits, *settings(TRAIN__arch=arch), *flags, *more)
    assert words in only_error(done)


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in user_error(build_any, "timm/test_vit", 32)
