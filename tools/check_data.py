"""Read every image of a data set, all of each, and list what is wrong.

    python -m tools.check_data data/ImageNet
    python -m tools.check_data data/ImageNet-C --workers 16

DIR is an ImageFolder (`train` and `val`, or class folders alone) or an ImageNet-C tree, flat or by
group. Told, one a line, on the standard output:

    unreadable   images that do not decode to the end, such as truncated ones; folders kept shut
    empty        class folders without images, files without a byte
    misplaced    images beside the class folders, other files among them
    different    classes of train and val; images of ImageNet-C's severities; severities not there

Exit status: 0 all is well, 1 something is wrong, 2 bad arguments, 130 interrupted. Hidden files
do not count. Memory holds the list of file names and, for each process, one batch of them.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lib.data.folders import Listing, list_classes, subfolders
from lib.data.images import UnreadableImage, load_rgb
from lib.imagenet_c.corruptions import EXTRA, SEVERITIES, STANDARD
from lib.imagenet_c.tree import corruption_folders
from tools.parallel import image_bar, in_parallel
from utils.config.command_line import positive, tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.text import counted, printable

BATCH = 32  # images per message to a process: about 0.3 s of work at ImageNet's sizes
CATEGORIES = ("unreadable", "empty", "misplaced", "different")
Problem = tuple[str, str]  # category, description


@dataclass
class DataTree:
    """The file lists of a data folder, and what is wrong with it.

    Attributes:
        root: the folder.
        listed: called with the number of images whenever a class has been listed.
        parts: the folders of class folders, by name: `train`, `val`, `fog/1`, ... (`.` for `root`).
        classes: by part.
        files: by part, its images as `CLASS/IMAGE`; parts with the same ones share them, so that
            the 75 of ImageNet-C cost one list.
        notes: worth knowing, but nothing wrong.
    """

    root: str
    listed: Callable[[int], object]
    parts: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_part(self, name: str, folder: str) -> None:
        """List one folder of class folders."""
        listing = list_classes(folder, self.listed)
        self.problems += faults(name, listing)
        self.notes += listing.notes
        files = listing.files
        self.parts[name], self.classes[name] = folder, listing.classes
        self.files[name] = next((known for known in self.files.values() if known == files), files)

    def paths(self) -> Iterator[str]:
        """Every image, one at a time."""
        for name, folder in self.parts.items():
            yield from (os.path.join(folder, file) for file in self.files[name])

    @property
    def count(self) -> int:
        return sum(map(len, self.files.values()))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: check(*parse(argv)))


def parse(argv: Sequence[str] | None) -> tuple[Path, int]:
    """The folder and the number of processes.

    Raises:
        UserError: no such folder, or fewer than one process.
    """
    parser = tool_parser("check_data", __doc__)
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("dir", metavar="DIR", type=user_path, help="an ImageFolder or ImageNet-C tree")
    workers = "processes that read (default: one per core, here %(default)s)"
    add("--workers", type=positive, metavar="N", default=cores, help=workers)
    arguments = parser.parse_args(argv)
    if not arguments.dir.is_dir():
        reason = "is a file" if arguments.dir.exists() else "does not exist"
        raise UserError(f"{arguments.dir} {reason}; give the folder that holds the data set")
    return arguments.dir, arguments.workers


def check(root: Path, workers: int) -> int:
    """Read every image and report; 1 if something is wrong.

    Raises:
        UserError: there is no such folder.
    """
    with image_bar("listing") as bar:
        tree = scan(str(root), bar.advance)
    paths = tree.paths()
    batches = iter(lambda: list(islice(paths, BATCH)), [])
    workers = max(1, min(workers, -(-tree.count // BATCH)))
    bar = image_bar("reading", tree.count)
    with bar, closing(in_parallel(check_images, batches, workers)) as results:
        for count, problems in results:
            tree.problems += problems
            bar.advance(count, f"{len(tree.problems)} wrong")
    report(tree)
    return 1 if tree.problems else 0


def check_images(paths: list[str]) -> tuple[int, list[Problem]]:
    """How many images these are, and what is wrong with them."""
    reasons = ((path, check_image(path)) for path in paths)
    return len(paths), [(why[0], f"{path}: {why[1]}") for path, why in reasons if why]


def check_image(path: str) -> Problem | None:
    """Decode one image as training does. Returns what is wrong, if anything."""
    try:
        if os.path.getsize(path) == 0:
            return "empty", "file without a byte"
        load_rgb(path)
    except UnreadableImage as error:
        return "unreadable", error.reason
    except OSError as error:
        return "unreadable", error.strerror or str(error)
    return None


def report(tree: DataTree) -> None:
    """Print the problems by category, the notes and a last line with the counts."""
    for category, text in sorted(tree.problems, key=lambda p: (CATEGORIES.index(p[0]), p)):
        print(f"{category:<11} {printable(text)}")
    for note in tree.notes:
        print(f"note        {printable(note)}")
    verdict = counted(len(tree.problems), "problem") if tree.problems else "all is well"
    classes = counted(len(set().union(*tree.classes.values())), "class", "es")
    print(f"{printable(tree.root)}: {counted(tree.count, 'image')}, {classes}, {verdict}")


def scan(root: str, listed: Callable[[int], object]) -> DataTree:
    """List a data folder: train and val, an ImageNet-C tree, or class folders alone."""
    tree = DataTree(root, listed)
    splits = [name for name in ("train", "val") if os.path.isdir(os.path.join(root, name))]
    if splits:
        scan_splits(tree, splits)
    elif folders := find_corruptions(root):
        scan_corruptions(tree, folders)
    else:
        tree.add_part(".", root)
        # A parent of the data set may have been given: then splits look like classes.
        deepest = {file.partition("/")[0]: os.path.dirname(file) for file in tree.files["."]}
        for name, folder in deepest.items():
            if folder != name:
                where = f"images of {name} lie deeper, in {folder}"
                tree.notes.append(f"{where}; is DIR a folder too high?")
    return tree


def scan_splits(tree: DataTree, splits: Sequence[str]) -> None:
    """`train` and `val`, which must have the same classes."""
    for name in splits:
        tree.add_part(name, os.path.join(tree.root, name))
    if "val" not in splits:
        tree.problems.append(("empty", "val: no such folder; every command reads it"))
    elif "train" not in splits:
        tree.notes.append("no train folder: fit for evaluation, not for training")
    else:
        for one, other in (("train", "val"), ("val", "train")):
            extra = sorted(set(tree.classes[one]) - set(tree.classes[other]))
            texts = (f"class {name} is in {one}, not in {other}" for name in extra)
            tree.problems += [("different", text) for text in texts]


def find_corruptions(root: str) -> list[tuple[str, str]]:
    """(name, folder) of the corruptions; nothing where root is no such tree.

    A folder of class folders may well have a class named `snow`, so severities are looked for:
    those of a known corruption, or all five, each with class folders.
    """
    folders = corruption_folders(root)
    for name, folder in folders:
        severities = [os.path.join(folder, str(severity)) for severity in SEVERITIES]
        if name in STANDARD + EXTRA or all(os.path.isdir(s) and subfolders(s) for s in severities):
            return folders
    return []


def scan_corruptions(tree: DataTree, folders: Sequence[tuple[str, str]]) -> None:
    """Every severity of every corruption, which must all hold the same images."""
    names = [name for name, _ in folders]
    has_standard = any(name in STANDARD + EXTRA for name in names)
    for position, (name, folder) in enumerate(folders):
        relative = os.path.relpath(folder, tree.root)
        if has_standard and name not in STANDARD + EXTRA:
            tree.notes.append(f"{relative}: none of ImageNet-C's corruptions")
        if name in names[:position]:
            tree.problems.append(("different", f"{relative}: a second folder of {name}"))
        else:
            scan_severities(tree, name, folder)
    absent = [name for name in STANDARD if name not in names]
    if has_standard and absent:
        tree.notes.append(f"{len(absent)} of the 15 corruptions are absent: {', '.join(absent)}")
    votes = Counter(tree.files.values())
    usual = max(votes, key=lambda files: (votes[files], len(files)), default=())
    example = next((name for name, files in tree.files.items() if files == usual), "")
    for name, files in tree.files.items():
        lacking, extra = set(usual).difference(files), set(files).difference(usual)
        for verb, images in (("lacks", lacking), ("alone has", extra)):
            if images:
                text = f"{name}: {verb} {counted(len(images), 'image')}, such as {min(images)}"
                tree.problems.append(("different", f"{text}; against {example}"))


def scan_severities(tree: DataTree, name: str, folder: str) -> None:
    """The five severities of one corruption."""
    present = {os.path.basename(path): path for path in subfolders(folder)}
    for severity in map(str, SEVERITIES):
        if severity in present:
            tree.add_part(f"{name}/{severity}", present.pop(severity))
        else:
            tree.problems.append(("different", f"{name}: severity {severity} is missing"))
    for other in present:
        tree.problems.append(("misplaced", f"{name}/{other}: not a severity from 1 to 5"))


def faults(name: str, listing: Listing) -> Iterator[Problem]:
    """What is wrong with a part."""
    for folder, reason in listing.unreadable:
        yield "unreadable", f"{folder}: {reason}"
    for file in listing.not_utf8:
        yield "unreadable", f"{name}/{file}: its name is not UTF-8"
    if listing.loose:
        first = min(listing.loose)
        yield (
            "misplaced",
            f"{name}: {counted(len(listing.loose), 'image')} loose in the folder, such as {first};"
            f" move each into the folder of its class, {name}/CLASS/{first}",
        )
    elif not listing.images:
        yield "empty", f"{name}: no class folder"
    for label in listing.empty:
        yield "empty", f"{name}/{label}: class folder without images"
    for label, others in listing.others.items():
        example = os.path.basename(min(others))
        files = f"{counted(len(others), 'file')} of another kind"
        yield "misplaced", f"{name}/{label}: {files}, such as {example}"


if __name__ == "__main__":
    sys.exit(main())
