"""Clean images and a list of attacks: outcomes image by image, kept as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.pgd import Logits, attacking
from lib.algorithm.protocols import AttackSpec, ThreatModel
from lib.evaluation.attacks import Attack, make_attack
from lib.evaluation.validation import (
    AttackRow,
    CleanRow,
    EvaluationData,
    attack_rows,
    clean_rows,
)
from utils.distributed.context import DistributedContext
from utils.errors import UserError
from utils.logging import Logger, ProgressBar
from utils.storage.journal import ResumableRows

Rows = dict[int, Any]  # CleanRow or AttackRow by position in the tree
Work = Callable[[Iterable[DeviceBatch]], Iterator[Rows]]
CLEAN = "clean"


class AttackEvaluation:
    """Runs the clean pass and the attacks, or what an interrupted run has left of them.

    Args:
        model: on the device; takes pixels in [0, 1].
        data: the images, shared out over the processes.
        threat: ball, protocol, seed, precision.
        stem: path of the results without extension; journals lie beside it until the end.
        fingerprint: what the journals must have been written for.
        cascade: attack only what is robust against the earlier attacks.
        outputs: the raw outputs of what is attacked, compiled; None for its own.
        source: the network that is attacked, where it is not `model`, which judges.
        clean: rows of the clean images, where they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        data: EvaluationData,
        threat: ThreatModel,
        logger: Logger,
        stem: Path,
        fingerprint: Mapping[str, Any],
        cascade: bool = False,
        outputs: Logits | None = None,
        source: nn.Module | None = None,
        clean: Rows | None = None,
    ) -> None:
        self.model, self.data, self.threat, self.logger = model, data, threat, logger
        self.stem, self.fingerprint = stem, fingerprint
        self.cascade, self.outputs, self.source = cascade, outputs, source
        self.context: DistributedContext = data.context
        self.rows: dict[str, Rows] = {} if clean is None else {CLEAN: clean}
        self.warnings: set[str] = set()  # the attacks' own, on this process

    def run(self, specs: Iterable[AttackSpec]) -> dict[str, Rows]:
        """Outcomes of every image by position, under `clean` and each attack's name.

        Raises:
            UserError: an image cannot be read, or journals belong to another evaluation.
        """
        journal = ResumableRows(self.stem, self.fingerprint, self.context, read_row)
        source = self.source or self.model
        with journal as self.journal, attacking(self.model), attacking(source):
            everything = list(range(len(self.data.tree.files)))
            if CLEAN not in self.rows:
                self.phase(CLEAN, "clean", everything, self.clean)
            for spec in specs:
                attack = make_attack(self.model, spec, self.threat, self.outputs, self.source)
                work = rows_of(attack)
                self.phase(spec.name, spec.label, self.targets(everything), work, attack.chunk)
                self.warnings |= attack.warnings
        return self.rows

    def targets(self, everything: Iterable[int]) -> list[int]:
        """Positions that the next attack has to try."""
        every_iterate = self.threat.protocol.every_iterate
        robust = [i for i in everything if self.rows[CLEAN][i].right or not every_iterate]
        if not self.cascade:
            return robust
        attacks = [rows for name, rows in self.rows.items() if name != CLEAN]
        return [i for i in robust if all(i not in rows or rows[i].right for rows in attacks)]

    def phase(
        self, name: str, label: str, wanted: list[int], work: Work, chunk: int | None = None
    ) -> None:
        """Do what is left of a phase, journal it, and share the outcomes among the processes."""
        done: Rows = self.journal.found.get(name, {})
        before = sum(i in done for i in wanted)
        if 0 < before < len(wanted):
            self.logger.info(f"{label}: {before} images were done before")
        batches = self.data.shares(wanted, done, chunk)
        share = sum(map(len, batches))
        bar = ProgressBar(self.logger, share, label, max(1, share // 5), "image")
        lost = sum(not row.right for row in done.values())
        so_far = SoFar(len(self.data.tree.files), len(wanted), lost, len(wanted) - before, share)
        own: Rows = {}
        for rows in work(self.data.read(batches)) if batches else ():
            own.update(rows)
            self.journal.add(name, rows)
            right = so_far.add(rows)
            bar.advance(len(rows), right if name == CLEAN else so_far.robust())
        self.journal.flush()
        bar.close()
        merged = dict(done)
        for rows in self.context.gather(own):
            merged.update(rows)
        self.rows[name] = dict(sorted(merged.items()))

    def clean(self, batches: Iterable[DeviceBatch]) -> Iterator[Rows]:
        """Classify the images.

        Raises:
            UserError: an output is not finite, and any class could be called the largest.
        """
        for rows in clean_rows(self.model, batches):
            for position, row in rows.items():
                if not math.isfinite(row.loss):
                    raise UserError(
                        "the network's outputs are not finite on"
                        f" {self.data.tree.files[position]}; take another checkpoint"
                    )
            yield rows


class SoFar:
    """What to say of a phase while it runs.

    Args:
        images: all of the evaluation.
        targets: what the phase has to try, over all processes.
        lost: of those, misclassified in an interrupted run.
        left: targets that are not done, over all processes.
        share: of those, this process's.
    """

    def __init__(self, images: int, targets: int, lost: int, left: int, share: int) -> None:
        self.images, self.targets, self.lost = images, targets, lost
        self.left, self.share = left, share
        self.seen = self.right = 0

    def add(self, rows: Rows) -> str:
        """Count outcomes; of clean images, how many of those seen are right."""
        self.seen += len(rows)
        self.right += sum(row.right for row in rows.values())
        return f"{100 * self.right / max(1, self.seen):.2f} % right"

    def robust(self) -> str:
        """An attack begins with what is robust before it, and only ever loses images.

        Other processes are taken to lose as many of their shares as this one.
        """
        lost = self.lost + (self.seen - self.right) * self.left / max(1, self.share)
        robust = f"{100 * (self.targets - lost) / self.images:.2f} % robust so far"
        about = "about " * (self.left != self.share)
        return f"{about}{robust}, {self.share - self.seen} images still under attack"


def rows_of(attack: Attack) -> Work:
    return lambda batches: map(attack_rows, attack.run(batches))


def read_row(phase: str, position: str, values: list) -> tuple[int, CleanRow | AttackRow]:
    """A row of the journal; TypeError or ValueError where it is damaged."""
    return int(position), CleanRow(*values) if phase == CLEAN else AttackRow(*values)
