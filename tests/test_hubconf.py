"""torch.hub.load as a stranger uses it: from another folder, with modules of the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, environment

from lib.evaluation.model_settings import model_of, settings_of
from utils.config.settings import Config
from utils.storage.checkpoint import read_checkpoint

SCRIPT = """
import utils                       # the stranger's own
import torch
from PIL import Image
from pyautoattack import AutoAttack
from torchvision.transforms.functional import pil_to_tensor

theirs = torch.hub.load({root!r}, "robust_model", "theirs.pth.tar", source="local")
assert theirs.mean.flatten().tolist() == torch.tensor([0.47, 0.46, 0.41]).tolist()
assert theirs.std.flatten().tolist() == torch.tensor([0.23, 0.22, 0.21]).tolist()

model = torch.hub.load({root!r}, "robust_model", {best!r}, source="local")
assert not any(module.training for module in model.modules())
folders = sorted(p for p in __import__("pathlib").Path({data!r}).iterdir())
files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
x = torch.stack([pil_to_tensor(Image.open(file)) for file, _ in files]) / 255
y = torch.tensor([label for _, label in files])
torch.save((x, theirs(x).detach()), "seen.pt")

attack = AutoAttack(model, norm="Linf", eps=16 / 255, version="custom", attacks=["apgd-ce"])
attack.apgd.n_iter = 5
adversarial, *_ = attack.run_standard_evaluation(x, y)
assert (adversarial - x).abs().max() <= 16 / 255 + 1e-6
clean, robust = ((model(z).argmax(1) == y).float().mean().item() for z in (x, adversarial))
import utils as again
assert again is utils and again.mine
print(clean, robust)
"""


@pytest.mark.slow
def test_a_stranger_loads_and_attacks_a_model(trained: Path, digits: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "model_best.pth.tar", weights_only=True)
    script = SCRIPT.format(
        root=str(ROOT), data=str(digits / "val"), best=str(trained / "model_best.pth.tar")
    )
    content["model"] |= {"mean": [0.47, 0.46, 0.41], "std": [0.23, 0.22, 0.21]}
    torch.save(content, tmp_path / "theirs.pth.tar")
    (tmp_path / "utils.py").write_text("mine = True\n")
    (tmp_path / "stranger.py").write_text(script)
    variables = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    words = [sys.executable, "stranger.py"]
    done = subprocess.run(
        words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    clean, robust = map(float, done.stdout.split()[-2:])
    assert 100 * clean == pytest.approx(content["best_prec1"], abs=1e-3)  # as its training saw
    assert robust <= clean

    found = read_checkpoint(str(tmp_path / "theirs.pth.tar"))
    x, logits = torch.load(tmp_path / "seen.pt", weights_only=True)
    with torch.no_grad():
        wanted = model_of(found, settings_of(Config(), found)).eval()(x)
    assert torch.allclose(logits, wanted, atol=1e-5)


def test_flags_for_checkpoints_of_others_and_their_errors(trained: Path, tmp_path: Path) -> None:
    def load(name: str, **flags: object) -> torch.nn.Module:
        path = str(tmp_path / name)
        return torch.hub.load(str(ROOT), "robust_model", path, source="local", **flags)

    content = torch.load(trained / "model_best.pth.tar", weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "published.pth.tar")
    with pytest.raises(ValueError, match="hypersphere head"):
        load("published.pth.tar")
    model = load("published.pth.tar", FN=True, WN=True, s_HE=15.0)
    assert (model.scale, model.training) == (15.0, False)
    with pytest.raises(ValueError, match=r"s_he: unknown key; did you mean HE\.s_HE"):
        load("published.pth.tar", s_he=15.0)
    with pytest.raises(ValueError, match="cannot read"):
        load("none.pth.tar")
