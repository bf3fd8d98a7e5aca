"""`--init_from`: a new training from the weights of any checkpoint, as fine-tuning begins."""

from dataclasses import replace
from typing import Any

from lib.evaluation.load_model import ModelSettings, new_model
from models.resnet import ResNet, load_weights
from utils.config.settings import Config
from utils.logging import Logger
from utils.storage.checkpoint import read_checkpoint
from utils.storage.run_folder import find_checkpoint


def model_from(
    config: Config, settings: ModelSettings, logger: Logger
) -> tuple[ResNet, ModelSettings, Any]:
    """A new network with the weights of `--init_from`.

    Other classes, another number of them or another kind of head get a new last layer. Mean and
    standard deviation are the file's, unless the command says others.

    Returns:
        The network, its settings, and the optimizer's state where all of it fits, else None.

    Raises:
        UserError: no such file, or of another architecture.
    """
    path = find_checkpoint(config.OPTIONS.init_from, "--init_from")
    checkpoint = read_checkpoint(path, weights=config.OPTIONS.weights)
    colours = {"mean": checkpoint.mean, "std": checkpoint.std, **(checkpoint.model or {})}
    taken: dict[str, Any] = {
        name: list(colours[name])
        for name in ("mean", "std")
        if colours[name] and not config.given(f"TRAIN.{name}")
    }
    settings = replace(settings, **taken)
    model, saved = new_model(settings, config.RUN.seed, pretrained=False), checkpoint.state_dict
    head = {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    classes = (checkpoint.model or {}).get("classes")
    same = classes is None or list(classes) == settings.classes
    body = {key: value for key, value in saved.items() if not key.startswith("fc.")}
    its_head = {key: saved[key].shape for key in saved.keys() - body.keys()}
    same = same and its_head == {key: value.shape for key, value in head.items()}
    load_weights(model, saved if same else {**body, **head})
    optimizer = checkpoint.content.get("optimizer") if same and checkpoint.is_ours else None
    parts = "weights" + " and momentum" * (optimizer is not None)
    layer = "" if same else f"; the last layer is new, of {model.num_classes} classes"
    logger.info(f"{parts} of {path}{layer}")
    return model, settings, optimizer
