"""The snippets of docs/elsewhere.md run, each where its package is installed."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from conftest import ROOT
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

HEAD, *SECTIONS = (ROOT / "docs" / "elsewhere.md").read_text().split("\n## ")
PAGE = {name: text for name, _, text in (section.partition("\n") for section in SECTIONS)}


def code(text: str) -> str:
    return dedent("\n".join(re.findall(r"^(?: {4}.*)?$", text, re.MULTILINE)))


@pytest.mark.parametrize("package", PAGE)
def test_a_snippet_does_what_it_says(package: str, here: Path, trained: Path, digits: Path) -> None:
    pytest.importorskip(package)
    (here / "model_best.pth.tar").symlink_to(trained / "model_best.pth.tar")
    images = ImageFolder(digits / "val", to_tensor)
    x, y = (torch.stack(list(map(torch.as_tensor, part))) for part in zip(*images, strict=True))
    names: dict[str, Any] = {"x": x, "y": y}
    needed = [PAGE["torch"]] if package in ("huggingface_hub", "robustbench") else []
    for text in (HEAD.replace("PATH/OF/THIS/SUITE", str(ROOT)), *needed, PAGE[package]):
        exec(code(text), names)
    logits = names["model"](x).detach()
    if "adversarial" in names:
        change = names["adversarial"] - x
        assert 0 < change.abs().max() <= 4 / 255 + 1e-6
        loss = torch.nn.functional.cross_entropy
        assert loss(names["model"](x + change), y) > loss(logits, y)
        return
    if package == "torchvision":
        layer4, flat = names["features"]["layer4"], names["features"]["flatten"]
        assert torch.allclose(layer4.mean((2, 3)), flat, atol=1e-5)
        found = names["model"].scale * names["model"].fc(flat)
    elif package == "onnxscript":
        reference = pytest.importorskip("onnx.reference").ReferenceEvaluator("model.onnx")
        few = x[:3]
        found = torch.tensor(reference.run(None, {reference.input_names[0]: few.numpy()})[0])
        logits = logits[:3]
    elif package == "robustbench":
        network = names["entry"]["model"]().eval()
        network.model.load_state_dict(torch.load("Author2026Free.pt"))
        found = network(x)
    else:
        found = names["again" if package == "huggingface_hub" else "plain"](x)
    assert torch.allclose(found, logits, atol=1e-4)
