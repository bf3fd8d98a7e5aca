"""The order in which imports may point, those inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each may import the rooms before it. Rooms of one line may import each other.
ORDER = (
    ("utils.errors",),
    ("models",),
    ("lib.algorithm",),
    ("lib.data",),
    ("lib.evaluation", "lib.imagenet_c"),
    ("lib.training",),
    ("main_free", "evaluate", "hubconf", "tools"),
)
# What the papers' mathematics may need of this project.
PURE = {"models": {"models", "utils.errors"}, "lib.algorithm": {"models", "lib.algorithm"}}
PURE["lib.algorithm"] |= {"utils.errors"}
# It needs no torch; its names are those that settings take.
CONFIG_TAKES_NAMES_FROM = ("lib.algorithm.protocols",)
OWN = ("lib", "models", "utils", "tools", "main_free", "evaluate", "hubconf")


def room_of(module: str) -> str:
    """`lib.algorithm` of `lib.algorithm.pgd`; `models` of `models.resnet`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("lib", "utils") else parts[0]


def imported(path: Path) -> Iterator[str]:
    """Every module of this project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            found = [module] if module.partition(".")[2] else names
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        yield from (module for module in found if module.split(".")[0] in OWN)


def sources() -> list[Path]:
    """The project's files outside tests."""
    inside = [path for name in OWN for path in (ROOT / name).rglob("*.py")]
    return [path for path in (*inside, *(ROOT / f"{name}.py" for name in OWN)) if path.is_file()]


def allowed(importer: str, target: str) -> bool:
    """Whether a module of one room may import a module of another."""
    own, other = room_of(importer), room_of(target)
    if own in PURE:
        return other in PURE[own]
    if own == "utils.config" and target in CONFIG_TAKES_NAMES_FROM:
        return True
    if own.startswith("utils"):
        return other.startswith("utils")
    level = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
    return other.startswith("utils") or level[other] <= level[own]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    importer = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert [target for target in imported(path) if not allowed(importer, target)] == []


def test_the_rule_would_notice() -> None:
    assert not allowed("utils.logging", "lib.data.folders")
    assert not allowed("utils.logging", "lib.algorithm.protocols")
    assert not allowed("utils.config.load", "lib.algorithm.pgd")
    assert not allowed("lib.algorithm.pgd", "utils.config.settings")
    assert not allowed("lib.data.loader", "lib.training.run")
    assert not allowed("lib.training.run", "tools.compare")
    assert allowed("lib.training.run", "lib.evaluation.task")


def test_the_algorithm_reads_alone() -> None:
    five = ("training", "losses", "pgd", "protocols", "schedules")
    needed = {f"lib.algorithm.{name}" for name in (*five, "norms", "metrics")}
    needed |= {"models.eval_norm", "models.hypersphere", "utils.errors"}
    for name in five:
        assert set(imported(ROOT / f"lib/algorithm/{name}.py")) <= needed
