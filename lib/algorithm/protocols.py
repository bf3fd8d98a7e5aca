"""Whose evaluation: what the protocols attack with and how they judge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackSpec:
    """One row of an evaluation: PGD with these settings, or AutoAttack.

    Attributes:
        kind: `pgd` or `autoattack`.
        steps: sign steps per restart; 0 for AutoAttack, which sets its own.
        step_size: step in units of [0, 1].
        loss: what PGD ascends, one of `ATTACK_LOSSES`.
        restarts: random starts; an image must survive all of them.
        scale: the factor on the network's raw outputs under the loss; None is the network's own.
    """

    kind: str
    steps: int = 0
    step_size: float = 0.0
    loss: str = "ce"
    restarts: int = 1
    scale: float | None = None

    @property
    def name(self) -> str:
        """The name that `--attack` takes, with the scale where it is not the network's own."""
        if self.kind == "autoattack":
            return "autoattack"
        name = f"pgd{self.steps}" + (f"-{self.loss}" if self.loss != "ce" else "")
        name += f"-r{self.restarts}" if self.restarts > 1 else ""
        return name + (f"-s{self.scale:g}" if self.scale is not None else "")

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        if self.kind == "autoattack":
            return "AutoAttack"
        extra = f", {self.restarts} restarts" if self.restarts > 1 else ""
        extra += f", scale {self.scale:g}" if self.scale is not None else ""
        return f"PGD-{self.steps} ({self.loss}{extra})"
