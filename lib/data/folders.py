"""Trees of class folders, DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, checked before work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lib.data.classes import outputs_of
from lib.data.listing import (
    IMAGE_EXTENSIONS,
    Listing,
    as_path,
    list_classes,
    shortlist,
)
from utils.errors import UserError
from utils.storage.files import names_sha256
from utils.text import printable


@dataclass(frozen=True)
class ImageTree:
    """The images of one folder of class folders, in a fixed order.

    Attributes:
        root: the folder that holds the class folders.
        classes: class names, sorted.
        files: file of each image, `CLASS/IMAGE` relative to root; sorted by class, then name.
        labels: output index of each image.
        notes: what a user should know of it, one line each.
    """

    root: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the list of images."""
        return names_sha256(self.files)

    def path(self, position: int) -> str:
        return as_path(os.path.join(self.root, self.files[position]))

    def subset(self, positions: Sequence[int]) -> ImageTree:
        """Only the images at these positions, in that order."""
        files = tuple(self.files[i] for i in positions)
        return replace(self, files=files, labels=tuple(self.labels[i] for i in positions))

    def with_labels_of(
        self, names: Sequence[str] | None, num_classes: int, order: str = "auto"
    ) -> ImageTree:
        """The same images with labels that index a network's outputs.

        Args:
            names: class name of each output, from the checkpoint; None when it carries none.
            num_classes: outputs of the network.
            order: `DATA.class_order`, for a checkpoint without names.

        Raises:
            UserError: a class the network does not know, or an order that cannot be known.
        """
        outputs, note = outputs_of(self.root, self.classes, names, num_classes, order)
        notes = (*self.notes, note) if note else self.notes
        return replace(self, labels=tuple(outputs[label] for label in self.labels), notes=notes)


def read_split(data: str, split: str) -> ImageTree:
    """Find the images of DIR/train or DIR/val.

    Raises:
        UserError: the folder is missing, empty, flat, or a class in it is empty.
    """
    if not os.path.isdir(data):
        raise UserError(
            f"no folder {data}; give the data set as DIR, or set DATA.imagenet in configs.yml"
        )
    root = os.path.join(data, split)
    if not os.path.isdir(root):
        raise UserError(f"{data} has no folder {split}; put the images into {root}/CLASS/")
    return read_tree(root)


def read_tree(root: str) -> ImageTree:
    """Find the images of a folder of class folders.

    Raises:
        UserError: it is empty or flat, a class in it is empty, or something in it cannot be read.
    """
    return tree_of(list_classes(root))


def tree_of(listing: Listing) -> ImageTree:
    """The images of a listing that is in order.

    Raises:
        UserError: it is not.
    """
    if problem := fault_of(listing):
        raise UserError(problem)
    labels = tuple(label for label, images in enumerate(listing.images.values()) for _ in images)
    return ImageTree(listing.root, listing.classes, listing.files, labels, tuple(listing.notes))


def fault_of(listing: Listing) -> str:
    """What is wrong with a folder of class folders and how to fix it, or nothing."""
    root = listing.root
    if listing.unreadable:
        folder, reason = listing.unreadable[0]
        return f"cannot read the folder {printable(folder)}: {reason}; add it or make it readable"
    if listing.special:
        return f"{root}: {shortlist(listing.special)} is no regular file (a FIFO?); remove it"
    if not listing.images and listing.loose:
        loose = printable(min(listing.loose))
        return (
            f"{root} holds {len(listing.loose)} images such as {loose} and no class folders; move"
            f" each image into {root}/CLASS/ (for ImageNet's val, by its list of labels)"
        )
    if not listing.images:
        return f"{root} has no class folders; put the images into {root}/CLASS/"
    if listing.empty:
        return (
            f"{root}: no images in class folder {shortlist(listing.empty)}; fill or remove it"
            f" (readable are {' '.join(IMAGE_EXTENSIONS)})"
        )
    return ""


def sizes_of_sample(tree: ImageTree, count: int = 16) -> list[int]:
    """Bytes of some images; -1 for those that are not there. Tells two machines' disks apart."""
    paths = [tree.path(i) for i in range(0, len(tree.files), max(1, len(tree.files) // count))]
    return [os.path.getsize(path) if os.path.exists(path) else -1 for path in paths]


def require_same_classes(train: ImageTree, val: ImageTree) -> None:
    """Training and validation must have the same classes, or every label would be shifted.

    Raises:
        UserError: names the classes that only one of them has.
    """
    for one, other in ((train, val), (val, train)):
        extra = sorted(set(one.classes) - set(other.classes))
        if extra:
            raise UserError(
                f"class {shortlist(extra)} is in {one.root} and not in {other.root}; both need"
                " the same class folders"
            )
