"""Trees of class folders, DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, checked before work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from utils.errors import UserError


@dataclass(frozen=True)
class ImageTree:
    """The images of one folder of class folders, in a fixed order.

    Attributes:
        root: the folder that holds the class folders.
        classes: class names, sorted.
        files: file of each image, `CLASS/IMAGE` relative to root; sorted by class, then name.
        labels: output index of each image.
    """

    root: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]

    def subset(self, positions: Sequence[int]) -> ImageTree:
        """Only the images at these positions, in that order."""
        files = tuple(self.files[i] for i in positions)
        return ImageTree(self.root, self.classes, files, tuple(self.labels[i] for i in positions))

    def with_labels_of(self, names: Sequence[str] | None, num_classes: int) -> ImageTree:
        """The same images with labels that index a network's outputs.

        Args:
            names: class name of each output, from the checkpoint; None when it carries none.
            num_classes: outputs of the network.

        Raises:
            UserError: a class the network does not know, or, without names, another number of
                classes.
        """
        if names is None:
            if len(self.classes) != num_classes:
                raise UserError(
                    f"{self.root} has {len(self.classes)} classes and the network {num_classes};"
                    " the checkpoint carries no class names, so the folders must be all of its"
                    " classes"
                )
            return self
        index = {name: i for i, name in enumerate(names)}
        unknown = [name for name in self.classes if name not in index]
        if unknown:
            raise UserError(
                f"{self.root}: class {unknown[0]} is none of the network's {len(names)} classes"
                f" ({shortlist(names)}); give the data set that it was trained on"
            )
        labels = tuple(index[self.classes[label]] for label in self.labels)
        return ImageTree(self.root, self.classes, self.files, labels)


def shortlist(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


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
        UserError: it is empty or flat, or a class in it is empty.
    """
    entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    classes = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    if not classes:
        loose = [e.name for e in entries if e.name.lower().endswith(IMG_EXTENSIONS)]
        if loose:
            raise UserError(
                f"{root} holds {len(loose)} images such as {loose[0]} and no class folders; move"
                f" each image into {root}/CLASS/ (for ImageNet's val, by its list of labels)"
            )
        raise UserError(f"{root} is empty; put the images into {root}/CLASS/")
    index = {name: i for i, name in enumerate(classes)}
    found = make_dataset(root, index, extensions=IMG_EXTENSIONS, allow_empty=True)
    # As `._0001.jpg`, which an archive from macOS leaves beside every image.
    samples = [
        (path, label) for path, label in found if f"{os.sep}." not in path.removeprefix(root)
    ]
    empty = sorted(set(classes) - {classes[label] for _, label in samples})
    if empty:
        raise UserError(
            f"{root}: no images in class folder {shortlist(empty)}; fill or remove it"
            f" (readable are {' '.join(IMG_EXTENSIONS)})"
        )
    files = tuple(os.path.relpath(path, root).replace(os.sep, "/") for path, _ in samples)
    return ImageTree(root, tuple(classes), files, tuple(label for _, label in samples))


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


def evenly_spread(total: int, wanted: int) -> list[int]:
    """`wanted` positions out of `total`, spread evenly; always the same ones."""
    wanted = min(wanted, total)
    return [i * total // wanted for i in range(wanted)]


def positions_of(tree: ImageTree, ids_file: str) -> list[int]:
    """Positions of the images that a file lists, one `class/filename` a line.

    Blank lines and lines that start with # are passed over.

    Raises:
        UserError: the file cannot be read, names an image that is not there, or names none.
    """
    try:
        lines = Path(ids_file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read --image_ids {ids_file}: {reason}") from error
    wanted = [s for line in lines if (s := line.strip()) and not s.startswith("#")]
    index = {name: i for i, name in enumerate(tree.files)}
    missing = [name for name in wanted if name not in index]
    if missing or not wanted:
        what = f"{missing[0]} is not in {tree.root}" if missing else "no image is named"
        raise UserError(f"--image_ids {ids_file}: {what}; write one class/filename a line")
    return sorted({index[name] for name in wanted})
