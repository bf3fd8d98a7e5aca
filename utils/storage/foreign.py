"""Other people's checkpoints: where their network's tensors are, under which prefix."""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.text import shortlist

# Under these, DataParallel's releases, MadryLab, timm, tutorials and CIFAR codebases keep weights.
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "network", "model_state")
AVERAGED = re.compile("(?i)(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])")
DEPTH = 4  # of dictionaries within dictionaries
# What the normalising layers of other libraries call their buffers.
COLOURS = {"mean": "mean", "new_mean": "mean", "mu": "mean"}
COLOURS |= {"std": "std", "new_std": "std", "sigma": "std"}
# Plain values that other libraries keep beside tensors: loading them runs no code of the file.
SCALAR = np.float64(0).__reduce__()[0]
DTYPES = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
PLAIN: list[Any] = [Namespace, np.dtype, *DTYPES]
PLAIN += [(SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel


def plain_values(value: Any) -> Any:
    """NumPy's scalars as Python's, a Namespace as a dictionary; containers stay what they are."""
    if isinstance(value, np.generic):
        return value.item()
    value = vars(value) if isinstance(value, Namespace) else value
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            value[key] = plain_values(value[key])
    return tuple(map(plain_values, value)) if isinstance(value, tuple) else value


def weights_within(content: Mapping[Any, Any], depth: int = DEPTH) -> dict[str, Mapping[str, Any]]:
    """Dictionaries that hold tensors, by the names that lead to them: `state_dict.model`."""
    found = {}
    for key, value in content.items() if depth else ():
        if isinstance(value, Mapping) and isinstance(key, str):
            if any(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items()):
                found[key] = value
            inner = weights_within(value, depth - 1).items()
            found |= {f"{key}.{name}": state for name, state in inner}
    return found


def find_weights(
    path: str, content: Mapping[str, Any], wanted: str
) -> tuple[Mapping[str, Any], str]:
    """The network's tensors, and a note of how to take others where there are some."""
    found = weights_within(content)
    if wanted:
        if wanted not in found:
            listed = shortlist(list(found or map(str, content)), 6)
            raise UserError(f"--weights {wanted}: {path} holds no such weights, but {listed}")
        return found[wanted], ""
    usual = [name for name in found if set(name.split(".")) <= set(WEIGHTS)]
    usual = [name for name in usual if not any(n.startswith(f"{name}.") for n in usual)]
    usual.sort(key=lambda name: [WEIGHTS.index(part) for part in name.split(".")])
    averaged = [name for name in found if AVERAGED.search(name)]
    names = usual or averaged or list(found)
    is_network = any(torch.is_tensor(value) and value.ndim > 1 for value in content.values())
    if not names or (is_network and not usual):
        return content, ""
    if len(names) > 1 and not usual:
        listed = shortlist(names, 6)
        raise UserError(f"{path} holds several networks ({listed}); give one as --weights KEY")
    others = [name for name in (*usual, *averaged) if name != names[0]]
    note = f"{path}: the weights are those of {names[0]}; --weights KEY takes {shortlist(others)}"
    return found[names[0]], note * bool(others)


def split_weights(
    path: str, state: Mapping[Any, Any], first_key: str
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
            wide = value.flatten().to(torch.promote_types(value.dtype, torch.float32))
            colours[name] = [float(str(x)) for x in wide.numpy()]  # 0.485 of a float32, too
        elif key.startswith(prefixes[0]) and not name:
            network[key.removeprefix(prefixes[0])] = value
        elif key.rpartition(".")[2] not in COUNTERS:
            raise UserError(
                f"{path} holds {key} beside a network ({prefixes[0]}*), and this suite knows no use"
                " for it; save the network's state_dict alone"
            )
    mean, std = colours.get("mean"), colours.get("std")
    if colours and not (mean and std and max(mean) <= 1 and 0 < min(std) <= max(std) <= 1):
        raise UserError(
            f"{path} holds mean {mean} and std {std}, not both for pixels in [0, 1]; save the"
            " network's state_dict alone, and give TRAIN.mean and TRAIN.std"
        )
    return network, mean, std


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
