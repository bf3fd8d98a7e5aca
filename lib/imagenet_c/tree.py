"""The images of an ImageNet-C tree: by corruption and severity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib.data.folders import ImageTree
from lib.data.listing import shortlist
from lib.data.subsets import describe_subset
from utils.storage.files import names_sha256


@dataclass(frozen=True)
class CorruptionTree:
    """A checked tree.

    Attributes:
        root: its folder.
        folders: by corruption and severity, `gaussian_noise/1`, in the order of evaluation.
        total: images of a folder before some were picked.
    """

    root: str
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
        return CorruptionTree(self.root, folders, self.total)
