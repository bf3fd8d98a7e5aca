"""12. Speed against the plain published loop of the same run, and what it asks of the readers."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib.algorithm.batch import DeviceBatch
from lib.algorithm.free_training import free_step
from lib.algorithm.pgd import attacking, pgd, random_start
from lib.algorithm.pgd_attack import PGDAttack
from lib.algorithm.protocols import PGDSpec, ThreatModel
from lib.data.datasets import ImageBatches, train_transform
from lib.data.folders import ImageTree, read_tree
from tests.gpu_acceptance.checks import Check, at_least, at_most, note, skip
from tests.gpu_acceptance.setting import EPS, Setting, minibatch, network, trainer_of
from tools.benchmark import QUICK
from tools.benchmark_case import REPLAYS, Case, cases_of
from tools.benchmark_subject import measure
from utils.config.readers import REDUCE_OVERHEAD

FREE_GOAL, NATURAL_GOAL, STANDARD_GOAL = 4.0, 1.03, 3.0  # over plain; over natural; over plain
ACTIONS = {
    "free": ("free", "natural"),
    "methods": ("fast",),
    "pgd": ("pgd",),
    "standard": ("evaluation",),
}
PARTS = ("free", "methods", "pgd")
Rates = dict[tuple[int, str, str], float]  # images/s by batch size, name of the case, action


def checks(setting: Setting) -> Iterator[Check]:
    """Every case that there is time for, the telling ones first."""
    rates: Rates = {}
    for case in cases(setting):
        what = f"{case.part}, {case.name}, batch {case.batch_size}"
        if not setting.has_time():
            yield skip(what, "no time is left")
            continue
        found, gibibytes = fresh(case)
        for action, rate in found.items():
            rates[case.batch_size, case.name, action] = rate
            yield note(f"{what}: {action}", f"{rate:.4g} images/s, {gibibytes:.3g} GiB")
    yield from goals(setting, rates)
    if setting.has_time():
        yield standard(setting)
        yield pool(setting)
    yield enqueued(setting)
    yield from readers(setting, rates)


def options(setting: Setting) -> argparse.Namespace:
    """As the benchmark's."""
    seconds = setting.choose(1.5, 0.5, 0.01)
    own = {"arch": "resnet50", "crop_size": 224, "pgd_steps": 50, "no_compile": False}
    own |= {"device": str(setting.device), "workers": 2, "take_seconds": seconds, "batch_size": 0}
    own |= {"precisions": setting.choose(["fp32", "bf16"], ["fp32", "bf16"], ["fp32"])}
    own |= {"reading_images": 0, "standard_images": setting.choose(512, 128, 6)}
    return argparse.Namespace(**(own if setting.cuda else {**own, **QUICK}))


def cases(setting: Setting) -> list[Case]:
    """The telling ones first: compilation takes most of the time."""
    base = options(setting)
    base.no_compile = setting.choose(False, True, True)
    found = [
        replace(case, batch_size=size)
        for size in setting.choose((256, 64, 32), (64,), (2,))
        for part in setting.choose(PARTS, PARTS, PARTS[:1])
        for case in cases_of(part, base, setting.folder)
    ]
    return sorted(found, key=telling)


def telling(case: Case) -> tuple[bool, bool, int]:
    """Sorts cases: eager before compiled, then bf16 before fp32, then large batches before small.

    CUDA graphs have the small ones first, which they are for.
    """
    size = case.batch_size if case.compiled == REDUCE_OVERHEAD else -case.batch_size
    return bool(case.compiled), bool(case.compiled) and case.precision == "fp32", size


def fresh(case: Case) -> tuple[dict[str, float], float]:
    """Images/s of the actions of a case, without what the one before has left, and peak GiB."""
    gc.collect()
    torch._dynamo.reset()
    tuning = torch.backends.cudnn.benchmark
    if torch.device(case.device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = measure(case, ACTIONS[case.part])
    finally:
        torch.backends.cudnn.benchmark = tuning
    rates = {name: images / seconds for name, (images, seconds) in found["takes"].items()}
    return rates, found["peak_memory_bytes"] / 2**30


def goals(setting: Setting, rates: Rates) -> Iterator[Check]:
    """The best setting against the plain loop; a free step against a natural one."""
    for size in sorted({size for size, _, _ in rates}, reverse=True):
        for action in ("free", "pgd"):
            own = {n: r for (s, n, a), r in rates.items() if (s, a) == (size, action)}
            if "plain" in own:
                best = max(own, key=lambda name: own[name])
                ratio = own[best] / own["plain"]
                name = f"{action} step over the plain one, batch {size}, {best}"
                goal = FREE_GOAL if setting.cuda and action == "free" and size == 256 else None
                yield at_least(name, ratio, goal) if goal else note(name, f"{ratio:.3g}")
    for (size, name, action), rate in rates.items():
        if action == "natural":
            over = rate / rates[size, name, "free"]
            what = f"time of a free step over a natural one, batch {size}, {name}"
            yield at_most(what, over, NATURAL_GOAL) if setting.cuda else note(what, f"{over:.3g}")


def standard(setting: Setting) -> Check:
    """PGD-50 of the `standard` protocol, half of the images misclassified early."""
    base = options(setting)
    base.batch_size, base.precisions = setting.choose(256, 64, 2), base.precisions[-1:]
    folder = setting.folder / "half_robust"
    plain, suite = cases_of("standard", base, folder)
    slow, quick = (fresh(case)[0]["evaluation"] for case in (plain, suite))
    ratio = quick / slow
    name = "standard PGD-50 over the plain one"
    return at_least(name, ratio, STANDARD_GOAL) if setting.cuda else note(name, f"{ratio:.3g}")


def pool(setting: Setting) -> Check:
    """PGD-10 over a pool from which no image falls, against ten plain steps."""
    size, batches = setting.choose(256, 64, 2), setting.choose(8, 4, 1)
    model = network(setting.arch, setting.crop).to(setting.device)
    images, _, indices = minibatch(size, setting.crop, setting.device)
    with torch.no_grad():
        labels = model(images).argmax(1)
    spec, threat = PGDSpec(10, step_size=1e-7), ThreatModel(eps=1e-6)
    own = partial(pgd, model, steps=spec.steps, step_size=spec.step_size, eps=threat.eps)
    start = torch.zeros_like(images)

    def plain() -> None:
        for _ in range(batches):
            list(own(images, labels, start))

    def pooled() -> None:
        parts = [DeviceBatch(images, labels, indices + size * i) for i in range(batches)]
        list(PGDAttack(model, spec, threat).run(iter(parts)))

    seconds = []
    with attacking(model):
        for work in (plain, pooled) * setting.choose(3, 2, 1):
            started = time.perf_counter()
            work()
            if setting.cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    ratio = min(seconds[1::2]) / min(seconds[::2])
    return note("time of PGD-10 over a pool, no image falls, over plain steps", f"{ratio:.3g}")


def enqueued(setting: Setting) -> Check:
    """How long the host takes for a free step, beside the device."""
    batch, size = setting.choose(32, 32, 2), setting.crop
    trainer = trainer_of(network(setting.arch, size), setting.device, batch, size)
    images, labels, _ = minibatch(batch, size, setting.device)
    synchronise = torch.cuda.synchronize if setting.cuda else lambda: None
    for _ in range(3):
        free_step(trainer, images, labels)
    synchronise()
    started, steps = time.perf_counter(), setting.choose(20, 20, 1)
    for _ in range(steps):
        free_step(trainer, images, labels)
    host = time.perf_counter() - started
    synchronise()
    whole = time.perf_counter() - started
    found = f"{1000 * host / steps:.1f} ms to enqueue, {1000 * whole / steps:.1f} ms in all"
    return note(f"a free step of {batch} images in fp32", found)


def readers(setting: Setting, rates: Rates) -> Iterator[Check]:
    """One core's random starts and images, and how many readers the fastest training needs."""
    count = setting.choose(64, 64, 2)
    started = time.perf_counter()
    for index in range(count):
        random_start(index, (3, setting.crop, setting.crop), EPS, 0)
    milliseconds = 1000 * (time.perf_counter() - started) / count
    yield note("a random start, ms of a core", f"{milliseconds:.3g}")
    images = ImageBatches(
        photographs(setting.folder / "reading", count),
        train_transform(setting.crop),
        setting.crop,
        0,
    )
    started = time.perf_counter()
    images.__getitems__([(0, position) for position in range(count)])
    a_core = count / (time.perf_counter() - started)
    yield note("images/s of a reader (JPEG of 500 x 375 px, 110 kB)", f"{a_core:.4g}")
    fastest = max(rate for (_, _, action), rate in rates.items() if action == "free")
    yield note("readers that free training needs a device", f"{fastest / REPLAYS / a_core:.2g}")


def photographs(folder: Path, count: int) -> ImageTree:
    """JPEGs of ImageNet's size, in pixels and bytes: noise that is stronger the coarser it is."""
    (folder / "class_0").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        picture = np.full((375, 500, 3), 128.0)
        for cell, strength in ((125, 40.0), (25, 25.0), (5, 12.0), (1, 7.0)):
            noise = generator.normal(0, strength, (375 // cell, 500 // cell, 3))
            picture += noise.repeat(cell, axis=0).repeat(cell, axis=1)
        image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        image.save(folder / "class_0" / f"{number}.jpg", quality=95)
    return read_tree(str(folder))
