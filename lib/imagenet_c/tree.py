"""Finding an ImageNet-C tree on the disk and checking it before any work.

A tree is flat (`gaussian_noise/1/CLASS/IMAGE`) or by group (`noise/gaussian_noise/1/...`). Its 75
folders hold 3.75 million files of 50,000 names; these are kept once for all folders, so that a
process and its workers carry megabytes instead of a gigabyte.
"""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from lib.data.folders import ImageTree, read_tree, subfolders
from lib.imagenet_c.corruptions import EXTRA, SEVERITIES, STANDARD, choose_corruptions
from utils.errors import UserError
from utils.text import shortlist

LISTING_THREADS = 16  # listing waits for the disk or the network, not for the processor


def corruption_folders(root: str) -> list[tuple[str, str]]:
    """(name, folder) of each folder with a severity in it, below `root` or one folder deeper."""
    folders = []
    for folder in subfolders(root):
        candidates = [folder] if has_severities(folder) else subfolders(folder)
        folders += [path for path in candidates if has_severities(path)]
    return [(os.path.basename(folder), folder) for folder in folders]


def has_severities(folder: str) -> bool:
    """Whether a folder named 1 to 5 is in it."""
    return any(os.path.isdir(os.path.join(folder, str(severity))) for severity in SEVERITIES)


def find_folders(root: str, asked: Sequence[str] | None) -> dict[str, str]:
    """The folder of each corruption of `--corruptions`, in the order of evaluation."""
    present = corruption_folders(root)
    names = choose_corruptions(asked, [name for name, _ in present])
    paths = {name: [path for other, path in present if other == name] for name in names}
    problems = [
        f"{name} is there twice, {found[0]} and {found[1]}; remove one"
        for name, found in paths.items()
        if len(found) > 1
    ]
    if not names:
        problems.append(f"no folder CORRUPTION/1/CLASS, such as {root}/fog/1/n01440764")
    if missing := [name for name, found in paths.items() if not found]:
        example = os.path.join(root, missing[0], "1", "CLASS")
        others = {*STANDARD, *EXTRA, *(name for name, _ in present)}
        near = difflib.get_close_matches(missing[0], sorted(others - set(missing)), n=1)
        fix = "complete the tree, or choose others with --corruptions"
        if near and missing[0] not in others:
            fix = f"did you mean {near[0]}?"
        problems.append(
            f"no folder for {', '.join(missing)} ({example}, or the same in a folder GROUP); {fix}"
        )
    if problems:
        raise UserError(f"ImageNet-C in {root}: {'; '.join(problems)}")
    return {name: found[0] for name, found in paths.items()}


def read_corruptions(
    root: str,
    folders: Mapping[str, str],
    prepare: Callable[[ImageTree], ImageTree] = lambda images: images,
) -> tuple[dict[str, ImageTree], int]:
    """The images of every corruption and severity, those of the first, and how many it has."""
    paths = {
        f"{name}/{severity}": os.path.join(folder, str(severity))
        for name, folder in folders.items()
        for severity in SEVERITIES
    }
    whole = read_tree(next(iter(paths.values())))
    images = prepare(whole)
    trees = {name: replace(images, root=path) for name, path in paths.items()}

    def problem(tree: ImageTree) -> str:
        if len(tree.files) < len(whole.files):
            needed = (tree.path(i) for i in range(len(tree.files)))
            path = next((path for path in needed if not os.path.isfile(path)), "")
            return path and f"{path} is missing; {whole.root} has it"
        try:
            return difference(read_tree(tree.root), whole)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        others = [tree for tree in trees.values() if tree.root != whole.root]
        if problems := list(filter(None, pool.map(problem, others))):
            raise UserError(f"ImageNet-C in {root}: {shortlist(problems)}")
    return trees, len(whole.files)


def difference(tree: ImageTree, expected: ImageTree) -> str:
    """How the images of a severity differ from those of another, or nothing."""
    if tree.files == expected.files:
        return ""
    own, others = set(tree.files), set(expected.files)
    texts = [
        f"{verb} {len(files)}, such as {min(files)}"
        for verb, files in (("lacks", others - own), ("alone has", own - others))
        if files
    ]
    return f"{tree.root}, against the images of {expected.root}, {' and '.join(texts)}"
