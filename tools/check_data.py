"""Read every image of a data set, all of each, and list what is wrong.

    python -m tools.check_data data/ImageNet
    python -m tools.check_data data/ImageNet-C --workers 16

DIR is an ImageFolder (`train` and `val`, or class folders alone) or an ImageNet-C tree, flat or by
group. Told, one a line, on the standard output:

    unreadable   images that do not decode to the end, such as truncated ones; folders kept shut
    empty        class folders without images, files without a byte
    misplaced    images beside the class folders, other files among them
    different    classes of train and val; images of ImageNet-C's severities; severities not there
    repeated     folders with two names; images, by content, of val in train or under two classes

Exit status: 0 all is well, 1 something is wrong, 2 bad arguments, 130 interrupted. Hidden files
do not count. Memory holds the list of file names, a hash of each image and one image a process.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path
from typing import Any, cast

from lib.data.folders import ImageTree, counted_twice, list_classes, load_rgb, subfolders
from lib.imagenet_c.corruptions import SEVERITIES, STANDARD, corruption_folders, difference
from utils.config.command_line import positive, tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.logging import Logger, ProgressBar
from utils.storage.files import file_sha256
from utils.text import counted, printable

BATCH = 32  # images per message to a process: about 0.3 s of work at ImageNet's sizes
CATEGORIES = ("unreadable", "empty", "misplaced", "different", "repeated", "note")
FOLDERS = {"train", "val", "."}  # whose images are compared; corruptions may leave some as they are
Finding = tuple[str, str]  # category, description; a note is worth knowing, but nothing wrong
Parts = dict[str, ImageTree]  # the folders of class folders: `train`, `val`, `fog/1`, `.` for DIR


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = tool_parser("check_data", __doc__)
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("folder", metavar="DIR", type=user_path, help="an ImageFolder or ImageNet-C tree")
    workers = "processes that read (default: one per core, here %(default)s)"
    add("--workers", type=positive, metavar="N", default=cores, help=workers)
    return run_command(lambda: check(**vars(parser.parse_args(argv))))


def check(folder: Path, workers: int) -> int:
    """Read every image and report; 1 if something is wrong."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the one that holds the data set")
    parts, findings = scan(str(folder))
    more, repeats = read_images(parts, workers)
    findings += [*more, *repeated_images(parts, repeats)]
    for category, text in sorted(findings, key=lambda f: (CATEGORIES.index(f[0]), f)):
        print(f"{category:<11} {printable(text)}")
    problems = sum(category != "note" for category, _ in findings)
    verdict = counted(problems, "problem") if problems else "all is well"
    images = counted(sum(len(tree.files) for tree in parts.values()), "image")
    classes = counted(len({c for tree in parts.values() for c in tree.classes}), "class", "es")
    print(f"{printable(str(folder))}: {images}, {classes}, {verdict}")
    return 1 if problems else 0


def read_images(parts: Parts, workers: int) -> tuple[list[Finding], dict[int, list[int]]]:
    """What is wrong with images, which are numbered, and by the first the others of its content."""
    from torch.utils.data import DataLoader

    from lib.data.loader import as_it_is, begin_worker

    findings: list[Finding] = []
    first_of: dict[bytes, int] = {}
    repeats: dict[int, list[int]] = {}
    total = sum(len(tree.files) for tree in parts.values())
    numbered = enumerate(tree.path(i) for tree in parts.values() for i in range(len(tree.files)))
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more than there are cores
    batches: DataLoader = DataLoader(
        cast(Any, Reader()),
        batch_size=None,  # the sampler's items are batches
        sampler=iter(lambda: list(islice(numbered, BATCH)), []),
        num_workers=min(workers, total // BATCH),  # 0 reads in this process
        collate_fn=as_it_is,
        worker_init_fn=begin_worker,
    )
    bar = image_bar("reading", total)
    try:
        for count, more, digests in batches:
            findings += more
            bar.advance(count, f"{len(findings)} found")
            for number, digest in digests.items() if parts.keys() <= FOLDERS else ():
                if (first := first_of.setdefault(digest, number)) != number:
                    repeats.setdefault(first, []).append(number)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        dead = "a process died at its work; use fewer if the memory was too small"
        raise UserError(dead) from error
    finally:
        bar.close()
    return findings, repeats


def image_bar(label: str, total: int | None = None) -> ProgressBar:
    """Progress over images: a bar on a terminal, a line now and then in a log; on stderr."""
    every = max(1, total // 20) if total else 100_000
    return ProgressBar(Logger(to_stderr=True), total, label, every, "image")


class Reader:
    """Decodes images as training does."""

    def __getitem__(
        self, numbered: list[tuple[int, str]]
    ) -> tuple[int, list[Finding], dict[int, bytes]]:
        """Of images: how many they are, what is wrong with them, and hashes of the others."""
        findings, digests = [], {}
        for number, path in numbered:
            try:
                if os.path.isfile(path) and not os.path.getsize(path):
                    findings.append(("empty", f"{path}: file without a byte"))
                else:
                    load_rgb(path)
                    digests[number] = bytes.fromhex(file_sha256(path))[:16]
            except UserError as error:
                findings.append(("unreadable", str(error)))
        return len(numbered), findings, digests


def repeated_images(parts: Parts, repeats: Mapping[int, Sequence[int]]) -> Iterator[Finding]:
    """Images of val that train has, too, and images of one part under two classes."""
    wanted = {number for first, others in repeats.items() for number in (first, *others)}
    files = ((part, file) for part, tree in parts.items() for file in tree.files)
    places = {number: place for number, place in enumerate(files) if number in wanted}
    found: dict[str, dict[str, str]] = {}
    for first, others in repeats.items():
        same = sorted(places[number] for number in (first, *others))
        for (part, file), (other, twin) in permutations(same, 2):
            if part == other and file.partition("/")[0] != twin.partition("/")[0]:
                kind = f"of {part} stand under two classes"
            elif (part, other) == ("val", "train"):
                kind = "of val are in train, too"
            else:
                continue
            found.setdefault(kind, {}).setdefault(f"{part}/{file}", f"{other}/{twin}")
    for kind, twins in found.items():
        category = "note" if kind.startswith("of train") else "repeated"
        image, twin = min(twins.items())
        yield category, f"{counted(len(twins), 'image')} {kind}, such as {image} is {twin}"


def scan(root: str) -> tuple[Parts, list[Finding]]:
    """List a data folder: train and val, an ImageNet-C tree, or class folders alone."""
    findings: list[Finding] = []
    splits = {name: os.path.join(root, name) for name in ("train", "val")}
    splits = {name: folder for name, folder in splits.items() if os.path.isdir(folder)}
    severities = {} if splits else find_severities(root, findings)
    parts: Parts = {}
    bar = image_bar("listing")
    for name, folder in (splits or severities or {".": root}).items():
        tree, faults = list_classes(folder)
        bar.advance(len(tree.files))
        findings += faults + [("note", note) for note in tree.notes]
        # The 75 folders of ImageNet-C cost one list.
        same = (known.files for known in parts.values() if known.files == tree.files)
        parts[name] = replace(tree, files=next(same, tree.files))
    folders = {name: tree.root for name, tree in parts.items()}
    if splits:
        classes = [(name, c) for name, tree in parts.items() for c in tree.classes]
        folders = {f"{name}/{c}": os.path.join(folders[name], c) for name, c in classes}
        findings += compare_splits(parts)
    elif severities:
        fullest = max(parts.values(), key=lambda part: len(part.files))
        differences = (difference(part, fullest) for part in parts.values())
        findings += [("different", text) for text in differences if text]
    elif any(file.count("/") > 1 for file in parts["."].files):
        findings.append(("note", "images lie deeper than class folders; is DIR a folder too high?"))
    findings += [("repeated", text) for text in counted_twice(root, folders)]
    return parts, findings


def compare_splits(parts: Parts) -> Iterator[Finding]:
    """`train` and `val`, which must have the same classes."""
    if "val" not in parts:
        yield "empty", "val: no such folder; every command reads it"
    elif "train" not in parts:
        yield "note", "no train folder: fit for evaluation, not for training"
    else:
        for one, other in (("train", "val"), ("val", "train")):
            for name in set(parts[one].classes) - set(parts[other].classes):
                yield "different", f"class {name} is in {one}, not in {other}"


def find_severities(root: str, findings: list[Finding]) -> dict[str, str]:
    """`fog/1` to its folder for each severity; nothing where root is no ImageNet-C tree."""
    corruptions = corruption_folders(root)
    # Class folders may be named `snow`, or 1 to 5 within splits: a severity holds class folders.
    if not any(subfolders(path) for _, folder in corruptions for path in subfolders(folder)):
        return {}
    severities: dict[str, str] = {}
    expected, names = set(map(str, SEVERITIES)), [name for name, _ in corruptions]
    for name, folder in corruptions:
        present = set(map(os.path.basename, subfolders(folder)))
        severities |= {f"{name}/{s}": os.path.join(folder, s) for s in sorted(present & expected)}
        findings += [("different", f"{name}/{s} is missing") for s in expected - present]
        findings += [
            ("misplaced", f"{name}/{s}: severities are 1 to 5") for s in present - expected
        ]
        if names.count(name) > 1:
            findings.append(("different", f"{folder}: another folder has its name"))
    absent = [name for name in STANDARD if name not in names]
    if 0 < len(absent) < len(STANDARD):
        text = f"{len(absent)} of the 15 corruptions are absent: {', '.join(absent)}"
        findings.append(("note", text))
    return severities


if __name__ == "__main__":
    sys.exit(main())
