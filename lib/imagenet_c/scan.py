"""Finding an ImageNet-C tree on the disk and checking it before any work.

A tree is flat (`gaussian_noise/1/CLASS/IMAGE`) or by group (`noise/gaussian_noise/1/...`). Its 75
folders hold 3.75 million files; their names are kept once for all folders that hold the same ones,
so that a process and its workers carry megabytes instead of a gigabyte.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from lib.data.folders import ImageTree, list_classes, subfolders, tree_of, unlike_most
from lib.data.subsets import describe_subset
from lib.imagenet_c.corruptions import SEVERITIES, choose_corruptions
from utils.errors import UserError
from utils.storage.files import names_sha256
from utils.text import shortlist

SCAN_THREADS = 16  # listing waits for the disk or the network, not for the processor
PROBLEMS_SHOWN = 3
Pick = Callable[[ImageTree], ImageTree]
SharedTrees = dict[tuple[str, ...], ImageTree]  # one for each different list of files


@dataclass(frozen=True)
class CorruptionTree:
    """A checked tree.

    Attributes:
        folders: by corruption and severity, `gaussian_noise/1`, in the order of evaluation.
        total: images of a folder before some were picked.
    """

    folders: Mapping[str, ImageTree]
    total: int

    @property
    def corruptions(self) -> list[str]:
        return list(dict.fromkeys(name.rpartition("/")[0] for name in self.folders))

    @property
    def classes(self) -> list[str]:
        """Names of the classes that have an image, sorted."""
        lists = {tree.files for tree in self.folders.values()}
        return sorted({name.partition("/")[0] for files in lists for name in files})

    def warnings(self) -> list[str]:
        """What is odd about it, though each corruption can be evaluated."""
        found = list(dict.fromkeys(note for tree in self.folders.values() for note in tree.notes))
        usual, _ = Counter(tree.files for tree in self.folders.values()).most_common(1)[0]
        odd = [name for name, tree in self.folders.items() if tree.files != usual]
        if odd:
            names = shortlist(list(dict.fromkeys(name.rpartition("/")[0] for name in odd)))
            sizes = f"{len(self.folders[odd[0]].files)} in {odd[0]}, {len(usual)} in most"
            text = f"{names} hold other images than the other corruptions ({sizes}):"
            found.append(f"{text} the means over corruptions mix different images")
        return found

    def with_labels_of(
        self, names: Sequence[str] | None, num_classes: int, order: str = "auto"
    ) -> CorruptionTree:
        """The same tree with labels that index a network's outputs; see `ImageTree`."""
        return self.apply(lambda tree: tree.with_labels_of(names, num_classes, order))

    def describe_subset(self, listed: bool) -> dict[str, Any]:
        """What result files say of the images; n is those of each folder."""
        lists = dict.fromkeys(tree.files for tree in self.folders.values())
        digest = names_sha256(file for files in lists for file in files)
        n = max(len(tree.files) for tree in self.folders.values())
        return describe_subset(n, self.total, listed, digest)

    def apply(self, change: Callable[[ImageTree], ImageTree]) -> CorruptionTree:
        """Change every folder's images; those that are the same stay one object."""
        changed: dict[tuple[str, ...], ImageTree] = {}
        for tree in self.folders.values():
            if tree.files not in changed:
                changed[tree.files] = change(tree)
        folders = {
            name: replace(changed[tree.files], root=tree.root)
            for name, tree in self.folders.items()
        }
        return CorruptionTree(folders, self.total)


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
        if pick is not None and (tree := read_picked(places, pick, pool.map)):
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
    tree = CorruptionTree(trees, max(len(tree.files) for tree in trees.values()))
    return tree.apply(pick) if pick else tree


def read_picked(
    places: Mapping[str, str], pick: Pick, parallel: Callable[..., Iterable]
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
    return CorruptionTree(trees, len(first.files)) if whole else None


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
