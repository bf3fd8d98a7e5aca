"""What an ImageFolder holds: its splits, its classes, its images, and what is out of place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.logging import counted

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm"),
    *(".tif", ".tiff", ".webp"),
)


@dataclass
class DataTree:
    """The file list of a data folder and what is wrong with it, no image read yet.

    Attributes:
        parts: `train`, `val`, `gaussian_noise/1`, ... (`.` for class folders alone) to
            {class: [(folder, [image names])]}. Names are shared between parts, so that the
            75 parts of ImageNet-C cost one set of names.
        problems: (kind, what), kind one of `empty`, `misplaced`, `different`, `unreadable`.
        notes: worth knowing, but nothing wrong.
        listed: called with the number of images whenever a folder has been listed.
    """

    root: Path
    parts: dict[str, dict[str, list[tuple[str, list[str]]]]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    listed: Callable[[int], object] = lambda count: None

    def add_part(self, name: str, folder: Path) -> None:
        """List one folder of class folders."""
        loose, classes = [], {}
        for entry in visible(folder):
            if entry.is_dir():
                classes[entry.name] = self.list_class(Path(entry.path), f"{name}/{entry.name}")
            elif is_image(entry.name):
                loose.append(entry.name)
        if loose:
            self.problems.append(("misplaced", loose_images(name, loose)))
        elif not classes:
            self.problems.append(("empty", f"{name}: no class folder"))
        self.parts[name] = classes

    def list_class(self, folder: Path, name: str) -> list[tuple[str, list[str]]]:
        """The images of one class, in its sub-folders too, and what is no image."""
        listing, others, seen = [], [], set()

        def unlisted(error: OSError) -> None:
            self.problems.append(("unreadable", f"{error.filename}: {error.strerror}"))

        for place, folders, files in os.walk(folder, onerror=unlisted, followlinks=True):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
            files = sorted(file for file in files if not file.startswith("."))
            images = [sys.intern(file) for file in files if is_image(file)]
            others += [file for file in files if not is_image(file)]
            if images:
                listing.append((place, images))
                self.listed(len(images))
        if not listing:
            self.problems.append(("empty", f"{name}: class folder without images"))
        if others:
            what = f"{name}: {counted(len(others), 'file')} of another kind, such as {others[0]}"
            self.problems.append(("misplaced", what))
        return listing

    def paths(self) -> Iterator[str]:
        """Every image, one at a time."""
        for classes in self.parts.values():
            for listing in classes.values():
                for folder, names in listing:
                    yield from (os.path.join(folder, name) for name in names)

    def count(self, part: str) -> int:
        """Number of images in a part."""
        return sum(len(names) for listing in self.parts[part].values() for _, names in listing)


def scan_splits(tree: DataTree, splits: list[str]) -> None:
    """`train` and `val`, which must have the same classes."""
    for name in splits:
        tree.add_part(name, tree.root / name)
    if "val" not in splits:
        tree.problems.append(("empty", "val: no such folder; every command reads it"))
    elif "train" not in splits:
        tree.notes.append("no train folder: fit for evaluation, not for training")
    else:
        for one, other in (("train", "val"), ("val", "train")):
            for name in sorted(tree.parts[one].keys() - tree.parts[other].keys()):
                tree.problems.append(("different", f"class {name} is in {one}, not in {other}"))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name."""
    return [Path(entry.path) for entry in visible(folder) if entry.is_dir()]


def visible(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder by name, without hidden ones.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; make it readable") from error


def is_image(name: str) -> bool:
    """Whether the name ends as an image's does."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def loose_images(name: str, loose: list[str]) -> str:
    """What is wrong with images beside class folders, and how to mend it."""
    return (
        f"{name}: {counted(len(loose), 'image')} loose in the folder, such as {loose[0]};"
        f" move each into the folder of its class, {name}/CLASS/{loose[0]}"
    )
