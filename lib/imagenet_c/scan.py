"""Finding an ImageNet-C tree on the disk and checking it before any work.

A tree is flat (`gaussian_noise/1/CLASS/IMAGE`) or by group (`noise/gaussian_noise/1/...`). Its 75
folders hold 3.75 million files; their names are kept once for all folders that hold the same ones,
so that a process and its workers carry megabytes instead of a gigabyte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lib.data.folders import ImageTree, tree_of
from lib.data.listing import list_classes, subfolders, unlike_most
from lib.imagenet_c.corruptions import SEVERITIES, choose_corruptions
from lib.imagenet_c.tree import CorruptionTree
from utils.errors import UserError

SCAN_THREADS = 16  # listing waits for the disk or the network, not for the processor
PROBLEMS_SHOWN = 3
Pick = Callable[[ImageTree], ImageTree]
SharedTrees = dict[tuple[str, ...], ImageTree]  # one for each different list of files


def corruption_folders(root: str) -> list[tuple[str, str]]:
    """(name, folder) of each folder with a severity in it, below `root` or one folder deeper.

    Raises:
        UserError: `root` cannot be listed.
    """
    found = []
    for folder in subfolders(root):
        if has_severities(folder):
            found.append(folder)
        else:
            found += [inner for inner in subfolders(folder) if has_severities(inner)]
    return [(os.path.basename(folder), folder) for folder in found]


def has_severities(folder: str) -> bool:
    """Whether a folder named 1 to 5 is in it."""
    return any(os.path.isdir(os.path.join(folder, str(severity))) for severity in SEVERITIES)


def find_folders(root: str, asked: Sequence[str] | None) -> dict[str, str]:
    """The folder of each corruption of `--corruptions`, in the order of evaluation.

    Raises:
        UserError: one is unknown, missing, or there twice.
    """
    found = corruption_folders(root)
    names = choose_corruptions(asked, [name for name, _ in found])
    places = {name: [path for other, path in found if other == name] for name in names}
    problems = [
        f"{name} is there twice, {paths[0]} and {paths[1]}; remove one"
        for name, paths in places.items()
        if len(paths) > 1
    ]
    if not names:
        problems.append(f"no folder CORRUPTION/1/CLASS, such as {root}/fog/1/n01440764")
    if missing := [name for name, paths in places.items() if not paths]:
        example = os.path.join(root, missing[0], "1", "CLASS")
        problems.append(
            f"no folder for {', '.join(missing)} ({example}, or the same in a folder GROUP);"
            " complete the tree, or choose others with --corruptions"
        )
    raise_problems(root, problems)
    return {name: folder for name, (folder,) in places.items()}


def raise_problems(root: str, problems: Sequence[str]) -> None:
    """One line of the first problems, if there are any."""
    if problems:
        rest = len(problems) - PROBLEMS_SHOWN
        shown = "; ".join(problems[:PROBLEMS_SHOWN]) + f"; and {rest} more" * (rest > 0)
        raise UserError(f"ImageNet-C in {root}: {shown}")


def read_corruptions(
    root: str, folders: Mapping[str, str], pick: Pick | None = None
) -> CorruptionTree:
    """The images of the corruptions in these folders, all of them or those that `pick` takes.

    Raises:
        UserError: what is missing, empty, or differs between the severities of a corruption.
    """
    places = {
        f"{name}/{severity}": os.path.join(folder, str(severity))
        for name, folder in folders.items()
        for severity in SEVERITIES
    }
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        if pick is not None and (tree := read_picked(root, places, pick, pool.map)):
            return tree
        shared: SharedTrees = {}
        scanned = list(pool.map(lambda folder: list_severity(folder, shared), places.values()))
    problems = [problem for problem in scanned if isinstance(problem, str)]
    trees = {n: t for n, t in zip(places, scanned, strict=True) if isinstance(t, ImageTree)}
    for name in folders:
        lists = {t.root: t.files for n, t in trees.items() if n.rpartition("/")[0] == name}
        for folder, _, parts in unlike_most(lists):
            problems.append(f"{folder}, against its siblings, {' and '.join(parts)}")
    raise_problems(root, problems)
    tree = CorruptionTree(root, trees, max(len(tree.files) for tree in trees.values()))
    return tree.apply(pick) if pick else tree


def read_picked(
    root: str, places: Mapping[str, str], pick: Pick, parallel: Callable[..., Iterable]
) -> CorruptionTree | None:
    """The images that `pick` takes, if every folder has those that it takes of the first one.

    Then one folder is listed instead of 75, each of 50,000 images.
    """
    first = list_severity(next(iter(places.values())), {})
    if isinstance(first, str):
        return None
    picked = pick(first)
    trees = {name: replace(picked, root=folder) for name, folder in places.items()}

    def is_whole(tree: ImageTree) -> bool:
        return all(os.path.isfile(tree.path(i)) for i in range(len(tree.files)))

    whole = all(parallel(is_whole, trees.values()))
    return CorruptionTree(root, trees, len(first.files)) if whole else None


def list_severity(folder: str, shared: SharedTrees) -> ImageTree | str:
    """The images of one severity, or what is wrong with it.

    Folders with the same names get the same tuples.
    """
    try:
        found = tree_of(list_classes(folder))
    except UserError as error:
        return str(error)
    same = shared.setdefault(found.files, found)
    return replace(found, classes=same.classes, files=same.files, labels=same.labels)
