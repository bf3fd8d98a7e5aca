"""Trees of class folders, DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, checked before work.

Their labels, parts of them, and one image read. Needs no torch, so that processes that only list
and read start at once.
"""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.config.settings import ROBUSTBENCH
from utils.errors import UserError
from utils.storage.files import csv_cell, names_sha256
from utils.text import counted, printable, shortlist

# torchvision's, which a test compares.
IMAGE_EXTENSIONS = tuple(".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp".split())
# Left by file servers, archivers and file systems, with thumbnails or deleted images in them.
VENDOR_FOLDERS = "@eaDir @Recycle #recycle #snapshot $RECYCLE.BIN __MACOSX lost+found".split()
Fault = tuple[str, str]  # category: unreadable, empty or misplaced; description


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_hidden(name: str) -> bool:
    return name[0] == "." or name in VENDOR_FOLDERS


def subfolders(folder: str) -> list[str]:
    """Paths of the folders in a folder, sorted, without hidden and vendor folders."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.path for e in entries if e.is_dir() and not is_hidden(e.name))
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder}: {error.strerror}; give the data set's folder as DIR"
            " or in configs.yml"
        ) from error


@dataclass(frozen=True)
class ImageTree:
    """The images of one folder of class folders, in a fixed order."""

    root: str  # holds the class folders
    classes: tuple[str, ...]  # sorted
    files: tuple[str, ...]  # `CLASS/IMAGE`, sorted by class, then name
    labels: tuple[int, ...]  # the output of each image
    notes: tuple[str, ...] = ()  # what a user should know

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the list of images."""
        return names_sha256(self.files)

    def path(self, position: int) -> str:
        return os.path.join(self.root, self.files[position])

    def image_number(self, position: int) -> int:
        """SHA-256 of `CLASS/IMAGE` as a number: the same wherever an image is listed."""
        return int(names_sha256(self.files[position : position + 1]), 16)

    def subset(self, positions: Sequence[int]) -> "ImageTree":
        """Only the images at these positions, in that order."""
        files = tuple(self.files[i] for i in positions)
        return replace(self, files=files, labels=tuple(self.labels[i] for i in positions))

    def with_labels_of(
        self, names: Sequence[str] | None, num_classes: int, order: str = "auto"
    ) -> "ImageTree":
        """The same images with labels that index a network's outputs; see `outputs_of`."""
        outputs, note = outputs_of(self.root, self.classes, names, num_classes, order)
        notes = (*self.notes, note) if note else self.notes
        return replace(self, labels=tuple(outputs[label] for label in self.labels), notes=notes)


def read_split(data: str, split: str) -> ImageTree:
    """Find the images of DIR/train or DIR/val."""
    if not os.path.isdir(data):
        raise UserError(f"no folder {data}; give the data set as DIR, or set DATA.imagenet")
    root = os.path.join(data, split)
    if not os.path.isdir(root):
        above = Path(data).resolve().parent
        fix = f"give {above}" if (above / split).is_dir() else f"put images into {root}/CLASS/"
        raise UserError(f"{data} has no folder {split}; {fix}")
    tree, train = read_tree(root), os.path.join(data, "train")
    if split == "val" and os.path.isdir(train) and os.access(train, os.R_OK | os.X_OK):
        folders = {f"train/{os.path.basename(path)}": path for path in subfolders(train)}
        folders |= {f"val/{name}": os.path.join(root, name) for name in tree.classes}
        tree = replace(tree, notes=(*tree.notes, *counted_twice(data, folders)))
    return tree


def counted_twice(root: str, folders: Mapping[str, str]) -> tuple[str, ...]:
    """A line, or none, of folders with two names, as links give them: numbers meet twice there."""
    names: dict[tuple[int, int], str] = {}
    pairs = []
    for name, path in folders.items():
        status = os.stat(path)
        first = names.setdefault((status.st_dev, status.st_ino), name)
        pairs += [f"{name} is {first}"] if first != name else []
    return (f"{root}: one folder counts twice ({shortlist(pairs)})",) if pairs else ()


class Walk:
    """A walk through a folder of class folders that enters each real folder once."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.seen: set[tuple[int, int]] = set()  # (device, inode) of folders
        self.passed_over: list[str] = []  # hidden, vendor and repeated folders
        self.unreadable: list[OSError] = []  # of folders

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def is_new(self, folder: str) -> bool:
        """Whether a folder counts, once whatever links lead to it; one that does not is noted."""
        status = os.stat(folder)
        identity = status.st_dev, status.st_ino
        if is_hidden(os.path.basename(folder)) or identity in self.seen:
            self.passed_over.append(self.relative(folder))
            return False
        self.seen.add(identity)
        return True

    def below(self, folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """`os.walk` through links, sorted, over folders that count and files that do not hide."""
        walk = os.walk(folder, followlinks=True, onerror=self.unreadable.append)
        for path, inner, names in walk:
            inner[:] = [name for name in sorted(inner) if self.is_new(os.path.join(path, name))]
            yield path, inner, sorted(name for name in names if name[0] != ".")

    def notes(self) -> tuple[str, ...]:
        """A line, or none, of what has not been counted."""
        folders = shortlist(sorted(self.passed_over))
        note = f"{self.root}: hidden, vendor or repeated folders do not count ({folders})"
        return (note,) if folders else ()


def read_tree(root: str) -> ImageTree:
    """Find the images of a folder of class folders, in which nothing may be wrong."""
    tree, faults = list_classes(root)
    if grave := [text for category, text in faults if category != "misplaced"]:
        others = f" ({len(grave) - 1} more, which python -m tools.check_data lists)"
        raise UserError(grave[0] + others * (len(grave) > 1))
    return tree


def list_classes(root: str) -> tuple[ImageTree, list[Fault]]:
    """The images of a folder of class folders, and what is wrong with it, the gravest first."""
    walk = Walk(root)
    # Class folders count before anything in them: no link within a class takes another's images.
    _, classes, names = next(walk.below(root), (root, [], []))
    loose = [name for name in names if is_image(name)]
    repeated = [name for name in walk.passed_over if not is_hidden(name)]
    images: dict[str, list[str]] = {}  # by class; torchvision's order: by folder, then by name
    others: dict[str, list[str]] = {}  # by class, files of another kind
    for name in sorted(classes + repeated):
        folders = sorted(walk.below(os.path.join(root, name))) if name in classes else []
        files = [f"{walk.relative(path)}/{file}" for path, _, names in folders for file in names]
        images[name] = [file for file in files if is_image(file)]
        others[name] = [file for file in files if not is_image(file)]
    all_files = tuple(file for files in images.values() for file in files)
    labels = tuple(label for label, files in enumerate(images.values()) for _ in files)
    tree = ImageTree(root, tuple(images), all_files, labels, walk.notes())
    return tree, list(faults_of(walk, images, others, loose))


def faults_of(
    walk: Walk, images: Mapping[str, list[str]], others: Mapping[str, list[str]], loose: list[str]
) -> Iterator[Fault]:
    """What `list_classes` has found wrong, and how to fix it."""
    root, unreadable = walk.root, {str(error.filename) for error in walk.unreadable}
    for error in walk.unreadable:
        reason = f"{printable(str(error.filename))}: {error.strerror}"
        yield "unreadable", f"cannot read the folder {reason}; add it or make it readable"
    count = counted(len(loose), "image")
    if not (images or walk.unreadable):
        holds = f"holds {count} and " if loose else ""
        yield "empty", f"{root} {holds}has no class folders; put each image into {root}/CLASS/"
    elif loose:
        such = f"{count} beside the class folders, such as {printable(loose[0])}"
        yield "misplaced", f"{root}: {such}; put each into {root}/CLASS/"
    for name, files in images.items():
        folder = f"{root}/{printable(name)}"
        if not files and os.path.join(root, name) not in unreadable:
            fix = f"fill or remove it (readable are {' '.join(IMAGE_EXTENSIONS)})"
            yield "empty", f"{folder}: class folder without images; {fix}"
        for file in files:
            if not file.isascii() and file.encode(errors="replace").decode() != file:
                path = f"{root}/{printable(file)}"
                yield "unreadable", f"{path}: not UTF-8; rename it, or set PYTHONUTF8=1"
        if others[name]:
            count, such = counted(len(others[name]), "file"), os.path.basename(min(others[name]))
            yield "misplaced", f"{folder}: {count} of another kind, such as {printable(such)}"


def sizes_of_sample(tree: ImageTree) -> list[int]:
    """Bytes of some images; -1 for those that are not there. Tells two machines' disks apart."""
    paths = [tree.path(i) for i in range(0, len(tree.files), max(1, len(tree.files) // 16))]
    return [os.path.getsize(path) if os.path.exists(path) else -1 for path in paths]


def require_same_classes(train: ImageTree, val: ImageTree) -> None:
    """Training and validation must have the same classes, or every label would be shifted."""
    for one, other in ((train, val), (val, train)):
        if extra := sorted(set(one.classes) - set(other.classes)):
            raise UserError(
                f"class {shortlist(extra)} is in {one.root} and not in {other.root}; both need"
                " the same class folders"
            )


# Which output of a network a class folder is


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1000 classes (ILSVRC 2012), in the order of the outputs."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text("ascii").split())


def outputs_of(
    root: str, classes: Sequence[str], names: Sequence[str] | None, num_classes: int, order: str
) -> tuple[list[int], str]:
    """The output of each class folder, and what a user should know of it, or nothing.

    Args:
        names: class name of each output, from the checkpoint; None when it carries none.
        order: `DATA.class_order`, for a checkpoint without names: `text` is alphabetical,
            `numeric` by number, `auto` whichever of them is sure to be meant.
    """
    wnids, note = imagenet_wnids(), ""
    words = [name for name in classes if not re.fullmatch("[0-9]+", name)]
    numbers = [] if words else [int(name) for name in classes]
    if names is None and order == "auto" and num_classes == 1000:
        is_imagenet = set(classes) <= set(wnids) or max(numbers, default=1000) < 1000
        names = wnids if is_imagenet else None
    if names is not None:
        outputs = {name: i for i, name in enumerate(names)}
        if numbers and tuple(names) == wnids:
            outputs = {name: int(name) for name in classes if int(name) < 1000}
            note = f"{root}: numbered folders are ImageNet's class indices"
        if unknown := [name for name in classes if name not in outputs]:
            raise UserError(
                f"{root}: class {printable(unknown[0])} is none of the network's {len(names)}"
                f" classes ({shortlist(names)}); give the data set that it was trained on"
            )
        return [outputs[name] for name in classes], note
    if order == "numeric" and words:
        raise UserError(
            f"{root}: folder {printable(words[0])} is no number; leave DATA.class_order out"
        )
    if order == "numeric" and len(classes) != num_classes and max(numbers) < num_classes:
        return numbers, ""
    if order == "auto" and sorted(numbers) != numbers:
        raise UserError(
            f"{root}: the checkpoint carries no class names, and the numbered folders"
            f" {shortlist(classes)} have another order as text than as numbers; say which one it"
            " was trained with: DATA.class_order=text or DATA.class_order=numeric"
        )
    if len(classes) != num_classes:
        raise UserError(
            f"{root} has {len(classes)} classes and the network {num_classes};"
            " the checkpoint carries no class names, so the folders must be all of its classes"
        )
    in_order = sorted(classes, key=int if order == "numeric" else str)
    outputs = {name: i for i, name in enumerate(in_order)}
    return [outputs[name] for name in classes], ""


# Which images an evaluation takes


def evenly_spread(total: int, wanted: int) -> list[int]:
    """`wanted` positions out of `total`, spread evenly; always the same ones."""
    wanted = min(wanted, total)
    return [i * total // wanted for i in range(wanted)]


def positions_of(tree: ImageTree, ids: str) -> list[int]:
    """Positions of listed images: `robustbench`, or a file with one `class/filename` a line.

    The first column of a result's `_images.csv` is such a file, its header included.
    """
    if ids == ROBUSTBENCH:
        return robustbench_positions(tree)
    try:
        text = Path(ids).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read --image_ids {ids}: {error.strerror}") from error
    wanted = [s for line in text.splitlines() if (s := line.strip()) and not s.startswith("#")]
    index = {name: i for i, name in enumerate(tree.files)}
    wanted = [name if name in index else from_csv(name) for name in wanted]
    wanted = wanted[1:] if wanted[:1] == ["image"] else wanted
    missing = [name for name in wanted if name not in index]
    if missing or not wanted:
        reason = f"{missing[0]} is not in {tree.root}" if missing else "no image is named"
        raise UserError(f"--image_ids {ids}: {reason}; write one class/filename a line")
    return sorted({index[name] for name in wanted})


def from_csv(cell: str) -> str:
    """The text of a cell as `utils.storage.files.write_csv` has written it."""
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    text = cell[1:-1].replace('""', '"') if quoted else cell
    return text[1:] if text == csv_cell(text[1:]) else text


def robustbench_positions(tree: ImageTree) -> list[int]:
    """Positions of the 5000 validation images that RobustBench judges on, of any file format."""
    path = Path(__file__).with_name("robustbench_val_numbers.txt")
    positions = {
        int(match[1]): position
        for position, file in enumerate(tree.files)
        if (match := re.search(r"/ILSVRC2012_val_(\d{8})\.[^/]*$", file))
    }
    numbers = [int(line) for line in path.read_text("ascii").split()]
    if missing := [number for number in numbers if number not in positions]:
        raise UserError(
            f"--image_ids {ROBUSTBENCH}: {tree.root} lacks {len(missing)} of {len(numbers)} images,"
            f" such as ILSVRC2012_val_{missing[0]:08}; keep the files' names of ImageNet's val"
        )
    return sorted(positions[number] for number in numbers)


# One image


def load_rgb(path: str) -> Image.Image:
    """Read an image of any mode (grey, palette, CMYK, RGBA, ...) as RGB, wholly decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and transparency: no matter here
            with Image.open(path) as image:
                return eight_bits(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"it has more pixels than Pillow reads ({2 * (Image.MAX_IMAGE_PIXELS or 0)})"
            reason += " and must be made smaller"
        name = printable(str(path))
        raise UserError(f"cannot read {name}: {reason}; replace or remove it") from error


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits as 8 bits, any other as it is."""
    if image.mode == "F":
        raise ValueError("its numbers are floats; use 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)  # Pillow's own conversion clips them to white or black
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"its numbers reach from {low} to {high}; use [0, 255] or [0, 65535]")
    if image.mode == "I" and high <= 255:
        return Image.fromarray(values.astype(np.uint8))
    return Image.fromarray((values // 256).astype(np.uint8))
