"""Checkpoints: safe to load, atomic to save, ours and other people's.

Everything is loaded with weights_only=True and nothing else: a file can hold tensors and plain
values, and no file can run code.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils.errors import UserError
from utils.storage.files import replacing
from utils.storage.foreign import FIRST_KEY, find_weights, load_safetensors, split_weights
from utils.storage.run_folder import BEST, LATEST, PREVIOUS

FORMAT = "freeat-he 1"  # marks our own files
MOST_TIMES = 8  # a file may unpack to so many times its size; torch.save compresses nothing


class UnreadableCheckpoint(UserError):
    """A file that torch cannot make anything of: damaged, cut short, or something else."""


@dataclass(frozen=True)
class Checkpoint:
    """A file's content, brought to one form.

    Attributes:
        path: where it was read from.
        state_dict: the network's tensors under torchvision's keys.
        model: our own files: arch, FN, WN, s_HE, angular_margin_HE, classes, mean, std.
        arch: the architecture that it names, ours or not.
        mean: per colour, where another library keeps it in the file; else None.
        std: likewise.
        content: everything the file holds.
    """

    path: str
    state_dict: dict[str, torch.Tensor]
    model: dict[str, Any] | None
    arch: str | None
    mean: list[float] | None
    std: list[float] | None
    content: Mapping[str, Any]

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


def read_checkpoint(path: str, first_key: str = FIRST_KEY) -> Checkpoint:
    """Load a checkpoint of ours, of the published releases, torchvision's or other libraries'.

    Args:
        path: of the file.
        first_key: of the network in other people's files, behind which wrappers are stripped off.

    Raises:
        UserError: missing, damaged, not a checkpoint, or holding Python objects.
    """
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise UserError(f"{path} holds a {kind}, not a state_dict; save the network's state_dict")
    ours = content.get("format") == FORMAT
    if "format" in content and not ours:
        raise UserError(
            f"{path} has format {content['format']!r} and this version reads {FORMAT!r}; use the"
            " version that saved it"
        )
    if ours and not isinstance(content.get("model"), Mapping):
        raise UserError(f"{path} lacks the settings of its network; take the file as it was saved")
    state = content.get("state_dict", {}) if ours else find_weights(content)
    arch = content["model"]["arch"] if ours else content.get("arch")
    network, mean, std = (
        (dict(state), None, None) if ours else split_weights(path, state, first_key)
    )
    if not network:
        raise UserError(f"{path} holds no weights of a network; save the network's state_dict")
    # Views of one value, as by expand, take no memory before they are copied.
    require_size(path, sum(value.numel() * value.element_size() for value in network.values()))
    return Checkpoint(
        path=path,
        state_dict=network,
        model=dict(content["model"]) if ours else None,
        arch=arch if isinstance(arch, str) else None,
        mean=mean,
        std=std,
        content=content,
    )


def load_tensors(path: str) -> Any:
    """torch.load of tensors and plain values only.

    Raises:
        UnreadableCheckpoint: with the reason and the fix.
        UserError: there is no file to read.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about malformed pickles, which end in an error below
        archive = open_archive(file)
        if archive is not None:
            require_size(path, sum(entry.file_size for entry in archive.infolist()))
        if path.endswith(".safetensors"):
            return load_safetensors(path)
        is_zip = zipfile.is_zipfile(file)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # bytes that are no checkpoint raise anything in the unpickler
            file.seek(0)
            raise UnreadableCheckpoint(f"{path} {what_is_wrong(file.read(4), error)}") from error
        if is_zip and not has_valid_checksums(archive):  # torch reads a flipped bit quietly
            raise UnreadableCheckpoint(
                f"{path} is damaged: its checksums do not match; take another copy"
            )
    return content


def open_archive(file: BinaryIO) -> zipfile.ZipFile | None:
    """The zip archive in a file; None for other files and damaged ones."""
    try:
        return zipfile.ZipFile(file)
    except Exception:  # a flipped bit in its directory raises anything in its reader
        return None


def has_valid_checksums(archive: zipfile.ZipFile | None) -> bool:
    """Whether every byte of an archive is as it was written."""
    try:
        return archive is not None and archive.testzip() is None
    except MemoryError:
        raise
    except Exception:  # as in `open_archive`
        return False


def require_size(path: str, unpacked: int) -> None:
    """Refuse what would fill the memory.

    Raises:
        UserError: a file unpacks to many times its size.
    """
    size = os.path.getsize(path)
    if unpacked > MOST_TIMES * size + 2**20:
        raise UserError(
            f"{path} has {size} bytes and unpacks to {unpacked}; it is refused, because it could"
            " fill the memory: save it again by torch.save"
        )


def what_is_wrong(start: bytes, error: Exception) -> str:
    """Why a file that begins with these bytes did not load, and the fix."""
    found = re.search(r"GLOBAL (?:builtins\.)?([\w.]+)", str(error))
    if found is not None:
        return (
            f"holds a Python object ({found.group(1)}) beside its tensors; it is refused, because"
            " loading it could run code from the file: save its state_dict alone, with plain"
            " numbers"
        )
    if "TorchScript" in str(error):
        return "is a TorchScript archive, which is code; save the state_dict of its network"
    if start == b"PK\3\4" or "unexpected EOF" in str(error):  # a zip archive, as torch.save makes
        return "is damaged or was cut short; copy or download it again"
    return "is not a checkpoint" + ("; it is empty" if not start else "; give one saved by torch")


def save_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Write checkpoint.pth.tar; the file before it stays as checkpoint.previous.pth.tar.

    At every instant there is an intact newest file, and after the first save an intact older one.

    Raises:
        UserError: it cannot be written; the old files are as they were.
    """
    latest, previous = folder / LATEST, folder / PREVIOUS
    with replacing(latest) as file:
        torch.save({"format": FORMAT, **content}, file)
        # Before the new file takes its place: give the old one its second name.
        if latest.exists():
            second = folder / f".{PREVIOUS}"
            with suppress(FileNotFoundError):
                second.unlink()
            try:
                os.link(latest, second)
                os.replace(second, previous)
            except OSError:  # a file system without links
                os.replace(latest, previous)


def save_best(folder: Path, content: Mapping[str, Any], name: str = BEST) -> None:
    """Write model_best.pth.tar, or under another name, atomically."""
    with replacing(folder / name) as file:
        torch.save({"format": FORMAT, **content}, file)


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written, by the file's own checksums."""
    with suppress(OSError), open(path, "rb") as file:
        return has_valid_checksums(open_archive(file))
    return False
