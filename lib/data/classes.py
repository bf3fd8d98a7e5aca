"""Which output of a network a class folder is: by name, by number, or in alphabetical order."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from utils.errors import UserError
from utils.text import printable, shortlist


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
    numbered, wnids = all(re.fullmatch("[0-9]+", name) for name in classes), imagenet_wnids()
    if names is None and order == "auto" and num_classes == 1000 and set(classes) <= set(wnids):
        names = wnids
    if names is not None and not (numbered and tuple(names) == wnids):
        index = {name: i for i, name in enumerate(names)}
        if unknown := [name for name in classes if name not in index]:
            raise UserError(
                f"{root}: class {printable(unknown[0])} is none of the network's {len(names)}"
                f" classes ({shortlist(names)}); give the data set that it was trained on"
            )
        return [index[name] for name in classes], ""
    numbers = [int(name) for name in classes] if numbered else []
    if names is not None and max(numbers) > 999:
        raise UserError(f"{root}: folder {max(classes, key=int)} is none of ImageNet's 0 to 999")
    known_as_indices = (order, num_classes) == ("auto", 1000) and max(numbers, default=1000) < 1000
    if names is not None or known_as_indices:
        return numbers, f"{root}: numbered folders are ImageNet's class indices"
    if order == "numeric" and not numbered:
        name = next(name for name in classes if not re.fullmatch("[0-9]+", name))
        raise UserError(
            f"{root}: folder {printable(name)} is no number; leave DATA.class_order out"
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
    place = {
        name: i for i, name in enumerate(sorted(classes, key=int if order == "numeric" else str))
    }
    note = f"{root}: the checkpoint carries no class names; its outputs are the folders by alphabet"
    is_plain = order != "auto" or numbered or all(re.fullmatch(r"n\d{8}", name) for name in classes)
    return [place[name] for name in classes], "" if is_plain else note
