"""torch.hub.load as a stranger uses it: from another folder, with modules of the same names."""

import copy
import importlib.util
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT, environment
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import normalize, to_tensor

import hubconf
from models.resnet import ResNet
from tests.test_layers import imported

SCRIPT = """
import copy
import subprocess
import sys
import utils                       # the stranger's own
import torch
from pyautoattack import AutoAttack

x, y = torch.load("images.pt")
theirs = torch.hub.load({root!r}, "robust_model", "theirs.pth.tar", source="local")
model = torch.hub.load({root!r}, "robust_model", {best!r}, source="local")
assert not any(module.training for module in model.modules())
torch.save(theirs(x).detach(), "logits.pt")

attack = AutoAttack(model, norm="Linf", eps=16 / 255, version="custom", attacks=["apgd-ce"])
attack.apgd.n_iter = 5
adversarial, *_ = attack.run_standard_evaluation(x, y)
assert (adversarial - x).abs().max() <= 16 / 255 + 1e-6
clean, robust = ((model(z).argmax(1) == y).float().mean().item() for z in (x, adversarial))
import utils as again
assert again is utils and again.mine
import models                      # not imported before
assert models.mine
assert not [name for name in sys.modules if name.startswith(("lib.", "models.", "utils."))]
twin = copy.deepcopy(model.train())
assert twin.training and torch.equal(twin.eval()(x), model.eval()(x))
torch.save(torch.nn.Sequential(model), "pickled.pt")
load = "import torch; m = torch.load('pickled.pt', weights_only=False)"
save = "torch.save(m(torch.load('images.pt')[0]).detach(), 'again.pt')"
subprocess.run([sys.executable, "-c", load + ";" + save], check=True)
assert torch.equal(torch.load("again.pt"), model(x))
print(clean, robust)
"""


@pytest.mark.slow
def test_a_stranger_loads_and_attacks_a_model(trained: Path, digits: Path, tmp_path: Path) -> None:
    best = trained / "model_best.pth.tar"
    content = torch.load(best, weights_only=True)
    content["model"] |= {"mean": [0.47, 0.46, 0.41], "std": [0.23, 0.22, 0.21]}
    torch.save(content, tmp_path / "theirs.pth.tar")
    images = ImageFolder(str(digits / "val"), to_tensor)
    x, y = torch.stack([x for x, _ in images]), torch.tensor(images.targets)
    torch.save((x, y), tmp_path / "images.pt")
    for name in ("utils.py", "models.py"):
        (tmp_path / name).write_text("mine = True\n")
    (tmp_path / "stranger.py").write_text(SCRIPT.format(root=str(ROOT), best=str(best)))
    variables = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    words = [sys.executable, "stranger.py"]
    done = subprocess.run(
        words, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    clean, robust = map(float, done.stdout.split()[-2:])
    assert 100 * clean == pytest.approx(content["best_prec1"], abs=1e-3)  # as its training saw
    assert robust <= clean
    model = ResNet("resnet18", 4, True, True, 10.0, (0.47, 0.46, 0.41), (0.23, 0.22, 0.21))
    model.load_state_dict(content["state_dict"])
    with torch.no_grad():
        wanted = model.eval()(x)
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), wanted, atol=1e-5)


def test_flags_for_checkpoints_of_others_and_their_errors(trained: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "published.pth.tar")

    def load(**flags: object) -> torch.nn.Module:
        return torch.hub.load(str(ROOT), "robust_model", path, source="local", **flags)

    with pytest.raises(ValueError, match="cannot read"):
        load()
    content = torch.load(trained / "model_best.pth.tar", weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, path)
    model = load(FN=True, WN=True, s_HE=15.0)
    assert (model.scale, model.training) == (15.0, False)
    with pytest.raises(ValueError, match=r"s_he: unknown key; did you mean HE\.s_HE"):
        load(s_he=15.0)
    theirs = torchvision.models.mobilenet_v3_small(num_classes=4).eval()
    torch.save({"net": {}, "model_ema": theirs.state_dict()}, path)
    colours = {"mean": [0.5, 0.25, 0.125], "std": (0.2, 0.4, 0.8)}
    with pytest.raises(ValueError, match="give both"):
        load(arch="mobilenet_v3_small", mean=colours["mean"])
    model = load(arch="mobilenet_v3_small", weights="model_ema", **colours)
    twin, x = copy.deepcopy(model.double()).float(), torch.rand(2, 3, 32, 32)
    for network in (twin, model.float(), pickle.loads(pickle.dumps(model))):
        assert torch.allclose(network(x), theirs(normalize(x, **colours)), atol=1e-5)


def test_what_it_imports_is_named_for_torch_hub() -> None:
    needed, waiting = set(), [ROOT / "lib/evaluation/load_model.py"]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            needed |= set(re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M))
            waiting += [ROOT / f"{module.replace('.', '/')}.py" for module in imported(path)]
    assert len(seen) > 15
    assert needed - sys.stdlib_module_names <= {*hubconf.dependencies, "lib", "models", "utils"}
    assert all(map(importlib.util.find_spec, hubconf.dependencies))
