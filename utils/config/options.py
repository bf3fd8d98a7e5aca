"""The flags of one call, which describe no run."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config.readers import path, real, whole, words
from utils.config.setting import SWITCH, setting, switch

ROBUSTBENCH = "robustbench"  # what --image_ids takes in place of a file


@dataclass(frozen=True)
class Options:
    """Flags of one call that describe no run; `script` and `command` say what was called."""

    script: str = ""
    command: str = ""
    data: str | None = setting(None, path, "data set; default DATA.imagenet of configs.yml")
    evaluate: bool = switch(
        "evaluate on DIR/val: clean images and the attacks",
        metavar=SWITCH,
        short="-e",
        group="evaluation",
    )
    resume: str = setting(
        "",
        path,
        "checkpoint, as given or under trained_models/; `auto` is this run's newest valid one",
        metavar="PATH",
        group="model",
    )
    pretrained: bool = switch("start from torchvision's ImageNet weights", group="model")
    print_gradients: bool = switch(
        "measure adversarial/clean gradient norms while training", script="main_free"
    )
    overwrite: bool = switch("replace a run that is there", script="main_free")
    tensorboard: bool = switch("write TensorBoard logs", script="main_free")
    attack: tuple[str, ...] = setting(
        (),
        words,
        "attacks separated by commas: pgd10,pgd50-margin,pgd50-dlr-r5,pgd100@1/255,autoattack,"
        " autoattack-plus,apgd,apgd-ce,apgd-t,fab-t,square (default:"
        " ADV.pgd_attack, and in protocol standard its longest row on margin)",
        metavar="NAMES",
        group="evaluation",
    )
    transfer_from: str = setting(
        "",
        path,
        "checkpoint that is attacked in place of the one that judges: transferred attacks that beat"
        " a network's own are a sign of masked gradients",
        metavar="PATH",
        group="evaluation",
    )
    n_examples: int | None = setting(
        None, whole(1), "only N images, evenly spread", metavar="N", group="evaluation"
    )
    image_ids: str | None = setting(
        None,
        path,
        "only the images listed, one class/filename a line; robustbench: its 5000",
        metavar="FILE",
        group="evaluation",
    )
    save_images: int = setting(
        0,
        whole(0),
        "save N images with their adversarial twins as PNG, and a figure",
        metavar="N",
        group="evaluation",
    )
    eva_on_imagenet_c: bool = switch(
        "evaluate on ImageNet-C at DIR", metavar=SWITCH, group="evaluation", script="evaluate"
    )
    eva_on_shift: bool = switch(
        "evaluate on the shifted test set at DIR, or on each of several in it",
        metavar=SWITCH,
        group="evaluation",
        script="evaluate",
    )
    corruptions: tuple[str, ...] = setting(
        (),
        words,
        "corruptions separated by commas, `extra`, or `all` of the tree (default: the 15)",
        metavar="NAMES",
        group="evaluation",
        script="evaluate",
    )
    clean_accuracy: float | None = setting(
        None,
        real(0, 1),
        "clean top-1 as a fraction in [0, 1], for relative mCE (default: from a clean evaluation"
        " in the run folder)",
        metavar="A",
        group="evaluation",
        script="evaluate",
    )

    start_from: str = ""  # the checkpoint of the phase before

    @property
    def evaluating(self) -> bool:
        """Whether nothing is trained."""
        return self.script == "evaluate" or self.evaluate
