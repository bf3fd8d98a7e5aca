"""Finding an ImageNet-C tree on the disk and checking it before any work.

A tree is flat (`gaussian_noise/1/CLASS/IMAGE`) or by group (`noise/gaussian_noise/1/...`). Its 75
folders hold 3.75 million files; their names are kept once for all folders that hold the same ones,
so that a process and its workers carry megabytes instead of a gigabyte.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from torchvision.datasets.folder import IMG_EXTENSIONS

from lib.data.folders import ImageTree, shortlist
from lib.imagenet_c.corruptions import SEVERITIES
from lib.imagenet_c.tree import CorruptionTree
from utils.errors import UserError
from utils.logging import counted

SCAN_THREADS = 16  # listing waits for the disk or the network, not for the processor
PROBLEMS_SHOWN = 3


def read_corruptions(root: str | os.PathLike, corruptions: Sequence[str]) -> CorruptionTree:
    """Find and list the folders of these corruptions.

    Raises:
        UserError: one line with what is missing, empty, or differs between the five severities
            of a corruption.
    """
    root = os.fspath(root)
    folders, problems = find_folders(root, corruptions)
    places = [(name, severity) for name in folders for severity in SEVERITIES]
    shared: dict[tuple[str, ...], ImageTree] = {}

    def scan(place: tuple[str, int]) -> ImageTree | str:
        return list_severity(os.path.join(folders[place[0]], str(place[1])), shared)

    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        scanned = dict(zip(places, pool.map(scan, places), strict=True))
    problems += [problem for problem in scanned.values() if isinstance(problem, str)]
    images = {}
    for name, folder in folders.items():
        trees = {s: scanned[name, s] for s in SEVERITIES if not isinstance(scanned[name, s], str)}
        problems += differences(folder, trees)
        if trees:
            images[name] = replace(next(iter(trees.values())), root=folder)
    if problems:
        rest = len(problems) - PROBLEMS_SHOWN
        shown = "; ".join(problems[:PROBLEMS_SHOWN]) + f"; and {rest} more" * (rest > 0)
        raise UserError(f"ImageNet-C in {root}: {shown}")
    return CorruptionTree(root, images)


def find_folders(root: str, corruptions: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Folder by corruption, directly below `root` or below one folder there; and the problems."""
    try:
        with os.scandir(root) as entries:
            inside = sorted(entry.path for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(
            f"cannot read the ImageNet-C folder {root}: {error.strerror}; give it as DIR or set"
            " DATA.imagenet_c"
        ) from error
    folders, missing, problems = {}, [], []
    for name in corruptions:
        places = [os.path.join(parent, name) for parent in (root, *inside)]
        places = [place for place in places if os.path.isdir(place)]
        if len(places) > 1:
            problems.append(f"{name} is there twice, {places[0]} and {places[1]}; remove one")
        elif places:
            folders[name] = places[0]
        else:
            missing.append(name)
    if missing:
        example = os.path.join(root, missing[0], "1", "CLASS")
        problems.append(
            f"no folder for {', '.join(missing)} ({example}, or the same in a folder GROUP);"
            " complete the tree, or choose others with --corruptions"
        )
    return folders, problems


def list_severity(folder: str, shared: dict[tuple[str, ...], ImageTree]) -> ImageTree | str:
    """The images of one severity, or what is wrong with it.

    `shared` holds a tree for each different list of names: folders with the same names get the
    same tuples. Its `root` and the labels' meaning are the caller's to set.
    """
    try:
        with os.scandir(folder) as entries:
            classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        names = [image_names(os.path.join(folder, name)) for name in classes]
    except OSError as error:
        return f"cannot read {error.filename}: {error.strerror}"
    if not classes:
        return f"{folder} has no class folders; put the images into {folder}/CLASS/"
    empty = [name for name, images in zip(classes, names, strict=True) if not images]
    if empty:
        return f"{folder} has no images in class folder {shortlist(empty)}"
    pairs = list(zip(classes, names, strict=True))
    files = tuple(f"{name}/{image}" for name, images in pairs for image in images)
    if files not in shared:
        labels = tuple(label for label, images in enumerate(names) for _ in images)
        shared.setdefault(files, ImageTree(folder, tuple(classes), files, labels))
    return shared[files]


def image_names(folder: str) -> list[str]:
    """File names of a class folder's images, sorted; hidden files are none."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return sorted(n for n in names if n.lower().endswith(IMG_EXTENSIONS) and n[0] != ".")


def differences(folder: str, trees: Mapping[int, ImageTree]) -> list[str]:
    """What sets a corruption's severities apart from most of their siblings."""
    if len({id(tree.files) for tree in trees.values()}) < 2:
        return []
    votes = Counter(tree.files for tree in trees.values())
    usual = max(votes, key=lambda files: (votes[files], len(files)))
    problems = []
    for severity, tree in trees.items():
        parts = []
        if lacking := set(usual) - set(tree.files):
            parts.append(f"lacks {counted(len(lacking), 'image')}, such as {min(lacking)}")
        if alone := set(tree.files) - set(usual):
            parts.append(f"alone has {counted(len(alone), 'image')}, such as {min(alone)}")
        if parts:
            place = os.path.join(folder, str(severity))
            problems.append(f"{place}, against its siblings, {' and '.join(parts)}")
    return problems
