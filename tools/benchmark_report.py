"""Medians, spreads and ratios of the benchmark's takes, as JSON values and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tools.benchmark_process import Take
from tools.benchmark_work import Case

PARTS = {
    "free": "Free step",
    "pgd": "PGD-50, plain",
    "standard": "PGD-50 of the `standard` protocol on a network of which half the images fall early"
    ", whole evaluation",
    "reading": "Reading ImageNet-C",
}


@dataclass
class Measured:
    """All takes of one subject, by action, one a repetition."""

    case: Case
    takes: dict[str, list[Take]] = field(default_factory=dict)
    memory: int = 0

    def rates(self, action: str) -> list[float]:
        """Images a second in each repetition."""
        return [take.rate for take in self.takes[action]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def quotients(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratio of the medians; smallest and largest of the ratios within a repetition."""
    pairs = [one / other for one, other in zip(above, below, strict=True)]
    return {"median": median(above) / median(below), "min": min(pairs), "max": max(pairs)}


def rows_of(part: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row a subject and action: images a second, ratio to the plain loop, memory."""
    base = part[0]
    assert base.case.subject == "plain"
    rows = []
    for measured in part:
        for action in measured.takes:
            row = {
                "part": measured.case.part,
                "action": action,
                "name": measured.case.name,
                "precision": measured.case.precision,
                "compile": measured.case.compiled,
                "images_per_second": spread(measured.rates(action)),
                "takes": [list(take) for take in measured.takes[action]],
                "peak_memory_bytes": measured.memory,
            }
            if action in base.takes:
                row["ratio_to_plain"] = quotients(measured.rates(action), base.rates(action))
            if action == "free" and "natural" in measured.takes:
                # Time, not rate: how much longer a free step takes.
                both = measured.rates("natural"), measured.rates("free")
                row["time_over_natural_step"] = quotients(*both)
            rows.append(row)
    return rows


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown table a part."""
    texts = []
    for part, title in PARTS.items():
        own = [row for row in rows if row["part"] == part]
        if own:
            texts.append(f"### {title}\n\n{table(own)}")
    return "\n".join(texts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one part."""
    several = len({row["action"] for row in rows}) > 1
    free = any("time_over_natural_step" in row for row in rows)
    head = ["", "images/s", "ratio to plain", "peak memory"] + ["time over natural step"] * free
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        name = row["name"] + (f", {row['action']}" if several else "")
        cells = [name, shown(row["images_per_second"]), shown(row.get("ratio_to_plain"))]
        cells += [f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"]
        cells += [shown(row.get("time_over_natural_step"))] * free
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(values: Mapping[str, float] | None) -> str:
    """`1.41 (1.38-1.44)`."""
    if values is None:
        return ""
    digits = 1 if values["median"] >= 20 else 2
    return "{median:.{d}f} ({min:.{d}f}-{max:.{d}f})".format(**values, d=digits)
