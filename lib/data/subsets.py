"""Which images of a tree an evaluation takes: all, some evenly spread ones, or those of a list."""

import re
from pathlib import Path

from lib.data.folders import ImageTree
from utils.config.settings import ROBUSTBENCH
from utils.errors import UserError
from utils.storage.files import csv_cell


def choose(tree: ImageTree, n_examples: int | None, ids_file: str | None) -> ImageTree:
    """The images that `--image_ids` or else `--n_examples` name; all where neither is given."""
    if ids_file:
        return tree.subset(positions_of(tree, ids_file))
    if n_examples:
        return tree.subset(evenly_spread(len(tree.files), n_examples))
    return tree


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
