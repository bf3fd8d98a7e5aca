"""Training methods and protocols of evaluation: what differs, in a table of each.

Nothing here needs torch, so that the command line is checked before it is imported; that is why the
names of methods, losses and norms stand here, and their functions in the files of that name.
"""

from dataclasses import dataclass

LOSS_NAMES = ("ce", "margin", "dlr")  # what attacks ascend
NORM_NAMES = ("Linf", "L2", "L1")  # of the ball


@dataclass(frozen=True)
class Method:
    """What differs between the trainings, beside their steps, which are in `training.py`.

    Attributes:
        adversarial: the images are adversarial.
        replays_are_epochs: m replays of a minibatch count as m epochs (arXiv:1904.12843, Sec. 4).
        draws_noise: the noise is drawn for every minibatch, instead of kept from the one before.
        runs_pgd: the attack takes several steps in evaluation mode, so the step reads batch-norm's
            running statistics.
        has_phases: a phase may start from weights and momentum of another, finished training.
    """

    adversarial: bool = True
    replays_are_epochs: bool = False
    draws_noise: bool = False
    runs_pgd: bool = False
    has_phases: bool = True

    def epochs_per_pass(self, replays: int) -> int:
        """Epochs that a pass over the data counts as."""
        return replays if self.replays_are_epochs else 1

    def cost(self, replays: int, attack_steps: int) -> int:
        """Forward-backward passes of a minibatch; free's attack shares those of its updates."""
        if not self.draws_noise:
            return replays
        return replays * (1 + (attack_steps if self.runs_pgd else 1))


METHODS = {
    "free": Method(replays_are_epochs=True, has_phases=False),
    "fast": Method(draws_noise=True),
    "pgd": Method(draws_noise=True, runs_pgd=True),
    "natural": Method(adversarial=False),
}


@dataclass(frozen=True)
class PGDSpec:
    """One row of an evaluation: PGD with these settings.

    Attributes:
        steps: sign steps per restart.
        step_size: length of a step; in Linf in units of [0, 1].
        loss: what PGD ascends, one of `LOSS_NAMES`.
        restarts: random starts; an image must survive all of them.
        scale: the factor on the network's raw outputs under the loss; None is the network's own.
        step_text: the step size as the name gives it, or nothing.
    """

    steps: int
    step_size: float
    loss: str = "ce"
    restarts: int = 1
    scale: float | None = None
    step_text: str = ""

    @property
    def name(self) -> str:
        """The name that `--attack` takes, with the scale where it is not the network's own."""
        name = f"pgd{self.steps}" + (f"-{self.loss}" if self.loss != "ce" else "")
        name += f"-r{self.restarts}" if self.restarts > 1 else ""
        name += f"-s{self.scale:g}" if self.scale is not None else ""
        return name + (f"@{self.step_text}" if self.step_text else "")

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        extra = f", {self.restarts} restarts" if self.restarts > 1 else ""
        extra += f", scale {self.scale:g}" if self.scale is not None else ""
        extra += f", step {self.step_text}" if self.step_text else ""
        return f"PGD-{self.steps} ({self.loss}{extra})"

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Name and label of what is reported: of the attack as a whole."""
        return [(self.name, self.label)]


@dataclass(frozen=True)
class AutoAttackSpec:
    """One row of an evaluation: AutoAttack (arXiv:2003.01690), or some of its attacks.

    Attributes:
        name: the name that `--attack` takes.
        label: the name in tables and figures.
        stages: attacks of the package, each on what the ones before have left robust.
    """

    name: str = "autoattack"
    label: str = "AutoAttack"
    stages: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Name and label of what is reported: after each stage, the last one being the whole."""
        after = [(f"{self.name}-{x}", f"{self.label}, after {x}") for x in self.stages[:-1]]
        return [*after, (self.name, self.label)]


AttackSpec = PGDSpec | AutoAttackSpec


@dataclass(frozen=True)
class Protocol:
    """How an evaluation attacks and judges.

    Attributes:
        name: as `--protocol` takes it.
        ball_around_start: the eps-ball is centred on the image after its random start, so the
            result is up to 2 eps from the clean image; else on the clean image.
        scaled_cross_entropy: PGD ascends the cross-entropy of `model(x)`, with HE of s * cosines;
            else that of the unscaled outputs.
        every_iterate: an image is robust when the clean image and every iterate of every restart
            are classified right; else when the last iterate of every restart is.
        resize_imagenet_c: ImageNet-C's 224 px images are resized before the crop.
        repeat_on: the losses on which the longest of the default attacks is repeated, because
            cross-entropy alone can flatter a cosine head.
        steps_follow_radius: under Linf, steps that nobody has chosen are a share of the radius.
    """

    name: str
    ball_around_start: bool
    scaled_cross_entropy: bool
    every_iterate: bool
    resize_imagenet_c: bool
    repeat_on: tuple[str, ...] = ()
    steps_follow_radius: bool = False

    def search_scale(self, spec: PGDSpec, own: float) -> float:
        """The factor on the raw outputs under an attack's loss; `own` is the network's s, or 1."""
        if spec.scale is not None:
            return spec.scale
        return own if self.scaled_cross_entropy or spec.loss != "ce" else 1.0

    def default_attacks(self, specs: list[PGDSpec]) -> list[PGDSpec]:
        """The configured attacks and, where all of them ascend cross-entropy, what is repeated."""
        if any(spec.loss != "ce" for spec in specs):
            return specs
        longest = max(specs, key=lambda spec: spec.steps)
        repeated = (PGDSpec(longest.steps, longest.step_size, x) for x in self.repeat_on)
        return [*specs, *repeated]


STANDARD = Protocol(
    "standard",
    ball_around_start=False,
    scaled_cross_entropy=True,
    every_iterate=True,
    resize_imagenet_c=False,
    repeat_on=("margin",),
    steps_follow_radius=True,
)
FREEAT = Protocol(
    "freeat",
    ball_around_start=False,
    scaled_cross_entropy=True,
    every_iterate=False,
    resize_imagenet_c=True,
)
PAPER = Protocol(  # the release of arXiv:2002.08619
    "paper",
    ball_around_start=True,
    scaled_cross_entropy=False,
    every_iterate=False,
    resize_imagenet_c=True,
)
PROTOCOLS = {protocol.name: protocol for protocol in (STANDARD, FREEAT, PAPER)}


@dataclass(frozen=True)
class ThreatModel:
    """What an attack may do and how it is judged.

    Attributes:
        eps: radius of the ball; in Linf in units of [0, 1].
        protocol: where the ball is centred, and when an image counts as robust.
        seed: of the random starts.
        precision: fp32, bf16 or fp16, of the search; images found are judged in the
            parameters' own precision, so a low one can only weaken the attack.
        norm: of the ball: Linf, L2 or L1.
    """

    eps: float
    protocol: Protocol = STANDARD
    seed: int = 0
    precision: str = "fp32"
    norm: str = "Linf"
