"""Attacks on a network: outcomes image by image, kept as they come, so that they resume."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib.algorithm.metrics import precision_context
from lib.algorithm.pgd import Logits, frozen_eval
from lib.algorithm.pgd_attack import DeviceBatch, Outcome, PGDAttack
from lib.algorithm.protocols import (
    AttackSpec,
    AutoAttackSpec,
    PGDSpec,
    Protocol,
    ThreatModel,
)
from lib.evaluation.attacks import attack_list
from lib.evaluation.autoattack import AutoAttack
from lib.evaluation.load_model import EvaluatedModel
from lib.evaluation.task import CleanRow, EvaluationData, Task, clean_rows
from models.resnet import PixelNetwork, ResNet
from utils.compiling import (
    PADDED_SIZES,
    Compiled,
    compile_mode,
    compiled_for,
    compiles,
    failure,
    recorded,
    require_alike,
)
from utils.config.settings import Source
from utils.errors import UserError
from utils.logging import ProgressBar
from utils.storage.conditions import BY_FILE, Conditions, attack_text
from utils.storage.journal import ResumableRows
from utils.storage.results import result_stem

CLEAN = "clean"
Rows = dict[int, Any]  # CleanRow or AttackRow by position in the tree
Work = Callable[[Iterable[DeviceBatch]], Iterator[Rows]]


class AttackRow(NamedTuple):
    """One attacked image, as `lib.algorithm.pgd_attack.Outcome`."""

    robust: bool
    robust5: bool
    no_gradient: bool
    stages_survived: int


def attack_rows(outcome: Outcome) -> dict[int, AttackRow]:
    """Rows by position, without the images."""
    columns = (
        outcome.indices,
        outcome.robust,
        outcome.robust5,
        outcome.no_gradient,
        outcome.stages_survived,
    )
    rows = torch.stack([column.long() for column in columns], dim=1).tolist()
    return {i: AttackRow(bool(r), bool(r5), bool(z), s) for i, r, r5, z, s in rows}


def rows_of(attack: PGDAttack | AutoAttack, batches: Iterable[DeviceBatch]) -> Iterator[Rows]:
    return map(attack_rows, attack.run(batches))


@dataclass
class Evaluation:
    """Attacks on a network within one ball, their outcomes, and how far they have come."""

    task: Task
    surrogate: EvaluatedModel | None  # the network that is attacked, where it is another one
    data: EvaluationData
    subset: Mapping[str, Any]  # of the images, see `Task.subset`
    threat: ThreatModel
    specs: Sequence[AttackSpec]
    # Outcomes of every image by position, under `clean` and each attack's name.
    rows: dict[str, Rows] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)  # the attacks' own, on this process
    # `forward` and `backward`, of images, on this process since the last interruption.
    passes: Counter[str] = field(default_factory=Counter)
    outputs: Logits | None = None  # of the attacked network, raw, compiled for PGD
    network: Logits | None = None  # the attacked network, compiled for AutoAttack

    @cached_property
    def conditions(self) -> Conditions:
        """What can change the numbers."""
        threat, config = self.threat, self.task.config
        return self.task.conditions(
            "attack",
            threat.protocol.name,
            config.DATA.img_size,
            self.subset,
            attacks=attack_texts(self.specs, threat.norm),
            eps=threat.eps,
            norm=threat.norm,
            precision=threat.precision,
            seed=threat.seed,
            surrogate="" if self.surrogate is None else self.surrogate.identity["sha256"],
            cascade=config.EVAL.cascade,
            starts=BY_FILE * any(isinstance(spec, PGDSpec) for spec in self.specs),
        )

    @property
    def usual(self) -> dict[str, Any]:
        """Sizes, radius and attacks of the network's training, that files are not named by."""
        threat, usual = self.threat, self.task.evaluated.usual
        # Its steps follow the radius as the protocol says.
        usual = usual.changed({"EVAL.protocol": threat.protocol.name}, Source.CHECKPOINT)
        specs = attack_list((), usual.attacks_within(threat.eps), threat)
        attacks = attack_texts(specs, threat.norm)
        return self.task.usual(self.conditions) | {"eps": usual.eps, "attacks": attacks}

    def find_stem(self) -> Path:
        """Path of the results without extension, see `result_stem`."""
        return result_stem(self.task.evaluated.folder, self.conditions, self.usual)

    @property
    def attacked(self) -> PixelNetwork:
        """The network whose loss the attacks ascend."""
        return (self.surrogate or self.task.evaluated).model

    def attack_of(self, spec: AttackSpec) -> PGDAttack | AutoAttack:
        """The attack that a spec describes."""
        model = self.task.evaluated.model
        surrogate = None if self.surrogate is None else self.surrogate.model
        if isinstance(spec, AutoAttackSpec):
            return AutoAttack(model, spec, self.threat, surrogate, self.network)
        number_of = self.data.tree.image_number
        return PGDAttack(model, spec, self.threat, self.outputs, surrogate, number_of)

    def run(self) -> None:
        """Fill `rows`, with what an interrupted run has left of them and what it has not."""
        folder, digest = self.task.evaluated.folder, self.conditions.digest
        journal = ResumableRows(folder, digest, self.task.context, read_row)
        with journal, frozen_eval(self.task.evaluated.model), frozen_eval(self.attacked):
            self.compile()
            if CLEAN not in self.rows:
                everything = list(range(len(self.data.tree.files)))
                self.phase(journal, CLEAN, CLEAN, everything, self.finite_rows)
            for spec in self.specs:
                attack = self.attack_of(spec)
                work = partial(rows_of, attack)
                self.phase(journal, spec.name, spec.label, self.targets(), work, attack.chunk)
                self.warnings |= attack.warnings
                self.passes += attack.passes
        self.outputs = self.network = None  # graphs read what a network keeps while it is frozen

    def compile(self) -> None:
        """Compile the attacked network as EVAL.compile says, if that works."""
        task, data, device = self.task, self.data, self.task.context.device
        setting, radii = task.config.EVAL.compile, len(task.config.EVAL.eps) or 1
        steps = radii * sum(map(steps_of, self.specs)) * len(data.tree.files) / data.batch_size
        by_pgd, cuda = any(isinstance(s, PGDSpec) for s in self.specs), device.type == "cuda"
        if not compile_mode(setting, device, steps):
            if setting == "auto" and cuda and by_pgd:
                self.record()
            return
        size = data.batch_size
        outputs: Logits = Compiled(self.attacked.outputs, size)  # a CPU gains by small batches
        if cuda:
            outputs = compiled_for(self.attacked.outputs, [size], device)
        network = compiled_for(self.attacked, PADDED_SIZES, device)
        x = self.batch_of_zeros()
        programs = [(outputs, self.attacked.outputs, x)] if by_pgd else []
        if any(isinstance(spec, AutoAttackSpec) for spec in self.specs):
            # As its package has them, or their strides would make a program more than Dynamo keeps.
            programs.append((network, self.attacked, x[: PADDED_SIZES[-1]].contiguous()))

        def rehearse() -> None:
            for program, own, images in programs:
                require_alike(self.in_precision(program), self.in_precision(own), images)

        if compiles(rehearse, "EVAL.compile", setting, task.context, task.logger):
            self.outputs, self.network = outputs, network
            task.logger.info("the search runs compiled; what it decides is judged as it is")

    def batch_of_zeros(self) -> torch.Tensor:
        """Images such as a whole batch under attack, with gradients."""
        data, device = self.data, self.task.context.device
        x = torch.zeros(data.batch_size, 3, data.crop_size, data.crop_size, device=device)
        return x.to(memory_format=torch.channels_last).requires_grad_()

    def in_precision(self, network: Logits) -> Logits:
        """A network in the precision of the search."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            with precision_context(x.device, self.threat.precision):
                return network(x)

        return forward

    def record(self) -> None:
        """Record PGD's passes as CUDA graphs where the host would be slower than the GPU.

        In bf16 and fp16, and of a ResNet, which neither draws at random nor waits for anything.
        """
        context, data = self.task.context, self.data
        whole = len(data.tree.files) // context.world_size >= data.batch_size
        low = self.threat.precision != "fp32"
        if not (whole and low and isinstance(self.attacked, ResNet)):
            return
        forward = self.in_precision(self.attacked.outputs)

        def attempt() -> None:
            x = self.batch_of_zeros()
            try:
                self.outputs = recorded(forward, x)
                require_alike(self.outputs, forward, x)
            except torch.OutOfMemoryError as error:
                raise RuntimeError("their memory is too much here") from error

        if reason := failure(attempt, context):
            self.outputs = None
            self.task.logger.warning(f"the search runs without CUDA graphs ({reason})")

    def targets(self) -> list[int]:
        """Positions that the next attack has to try."""
        rows = self.rows if self.conditions.cascade else {CLEAN: self.rows[CLEAN]}
        return [i for i, robust in worst_case(rows, self.threat.protocol).items() if robust]

    def phase(
        self,
        journal: ResumableRows,
        name: str,
        label: str,
        targets: list[int],
        work: Work,
        chunk: int | None = None,
    ) -> None:
        """Do what is left of a phase, journal it, and share the outcomes among the processes."""
        done: Rows = journal.found.get(name, {})
        left = sum(i not in done for i in targets)
        if 0 < left < len(targets):
            self.task.logger.info(f"{label}: {len(targets) - left} images were done before")
        batches = self.data.shares(targets, done, chunk)
        share = sum(map(len, batches))
        bar = ProgressBar(self.task.logger, share, label, max(1, share // 5), "image")
        standing = attrgetter("correct" if name == CLEAN else "robust")
        lost_before, lost = sum(not standing(row) for row in done.values()), 0
        finished: Rows = {}
        for rows in work(self.data.read(batches)) if batches else ():
            finished.update(rows)
            journal.add(name, rows)
            lost += sum(not standing(row) for row in rows.values())
            text = f"{100 * (1 - lost / len(finished)):.2f} % right"
            if name != CLEAN:
                # Other processes are taken to lose as many of their shares as this one.
                robust = len(targets) - lost_before - lost * left / share
                text = "about " * (left != share)
                text += f"{100 * robust / len(self.data.tree.files):.2f} % robust so far,"
                text += f" {share - len(finished)} images still under attack"
            bar.advance(len(rows), text)
        bar.close()
        self.rows[name] = dict(sorted(journal.share(name, finished).items()))

    def finite_rows(self, batches: Iterable[DeviceBatch]) -> Iterator[Rows]:
        """Rows of clean images."""
        for rows in clean_rows(self.task.evaluated.model, batches):
            self.passes["forward"] += len(rows)
            for position, row in rows.items():
                if not math.isfinite(row.loss):
                    raise UserError(
                        "the network's outputs are not finite on"
                        f" {self.data.tree.files[position]}; take another checkpoint"
                    )
            yield rows


def attack_texts(specs: Sequence[AttackSpec], norm: str) -> tuple[str, ...]:
    """The attacks with their steps."""
    return tuple(attack_text(s.name, getattr(s, "step_size", 0.0), norm) for s in specs)


def steps_of(spec: AttackSpec) -> int:
    """Forward and backward passes for an image that stays robust; roughly, of AutoAttack."""
    return 1000 if isinstance(spec, AutoAttackSpec) else spec.steps * spec.restarts


def worst_case(rows: Mapping[str, Mapping[int, Any]], protocol: Protocol) -> dict[int, bool]:
    """For each image, whether it is robust against every attack so far.

    Where every iterate counts, an image that is misclassified clean is not robust.
    """
    attacks = [attacked for name, attacked in rows.items() if name != CLEAN]
    return {
        i: (clean.correct or not protocol.every_iterate)
        and all(i not in attacked or attacked[i].robust for attacked in attacks)
        for i, clean in rows[CLEAN].items()
    }


def read_row(phase: str, position: str, values: list) -> tuple[int, CleanRow | AttackRow]:
    """A row of the journal; TypeError or ValueError where it is damaged."""
    return int(position), CleanRow(*values) if phase == CLEAN else AttackRow(*values)
