"""Checkpoints: safe to load, atomic to save, ours and other people's.

Everything is loaded with weights_only=True and nothing else: a file can hold tensors and plain
values, and no file can run code.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.storage.files import replacing
from utils.storage.foreign import PLAIN, find_weights, load_safetensors, plain_values, split_weights
from utils.storage.run_folder import BEST, LATEST, PREVIOUS
from utils.text import shortlist

FORMAT = "freeat-he 1"  # marks our own files
FIRST_KEY = "conv1.weight"  # of a ResNet
ZIP = b"PK\3\4"  # the first bytes of an archive
DAMAGED = "is damaged or was cut short; copy or download it again"


class UnreadableCheckpoint(UserError):
    """A file that torch cannot make anything of: damaged, cut short, or something else."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's content, brought to one form."""

    path: str
    state_dict: dict[str, torch.Tensor]  # under torchvision's keys
    content: Mapping[str, Any]  # everything the file holds
    model: dict[str, Any] | None = None  # ours: arch, HE settings, classes, mean, std
    arch: str | None = None
    mean: list[float] | None = None  # per colour, where another library keeps it in the file
    std: list[float] | None = None
    note: str = ""  # which of several weights of others these are

    @property
    def is_ours(self) -> bool:
        return self.model is not None

    @property
    def epoch(self) -> int:
        """Passes over the data that are done; 0 where the file does not say."""
        value = self.content.get("epoch", 0)
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        return value if isinstance(value, int) else 0

    @property
    def training(self) -> dict[str, Any] | None:
        """The state of the training that resumes from here; None in model_best."""
        return self.content.get("training") if self.is_ours else None


def read_checkpoint(path: str, first_key: str = FIRST_KEY, weights: str = "") -> Checkpoint:
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
        model = content.get("model")
        if not isinstance(model, Mapping):
            raise UserError(f"{path} lacks the settings of its network; take the file as saved")
        network = dict(content.get("state_dict", {}))
        checkpoint = Checkpoint(path, network, content, dict(model), model["arch"])
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
    if "TorchScript" in error:
        return "is a TorchScript archive, which is code; save the state_dict of its network"
    return DAMAGED if "unexpected EOF" in error else "is not a checkpoint; give one saved by torch"


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
