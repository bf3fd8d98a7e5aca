"""ImageNet-C (arXiv:1903.12261): its corruptions, their folders on the disk, and mCE.

A tree is flat (`gaussian_noise/1/CLASS/IMAGE`) or by group (`noise/gaussian_noise/1/...`). Its 75
folders hold 3.75 million files of 50,000 names; these are kept once for all folders, so that a
process and its workers carry megabytes instead of a gigabyte. Everything is keyed by the
corruption's name, so no order of folders or of lists matters. Nothing here needs torch.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import fmean

from lib.data.folders import ImageTree, read_tree, subfolders
from utils.errors import UserError
from utils.storage.results import Summary
from utils.text import shortlist

SEVERITIES = (1, 2, 3, 4, 5)
# AlexNet's top-1 error averaged over the five severities, of Hendrycks & Dietterich; AugMix's too.
ALEXNET_ERRORS_BY_GROUP = {
    "noise": {"gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640},
    "blur": {
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
    },
    "weather": {"snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592},
    "digital": {
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    },
}
ALEXNET_CLEAN_ERROR = 0.4348  # torchvision's weights, top-1 56.52 %
ALEXNET_ERRORS = {
    name: error for errors in ALEXNET_ERRORS_BY_GROUP.values() for name, error in errors.items()
}
GROUPS = {group: tuple(errors) for group, errors in ALEXNET_ERRORS_BY_GROUP.items()}
STANDARD = tuple(ALEXNET_ERRORS)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # published, never in mCE
LISTING_THREADS = 16  # listing waits for the disk or the network, not for the processor


def choose_corruptions(asked: Sequence[str] | None, present: Sequence[str] = ()) -> tuple[str, ...]:
    """The corruptions to evaluate: the published ones in their order, then any others.

    Of those asked for, `extra` adds the four extra ones, and `all` is whatever is present.
    """
    wanted = {name.strip() for name in asked or ()}
    if "all" in wanted:
        wanted = set(present)
    elif not wanted - {"extra"}:
        wanted |= set(STANDARD)
    if "extra" in wanted:
        wanted = wanted - {"extra"} | set(EXTRA)
    published = [name for name in STANDARD + EXTRA if name in wanted]
    return (*published, *sorted(wanted - set(published)))


def group_of(name: str) -> str:
    """A corruption's group; `other` where it is none of the published ones."""
    groups = {**GROUPS, "extra": EXTRA}
    return next((group for group, members in groups.items() if name in members), "other")


def corruptions_label(names: Sequence[str]) -> str:
    """What names of files say of these: nothing of the 15, `extra` of all 19, else the names."""
    labels = {STANDARD: "", STANDARD + EXTRA: "extra"}
    return labels.get(tuple(names), "+".join(names))


def corruption_folders(root: str) -> list[tuple[str, str]]:
    """(name, folder) of each folder with a severity in it, below `root` or one folder deeper."""
    folders = []
    for folder in subfolders(root):
        candidates = [folder] if has_severities(folder) else subfolders(folder)
        folders += [path for path in candidates if has_severities(path)]
    return [(os.path.basename(folder), folder) for folder in folders]


def has_severities(folder: str) -> bool:
    """Whether a folder named 1 to 5 is in it."""
    return any(os.path.isdir(os.path.join(folder, str(severity))) for severity in SEVERITIES)


def find_folders(root: str, asked: Sequence[str] | None) -> dict[str, str]:
    """The folder of each corruption of `--corruptions`, in the order of evaluation."""
    present = corruption_folders(root)
    names = choose_corruptions(asked, [name for name, _ in present])
    paths = {name: [path for other, path in present if other == name] for name in names}
    problems = [
        f"{name} is there twice, {found[0]} and {found[1]}; remove one"
        for name, found in paths.items()
        if len(found) > 1
    ]
    if not names:
        problems.append(f"no folder CORRUPTION/1/CLASS, such as {root}/fog/1/n01440764")
    if missing := [name for name, found in paths.items() if not found]:
        example = os.path.join(root, missing[0], "1", "CLASS")
        problems.append(
            f"no folder for {', '.join(missing)} ({example}, or the same in a folder GROUP);"
            " complete the tree, or choose others with --corruptions"
        )
    if problems:
        raise UserError(f"ImageNet-C in {root}: {'; '.join(problems)}")
    return {name: found[0] for name, found in paths.items()}


def read_corruptions(
    root: str,
    folders: Mapping[str, str],
    prepare: Callable[[ImageTree], ImageTree] = lambda images: images,
) -> tuple[dict[str, ImageTree], int]:
    """The images of every corruption and severity, those of the first, and how many it has."""
    paths = {
        f"{name}/{severity}": os.path.join(folder, str(severity))
        for name, folder in folders.items()
        for severity in SEVERITIES
    }
    whole = read_tree(next(iter(paths.values())))
    images = prepare(whole)
    trees = {name: replace(images, root=path) for name, path in paths.items()}

    def problem(tree: ImageTree) -> str:
        if len(tree.files) < len(whole.files):
            needed = (tree.path(i) for i in range(len(tree.files)))
            path = next((path for path in needed if not os.path.isfile(path)), "")
            return path and f"{path} is missing; {whole.root} has it"
        try:
            return difference(read_tree(tree.root), whole)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        others = [tree for tree in trees.values() if tree.root != whole.root]
        if problems := list(filter(None, pool.map(problem, others))):
            raise UserError(f"ImageNet-C in {root}: {shortlist(problems)}")
    return trees, len(whole.files)


def difference(tree: ImageTree, expected: ImageTree) -> str:
    """How the images of a severity differ from those of another, or nothing."""
    if tree.files == expected.files:
        return ""
    own, others = set(tree.files), set(expected.files)
    texts = [
        f"{verb} {len(files)}, such as {min(files)}"
        for verb, files in (("lacks", others - own), ("alone has", own - others))
        if files
    ]
    return f"{tree.root}, against the images of {expected.root}, {' and '.join(texts)}"


def summarise(
    accuracies: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    clean_accuracy: float | None = None,
) -> Summary:
    """The metrics over the 15 corruptions. What is undefined is None, with the reason.

    CE is the sum of errors over the severities, over AlexNet's sum; relative CE takes the error on
    clean images off both.
    """
    means = {name: fmean(accuracies[name]) for name in STANDARD if name in accuracies}
    absent = [name for name in STANDARD if name not in means]
    groups: dict[str, float | None] = {}
    left_out: dict[str, str] = {}
    for group, members in GROUPS.items():
        if lacking := [name for name in members if name in absent]:
            left_out[group] = f"without {', '.join(lacking)}"
        groups[group] = None if lacking else fmean(means[name] for name in members)
    if absent:
        reason = f"needs all 15 corruptions; {len(absent)} were not evaluated: {shortlist(absent)}"
        left_out |= dict.fromkeys(("mean_accuracy", "mean_error", "mCE", "relative_mCE"), reason)
        return Summary(None, None, None, None, groups, {}, left_out)
    ce: dict[str, float] = {}
    relative_mce = None
    if len(classes) != 1000 or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        reason = (
            "needs ImageNet's 1000 classes by their ids (n01440764, ...), for AlexNet's errors are"
            f" over them; this tree has {len(classes)} classes"
        )
        left_out |= dict.fromkeys(("mCE", "relative_mCE"), reason)
    else:
        ce = {name: 100 * (1 - means[name]) / ALEXNET_ERRORS[name] for name in STANDARD}
        if clean_accuracy is None:
            left_out["relative_mCE"] = (
                "needs the clean accuracy of the same checkpoint: give --clean_accuracy,"
                " or run the attack evaluation (-e) first"
            )
        else:
            relative_mce = fmean(
                100 * (clean_accuracy - means[name]) / (ALEXNET_ERRORS[name] - ALEXNET_CLEAN_ERROR)
                for name in STANDARD
            )
    mean, mce = fmean(means.values()), fmean(ce.values()) if ce else None
    return Summary(mean, 1 - mean, mce, relative_mce, groups, ce, left_out)
