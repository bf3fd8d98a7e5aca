"""What an ImageNet-C tree holds, flat (`gaussian_noise/1/CLASS/IMAGE`) or by group
(`noise/gaussian_noise/1/...`), and what its severities lack or have against each other.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.data_tree import DataTree, subfolders, visible
from utils.logging import counted

CORRUPTION_NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA_CORRUPTION_NAMES = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
KNOWN_CORRUPTIONS = CORRUPTION_NAMES + EXTRA_CORRUPTION_NAMES
SEVERITIES = ("1", "2", "3", "4", "5")


def find_corruptions(root: Path) -> list[tuple[str, Path]]:
    """(name, folder) of what stands where corruptions should; nothing where root is no such tree.

    A folder of class folders may well have a class named `snow`, so severities are looked for.
    """
    folders = list(corruption_folders(root))
    found = any(name in KNOWN_CORRUPTIONS and has_severities(folder) for name, folder in folders)
    return folders if found else []


def corruption_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """(name, folder) of what stands where a corruption should, flat or within a group."""
    for folder in subfolders(root):
        inner = subfolders(folder)
        is_group = any(entry.name in KNOWN_CORRUPTIONS for entry in inner)
        if folder.name in KNOWN_CORRUPTIONS or not is_group:
            yield folder.name, folder
        else:
            yield from ((entry.name, entry) for entry in inner)


def has_severities(folder: Path) -> bool:
    """Whether a folder named 1 to 5 is in it."""
    return any((folder / severity).is_dir() for severity in SEVERITIES)


def scan_corruptions(tree: DataTree, folders: list[tuple[str, Path]]) -> None:
    """Every severity of every corruption, which must all hold the same images."""
    names = set()
    for name, folder in folders:
        where = folder.relative_to(tree.root)
        if name not in KNOWN_CORRUPTIONS:
            tree.problems.append(("misplaced", f"{where}: not the name of a corruption"))
        elif name in names:
            tree.problems.append(("different", f"{where}: a second folder of {name}"))
        else:
            scan_severities(tree, name, folder)
        names.add(name)
    absent = [name for name in CORRUPTION_NAMES if name not in names]
    if absent:
        tree.notes.append(f"{len(absent)} of the 15 corruptions are absent: {', '.join(absent)}")
    compare_images(tree)


def scan_severities(tree: DataTree, name: str, folder: Path) -> None:
    """The five severities of one corruption."""
    found = [entry.name for entry in visible(folder) if entry.is_dir()]
    for severity in SEVERITIES:
        if severity in found:
            tree.add_part(f"{name}/{severity}", folder / severity)
        else:
            tree.problems.append(("different", f"{name}: severity {severity} is missing"))
    for other in sorted(set(found) - set(SEVERITIES)):
        tree.problems.append(("misplaced", f"{name}/{other}: not a severity from 1 to 5"))


def compare_images(tree: DataTree) -> None:
    """Say which severities hold other images than most of their siblings.

    Only a digest of each is kept; names are compared one severity at a time.
    """
    digests = {part: image_digest(tree, part) for part in tree.parts}
    votes = Counter(digests.values())
    if len(votes) < 2:
        return
    usual = max(digests, key=lambda part: (votes[digests[part]], tree.count(part)))
    expected = set(image_ids(tree, usual))
    for part, digest in digests.items():
        if digest == digests[usual]:
            continue
        present = set(image_ids(tree, part))
        for names, what in ((expected - present, "lacks"), (present - expected, "alone has")):
            if names:
                example = min(names)
                text = f"{part}: {what} {counted(len(names), 'image')}, such as {example}"
                tree.problems.append(("different", f"{text}; against {usual}"))


def image_ids(tree: DataTree, part: str) -> Iterator[str]:
    """CLASS/NAME of every image of a part, in order."""
    for name, listing in tree.parts[part].items():
        yield from (f"{name}/{image}" for _, images in listing for image in images)


def image_digest(tree: DataTree, part: str) -> bytes:
    """A fingerprint of a part's set of images."""
    digest = hashlib.sha256()
    for name in image_ids(tree, part):
        digest.update(os.fsencode(name) + b"\n")
    return digest.digest()
