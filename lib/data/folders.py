"""Trees of class folders, DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, checked before work.

Needs neither torch nor Pillow, so that a process that only lists files starts at once.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lib.data.classes import outputs_of
from utils.errors import UserError
from utils.storage.files import names_sha256
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
        raise UserError(f"{data} has no folder {split}; put the images into {root}/CLASS/")
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
