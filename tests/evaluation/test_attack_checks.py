"""Each warning on a network that has the defect, and none on a healthy one."""

import pytest
import torch
from torch import nn

from lib.algorithm.pgd import frozen_eval
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.pool import DeviceBatch
from lib.algorithm.protocols import PROTOCOLS, AutoAttackSpec, PGDSpec, ThreatModel
from lib.evaluation.autoattack import AutoAttack
from lib.evaluation.evaluate import AttackRow, attack_rows
from lib.evaluation.masking import check_attacks, check_reach, output_warnings
from lib.evaluation.validation import CleanRow, clean_rows

EPS, STEP, SIZE = 0.1, 0.02, 8
SPECS = [
    PGDSpec(3, STEP),
    PGDSpec(10, STEP),
    PGDSpec(10, STEP, "margin"),
]


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


def rows_of(model: nn.Module, batch: DeviceBatch, spec: PGDSpec, protocol: str) -> dict:
    """An attack's outcomes."""
    attack, rows = PGDAttack(model, spec, ThreatModel(EPS, PROTOCOLS[protocol])), {}
    with frozen_eval(model):
        for outcome in attack.run([batch]):
            rows.update(attack_rows(outcome))
    return rows


def warnings_of(model: nn.Module, batch: DeviceBatch, protocol: str) -> list[str]:
    """What a run of all attacks warns of."""
    rows = {"clean": next(iter(clean_rows(model, [batch])))}
    rows |= {spec.name: rows_of(model, batch, spec, protocol) for spec in SPECS}
    return list(check_attacks(rows, SPECS))


@pytest.mark.parametrize(
    ("model", "protocol", "words"),
    [
        (Linear(), "standard", None),
        (Linear(), "freeat", None),
        (Staircase(), "freeat", "gradient is zero on 40 of 40 images"),
        # A huge gain saturates the softmax in float32: cross-entropy's gradient is exactly zero.
        (Linear(gain=1e5), "freeat", "cross-entropy alone flatters"),
        (Noisy(), "freeat", "between two identical calls"),
        (Probabilities(), "freeat", "probabilities"),
    ],
)
def test_a_defect_is_warned_of(
    model: nn.Module, protocol: str, words: str | None, batch: DeviceBatch
) -> None:
    found = output_warnings(model, batch.images)
    attacked = batch._replace(labels=model(batch.images).argmax(1))
    found += warnings_of(model, attacked, protocol=protocol)
    assert any(words in warning for warning in found) if words else found == []


def test_more_steps_that_break_fewer_images(batch: DeviceBatch) -> None:
    class Flip(Linear):
        """From the fourth forward pass on, the gradient points the wrong way."""

        passes = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            if x.requires_grad:
                self.passes += 1
            right_way = self.passes <= 3
            return logits if right_way else 2 * logits.detach() - logits

    rows = {"clean": next(iter(clean_rows(Linear(), [batch])))}
    rows |= {spec.name: rows_of(Flip(), batch, spec, "freeat") for spec in SPECS[:2]}
    assert any("images fewer than" in warning for warning in check_attacks(rows, SPECS[:2]))


def test_square_alone_breaking_images() -> None:
    clean = {i: CleanRow(0, True, True, 0.0) for i in range(1000)}

    def broken_by_square(count: int) -> list[str]:
        survived = {i: 3 if i < count else 4 for i in range(1000)}
        rows = {i: AttackRow(0, s == 4, True, False, s) for i, s in survived.items()}
        return list(check_attacks({"clean": clean, "autoattack": rows}, [AutoAttackSpec()]))

    assert broken_by_square(2) == []
    (warning,) = broken_by_square(3)
    assert "broke 3 images" in warning


@pytest.mark.parametrize(
    ("steps", "words"),
    [(2, "PGD-2 (ce): 2 x 5.1/255 reach 10.2/255 of a radius of 25.5/255"), (5, None)],
)
def test_steps_that_do_not_reach_the_edge_of_the_ball(steps: int, words: str | None) -> None:
    warnings = check_reach([PGDSpec(steps, STEP)], ThreatModel(EPS))
    assert words in warnings[0] if words else warnings == []


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


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_outputs_that_are_no_numbers_are_not_robust(
    protocol: str, everywhere: bool, batch: DeviceBatch
) -> None:
    model, threat = Broken(batch.images, everywhere), ThreatModel(EPS, PROTOCOLS[protocol])
    with frozen_eval(model):
        for outcome in PGDAttack(model, SPECS[0], threat).run([batch]):
            assert not outcome.robust.any()


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_outputs_that_are_no_numbers_are_not_robust_against_autoattack(
    norm: str, everywhere: bool, batch: DeviceBatch, short_autoattack: type
) -> None:
    """The package takes the largest logit: images of class 0 stay robust, or of the true class."""
    model, threat = Broken(batch.images, everywhere), ThreatModel(1e-4, norm=norm)
    attack = AutoAttack(model, AutoAttackSpec(), threat)
    with frozen_eval(model):
        (outcome,) = attack.run([batch])
    assert not outcome.robust.any()
    assert model(outcome.adversarial).isnan().any(dim=1).all()


def test_a_gradient_that_is_no_number_leaves_no_image_of_nan(
    batch: DeviceBatch, short_autoattack: type
) -> None:
    class Root(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * (0 * x.sum(dim=(1, 2, 3))).sqrt()[:, None]

    attack = AutoAttack(Root(), AutoAttackSpec(), ThreatModel(EPS, norm="L2"))
    with frozen_eval(attack.model):
        (outcome,) = attack.run([batch])
        assert torch.equal(
            outcome.robust,
            attack.predict_full_precision(outcome.adversarial).argmax(1) == batch.labels,
        )
    assert outcome.adversarial.isfinite().all()


def test_an_image_that_breaks_the_search_alone_is_attacked_in_full_precision(
    batch: DeviceBatch, short_autoattack: type
) -> None:
    class Overflow(Broken):
        """As float16 does now and then."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu"):
                return super().forward(x)
            return Linear.forward(self, x)

    model = Overflow(batch.images, everywhere=True)
    runs = []
    for precision in ("fp32", "bf16"):
        threat = ThreatModel(EPS, precision=precision)
        with frozen_eval(model):
            runs += AutoAttack(model, AutoAttackSpec(), threat).run([batch])
    assert torch.equal(runs[0].robust, runs[1].robust)
    assert runs[0].robust.float().mean() < 1
