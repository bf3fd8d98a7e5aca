"""Other people's checkpoints: where their network's tensors are, under which prefix."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from utils.errors import UserError

# Under these, DataParallel's releases, MadryLab, timm, tutorials and CIFAR codebases keep weights.
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "network", "model_state")
DEPTH = 4  # of dictionaries within dictionaries
FIRST_KEY = "conv1.weight"  # of a ResNet
# What the normalising layers of other libraries call their buffers.
COLOURS = {"mean": "mean", "new_mean": "mean", "mu": "mean"}
COLOURS |= {"std": "std", "new_std": "std", "sigma": "std"}
COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel


def find_weights(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost dictionary under a name of WEIGHTS, or the content itself."""
    for _ in range(DEPTH):
        inner = [content[key] for key in WEIGHTS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        # One of them may be the network's settings.
        content = max(inner, key=lambda state: any(map(torch.is_tensor, state.values())))
    return content


def split_weights(
    path: str, state: Mapping[Any, Any], first_key: str = FIRST_KEY
) -> tuple[dict[str, torch.Tensor], list[float] | None, list[float] | None]:
    """Strip a network's wrappers off: its tensors, mean and standard deviation of each colour."""
    tensors = {
        key: value
        for key, value in state.items()
        # MadryLab's attacker holds the same network a second time.
        if isinstance(key, str) and isinstance(value, torch.Tensor) and "attacker." not in key
    }
    # What stands before the first key is a wrapper's: `module.`, Lightning's `net.`, `1.`; blocks
    # may have the same key further on.
    first = re.compile(rf"((?:.*\.)?){re.escape(first_key)}")
    starts = {match[1] for key in tensors if (match := first.fullmatch(key))}
    prefixes = [p for p in starts if not any(p != q and p.startswith(q) for q in starts)]
    if not prefixes:
        return tensors, None, None
    if len(prefixes) > 1:
        names = " and ".join(sorted(prefixes)[:3])
        raise UserError(
            f"{path} holds several networks ({names}), or one of another family: save one's"
            " state_dict alone, or name the family, such as --set TRAIN.arch=densenet121"
        )
    network, colours = {}, dict[str, list[float]]()
    for key, value in tensors.items():
        name = COLOURS.get(key.rpartition(".")[2])
        if name and value.numel() == 3:
            colours[name] = value.flatten().tolist()
        elif key.startswith(prefixes[0]) and not name:
            network[key.removeprefix(prefixes[0])] = value
        elif key.rpartition(".")[2] not in COUNTERS:
            raise UserError(
                f"{path} holds {key} beside a network ({prefixes[0]}*), and this suite knows no use"
                " for it; save the network's state_dict alone"
            )
    return network, colours.get("mean"), colours.get("std")


def load_safetensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, which can hold nothing else."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors; pip install safetensors") from error
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy or download it again") from error
    return tensors
