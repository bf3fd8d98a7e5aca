"""The images of an ImageNet-C tree: whose labels, which subset.

A group number stands for a corruption and a severity: 5 * (place of the corruption) + severity - 1.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.data.datasets import load_rgb
from lib.data.folders import ImageTree, evenly_spread, positions_of, shortlist
from lib.imagenet_c.corruptions import SEVERITIES
from utils.errors import UserError
from utils.storage.files import names_sha256


@dataclass(frozen=True)
class CorruptionTree:
    """A checked tree.

    Attributes:
        root: its folder.
        images: by corruption, in the order of evaluation, the images that each of its five
            severities holds; `images[name].root` is the corruption's folder, the severities in it.
    """

    root: str
    images: Mapping[str, ImageTree]

    @property
    def names(self) -> list[str]:
        """Name of every group, `gaussian_noise/1`, by group number."""
        return [f"{name}/{severity}" for name in self.images for severity in SEVERITIES]

    @property
    def sizes(self) -> list[int]:
        """Number of images of every group."""
        return [len(tree.files) for tree in self.images.values() for _ in SEVERITIES]

    @property
    def classes(self) -> list[str]:
        """Names of the classes that have an image, sorted."""
        lists = {tree.files for tree in self.images.values()}
        return sorted({name.partition("/")[0] for files in lists for name in files})

    def warnings(self) -> list[str]:
        """What is odd about it, though each corruption can be evaluated."""
        usual, _ = Counter(tree.files for tree in self.images.values()).most_common(1)[0]
        odd = [name for name, tree in self.images.items() if tree.files != usual]
        if not odd:
            return []
        sizes = f"{len(self.images[odd[0]].files)} in {odd[0]}, {len(usual)} in most"
        text = f"{shortlist(odd)} hold other images than the other corruptions ({sizes}):"
        return [f"{text} the means over corruptions mix different images"]

    def with_labels_of(self, names: Sequence[str] | None, num_classes: int) -> CorruptionTree:
        """The same tree with labels that index a network's outputs.

        Args:
            names: class name of each output, from the checkpoint; the tree may hold a part of
                them. None when it carries none: then the folders must be as many as the outputs.
            num_classes: outputs of the network.

        Raises:
            UserError: the folders cannot be mapped.
        """
        images = {k: tree.with_labels_of(names, num_classes) for k, tree in self.images.items()}
        return CorruptionTree(self.root, images)

    def subset(
        self, n_examples: int | None = None, ids_file: str | None = None
    ) -> tuple[CorruptionTree, dict[str, Any]]:
        """The same `n_examples` evenly spread images of each folder, or those that a file lists.

        Returns:
            the smaller tree, and what result files say of it: description, n (images of each
            folder) and sha256 of the list of `class/filename`.

        Raises:
            UserError: an image of the file that is not in the tree.
        """
        chosen: dict[tuple[str, ...], ImageTree] = {}
        for tree in self.images.values():
            if tree.files not in chosen:
                chosen[tree.files] = choose(tree, n_examples, ids_file)
        images = {n: replace(chosen[t.files], root=t.root) for n, t in self.images.items()}
        smaller = CorruptionTree(self.root, images)
        n, total = max(smaller.sizes), max(self.sizes)
        how = "listed" if ids_file else "evenly spread"
        description = f"{n} {how} of {total} images" if n < total else f"all {total} images"
        digest = names_sha256(name for tree in chosen.values() for name in tree.files)
        return smaller, {"description": description, "n": n, "sha256": digest}


def choose(tree: ImageTree, n_examples: int | None, ids_file: str | None) -> ImageTree:
    """Some of one folder's images."""
    if ids_file:
        return tree.subset(positions_of(tree, ids_file))
    if n_examples:
        return tree.subset(evenly_spread(len(tree.files), n_examples))
    return tree


def require_size(tree: CorruptionTree, side: int) -> None:
    """The first image of every folder must be as large as the crop, or zeros would fill it up.

    Raises:
        UserError: names an image that is smaller.
    """
    for images in tree.images.values():
        for severity in SEVERITIES:
            path = os.path.join(images.root, str(severity), images.files[0])
            width, height = load_rgb(path).size
            if min(width, height) < side:
                raise UserError(
                    f"{path} has {width} x {height} pixels, less than the crop of {side}; set"
                    " DATA.crop_size, or resize with --protocol freeat"
                )
