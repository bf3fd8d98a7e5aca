"""`--save_images N`: attacked images as PNG, and one figure of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torchvision.utils import save_image

from lib.algorithm.pgd import frozen_eval
from lib.algorithm.protocols import AttackSpec
from lib.data.subsets import evenly_spread
from lib.evaluation.evaluate import CLEAN, Evaluation
from utils.distributed.context import DistributedContext
from utils.figures.attacks import AttackedImage, attack_images
from utils.figures.style import save_figure
from utils.storage.conditions import length_text
from utils.storage.files import make_folder, replacing

MOST_IN_FIGURE = 12


def save_attack_images(evaluation: Evaluation, stem: Path, count: int) -> None:
    """Keep `count` evenly spread images, each under the first attack that breaks it, or the last.

    Writes `<stem>_images/<number>_{original,adversarial,perturbation}.png`, 8 bits a colour,
    with the perturbation scaled so that grey is none and black and white are -eps and eps (the
    largest change under other norms than Linf); and the figure `<stem>_images.png` and `.pdf`.
    """
    clean, threat = evaluation.rows[CLEAN], evaluation.threat
    right = [i for i, row in clean.items() if row.correct] or list(clean)
    chosen = [right[k] for k in evenly_spread(len(right), count)]
    images = attacked_images(evaluation, chosen)
    largest = max(float((each.adversarial - each.clean).abs().max()) for each in images)
    reach = max(threat.eps if threat.norm == "Linf" else largest, 1e-12)
    path = Path(f"{stem}_images")
    write_images(images, reach, make_folder(path))
    eps = length_text(threat.eps, threat.norm)
    title = f"{evaluation.task.evaluated.settings.describe()}; protocol {threat.protocol.name}"
    title += f", eps {eps}" + ", images made on another network" * bool(evaluation.surrogate)
    save_figure(attack_images(images[:MOST_IN_FIGURE], reach, title), path)


def attacked_images(evaluation: Evaluation, chosen: Sequence[int]) -> list[AttackedImage]:
    """The images at some positions, attacked once more by this process alone."""
    data, model = evaluation.data, evaluation.task.evaluated.model
    alone = replace(data, workers=0, context=DistributedContext(0, 1, data.context.device))
    images: dict[int, AttackedImage] = {}
    names = evaluation.task.evaluated.settings.classes

    def name_of(output: int) -> str:
        return names[output] if names else f"output {output}"

    with frozen_eval(model):
        originals = {
            i: image
            for batch in alone.batches(chosen)
            for i, image in zip(batch.indices.tolist(), batch.images.cpu(), strict=True)
        }
        for spec in evaluation.specs:
            positions = [i for i in chosen if breaking(evaluation, i) is spec]
            if not positions:
                continue
            for outcome in evaluation.attack_of(spec).run(alone.batches(positions)):
                answers = model(outcome.adversarial).argmax(1).tolist()
                attacked = zip(
                    outcome.indices.tolist(), outcome.adversarial.cpu(), answers, strict=True
                )
                for i, image, answer in attacked:
                    before = evaluation.rows[CLEAN][i].prediction
                    label, before, after = map(name_of, (data.tree.labels[i], before, answer))
                    images[i] = AttackedImage(originals[i], image, label, before, after, spec.label)
    return [images[i] for i in chosen]


def breaking(evaluation: Evaluation, index: int) -> AttackSpec:
    """The first attack that breaks an image, or the last one."""
    for spec in evaluation.specs:
        row = evaluation.rows[spec.name].get(index)
        if row is not None and not row.robust:
            return spec
    return evaluation.specs[-1]


def write_images(images: Sequence[AttackedImage], reach: float, folder: Path) -> None:
    """The three files of each image; `reach` is the change that is drawn white."""
    for number, image in enumerate(images):
        change = ((image.adversarial - image.clean) / (2 * reach) + 0.5).clamp(0, 1)
        files = {"original": image.clean, "adversarial": image.adversarial, "perturbation": change}
        for name, pixels in files.items():
            with replacing(folder / f"{number:03d}_{name}.png") as file:
                save_image(pixels, file, format="png")
