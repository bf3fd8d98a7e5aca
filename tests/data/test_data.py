"""Batches: the same images, order and crops for any number of workers and processes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import user_error
from PIL import Image, ImageOps
from pretended_device import DEVICE, pretended_device
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision import datasets, transforms

from lib.algorithm.metrics import derived_seed
from lib.data import loader as loaders
from lib.data.datasets import (
    Batch,
    DistributedBatchSampler,
    ImageBatches,
    Keys,
    eval_transform,
    share_in_batches,
    train_transform,
)
from lib.data.folders import ImageTree, read_tree
from lib.data.loader import Loader, on_device, share_of_workers, to_device
from lib.evaluation.task import EvaluationData
from utils.distributed import context
from utils.distributed.context import DistributedContext, share_of_cores
from utils.errors import UserError

CPU = torch.device("cpu")
SIZES = ((60, 40), (40, 60), (33, 32), (80, 81), (50, 37))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ImageTree:
    """20 images of many shapes in 3 classes."""
    root = tmp_path_factory.mktemp("tree")
    generator = np.random.default_rng(0)
    for number in range(20):
        width, height = SIZES[number % len(SIZES)]
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        folder = root / f"class{number % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(small).resize((width, height)).save(folder / f"{number:02}.png")
    return read_tree(str(root))


def evaluation(
    tree: ImageTree, batch_size: int = 7, workers: int = 0, rank: int = 0, world_size: int = 1
) -> EvaluationData:
    """Evaluation's images."""
    context = DistributedContext(rank, world_size, CPU)
    return EvaluationData(tree, 48, 32, batch_size, workers, context)


def clean(tree: ImageTree) -> ImageBatches:
    """Images without augmentation."""
    return ImageBatches([tree], eval_transform(48, 32), 32)


def augmented(tree: ImageTree, seed: int = 0) -> ImageBatches:
    """Training's images."""
    return ImageBatches([tree], train_transform(32), 32, seed)


def epoch_of(
    tree: ImageTree,
    *,
    epoch: int = 0,
    start: int = 0,
    seed: int = 0,
    batch_size: int = 6,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> list[Batch]:
    """One process's batches of an epoch of training."""
    order = DistributedBatchSampler(len(tree.files), batch_size, rank, world_size, seed)
    order.set_position(epoch, start)
    return list(Loader(augmented(tree, seed), order, workers, CPU).batches())


def in_order(total: int, batch_size: int) -> list[Keys]:
    """The images of a tree in its order."""
    return [(0, positions) for positions in share_in_batches(range(total), batch_size)]


def by_position(batches: list[Batch]) -> dict[int, torch.Tensor]:
    """Each image's pixels."""
    pairs = [zip(batch.indices.tolist(), batch.pixels, strict=True) for batch in batches]
    return {position: pixels for pair in pairs for position, pixels in pair}


def same(one: list[Batch], other: list[Batch]) -> bool:
    """Whether two lists hold the same batches in the same order."""
    pairs = zip(one, other, strict=True)
    return all(torch.equal(x, y) for a, b in pairs for x, y in zip(a[:3], b[:3], strict=True))


# Training


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
def test_any_number_of_workers_gives_the_same_batches(tree: ImageTree) -> None:
    alone = epoch_of(tree, epoch=3)
    assert [len(batch.labels) for batch in alone] == [6, 6, 6, 2]  # the partial one included
    for workers in (1, 3):
        assert same(epoch_of(tree, epoch=3, workers=workers), alone)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_each_global_batch(tree: ImageTree, world_size: int) -> None:
    whole = epoch_of(tree)
    shares = [epoch_of(tree, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        for rank, share in enumerate(batches[number] for batches in shares):
            expected = Batch(*(field[rank::world_size] for field in batch[:3]))
            if not len(expected.labels):  # two images for three processes: padding
                assert (world_size, rank, number) == (3, 2, 3)
                expected = Batch(*(field[:1] for field in batch[:3]))
            assert same([share], [expected])


def test_epochs_and_seeds_differ_and_repeat(tree: ImageTree) -> None:
    first = epoch_of(tree)
    assert same(epoch_of(tree), first)
    for other in (epoch_of(tree, epoch=1), epoch_of(tree, seed=1)):
        pixels, others = by_position(first), by_position(other)
        assert sorted(others) == sorted(pixels) == list(range(20))  # every image once
        assert list(others) not in (list(pixels), sorted(pixels))
        assert sum(torch.equal(pixels[i], others[i]) for i in range(20)) <= 1


def test_a_loader_goes_through_epochs_with_the_same_workers(tree: ImageTree) -> None:
    order = DistributedBatchSampler(len(tree.files), 6, seed=0)
    loader = Loader(augmented(tree), order, 2, CPU)
    for epoch, start in ((0, 2), (1, 0), (2, 3)):
        order.set_position(epoch, start)
        assert same(list(loader.batches()), epoch_of(tree, epoch=epoch, start=start))


def test_killed_workers_are_left_alone_by_forked_processes(tree: ImageTree) -> None:
    """Which inherit torch's iterator, and whose copy would want to end them once more."""
    loader = Loader(augmented(tree), in_order(20, 5), 2, CPU)
    next(loader.batches())
    loader.kill_workers()
    child = os.fork()
    if not child:
        try:
            loader.iterator.__del__()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_augmentation_leaves_the_random_state_alone(tree: ImageTree) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    images = augmented(tree)
    images.load(0, 1)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)  # nor does it depend on it
    again = images.load(0, 1)
    torch.manual_seed(98)
    assert np.array_equal(np.asarray(images.load(0, 1)), np.asarray(again))


@pytest.mark.parametrize("min_area", [0.08, 0.9])
def test_crops_are_torchvisions(tree: ImageTree, min_area: float) -> None:
    image = Image.open(Path(tree.root, tree.files[4])).convert("RGB")
    torch.manual_seed(derived_seed(7, 2, 4))
    expected = transforms.RandomResizedCrop(32, scale=(min_area, 1))(image)
    mirrored = torch.rand(()) < 0.5
    for flip in (False, True):
        images = ImageBatches([tree], train_transform(32, min_area, flip), 32, seed=7)
        wanted = ImageOps.mirror(expected) if flip and mirrored else expected
        assert np.array_equal(np.asarray(images.load(2, 4)), np.asarray(wanted))
    centre = transforms.CenterCrop(32)(image)  # without resizing
    assert np.array_equal(np.asarray(eval_transform(None, 32)(image)), np.asarray(centre))


def test_bytes_become_floats_on_the_device_and_half_are_mirrored(tree: ImageTree) -> None:
    images = augmented(tree)
    batch = images.__getitems__((1, range(20)))
    assert batch.pixels.dtype == torch.uint8
    sent = to_device(batch, CPU)
    assert sent.images.dtype == torch.float32
    for tensor in (batch.pixels, sent.images):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert sent.labels.tolist() == list(tree.labels)
    for position in range(20):
        wanted = torch.from_numpy(np.array(images.load(1, position)))
        assert torch.equal(sent.images[position], wanted.permute(2, 0, 1).float() / 255)
    unflipped = ImageBatches([tree], train_transform(32, flip=False), 32, seed=0)
    pairs = [(e, i) for e in range(20) for i in range(20)]
    same = sum(images.load(*pair) == unflipped.load(*pair) for pair in pairs)
    assert 160 < same < 240


# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_torchvisions_preprocessing(tree: ImageTree, workers: int) -> None:
    steps = [transforms.Resize(48), transforms.CenterCrop(32), transforms.ToTensor()]
    reference = datasets.ImageFolder(tree.root, transforms.Compose(steps))
    seen = 0
    everything = range(len(tree.files))
    for images, labels, indices in evaluation(tree, workers=workers).batches(everything):
        for image, label, index in zip(images, labels.tolist(), indices.tolist(), strict=True):
            wanted, wanted_label = reference[index]
            assert torch.equal(image, wanted)
            assert label == wanted_label
            seen += 1
    assert seen == 20


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_evaluation_shares_are_exact(tree: ImageTree, world_size: int, batch_size: int) -> None:
    for positions in ([*range(20)], [0, 5, 6, 19], [3], []):
        seen = []
        for rank in range(world_size):
            data = evaluation(tree, batch_size, rank=rank, world_size=world_size)
            batches = list(data.batches(positions))
            assert all(1 <= len(batch.labels) <= batch_size for batch in batches)
            seen += [i for batch in batches for i in batch.indices.tolist()]
        assert sorted(seen) == positions  # each once, none twice, none left out


# Images that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_the_main_process_raises_what_a_worker_met(
    tree: ImageTree, workers: int, tmp_path: Path
) -> None:
    bad = tmp_path / "class0" / "bad.jpg"
    bad.parent.mkdir()
    bad.write_text("I am a text file.")
    good = Path(tree.root, tree.files[0])
    files = (str(good), "class0/bad.jpg", str(good))  # an absolute path stays itself
    broken = ImageTree(str(tmp_path), ("class0",), files, (0, 0, 0))
    images = ImageBatches([broken], eval_transform(48, 32), 32)
    batches = on_device(Loader(images, in_order(3, 1), workers, CPU), CPU)
    assert next(batches).indices.tolist() == [0]
    with pytest.raises(UserError, match=f"^cannot read {bad}: it is not an image; replace"):
        next(batches)


# Arithmetic


def test_derived_seeds() -> None:
    seeds = {derived_seed(a, b, c) for a in range(4) for b in range(4) for c in range(4)}
    assert len(seeds | {derived_seed(2**63 - 1, 5), derived_seed(2**63 - 2, 5)}) == 66
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("workers", "processes", "share"),
    [
        *((0, 4, 0), (4, 1, 4), (4, 2, 2), (2, 8, 1), (7, 2, 3), (99, 1, 6)),
        *(("auto", 1, 6), ("auto", 4, 1), ("auto", 8, 1)),
    ],
)
def test_workers_are_shared_out(workers: int | str, processes: int, share: int) -> None:
    same = frozenset(range(6))  # as torchrun leaves it
    cores = share_of_cores(same, [same] * processes)
    here = DistributedContext(3, 64, CPU, local_processes=processes, cores=cores)
    assert share_of_workers(workers, here) == share
    assert share_of_workers("auto", DistributedContext(0, 1, CPU, cores=128)) == 16


def test_cores_that_a_launcher_gives_each_process_are_not_shared_out_again() -> None:
    each = [frozenset(range(first, first + 8)) for first in range(0, 32, 8)]
    assert [share_of_cores(own, each) for own in each] == [8, 8, 8, 8]
    overlapping = [frozenset(range(8)), frozenset(range(4, 12))]
    assert [share_of_cores(own, overlapping) for own in overlapping] == [6, 6]


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/elsewhere\n", {"cpu.max": "300000 100000\n"}, 3),
        ("3:cpu,cpuacct:/a\n0::/\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n"}, 4),
        ("3:cpu,cpuacct:/a\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n"}, 6),
        ("", {}, 6),
    ],
)
def test_quotas_of_cgroups_count(
    group: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest of a group and those above it, of either version."""
    (tmp_path / "own").write_text(group)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).with_name("cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(context, "CGROUPS", tmp_path)
    monkeypatch.setattr(context, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(context, "allowed_cores", lambda: frozenset(range(6)))
    assert context.usable_cores() == DistributedContext(0, 1, CPU).cores == cores
    same = frozenset(range(6))
    assert share_of_cores(same, [same] * 2) == max(1, cores // 2)


# What may happen to workers


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.parametrize(("free", "collate"), [(1e9, "as_it_is"), (1e5, "piped")])
def test_for_cuda_batches_come_through_shared_memory_where_there_is_enough(
    tree: ImageTree, free: float, collate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "free_shared_memory", lambda: free)
    order = DistributedBatchSampler(20, 6, seed=0)
    loader = Loader(augmented(tree), order, 2, torch.device("cuda"))
    assert loader.loader.collate_fn.__name__ == collate
    assert loader.loader.pin_memory
    batches = list(loader.batches())
    assert same(batches, epoch_of(tree))
    assert batches[0].pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers are looked at often, and those that are left are not waited for."""
    monkeypatch.setattr(loaders, "SECONDS_BETWEEN_CHECKS", 0.1)
    yield
    for worker in multiprocessing.active_children():
        worker.kill()


class Blocking(ImageBatches):
    """A disk that does not answer for one image, or a worker that the system kills for it."""

    def __init__(self, tree: ImageTree, position: int, killed: bool = False) -> None:
        super().__init__([tree], eval_transform(48, 32), 32)
        self.position, self.killed = position, killed

    def load(self, epoch: int, position: int) -> tuple[Image.Image, bool]:
        if position == self.position and self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if position == self.position:
            time.sleep(1000)
        return super().load(epoch, position)


@pytest.mark.parametrize("answer", ["gives up", "raises"])
def test_a_read_that_blocks_is_not_waited_for_without_end(tree: ImageTree, answer: str) -> None:
    asked = []

    def while_waiting() -> bool:
        asked.append(1)
        if answer == "raises":
            raise KeyboardInterrupt
        return len(asked) == 2  # of a request that comes before the second look

    loader = Loader(Blocking(tree, 12), in_order(20, 5), 2, CPU)
    seen = []
    try:
        for batch in on_device(loader, CPU, while_waiting=while_waiting):
            seen += batch.indices.tolist()
    except KeyboardInterrupt:
        assert answer == "raises"
    assert seen == list(range(10))
    for worker in loader.workers:
        worker.join(5)
        assert not worker.is_alive()


@pytest.mark.parametrize("between_passes", [False, True])
def test_a_worker_that_is_killed_is_an_error(
    tree: ImageTree, between_passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(Blocking(tree, 7, killed=True), in_order(20, 5), 2, CPU)
    if between_passes:
        looking = _MultiProcessingDataLoaderIter._try_get_data
        monkeypatch.setattr(looking, "__defaults__", (0.1,))  # torch's is five seconds
        loader = Loader(clean(tree), in_order(8, 4), 2, CPU)
        assert len(list(loader.batches())) == 2
        loader.workers[1].kill()
    message = user_error(lambda: list(loader.batches()))
    assert "was killed by SIGKILL" in message
    assert "DATA.workers" in message


def test_a_worker_that_stops_between_two_passes_is_waited_for(tree: ImageTree) -> None:
    loader = Loader(clean(tree), in_order(8, 4), 2, CPU)
    assert len(list(loader.batches())) == 2
    pid = loader.workers[1].pid
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (pid, signal.SIGCONT)).start()
    assert len(list(loader.batches())) == 2


def test_the_time_of_waiting_is_measured(tree: ImageTree) -> None:
    class Slow(ImageBatches):
        def load(self, epoch: int, position: int) -> tuple[Image.Image, bool]:
            time.sleep(0.02)
            return super().load(epoch, position)

    loader = Loader(Slow([tree], eval_transform(48, 32), 32), in_order(20, 5), 0, CPU)
    assert len(list(loader.batches())) == 4
    assert 0.4 < loader.seconds_waited < 4


# On the device


def test_bytes_are_the_same_numbers_on_every_device() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    exact = torch.tensor([i / 255 for i in range(256)])
    assert torch.equal(loaders.scaled(every).flatten(), exact)
    with pretended_device() as device:
        pixels = every.to(DEVICE)
        loaders.table_of_255ths.cache_clear()
        loaders.scaled(pixels)  # makes the device's table
        there, waits = device.counted(lambda: loaders.scaled(pixels))
        assert waits == []
        assert torch.equal(there.host.flatten(), exact)
    loaders.table_of_255ths.cache_clear()


@pytest.mark.parametrize(("total", "world_size"), [(7, 2), (5, 4), (8, 3), (1, 2)])
def test_weights_of_shares_make_the_mean_over_the_minibatch(total: int, world_size: int) -> None:
    """The last minibatch is uneven: each process's mean loss is weighed by its images."""
    losses = torch.rand(total, dtype=torch.float64)
    terms = []
    for rank in range(world_size):
        order = DistributedBatchSampler(total, 8, rank, world_size)
        ((_, positions),) = order
        terms.append(order.weight(0) * losses[positions].mean())
    assert sum(terms) / world_size == pytest.approx(float(losses.mean()), rel=1e-12)
