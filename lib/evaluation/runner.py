"""Clean images and a list of attacks: outcomes image by image, kept as they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.algorithm.pgd import Logits, attacking
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import AttackSpec, ThreatModel
from lib.evaluation.autoattack import STANDARD, attack_chunk, chunk_seed
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
CLEAN = "clean"


class AttackEvaluation:
    """Runs the clean pass and the attacks, or what an interrupted run has left of them.

    Args:
        model: on the device; eats pixels in [0, 1].
        data: the images, shared out over the processes.
        threat: ball, protocol, seed, precision.
        stem: path of the results without extension; journals lie beside it until the end.
        fingerprint: what the journals must have been written for.
        cascade: attack only what the earlier attacks left standing.
        outputs: the model's raw outputs, compiled; None for its own.
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
    ) -> None:
        self.model, self.data, self.threat, self.logger = model, data, threat, logger
        self.stem, self.fingerprint = stem, fingerprint
        self.cascade, self.outputs = cascade, outputs
        self.context: DistributedContext = data.context
        self.rows: dict[str, Rows] = {}
        self.warnings: set[str] = set()  # of AutoAttack's package, on this process

    def run(self, specs: Iterable[AttackSpec]) -> dict[str, Rows]:
        """Outcomes of every image by position, under `clean` and each attack's name.

        AutoAttack has a name for each of its four attacks, `autoattack` being the last one.

        Raises:
            UserError: an image cannot be read, or journals belong to another evaluation.
        """
        journal = ResumableRows(self.stem, self.fingerprint, self.context, read_row)
        with journal as self.journal:
            everything = range(len(self.data.tree.files))
            self.phase(CLEAN, "clean", everything, self.clean)
            for spec in specs:
                work = self.autoattack if spec.kind == "autoattack" else self.pgd
                positions = self.targets(everything)
                self.phase(spec.name, spec.label, positions, lambda p, w=work, s=spec: w(p, s))
        return self.rows

    def targets(self, everything: Iterable[int]) -> list[int]:
        """Positions that the next attack has to try."""
        every_iterate = self.threat.protocol.every_iterate
        robust = [i for i in everything if self.rows[CLEAN][i].right or not every_iterate]
        if not self.cascade:
            return robust
        attacks = [rows for name, rows in self.rows.items() if name != CLEAN]
        return [i for i in robust if all(i not in rows or rows[i].right for rows in attacks)]

    def phase(self, name: str, label: str, positions: Iterable[int], work: Any) -> None:
        """Do what is left of a phase, journal it, and share the outcomes among the processes."""
        wanted = list(positions)
        done = self.journal.found.get(name, {})
        left = [i for i in wanted if i not in done]
        if done and left:
            self.logger.info(f"{label}: {len(wanted) - len(left)} images were done before")
        share = len(left[self.context.rank :: self.context.world_size])
        if name == "autoattack":
            left = self.whole_chunks(wanted, done)
            share = sum(map(len, left))
        bar = ProgressBar(self.logger, share, label, max(1, share // 5), "image")
        for rows in work(left) if share else ():
            for part, part_rows in rows.items():
                self.journal.add(part, part_rows)
                self.rows.setdefault(part, {}).update(part_rows)
            bar.advance(len(rows[name]), self.standing(name))
            if name == "autoattack":  # a chunk is minutes of work, and resumed as a whole
                self.journal.flush()
        self.journal.flush()
        bar.close()
        self.share(name)

    def share(self, name: str) -> None:
        """Bring together every process's outcomes of a phase and those of before."""
        for part in parts_of(name):
            merged: Rows = dict(self.journal.found.get(part, {}))
            for rows in self.context.gather(self.rows.get(part, {})):
                merged.update(rows)
            self.rows[part] = dict(sorted(merged.items()))

    def standing(self, name: str) -> str:
        """This process's share of right answers so far, for the progress."""
        rows = self.rows[name].values()
        return f"{100 * sum(row.right for row in rows) / max(1, len(rows)):.2f} % right"

    def clean(self, positions: list[int]) -> Iterator[dict[str, Rows]]:
        """Classify the images.

        Raises:
            UserError: an output is not finite, and any class could be called the largest.
        """
        for rows in clean_rows(self.model, self.data.batches(positions)):
            for position, row in rows.items():
                if not math.isfinite(row.loss):
                    raise UserError(
                        "the network's outputs are not finite on"
                        f" {self.data.tree.files[position]}; take another checkpoint"
                    )
            yield {CLEAN: rows}

    def pgd(self, positions: list[int], spec: AttackSpec) -> Iterator[dict[str, Rows]]:
        """Attack by PGD."""
        attack = PGDAttack(self.model, spec, self.threat, self.outputs)
        with attacking(self.model):
            for outcome in attack.run(self.data.batches(positions), self.data.batch_size):
                yield {spec.name: attack_rows(outcome)}

    def whole_chunks(self, wanted: list[int], done: Rows) -> list[list[int]]:
        """This process's share of AutoAttack's chunks, less those that were done before.

        The package draws its random points for a whole batch. So a chunk is a global batch, cut
        from the list of all images: the same for every number of processes and interruptions.
        """
        size = self.data.batch_size * self.context.world_size
        chunks = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        left = [chunk for chunk in chunks if any(i not in done for i in chunk)]
        return left[self.context.rank :: self.context.world_size]

    def autoattack(self, chunks: list[list[int]], spec: AttackSpec) -> Iterator[dict[str, Rows]]:
        """Attack by AutoAttack, a chunk at a time."""
        for images, labels, indices in self.data.chunks(chunks):
            result = attack_chunk(
                self.model,
                images,
                labels,
                eps=self.threat.eps,
                seed=chunk_seed(self.threat.seed, int(indices[0])),
                batch_size=len(images),
            )
            self.warnings.update(result.warnings)
            with torch.no_grad():
                predictions = self.model(result.adversarial).argmax(1).tolist()
            rows = {}
            for part, robust in zip(parts_of(spec.name), result.robust_after.values(), strict=True):
                values = zip(indices.tolist(), predictions, robust.tolist(), strict=True)
                rows[part] = {i: AttackRow(p, bool(r), bool(r), False) for i, p, r in values}
            yield rows


def read_row(phase: str, position: str, values: list) -> tuple[int, CleanRow | AttackRow]:
    """A row of the journal; TypeError or ValueError where it is damaged."""
    return int(position), CleanRow(*values) if phase == CLEAN else AttackRow(*values)


def parts_of(name: str) -> list[str]:
    """The names under which a phase's outcomes stand: AutoAttack has one for each attack."""
    if name != "autoattack":
        return [name]
    return [*(f"autoattack-{stage}" for stage in STANDARD[:-1]), "autoattack"]
