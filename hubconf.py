"""Networks of this suite for other code, RobustBench's and AutoAttack's included.

model = torch.hub.load("PATH/OF/THIS/SUITE", "robust_model", "best.pth.tar", source="local")
logits = model(x)       # x: (B, 3, H, W), pixels in [0, 1]; logits: (B, classes)
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

dependencies = ["torch", "torchvision"]
OWN = ("lib", "models", "utils")


def robust_model(checkpoint: str | os.PathLike[str], **hypersphere: object) -> nn.Module:
    """A checkpoint's network in eval mode, with the mean and std it was trained with, on the CPU.

    Args:
        checkpoint: a file of this suite, or one that `--resume` takes.
        hypersphere: FN, WN, s_HE and angular_margin_HE, for files of others that do not carry
            them: FN=True, WN=True, s_HE=10.0.

    Raises:
        ValueError: the file is missing, damaged or no network, or the flags contradict it.
    """
    with own_packages():
        from lib.evaluation.model_settings import model_of, settings_of
        from utils.config.load import merge
        from utils.config.settings import GivenValue, Source
        from utils.storage.checkpoint import read_checkpoint

        flags = [
            GivenValue(name, f"HE.{name}", value, Source.COMMAND_LINE)
            for name, value in hypersphere.items()
        ]
        content = read_checkpoint(os.path.expanduser(checkpoint))
        return model_of(content, settings_of(merge({}, flags), content)).eval()


@contextmanager
def own_packages() -> Iterator[None]:
    """Let `import models` mean this suite's, where the caller has modules of the same names."""
    here = str(Path(__file__).resolve().parent)
    theirs = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in OWN and not str(origin(module)).startswith(here)
    }
    for name in theirs:
        del sys.modules[name]
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if theirs:
            for name in [name for name in sys.modules if name.partition(".")[0] in OWN]:
                del sys.modules[name]
            sys.modules.update(theirs)


def origin(module: object) -> str | None:
    """The file a module comes from, or the folder of a package without a file of its own."""
    file = getattr(module, "__file__", None)
    return file or next(iter(getattr(module, "__path__", [])), None)
