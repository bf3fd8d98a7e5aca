"""What a folder of class folders holds: one pass over the disk, for whoever lists images.

Needs neither torch nor Pillow, so that a process that only reads files starts at once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from utils.errors import UserError
from utils.text import counted, printable

# torchvision's, which a test compares.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm"),
    *(".tif", ".tiff", ".webp"),
)
# Left by file servers, archivers and file systems, with thumbnails or deleted images in them.
VENDOR_FOLDERS = frozenset(
    {"@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "__MACOSX", "lost+found"}
)
FILE, FOLDER, SPECIAL = range(3)
NAMES_ARE_UTF8 = sys.getfilesystemencoding() == "utf-8"


def unlike_most(lists: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str, list[str]]]:
    """Which folders hold other images than most of their siblings.

    Args:
        lists: by folder, its images.

    Yields:
        the folder, one of most, and how it differs, such as `lacks 1 image, such as cat/0.png`.
    """
    votes = Counter(lists.values())
    usual = max(votes, key=lambda files: (votes[files], len(files)), default=())
    where = next((name for name, files in lists.items() if files == usual), "")
    expected = set(usual)
    for name, files in lists.items():
        own = expected if files == usual else set(files)
        texts = [
            f"{what} {counted(len(images), 'image')}, such as {min(images)}"
            for what, images in (("lacks", expected - own), ("alone has", own - expected))
            if images
        ]
        if texts:
            yield name, where, texts


def as_text(name: str) -> str:
    """A file name of this process as UTF-8 text, the same under every locale.

    Bytes that are not UTF-8 stay as lone surrogates (`surrogateescape`).
    """
    return name if NAMES_ARE_UTF8 else os.fsencode(name).decode("utf-8", "surrogateescape")


def as_path(text: str) -> str:
    """What opens the file that `as_text` has named."""
    return text if NAMES_ARE_UTF8 else os.fsdecode(text.encode("utf-8", "surrogateescape"))


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def shortlist(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more, fit to be shown."""
    rest = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def subfolders(folder: str) -> list[str]:
    """Paths of the folders in a folder, sorted, without hidden and vendor folders.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder}: {error.strerror}; give the data set's folder as DIR"
            " or in configs.yml"
        ) from error
    return sorted(e.path for e in found if e.name[0] != "." and e.name not in VENDOR_FOLDERS)


@dataclass
class Listing:
    """The images of a folder of class folders, and what is out of place.

    Paths are relative to `root`, with `/`. Every real directory counts once, whatever links lead
    to it.

    Attributes:
        root: the folder that holds the class folders.
        images: by class, sorted; its images, sorted by folder, then by name.
        loose: images beside the class folders.
        others: by class, files that are no images.
        special: FIFOs, sockets and devices named like images; reading one would never end.
        passed_over: hidden and vendor folders, and links to a folder that counts already.
        unreadable: (folder, reason) of those that cannot be listed.
    """

    root: str
    images: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)
    special: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.images)

    @property
    def empty(self) -> list[str]:
        """Classes without images."""
        return [name for name, images in self.images.items() if not images]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(file for images in self.images.values() for file in images)

    @property
    def notes(self) -> list[str]:
        """What has not been counted, in a line."""
        if not self.passed_over:
            return []
        places = shortlist(sorted(self.passed_over))
        return [f"{self.root}: hidden, vendor or repeated folders do not count ({places})"]


def list_classes(root: str, listed: Callable[[int], object] = lambda count: None) -> Listing:
    """List a folder of class folders.

    Args:
        root: the folder.
        listed: called with the number of images of each class that has been listed.

    Returns:
        what is there, faults included; nothing is raised.
    """
    listing = Listing(root)
    classes, listing.loose, _ = read_folder(listing, "")
    seen = {identity(root)}
    # Before anything inside them: a link from one class to another is not the other's only folder.
    first = {name: seen_now(listing, seen, name) for name in sorted(classes)}
    for name, is_new in first.items():
        listing.images[name] = list_class(listing, name, seen) if is_new else []
        listed(len(listing.images[name]))
    return listing


def list_class(listing: Listing, name: str, seen: set[tuple[int, int]]) -> list[str]:
    """The images of one class, in folders within it, too."""
    found: list[tuple[str, list[str]]] = []
    pending, others = [name], []
    while pending:
        folder = pending.pop()
        inner, images, rest = read_folder(listing, f"{folder}/")
        pending += [path for path in inner if seen_now(listing, seen, path)]
        found.append((folder, images))
        others += rest
    if others:
        listing.others[name] = sorted(others)
    return [f"{folder}/{image}" for folder, images in sorted(found) for image in sorted(images)]


def read_folder(listing: Listing, prefix: str) -> tuple[list[str], list[str], list[str]]:
    """The folders (with their prefix), images and other files of a folder, without hidden ones."""
    folders: list[str] = []
    images: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(as_path(os.path.join(listing.root, prefix))) as entries:
            for entry in entries:
                name = as_text(entry.name)
                kind = kind_of(entry)
                if kind == FOLDER:
                    if name[0] == "." or name in VENDOR_FOLDERS:
                        listing.passed_over.append(prefix + name)
                    else:
                        folders.append(prefix + name)
                elif name[0] != "." and kind == FILE:
                    (images if is_image(name) else others).append(name)
                elif name[0] != "." and is_image(name):
                    listing.special.append(prefix + name)
    except OSError as error:
        folder = os.path.join(listing.root, prefix).rstrip("/")
        listing.unreadable.append((folder, error.strerror or ""))
    return folders, images, others


def kind_of(entry: os.DirEntry) -> int:
    """What an entry is; a link that cannot be followed is a FILE, for reading it says why."""
    try:
        if entry.is_file():
            return FILE
        if entry.is_dir():
            return FOLDER
        return SPECIAL if os.path.exists(entry.path) else FILE
    except OSError:
        return FILE


def identity(path: str) -> tuple[int, int]:
    """Device and inode of a folder; of one that cannot be asked for, something of its own."""
    try:
        status = os.stat(as_path(path))
        return status.st_dev, status.st_ino
    except OSError:
        return -1, hash(path)


def seen_now(listing: Listing, seen: set[tuple[int, int]], folder: str) -> bool:
    """Whether a folder is new; one that counts already is noted."""
    key = identity(os.path.join(listing.root, folder))
    if key in seen:
        listing.passed_over.append(folder)
        return False
    seen.add(key)
    return True
