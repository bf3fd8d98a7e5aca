"""Evaluate a checkpoint: attacks on ImageNet, ImageNet-C and shifted test sets.

    python evaluate.py /data/ImageNet -e --resume RUN/model_best.pth.tar
    python evaluate.py /data/ImageNet -e --attack pgd10,pgd50-margin,autoattack --resume ...
    python evaluate.py /data/ImageNet -e --protocol paper --n_examples 5000 --resume ...
    python evaluate.py /data/ImageNet-C --eva_on_imagenet_c --resume RUN/model_best.pth.tar
    python evaluate.py /data/ImageNet-R --eva_on_shift --resume RUN/model_best.pth.tar
    python evaluate.py -e --eva_on_imagenet_c --resume ...           # both, DIRs from configs.yml

PATH of --resume is as given or under trained_models/. Checkpoints of this suite carry their
settings, so no other flag is needed; for others give --FN --WN --s_HE as in their training, and
--set TRAIN.arch=convnext_tiny or timm/NAME for any network of torchvision or timm; --pretrained
takes their published weights.
Results go beside the checkpoint: a table here, JSON with provenance, one CSV row an image. An
interrupted evaluation resumes with the same command.
"""

import sys
from collections.abc import Sequence

from main_free import run_script


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_script("evaluate", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
