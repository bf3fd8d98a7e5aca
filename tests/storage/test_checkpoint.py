"""Checkpoints: our own, other people's, damaged and malicious ones."""

import argparse
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import settings
from in_process import call, only_error, room_for, user_error
from safetensors.torch import save_file

from lib.evaluation.load_model import model_of, new_model, settings_from, settings_of
from lib.training.run import fine_tune
from models.resnet import ResNet
from utils.config.command_line import parse_command_line
from utils.config.settings import Config, Source
from utils.logging import Logger
from utils.storage.checkpoint import (
    BEST,
    FORMAT,
    LATEST,
    PREVIOUS,
    is_whole,
    read_checkpoint,
    save_best,
    save_checkpoint,
)

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
HE = ("--FN", "True", "--WN", "True")
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def plain() -> ResNet:
    """A resnet18 with an ordinary last layer of 4 classes."""
    torch.manual_seed(0)
    return ResNet("resnet18", 4).eval()


@pytest.fixture(scope="module")
def hypersphere() -> ResNet:
    """A resnet18 with a hypersphere head of 4 classes."""
    torch.manual_seed(0)
    return ResNet("resnet18", 4, feature_norm=True, weight_norm=True, scale=10.0).eval()


def flags(*arguments: str) -> Config:
    """The configuration of an evaluation with these flags."""
    return parse_command_line(["-e", "--pretrained", *arguments], "evaluate", "")


def load(path: str, *arguments: str) -> ResNet:
    """The network of a checkpoint, as an evaluation builds it."""
    checkpoint = read_checkpoint(path)
    return model_of(checkpoint, settings_of(flags(*arguments), checkpoint)).eval()


def logits(model: torch.nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def saved(content: Any, **options: Any) -> str:
    """A file of torch's; its path."""
    torch.save(content, "some.pth.tar", **options)
    return "some.pth.tar"


def prefixed(model: ResNet, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in model.state_dict().items()}


def published(model: ResNet, epoch: int = 23) -> dict[str, Any]:
    """A checkpoint as the published releases save them: DataParallel's keys and some state."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    return {
        "epoch": epoch,
        "arch": "resnet18",
        "state_dict": OrderedDict(prefixed(model, "module.")),
        "best_prec1": torch.tensor(60.5),
        "optimizer": optimizer.state_dict(),
    }


def own(model: ResNet, **settings: Any) -> str:
    """A checkpoint of this suite; its path."""
    config = flags("--set", "TRAIN.arch=resnet18")
    model_settings = vars(settings_from(config, [f"class{i}" for i in range(4)])) | settings
    save_best(Path(), {"model": model_settings, "state_dict": model.state_dict()})
    return BEST


COLOURS = {"mean": (0.5, 0.25, 0.125), "std": (0.2, 0.4, 0.8)}


def normalised(prefix: str, names: tuple[str, str] = ("mean", "std")) -> dict[str, torch.Tensor]:
    """The buffers of a normalising module."""
    values = zip(names, COLOURS.values(), strict=True)
    return {prefix + name: torch.tensor(value).view(1, 3, 1, 1) for name, value in values}


def coloured(model: ResNet, *colours: tuple) -> dict[str, torch.Tensor]:
    """A network behind a module of this mean and deviation."""
    buffers = dict(zip(("0.mean", "0.std"), map(torch.tensor, colours), strict=True))
    return buffers | prefixed(model, "1.")


def madry(model: ResNet) -> dict[str, Any]:
    """A checkpoint as MadryLab's robustness library saves them, of tensors only."""
    state = prefixed(model, "module.model.") | prefixed(model, "module.attacker.model.")
    for prefix in ("module.normalizer.", "module.attacker.normalize."):
        state |= normalised(prefix, ("new_mean", "new_std"))
    return {"model": state, "epoch": 90, "optimizer": {}, "schedule": None}


def with_numpy(model: ResNet) -> dict[str, Any]:
    """As FastAT's ImageNet release, timm's and torchvision's scripts save them."""
    args = argparse.Namespace(lr=np.float32(0.5), cuts=[np.bool_(True)], ema=(np.int64(3),))
    state = OrderedDict(model.state_dict())
    return {"epoch": np.int64(90), "best": np.float64(60.5), "args": args, "state_dict": state}


# Other people's


def test_published_release_with_he_needs_flags(hypersphere: ResNet, plain: ResNet) -> None:
    content = published(hypersphere)
    del content["state_dict"]["module.bn1.num_batches_tracked"]  # of an older torch
    path = saved(content)
    assert "no fc.bias), and the command says FN False, WN False" in user_error(load, path)
    assert torch.equal(logits(load(path, *HE)), logits(hypersphere))
    tripled = logits(load(path, *HE, "--s_HE", "30"))
    assert torch.allclose(tripled, 3 * logits(hypersphere))
    message = user_error(load, saved(published(plain)), "--FN", "True")
    assert "(with fc.bias: FN False, WN False), and the command says FN True" in message


@pytest.mark.slow
def test_training_goes_on_from_a_published_release(digits: Path, plain: ResNet) -> None:
    saved(published(plain, 1))
    arguments = ("main_free.py", digits, "--resume", "some.pth.tar")
    done = call(*arguments, *settings(TRAIN__epochs=4), "--attack", "pgd1")
    assert done.status == 0, done.err
    (folder,) = Path("trained_models").iterdir()
    _, *rows = (folder / "metrics.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["2"]
    message = only_error(call(*arguments, *settings(TRAIN__epochs=2), "--output_prefix", "other"))
    assert "some.pth.tar has 1 epochs of the data behind it" in message


def test_plain_torchvision_state_dict() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet34(num_classes=7).eval()
    path = saved(theirs.state_dict())
    model = load(path)
    assert model.arch == "resnet34"  # as the shapes say
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in model.normalisation.values())
    assert torch.allclose(logits(model), logits(theirs, (IMAGES - mean) / std), atol=1e-4)
    message = user_error(load, path, "--set", "TRAIN.arch=resnet101")
    assert "arch resnet34, and the command says resnet101" in message


@pytest.mark.parametrize(
    ("form", "epoch", "own_colours"),
    [
        (published, 23, False),
        (lambda m: prefixed(m, "module._orig_mod."), 0, False),
        (lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(), 0, False),
        (lambda m: {"model_state_dict": m.state_dict(), "epoch": None}, 0, False),
        (lambda m: {"net": prefixed(m, "module."), "acc": 63.1, "epoch": 17}, 17, False),
        (lambda m: {"state_dict": {"state_dict": m.state_dict()}, "best": torch.ones(1)}, 0, False),
        (lambda m: {"model": {"depth": 18}, "network": m.state_dict()}, 0, False),
        (lambda m: {"state_dict": prefixed(m, "net."), "hyper_parameters": {"lr": 1}}, 0, False),
        (lambda m: {"model_ema": torch.optim.swa_utils.AveragedModel(m).state_dict()}, 0, False),
        (lambda m: {"last": m.state_dict(), "acc": torch.ones(1), "optimizer": {}}, 0, False),
        (with_numpy, 90, False),
        (madry, 90, True),
        (lambda m: normalised("normalize.") | prefixed(m, "model."), 0, True),  # RobustBench
        (lambda m: normalised("module.0.") | prefixed(m, "module.1."), 0, True),
        (lambda m: normalised("", ("mu", "sigma")) | prefixed(m, ""), 0, True),
    ],
)
def test_forms_of_other_libraries(form: Any, epoch: int, own_colours: bool, plain: ResNet) -> None:
    path = saved(form(plain), _use_new_zipfile_serialization=form is not published)
    checkpoint, model = read_checkpoint(path), load(path)
    assert (checkpoint.is_ours, checkpoint.training, checkpoint.epoch) == (False, None, epoch)
    assert checkpoint.state_dict.keys() == plain.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key])
    expected = COLOURS if own_colours else plain.normalisation
    for name, value in model.normalisation.items():
        assert value == pytest.approx(expected[name])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda m: prefixed(m, "net.") | {"ema.conv1.weight": torch.zeros(9)}, "(ema. and net.)"),
        (lambda m: prefixed(m, "net.") | {"loss.centres": torch.zeros(4, 512)}, "loss.centres"),
        (lambda m: prefixed(m, "net.") | {"temperature": torch.tensor(10.0)}, "temperature"),
        (lambda m: {"format": FORMAT, "state_dict": m.state_dict()}, "its weights or settings"),
        (lambda m: {"features.0.weight": torch.zeros(9, 3, 3, 3), "fc.weight": torch.zeros(4, 512)},
         "no network of torchvision's ResNet family"),
        (lambda m: {"arch": "resnet18"} | m.state_dict() | {"bn1.bias": None}, "lacks bn1.bias"),
        (lambda m: {**m.state_dict(), "fc.weight": None}, "no last layer (fc.weight)"),
        (lambda m: [1, 2], "holds a list, not a state_dict"),
        (lambda m: coloured(m, (123.675, 116, 103), (1, 1, 1)), "not both for pixels in [0"),
        (lambda m: coloured(m, (0.5, 0.5, 0.5), (4.37, 4.46, 4.44)), "std [4.37, 4.46, 4.44], not"),
        (lambda m: {"mean": torch.ones(3)} | prefixed(m, ""), "and std None, not both"),
        (lambda m: {"state_dict": {"epoch": 3}, "lr": 1}, "network, but state_dict, lr; save"),
        (lambda m: {"best": m.state_dict(), "last": m.state_dict()}, "(best, last); give one as"),
        (lambda m: {"format": "freeat-he 99", "state_dict": {}}, "has format 'freeat-he 99'"),
        (lambda m: {"state_dict": {}, "best": np.ones(3)}, "holds a Python object (numpy"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_of_a_network_is_named(content: Any, words: str, plain: Any) -> None:
    assert words in user_error(load, saved(content(plain)))


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpys_scalars_become_plain_numbers(module: bytes, plain: ResNet) -> None:
    """Of NumPy 2 and 1, in the legacy format, where the name of the module has no length."""
    path = Path(saved(with_numpy(plain), _use_new_zipfile_serialization=False))
    own = np.float64(0).__reduce__()[0].__module__.encode()
    path.write_bytes(path.read_bytes().replace(own, module))
    content = read_checkpoint(str(path)).content
    args = {"lr": 0.5, "cuts": [True], "ema": (3,)}
    assert (content["epoch"], content["best"], content["args"]) == (90, 60.5, args)
    values = (content["epoch"], content["best"], *args.values(), *args["cuts"], *args["ema"])
    assert not any(isinstance(value, np.generic) for value in values)


def test_imagenets_colours_in_float32_are_the_same_ones(plain: ResNet) -> None:
    path = saved(coloured(plain, *plain.normalisation.values()))
    checkpoint = read_checkpoint(path)
    assert (checkpoint.mean, checkpoint.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert "give both" in user_error(load, path, "--set", "TRAIN.mean=[0.5, 0.5, 0.5]")


def test_of_several_weights_it_says_which(
    plain: ResNet, digits: Path, capsys: pytest.CaptureFixture
) -> None:
    averaged = ResNet("resnet18", 4)
    saved({"model_ema": prefixed(averaged, "module."), "model": plain.state_dict()})
    assert torch.equal(load("some.pth.tar").fc.bias, plain.fc.bias)
    other = read_checkpoint("some.pth.tar", weights="model_ema")
    assert torch.equal(other.state_dict["fc.bias"], averaged.fc.bias)
    message = user_error(read_checkpoint, "some.pth.tar", weights="ema")
    assert message.endswith("holds no such weights, but model_ema, model")
    assert "holds one network" in user_error(read_checkpoint, own(plain), weights="model")
    tiny = settings(ADV__pgd_attack="[[1, 8/255]]")
    words = ("evaluate.py", digits, "-e", "--resume", "some.pth.tar", *tiny)
    done = call(*words)
    assert done.status == 0, done.err
    note = "the weights are those of model; --weights KEY takes model_ema"
    assert note in done.out
    call(*words, "--weights", "model_ema")
    assert len(list(Path().glob("attack_standard_some*.json"))) == 2
    values = {"TRAIN.arch": "resnet18", "init_from": "some.pth.tar"}
    fine_tune(Config().changed(values, Source.COMMAND_LINE), "abcd", Logger())
    assert note in capsys.readouterr().out
    short = settings(TRAIN__epochs=1, ADV__n_repeats=1, ADV__pgd_attack="[[1, 8/255]]")
    words = ("main_free.py", digits, "--init_from", "some.pth.tar", "--weights", "model_ema")
    assert call(*words, *short).status == 0  # the attacks at its end are on weights of its own


def test_safetensors(plain: ResNet, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(plain.state_dict(), "some.safetensors")
    assert torch.equal(logits(load("some.safetensors")), logits(plain))
    Path("some.safetensors").write_bytes(b"x" * 64)
    assert "is damaged" in user_error(read_checkpoint, "some.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "pip install safetensors" in user_error(read_checkpoint, "some.safetensors")


# Our own


def test_own_checkpoints_need_no_flags_and_contradict_others(hypersphere: ResNet) -> None:
    path = own(hypersphere, FN=True, WN=True, mean=[0.1, 0.2, 0.3])
    checkpoint = read_checkpoint(path)
    settings = settings_of(flags(*HE, "--s_HE", "10"), checkpoint)  # those that agree are fine
    assert settings == settings_of(flags(), checkpoint)
    assert (settings.arch, settings.FN, settings.WN) == ("resnet18", True, True)
    assert settings.classes == ["class0", "class1", "class2", "class3"]
    model = model_of(checkpoint, settings)
    assert (model.normalisation["mean"], model.scale) == ((0.1, 0.2, 0.3), 10.0)
    for words, text in (
        (("--FN", "False"), "FN True, and the command says False"),
        (("--s_HE", "15"), "s_HE 10.0, and the command says 15.0"),
        (("--set", "TRAIN.arch=resnet34"), "arch resnet18, and the command says resnet34"),
        (("--set", "TRAIN.mean=[1, 1, 1]"), "[0.1, 0.2, 0.3], and the command says [1.0, 1.0, 1."),
    ):
        assert text in user_error(settings_of, flags(*words), checkpoint)


# Not to be loaded


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, function: Any, argument: str) -> None:
        self.reduced = function, (argument,)

    def __reduce__(self) -> tuple:
        return self.reduced


COMMAND, BUILTIN = Evil(os.system, "touch pwned"), Evil(eval, "open('pwned', 'w')")


@pytest.mark.parametrize("evil", [COMMAND, BUILTIN], ids=["command", "builtin"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_malicious_pickles_are_refused_and_do_not_run(
    evil: Evil, form: str, plain: ResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, load_file = [], torch.load

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append(options["weights_only"])
        return load_file(*arguments, **options)

    monkeypatch.setattr(torch, "load", spy)
    if form == "bare pickle":
        Path("some.pth.tar").write_bytes(pickle.dumps(evil))
        pickle.loads(Path("some.pth.tar").read_bytes())  # it does run where it is let
        Path("pwned").unlink()
    else:
        hidden = argparse.Namespace(lr=1, hook=evil)
        content = {"state_dict": plain.state_dict(), "extra": hidden}
        saved(content, _use_new_zipfile_serialization=form == "zip")
    message = user_error(read_checkpoint, "some.pth.tar")
    assert not Path("pwned").exists()
    assert calls == [True]  # and there is no second try
    if form != "bare pickle":
        assert f"holds a Python object ({'eval' if evil is BUILTIN else ''}" in message


def flip(whole: bytes, place: int, bits: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "is damaged"),
        (lambda whole: whole[:-1], "is damaged"),
        (lambda whole: flip(whole, len(whole) // 2, 64), "is damaged"),
        (lambda whole: flip(whole, 100, 1), "is damaged"),
        (lambda whole: flip(whole, whole.rfind(b"PK\1\2") + 8, 1), "is damaged"),  # encrypted
        (lambda _: b"", "is not a checkpoint"),
        (lambda _: b"<!DOCTYPE html><html>404</html>", "is not a checkpoint"),
    ],
)
def test_damaged_and_other_files(damage: Any, words: str) -> None:
    path = Path(saved({"fc.weight": torch.ones(99, 99)}))
    assert is_whole(path)
    path.write_bytes(damage(path.read_bytes()))
    assert user_error(read_checkpoint, str(path)).startswith(f"some.pth.tar {words}")
    assert not is_whole(path)
    assert "cannot read none.pth: No such file" in user_error(read_checkpoint, "none.pth")


# Through the command: one line, status 2


def test_commands_refuse_in_one_line(digits: Path, plain: ResNet, here: Path) -> None:
    evaluation = ("evaluate.py", digits, "-e", "--resume")
    training = ("main_free.py", digits, "--resume")
    saved({"extra": COMMAND})
    for command in (evaluation, training):
        assert "holds a Python object" in only_error(call(*command, "some.pth.tar"))
    saved(published(ResNet("resnet18", 7)))
    own(plain)
    for words, text in (
        ((*evaluation, "some.pth.tar"), "has 4 classes and the network 7"),
        ((*training, "some.pth.tar"), "7 outputs and this data set 4 other classes"),
        ((*evaluation, BEST), "class digit_0 is none of the network's 4 classes (class0, class1"),
    ):
        assert text in only_error(call(*words))
    assert sorted(os.listdir(here)) == [BEST, "some.pth.tar"]  # nothing begun


# --pretrained


@pytest.fixture
def offline(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No internet, and an empty folder of torchvision's weights."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(here / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    folder = here / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("command", [("main_free.py",), ("evaluate.py", "-e")])
def test_pretrained_offline_says_what_to_do(
    command: tuple[str, ...], digits: Path, offline: Path
) -> None:
    message = only_error(call(*command, digits, "--pretrained", "--set", "TRAIN.arch=resnet18"))
    assert "Temporary failure in name resolution" in message
    assert f"put resnet18-f37072fd.pth into {offline}" in message
    for content in (b"", b"PK\3\4 cut short", b"no pickle", b"\x80\x02."):
        (offline / "resnet18-f37072fd.pth").write_bytes(content)
        done = call(*command, digits, "--pretrained", "--set", "TRAIN.arch=resnet18")
        assert f"damaged); delete {offline}/resnet18-f37072fd.pth" in only_error(done)
    assert not Path("trained_models").exists()


@pytest.mark.parametrize("he", [(), HE])
def test_pretrained_takes_torchvisions_weights(he: tuple[str, ...], offline: Path) -> None:
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), offline / "resnet18-f37072fd.pth")
    config = flags("--set", "TRAIN.arch=resnet18", *he)
    four = new_model(settings_from(config, list("abcd")), seed=0, pretrained=True)
    assert torch.equal(four.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert four.fc.weight.shape == (4, 512)
    classes = [str(i) for i in range(1000)]
    fc = new_model(settings_from(config, classes), seed=0, pretrained=True).fc
    weight = theirs.fc.weight.detach()
    # With HE its rows are of length 1, as the head keeps them.
    assert torch.allclose(fc.weight, torch.nn.functional.normalize(weight) if he else weight)
    assert (fc.bias is None) == bool(he)


# Saving


def content_of(value: float) -> dict[str, Any]:
    """Something that takes half a megabyte."""
    return {"state_dict": {"fc.weight": torch.full((100, 1300), value)}, "model": {"arch": "a"}}


def values_in(folder: Path) -> list[float]:
    """Which of them the previous and the latest file hold; there are no others."""
    assert sorted(os.listdir(folder)) == [PREVIOUS, LATEST]
    files = [read_checkpoint(str(folder / name)) for name in (PREVIOUS, LATEST)]
    return [file.state_dict["fc.weight"].mean().item() for file in files]


@pytest.mark.parametrize("links", [True, False])
def test_the_checkpoint_before_stays(
    links: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for value in (1.0, 2.0, 3.0):
        save_checkpoint(here, content_of(value))
    assert values_in(here) == [2.0, 3.0]


@pytest.mark.parametrize("room", [1, 1_000, 300_000])
def test_full_disk_keeps_both_checkpoints(room: int, here: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(here, content_of(value))
    with room_for(room):
        for save, name in ((save_checkpoint, LATEST), (save_best, BEST)):
            message = user_error(save, here, content_of(3.0))
            assert message.startswith(f"cannot write {here / name}: File too large; free")
    assert values_in(here) == [1.0, 2.0]
