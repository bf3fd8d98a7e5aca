"""Networks of this suite for other code, RobustBench's and AutoAttack's included.

model = torch.hub.load("PATH/OF/THIS/SUITE", "robust_model", "best.pth.tar", source="local")
logits = model(x)       # x: (B, 3, H, W), pixels in [0, 1]; logits: (B, classes)

It copies and pickles; pickles load wherever the suite has the same path.
"""

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

dependencies = "easydict numpy PIL termcolor torch torchvision tqdm yaml".split()
OWN = ("lib", "models", "utils")
HERE = str(Path(__file__).resolve().parent)


def robust_model(checkpoint: str | os.PathLike[str], **flags: object) -> nn.Module:
    """A checkpoint's network in eval mode, with the mean and std it was trained with, on the CPU.

    Args:
        checkpoint: a file of this suite, or one that `--resume` takes.
        flags: for files of others, which do not carry them: FN, WN, s_HE (HE: FN=True, WN=True,
            s_HE=10.0), arch (of torchvision, or timm/NAME), mean and std of each colour, and
            weights (of several, by key).

    Raises:
        ValueError: the file is missing, damaged or no network, or the flags contradict it.
    """
    with own_packages():
        from lib.evaluation.load_model import KEYS, read_network
        from utils.config.load import merge
        from utils.config.settings import Config, Options

        keys = {**KEYS, "weights": "weights"}
        given = [(name, keys.get(name, f"HE.{name}"), value) for name, value in flags.items()]
        path = os.path.expanduser(checkpoint)
        call = Config(OPTIONS=Options(script="evaluate", evaluate=True, resume=str(path)))
        network, settings, _ = read_network(merge({}, given, base=call), str(path))
        return portable(network, vars(settings)).eval()


def rebuilt(settings: Mapping[str, Any], classes: int, state: dict[str, Any]) -> nn.Module:
    """A network of `robust_model` from its pickle: settings, number of classes, state_dict."""
    with own_packages():
        from lib.evaluation.load_model import ModelSettings, build
        from models.any_network import build_any
        from utils.config.settings import ARCHITECTURES

        known, arch = ModelSettings(**settings), settings["arch"]
        network: nn.Module = (
            build(known, classes)
            if arch in ARCHITECTURES
            else build_any(arch, None, classes, mean=known.mean, std=known.std)
        )
        network.to(next(value for value in state.values() if value.is_floating_point()))
        network.load_state_dict(state)
        return portable(network, settings).eval()


def portable(network: Any, settings: Mapping[str, Any]) -> nn.Module:
    """The network, of a class that finds itself again where none of its modules is known."""
    own: Any = type(network)

    class Portable(own):
        def __reduce__(self) -> tuple[Any, ...]:
            load = partial(torch.hub.load, source="local")
            content = dict(settings), self.num_classes, self.state_dict()
            return load, (HERE, "rebuilt", *content), {"training": self.training}

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            twin: nn.Module = self.__class__.__new__(self.__class__)
            memo[id(self)] = twin
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return twin

        def __setstate__(self, state: dict[str, Any]) -> None:
            self.train(state["training"])

    Portable.__name__ = Portable.__qualname__ = own.__name__
    network.__class__ = Portable
    return network


@contextmanager
def own_packages() -> Iterator[None]:
    """Let `import models` mean this suite's, and afterwards what it meant before."""
    before = {name: module for name, module in sys.modules.items() if is_own_name(name)}
    files = {name: str(getattr(module, "__file__", None)) for name, module in before.items()}
    theirs = [name for name, file in files.items() if not file.startswith(HERE + os.sep)]
    for name in theirs:
        del sys.modules[name]
    sys.path.insert(0, HERE)
    try:
        yield
    finally:
        sys.path.remove(HERE)
        if len(theirs) == len(before):  # the caller is none of this suite's programs
            for name in filter(is_own_name, list(sys.modules)):
                del sys.modules[name]
        sys.modules.update(before)


def is_own_name(module: str) -> bool:
    return module.partition(".")[0] in OWN
