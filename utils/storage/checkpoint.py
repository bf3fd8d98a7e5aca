"""Checkpoints: safe to load, atomic to save, ours and other people's.

Everything is loaded with weights_only=True and nothing else: a file can hold tensors and plain
values, and no file can run code.
"""

import os
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.storage.files import replacing
from utils.storage.run_folder import BEST, LATEST, PREVIOUS
from utils.text import shortlist

FORMAT = "freeat-he 1"  # marks our own files
ZIP = b"PK\3\4"  # the first bytes of an archive
DAMAGED = "is damaged or was cut short; copy or download it again"
# Under these, DataParallel's releases, MadryLab, timm, tutorials and CIFAR codebases keep weights.
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "network", "model_state")
AVERAGED = re.compile("(?i)(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])")
# What the normalising layers of other libraries call their buffers.
COLOURS = {"mean": "mean", "new_mean": "mean", "mu": "mean"}
COLOURS |= {"std": "std", "new_std": "std", "sigma": "std"}
# Plain values that other libraries keep beside tensors: loading them runs no code of the file.
SCALAR = np.float64(0).__reduce__()[0]
DTYPES = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
PLAIN: list[Any] = [Namespace, np.dtype, *DTYPES]
PLAIN += [(SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]


class UnreadableCheckpoint(UserError):
    """A file that torch cannot make anything of: damaged, cut short, or something else."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's content, brought to one form."""

    path: str
    state_dict: dict[str, torch.Tensor]  # under torchvision's keys
    content: Mapping[str, Any]  # everything the file holds
    model: dict[str, Any] | None = None  # ours: arch, HE settings, classes, mean, std
    arch: str | None = None  # of others, where the file says it
    mean: list[float] | None = None  # per colour, where another library keeps it in the file
    std: list[float] | None = None
    note: str = ""  # which of several weights of others these are

    @property
    def is_ours(self) -> bool:
        return self.model is not None

    @property
    def epoch(self) -> int:
        """Passes over the data that are done; 0 where the file does not say."""
        value = self.content.get("epoch")
        return value if isinstance(value, int) else 0

    @property
    def training(self) -> dict[str, Any] | None:
        """The state of the training that resumes from here; None in model_best."""
        return self.content.get("training") if self.is_ours else None


def read_checkpoint(path: str, first_key: str = "conv1.weight", weights: str = "") -> Checkpoint:
    """Load a checkpoint of ours, of the published releases, torchvision's or other libraries'.

    In other people's files, wrappers before the network's first key are stripped off; `weights` is
    the key of those to take where there are several.
    """
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path} holds a {kind}, not a state_dict; save the network's state_dict")
    if "format" in content:
        if weights:
            raise UserError(f"--weights {weights}: {path} is this suite's and holds one network")
        if content["format"] != FORMAT:
            raise UserError(
                f"{path} has format {content['format']!r} and this version reads {FORMAT!r}; use"
                " the version that saved it"
            )
        if not all(isinstance(content.get(part), Mapping) for part in ("state_dict", "model")):
            raise UserError(f"{path} lacks its weights or settings; take the file as saved")
        checkpoint = Checkpoint(path, content["state_dict"], content, content["model"])
    else:
        state, note = find_weights(path, content, weights)
        network, mean, std = split_weights(path, state, first_key)
        arch = content["arch"] if isinstance(content.get("arch"), str) else None
        checkpoint = Checkpoint(path, network, content, None, arch, mean, std, note)
    if not checkpoint.state_dict:
        keys = shortlist(list(map(str, content)), 6) or "nothing"
        raise UserError(
            f"{path} holds no weights of a network, but {keys}; save the network's state_dict"
        )
    return checkpoint


def load_tensors(path: str) -> Any:
    """torch.load of tensors and plain values only."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if path.endswith(".safetensors"):
        return load_safetensors(path)
    # torch reads a flipped bit quietly.
    if start == ZIP and not is_whole(path):
        raise UnreadableCheckpoint(f"{path} {DAMAGED}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about malformed pickles, which end in an error below
        try:
            with torch.serialization.safe_globals(PLAIN):
                return plain_values(torch.load(path, map_location="cpu", weights_only=True))
        except MemoryError:
            raise
        except Exception as error:  # bytes that are no checkpoint raise anything in the unpickler
            raise UnreadableCheckpoint(f"{path} {reason(str(error))}") from error


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


def is_whole(path: str | os.PathLike) -> bool:
    """Whether every byte of a zip archive, as torch.save makes, is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a flipped bit in its directory raises anything in its reader
        return False


def reason(error: str) -> str:
    """Why a file did not load by torch's message, and the fix."""
    python_object = re.search(r"GLOBAL (?:builtins\.)?([\w.]+)", error)
    if python_object is not None:
        return (
            f"holds a Python object ({python_object[1]}) beside its tensors; it is refused, because"
            " loading it could run code from the file: save its state_dict alone, with plain"
            " numbers"
        )
    if "unexpected EOF" in error:
        return DAMAGED
    return "is not a checkpoint; give a state_dict saved by torch.save"


def plain_values(value: Any) -> Any:
    """NumPy's scalars as Python's, a Namespace as a dictionary; containers stay what they are."""
    if isinstance(value, np.generic):
        return value.item()
    value = vars(value) if isinstance(value, Namespace) else value
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            value[key] = plain_values(value[key])
    return tuple(map(plain_values, value)) if isinstance(value, tuple) else value


def weights_within(content: Mapping[Any, Any]) -> dict[str, Mapping[str, Any]]:
    """Dictionaries that hold tensors, by the names that lead to them: `state_dict.model`."""
    found = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str):
            if any(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items()):
                found[key] = value
            inner = weights_within(value).items()
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
        elif key.rpartition(".")[2] != "n_averaged":  # the counter of swa_utils.AveragedModel
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


def save_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Write checkpoint.pth.tar; the file before it stays as checkpoint.previous.pth.tar."""
    latest, previous = folder / LATEST, folder / PREVIOUS
    with replacing(latest) as file:
        torch.save({"format": FORMAT, **content}, file)
        if latest.exists():  # gets its second name before the new file takes its place
            previous.unlink(missing_ok=True)
            try:
                os.link(latest, previous)
            except OSError:  # a file system without links
                os.replace(latest, previous)


def save_best(folder: Path, content: Mapping[str, Any], name: str = BEST) -> None:
    """Write model_best.pth.tar, or under another name, atomically."""
    with replacing(folder / name) as file:
        torch.save({"format": FORMAT, **content}, file)
