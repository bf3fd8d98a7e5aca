"""Each warning on a network that has the defect, and none on a healthy one."""

import pytest
import torch
from torch import nn

from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch, PGDAttack
from lib.algorithm.protocols import PAPER, PROTOCOLS, AutoAttackSpec, PGDSpec, ThreatModel
from lib.evaluation.autoattack import AutoAttack
from lib.evaluation.evaluate import AttackRow, attack_rows
from lib.evaluation.masking import check_attacks, check_reach, check_selection, output_warnings
from lib.evaluation.task import CleanRow, clean_rows

EPS, STEP, SIZE = 0.1, 0.02, 8
SPECS = [PGDSpec(3, STEP), PGDSpec(10, STEP), PGDSpec(10, STEP, "margin")]


class Linear(nn.Module):
    """Four classes by the brightness of four quarters of the image: its PGD is exact."""

    def __init__(self, gain: float = 5.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = SIZE // 2
        corners = [x[..., i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
        return self.gain * torch.stack([c.mean(dim=(1, 2, 3)) for c in corners], dim=1)


class Staircase(Linear):
    """Rounds the pixels, so that no gradient comes through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + ((x * 4).round() / 4 - x).detach() - (x - x.detach()))


class Noisy(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(len(x), 4)


class Probabilities(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(dim=1)


@pytest.fixture(scope="module")
def batch() -> DeviceBatch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, SIZE, SIZE, generator=generator) * 0.6 + 0.2
    labels = Linear()(images).argmax(1)
    return DeviceBatch(images, labels, torch.arange(40))


class Constant(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0 + torch.tensor([0.0, 1.0, 0.0, 0.0])


class Flip(Linear):
    """From the fourth step on, the gradient points the wrong way."""

    steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        self.steps += x.requires_grad
        return logits if self.steps <= 3 else 2 * logits.detach() - logits


def warnings_of(model: nn.Module, batch: DeviceBatch, protocol: str) -> list[str]:
    """What a run of all attacks warns of."""
    rows: dict[str, dict] = {"clean": next(iter(clean_rows(model, [batch])))}
    for spec in SPECS:
        attack = PGDAttack(model, spec, ThreatModel(EPS, PROTOCOLS[protocol]))
        with frozen_eval(model):
            outcomes = [attack_rows(outcome) for outcome in attack.run([batch])]
        rows[spec.name] = {i: row for outcome in outcomes for i, row in outcome.items()}
    return [*output_warnings(model, batch.images), *check_attacks(rows, SPECS)]


@pytest.mark.parametrize(
    ("model", "protocol", "words"),
    [
        (Linear(), "standard", None),
        (Linear(), "freeat", None),
        (Staircase(), "freeat", "gradient is zero on 40 of 40 images at the first step"),
        # A huge gain saturates the softmax in float32: cross-entropy's gradient is exactly zero.
        (Linear(gain=1e5), "freeat", "cross-entropy alone flatters"),
        (Constant(), "freeat", "overestimated: the network gives every image the same class"),
        (Noisy(), "freeat", "between two identical calls"),
        (Probabilities(), "freeat", "probabilities"),
        (Flip(), "freeat", "PGD-10 (ce) breaks 40 images fewer than PGD-3 (ce)"),
    ],
)
def test_a_defect_is_warned_of(
    model: nn.Module, protocol: str, words: str | None, batch: DeviceBatch
) -> None:
    attacked = batch._replace(labels=model(batch.images).argmax(1))
    warnings = warnings_of(model, attacked, protocol)
    assert any(words in warning for warning in warnings) if words else warnings == []
    if isinstance(model, Constant):
        assert not any("try" in warning for warning in warnings)


def test_gradients_of_misclassified_images_are_no_sign() -> None:
    """DLR is constant where the label is third."""
    spec = PGDSpec(10, STEP, "dlr")
    for right in (False, True):
        rows: dict[str, dict] = {"clean": {i: CleanRow(i, right, True, 0.0) for i in range(9)}}
        rows[spec.name] = {i: AttackRow(right, True, True, 1) for i in range(9)}
        assert len([*check_attacks(rows, [spec])]) == right


@pytest.mark.parametrize("gap", [2, 3])
def test_images_that_chance_may_break(gap: int) -> None:
    """Of 7 images, 2 are a large share and say nothing."""
    rows: dict[str, dict] = {"clean": {i: CleanRow(i, True, True, 0.0) for i in range(7)}}
    for spec, broken in ((PGDSpec(10, STEP, "ce"), 0), (PGDSpec(10, STEP, "margin"), gap)):
        rows[spec.name] = {i: AttackRow(i >= broken, True, False, 1) for i in range(7)}
    specs = [PGDSpec(10, STEP, loss) for loss in ("ce", "margin")]
    assert len([*check_attacks(rows, specs)]) == (gap > 2)


@pytest.mark.parametrize("broken", [2, 3])
def test_square_alone_breaking_images(broken: int) -> None:
    clean = {i: CleanRow(0, True, True, 0.0) for i in range(1000)}
    rows = {i: AttackRow(i >= broken, True, False, 3 + (i >= broken)) for i in range(1000)}
    warnings = [*check_attacks({"clean": clean, "autoattack": rows}, [AutoAttackSpec()])]
    assert ["broke 3 images" in warning for warning in warnings] == [True] * (broken == 3)


def test_steps_that_do_not_reach_the_edge_of_the_ball() -> None:
    specs = [PGDSpec(steps, STEP, x) for steps in (2, 5, 10) for x in ("ce", "margin")]
    warnings, notes = check_reach(specs, ThreatModel(EPS))
    (warning,), (note,) = warnings, notes  # once for both losses
    both = "PGD-2 (ce) and PGD-2 (margin): 2 x 5.1/255 reach 10.2/255 of a radius of 25.5/255"
    assert warning.startswith(both)
    assert note.startswith("PGD-5 (ce) and PGD-5 (margin): 5 x 5.1/255 reach 25.5/255 of a radius")
    assert check_reach(specs, ThreatModel(EPS, PAPER)) == (warnings, [])  # it starts at the centre


@pytest.mark.parametrize(
    ("file", "train", "warned", "noted"),
    [
        ("model_best.pth.tar", {"select": "clean"}, "", "by its clean accuracy on the validation"),
        ("model_ema_best.pth.tar", {}, "", "by its clean accuracy on the validation"),
        ("model_best.pth.tar", {"select": "pgd"}, "by PGD-10 on 9 of the validation", ""),
        ("model_best.pth.tar", {"select": "clean", "select_from": "train"}, "", ""),
        ("model_best.pth.tar", {"val_every": 20, "epochs": 20}, "", ""),  # the last one
        ("model_best.pth.tar", {"val_every": 19, "epochs": 20}, "", "by its clean accuracy"),
        ("checkpoint.pth.tar", {"select": "clean"}, "", ""),
        ("model_best.pth.tar", None, "", ""),
    ],
)
def test_images_that_have_chosen_the_model_are_named(
    file: str, train: dict | None, warned: str, noted: str
) -> None:
    trained = None if train is None else {"TRAIN": {"select_examples": 9, **train}}
    for found, words in zip(check_selection(file, trained), (warned, noted), strict=True):
        assert len(found) == bool(words)
        assert all(words in text and "biased upwards" in text for text in found)


class Broken(Linear):
    """Outputs NaN, for the true class or for all, as soon as an image is attacked."""

    def __init__(self, clean: torch.Tensor, everywhere: bool) -> None:
        super().__init__()
        self.clean, self.everywhere = clean, everywhere

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        attacked = (x[:, None] - self.clean).abs().amax(dim=(2, 3, 4)).amin(dim=1) > 0
        lost = attacked[:, None] & (self.everywhere | (logits == logits.amax(1, keepdim=True)))
        return logits.masked_fill(lost, torch.nan)


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("attack", [*PROTOCOLS, "AutoAttack in Linf", "AutoAttack in L2"])
def test_outputs_that_are_no_numbers_are_not_robust(
    attack: str, everywhere: bool, batch: DeviceBatch
) -> None:
    """AutoAttack's package takes the largest logit, and NaN for it."""
    model = Broken(batch.images, everywhere)
    if attack in PROTOCOLS:
        run = PGDAttack(model, SPECS[0], ThreatModel(EPS, PROTOCOLS[attack])).run
    else:
        run = AutoAttack(model, AutoAttackSpec(), ThreatModel(1e-4, norm=attack.split()[-1])).run
    with frozen_eval(model):
        outcomes = list(run([batch]))
    assert sum(len(outcome.robust) for outcome in outcomes) == 40
    for outcome in outcomes:
        assert not outcome.robust.any()
        if attack not in PROTOCOLS:
            assert model(outcome.adversarial).isnan().any(dim=1).all()


@pytest.mark.usefixtures("short_autoattack")
def test_a_gradient_that_is_no_number_leaves_no_image_of_nan(batch: DeviceBatch) -> None:
    class Root(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * (0 * x.sum(dim=(1, 2, 3))).sqrt()[:, None]

    model = Root()
    with frozen_eval(model):
        (outcome,) = AutoAttack(model, AutoAttackSpec(), ThreatModel(EPS, norm="L2")).run([batch])
        assert torch.equal(outcome.robust, model(outcome.adversarial).argmax(1) == batch.labels)
    assert outcome.adversarial.isfinite().all()


@pytest.mark.usefixtures("short_autoattack")
def test_an_image_that_breaks_the_search_alone_is_attacked_in_full_precision(
    batch: DeviceBatch,
) -> None:
    class Overflow(Broken):
        """As float16 does now and then."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu"):
                return super().forward(x)
            return Linear.forward(self, x)

    model, runs = Overflow(batch.images, everywhere=True), []
    for precision in ("fp32", "bf16"):
        with frozen_eval(model):
            threat = ThreatModel(EPS, precision=precision)
            runs += AutoAttack(model, AutoAttackSpec(), threat).run([batch])
    assert torch.equal(runs[0].robust, runs[1].robust)
    assert runs[0].robust.float().mean() < 1
