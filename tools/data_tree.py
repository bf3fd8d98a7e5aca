"""What a data set holds, of whichever layout, and what is out of place; no image is read yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lib.data.listing import Listing, as_path, list_classes, subfolders, unlike_most
from lib.imagenet_c.corruptions import CORRUPTIONS, SEVERITIES, STANDARD
from lib.imagenet_c.scan import corruption_folders
from utils.text import counted


@dataclass
class DataTree:
    """The file lists of a data folder.

    Attributes:
        root: the folder.
        parts: the folders of class folders: `train`, `val`, `fog/1`, ... (`.` for `root` itself).
        files: by part, its images as `CLASS/IMAGE`; parts with the same ones share them, so that
            the 75 of ImageNet-C cost one list.
        problems: (kind, what), kind one of `empty`, `misplaced`, `different`, `unreadable`.
        notes: worth knowing, but nothing wrong.
        listed: called with the number of images whenever a class has been listed.
    """

    root: str
    listed: Callable[[int], object] = lambda count: None
    parts: dict[str, Listing] = field(default_factory=dict)
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_part(self, name: str, folder: str) -> None:
        """List one folder of class folders."""
        listing = list_classes(folder, self.listed)
        self.problems += faults(name, listing)
        self.notes += listing.notes
        files = listing.files
        self.files[name] = next((known for known in self.files.values() if known == files), files)
        listing.images = {label: [] for label in listing.images}  # the names are in `files`
        self.parts[name] = listing

    def paths(self) -> Iterator[str]:
        """Every image, one at a time."""
        for name, listing in self.parts.items():
            yield from (as_path(os.path.join(listing.root, file)) for file in self.files[name])

    @property
    def count(self) -> int:
        return sum(map(len, self.files.values()))

    @property
    def classes(self) -> set[str]:
        return {name for listing in self.parts.values() for name in listing.classes}


def faults(name: str, listing: Listing) -> Iterator[tuple[str, str]]:
    """What is wrong with a part, by kind."""
    for folder, reason in listing.unreadable:
        yield "unreadable", f"{folder}: {reason}"
    for file in listing.special:
        yield "unreadable", f"{name}/{file}: no regular file (a FIFO?)"
    if listing.loose:
        first = min(listing.loose)
        yield (
            "misplaced",
            f"{name}: {counted(len(listing.loose), 'image')} loose in the folder, such as {first};"
            f" move each into the folder of its class, {name}/CLASS/{first}",
        )
    elif not listing.images:
        yield "empty", f"{name}: no class folder"
    for label in listing.empty:
        yield "empty", f"{name}/{label}: class folder without images"
    for label, others in listing.others.items():
        kinds = counted(len(others), "file")
        yield "misplaced", f"{name}/{label}: {kinds} of another kind, such as {others[0]}"


def scan(root: str, listed: Callable[[int], object]) -> DataTree:
    """List a data folder: train and val, an ImageNet-C tree, or class folders alone."""
    tree = DataTree(root, listed)
    splits = [name for name in ("train", "val") if os.path.isdir(os.path.join(root, name))]
    if splits:
        scan_splits(tree, splits)
    elif folders := find_corruptions(root):
        scan_corruptions(tree, folders)
    else:
        tree.add_part(".", root)
        note_depth(tree)
    return tree


def note_depth(tree: DataTree) -> None:
    """Note that a parent of the data set may have been given: then splits look like classes."""
    folders: dict[str, list[str]] = {}
    for file in tree.files["."]:
        folders.setdefault(file.partition("/")[0], []).append(os.path.dirname(file))
    for name, places in folders.items():
        if name not in places:
            where = f"images of {name} lie deeper, in {places[0]}"
            tree.notes.append(f"{where}; is DIR a folder too high?")


def scan_splits(tree: DataTree, splits: list[str]) -> None:
    """`train` and `val`, which must have the same classes."""
    for name in splits:
        tree.add_part(name, os.path.join(tree.root, name))
    if "val" not in splits:
        tree.problems.append(("empty", "val: no such folder; every command reads it"))
    elif "train" not in splits:
        tree.notes.append("no train folder: fit for evaluation, not for training")
    else:
        for one, other in (("train", "val"), ("val", "train")):
            extra = set(tree.parts[one].classes) - set(tree.parts[other].classes)
            tree.problems += [
                ("different", f"class {name} is in {one}, not in {other}") for name in sorted(extra)
            ]


def find_corruptions(root: str) -> list[tuple[str, str]]:
    """(name, folder) of the corruptions; nothing where root is no such tree.

    A folder of class folders may well have a class named `snow`, so severities are looked for:
    those of a known corruption, or all five, each with class folders.
    """
    folders = corruption_folders(root)
    for name, folder in folders:
        severities = [os.path.join(folder, str(severity)) for severity in SEVERITIES]
        if name in CORRUPTIONS or all(os.path.isdir(s) and subfolders(s) for s in severities):
            return folders
    return []


def scan_corruptions(tree: DataTree, folders: list[tuple[str, str]]) -> None:
    """Every severity of every corruption, which must all hold the same images."""
    names = set()
    known = any(name in CORRUPTIONS for name, _ in folders)
    for name, folder in folders:
        where = os.path.relpath(folder, tree.root)
        if known and name not in CORRUPTIONS:
            tree.problems.append(("misplaced", f"{where}: not the name of a corruption"))
        elif name in names:
            tree.problems.append(("different", f"{where}: a second folder of {name}"))
        else:
            scan_severities(tree, name, folder)
        names.add(name)
    absent = [name for name in STANDARD if name not in names]
    if known and absent:
        tree.notes.append(f"{len(absent)} of the 15 corruptions are absent: {', '.join(absent)}")
    for name, where, parts in unlike_most(tree.files):
        for part in parts:
            tree.problems.append(("different", f"{name}: {part}; against {where}"))


def scan_severities(tree: DataTree, name: str, folder: str) -> None:
    """The five severities of one corruption."""
    found = {os.path.basename(path): path for path in subfolders(folder)}
    for severity in map(str, SEVERITIES):
        if severity in found:
            tree.add_part(f"{name}/{severity}", found.pop(severity))
        else:
            tree.problems.append(("different", f"{name}: severity {severity} is missing"))
    for other in found:
        tree.problems.append(("misplaced", f"{name}/{other}: not a severity from 1 to 5"))
