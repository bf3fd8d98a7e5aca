"""11. AutoAttack, ImageNet-C, saved images, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.pgd import attacking
from lib.algorithm.protocols import AutoAttackSpec, ThreatModel
from lib.evaluation.autoattack import AutoAttack
from tests.gpu_acceptance.checks import Check, at_least, equal, skip
from tests.gpu_acceptance.setting import EPS, Setting, network, pixels, write_images
from tests.processes import the_run

IMAGES = 8


def checks(setting: Setting) -> Iterator[Check]:
    """A training and the evaluations of what it leaves, by the commands."""
    if find_spec("pyautoattack") is None:
        yield skip("AutoAttack", "the package pyautoattack is not here")
    else:
        yield from autoattack(setting)
    board = find_spec("tensorboard") is not None
    if not board:
        yield skip("TensorBoard", "the package tensorboard is not here")
    words = setting.training(*["--tensorboard"] * board, TRAIN__epochs=2)
    done = setting.run("main_free.py", *words)
    yield equal("training", (done.status, done.err), (0, ""))
    folder = the_run(setting.folder)
    if board:
        events = sum(path.stat().st_size for path in folder.glob("tensorboard/events*"))
        yield at_least("bytes of TensorBoard's events", events, 10_000)
    more = ("-e", "--attack", "pgd2,pgd2-margin-r2", "--save_images", 3)
    here = imagenet_c(setting, folder, setting.device.type, *more)
    yield equal("images saved", len(list(folder.glob("attack*_images/*.png"))), 9)
    yield equal("ImageNet-C: images", sum(entry["n"] for entry in here), 5 * 32)
    if setting.cuda:
        there = imagenet_c(setting, folder, "cpu")
        yield equal("ImageNet-C: counts, the CPU's", here == there, True)


def autoattack(setting: Setting) -> Iterator[Check]:
    """Its chunk of a few images; the random state is as before."""
    model = network("resnet18", setting.choose(64, 64, 32)).to(setting.device)
    images = pixels(IMAGES, setting.choose(64, 64, 32)).to(setting.device)
    with torch.no_grad():
        labels = model(images).argmax(1)
    batch = DeviceBatch(images, labels, torch.arange(IMAGES))
    stages = ("apgd-ce", "apgd-t", "fab-t", "square") if setting.cuda else ("apgd-ce",)
    before = random_states(setting)
    with attacking(model):
        attack = AutoAttack(model, AutoAttackSpec(stages=stages), ThreatModel(EPS / 4))
        (outcome,) = attack.run([batch])
        with torch.no_grad():
            fooled = (model(outcome.adversarial).argmax(1) != labels).cpu()
    yield equal("AutoAttack: its images fool", fooled.tolist(), (~outcome.robust).tolist())
    after = random_states(setting)
    same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    yield equal("AutoAttack: random state as before", same, True)


def random_states(setting: Setting) -> list[torch.Tensor]:
    """The CPU's and the GPU's."""
    own = [torch.cuda.get_rng_state(setting.device)] if setting.cuda else []
    return [torch.get_rng_state(), *own]


def imagenet_c(setting: Setting, folder: Path, device: str, *more: object) -> list[dict[str, int]]:
    """Counts of a corruption by severity, on a device, of the best model; perhaps attacks, too."""
    root = setting.folder / "corrupted"
    if not root.exists():
        for severity in range(1, 6):
            written = write_images(root / "written" / str(severity), {"val": 8}, severity)
            (root / "fog").mkdir(exist_ok=True)
            (root / "fog" / str(severity)).symlink_to(written / "val")
    words = [*more, "--resume", (folder / "model_best.pth.tar").absolute()]
    words += ["--eva_on_imagenet_c", "--corruptions", "fog", "--set", f"DATA.imagenet_c={root}"]
    data, *own = setting.training(*words, "--device", device)
    done = setting.run("evaluate.py", *([data] if more else []), *own)
    assert done.status == 0, done.err
    (result,) = folder.glob("imagenet_c*.json")
    counts: list[dict[str, int]] = json.loads(result.read_text())["corruptions"]["fog"]["top1"]
    result.unlink()
    return counts
