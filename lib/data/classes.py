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
    """The output of each class folder.

    Args:
        root: the tree, for messages.
        classes: the folders' names, sorted as text.
        names: class name of each output, from the checkpoint; None when it carries none.
        num_classes: outputs of the network.
        order: `DATA.class_order`, for a checkpoint without names: `text` is alphabetical,
            `numeric` by number, `auto` whichever of them is sure to be meant.

    Returns:
        an output each, and what a user should know of it, or nothing.

    Raises:
        UserError: a class that the network does not know, another number of classes, or numbers
            that may be meant either way.
    """
    numbered = all(re.fullmatch("[0-9]+", name) for name in classes)
    if names is not None:
        is_imagenet = numbered and tuple(names) == imagenet_wnids()
        if is_imagenet and not set(classes) <= set(names):
            return imagenet_indices(root, classes)
        return by_name(root, classes, names), ""
    if order == "text":
        return in_order(root, classes, num_classes, sorted(classes)), ""
    if order == "numeric":
        return by_number(root, classes, num_classes, numbered), ""
    if num_classes == 1000 and numbered and all(int(name) < 1000 for name in classes):
        return imagenet_indices(root, classes)
    if num_classes == 1000 and set(classes) <= set(imagenet_wnids()):
        return by_name(root, classes, imagenet_wnids()), ""
    if numbered and sorted(classes, key=int) != sorted(classes):
        raise UserError(
            f"{root}: the checkpoint carries no class names, and the numbered folders"
            f" {shortlist(classes)} have another order as text than as numbers; say which one it"
            " was trained with: DATA.class_order=text or DATA.class_order=numeric"
        )
    note = f"{root}: the checkpoint carries no class names; its outputs are the folders by alphabet"
    are_wnids = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    indices = in_order(root, classes, num_classes, sorted(classes))
    return indices, "" if numbered or are_wnids else note


def by_name(root: str, classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """The outputs of these names."""
    index = {name: i for i, name in enumerate(names)}
    if unknown := [name for name in classes if name not in index]:
        raise UserError(
            f"{root}: class {printable(unknown[0])} is none of the network's {len(names)} classes"
            f" ({shortlist(names)}); give the data set that it was trained on"
        )
    return [index[name] for name in classes]


def imagenet_indices(root: str, classes: Sequence[str]) -> tuple[list[int], str]:
    """The numbers themselves, as in ImageNet-V2's folders 0 to 999."""
    if max(map(int, classes)) > 999:
        raise UserError(f"{root}: folder {max(classes, key=int)} is none of ImageNet's 0 to 999")
    return [int(name) for name in classes], f"{root}: numbered folders are ImageNet's class indices"


def by_number(root: str, classes: Sequence[str], num_classes: int, numbered: bool) -> list[int]:
    """The folders' numbers, or where they are as many as the outputs, their order."""
    if not numbered:
        name = next(name for name in classes if not re.fullmatch("[0-9]+", name))
        raise UserError(
            f"{root}: folder {printable(name)} is no number; leave DATA.class_order out"
        )
    if len(classes) != num_classes and all(int(name) < num_classes for name in classes):
        return [int(name) for name in classes]
    return in_order(root, classes, num_classes, sorted(classes, key=int))


def in_order(
    root: str, classes: Sequence[str], num_classes: int, ordered: Sequence[str]
) -> list[int]:
    """The place of each class in an order, which must have them all."""
    if len(classes) != num_classes:
        raise UserError(
            f"{root} has {len(classes)} classes and the network {num_classes};"
            " the checkpoint carries no class names, so the folders must be all of its classes"
        )
    place = {name: i for i, name in enumerate(ordered)}
    return [place[name] for name in classes]
