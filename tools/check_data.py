"""Read every image of a data set, all of each, and list what is wrong.

    python -m tools.check_data data/ImageNet
    python -m tools.check_data data/ImageNet-C --workers 16

DIR is an ImageFolder (`train` and `val`, or class folders alone) or an ImageNet-C tree, flat or by
group. Told, one a line, on the standard output:

    unreadable   images that do not decode to the end, such as truncated ones; folders kept shut
    empty        class folders without images, files without a byte
    misplaced    images beside the class folders, other files among them, unknown corruptions
    different    classes of train and val; images of ImageNet-C's severities; severities not there

Exit status: 0 all is well, 1 something is wrong, 2 bad arguments, 130 interrupted. Hidden files
do not count. Memory holds the list of file names and, for each process, one batch of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from lib.data.images import UnreadableImage, load_rgb
from tools.data_tree import DataTree, scan
from tools.parallel import image_bar, in_parallel
from utils.config.command_line import positive, tool_parser, user_path
from utils.distributed.launch import run_command
from utils.errors import UserError
from utils.text import counted, printable

BATCH = 32  # images per message to a process: about 0.3 s of work at ImageNet's sizes
KINDS = ("unreadable", "empty", "misplaced", "different")
Finding = tuple[str, str, str]  # path, kind of problem, reason


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    return run_command(lambda: check(*parse(argv)))


def check(root: Path, workers: int) -> int:
    """Read every image and report; 1 if something is wrong.

    Raises:
        UserError: there is no such folder.
    """
    with image_bar("listing") as bar:
        tree = scan(str(root), bar.advance)
    tree.problems += read_images(tree, workers)
    report(tree)
    return 1 if tree.problems else 0


def parse(argv: Sequence[str] | None) -> tuple[Path, int]:
    """The folder and the number of processes.

    Raises:
        UserError: no such folder, or fewer than one process.
    """
    parser = tool_parser("check_data", __doc__)
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("dir", metavar="DIR", type=user_path, help="an ImageFolder or ImageNet-C tree")
    readers = "processes that read (default: one per core, here %(default)s)"
    add("--workers", type=positive, metavar="N", default=cores, help=readers)
    arguments = parser.parse_args(argv)
    if not arguments.dir.is_dir():
        what = "is a file" if arguments.dir.exists() else "does not exist"
        raise UserError(f"{arguments.dir} {what}; give the folder that holds the data set")
    return arguments.dir, arguments.workers


def read_images(tree: DataTree, workers: int) -> list[tuple[str, str]]:
    """Decode every image of the tree in parallel, under a progress bar."""
    problems = []
    paths = tree.paths()
    batches = iter(lambda: list(islice(paths, BATCH)), [])
    workers = min(workers, -(-tree.count // BATCH))
    bar = image_bar("reading", tree.count)
    with bar, closing(in_parallel(check_images, batches, workers)) as results:
        for count, findings in results:
            problems += [(kind, f"{path}: {reason}") for path, kind, reason in findings]
            bar.advance(count, f"{len(problems)} wrong")
    return problems


def check_images(paths: list[str]) -> list[Finding]:
    """What is wrong with these images."""
    return [finding for path in paths if (finding := check_image(path))]


def check_image(path: str) -> Finding | None:
    """Decode one image as training does. Returns what is wrong, if anything."""
    try:
        if os.path.getsize(path) == 0:
            return path, "empty", "file without a byte"
        load_rgb(path)
    except UnreadableImage as error:
        return path, "unreadable", error.reason
    except OSError as error:
        return path, "unreadable", error.strerror or str(error)
    return None


def report(tree: DataTree) -> None:
    """Print the problems by kind, the notes and a last line with the counts."""
    for kind, what in sorted(tree.problems, key=lambda problem: (KINDS.index(problem[0]), problem)):
        print(f"{kind:<11} {printable(what)}")
    for note in tree.notes:
        print(f"note        {printable(note)}")
    classes = len(tree.classes)
    verdict = counted(len(tree.problems), "problem") if tree.problems else "all is well"
    size = f"{counted(tree.count, 'image')}, {classes} class{'' if classes == 1 else 'es'}"
    print(f"{printable(tree.root)}: {size}, {verdict}")


if __name__ == "__main__":
    sys.exit(main())
