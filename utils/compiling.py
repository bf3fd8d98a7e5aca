"""torch.compile where it pays: for batches of one size, tried before anything depends on it."""

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from utils.config.validators import REDUCE_OVERHEAD
from utils.distributed.context import DistributedContext
from utils.errors import SharedUserError, UserError
from utils.logging import Logger

WORTHWHILE = 10_000  # steps of a whole run: about ten times what compiling takes on an H100
PADDED_SIZES = 32, 64, 128, 256
TRIED = 4  # images of a batch, whose gradients the network itself computes too
# Cosine of two gradients at an untrained ResNet-50's images: 0.7 where bf16 rounds differently, 0.0
# where the images are others.
ALIKE = 0.3
Network = Callable[..., Any]


def compile_mode(setting: bool | str, device: torch.device, steps: float) -> bool | str:
    """What TRAIN.compile or EVAL.compile comes to in a run of so many passes, over all of it."""
    return device.type == "cuda" and steps > WORTHWHILE if setting == "auto" else setting


class Compiled:
    """A network that is compiled for batches of one size; others go through it as it is.

    Its mode `reduce-overhead` starts all kernels of a pass at once, by CUDA graphs. Their outputs
    and gradients lie in memory that the next call uses again: a step reads them before, which a
    test holds.
    """

    def __init__(self, network: Network, size: int, mode: bool | str = True) -> None:
        self.network, self.size, self.graphs = network, size, mode == REDUCE_OVERHEAD
        how = REDUCE_OVERHEAD if self.graphs else None
        self.compiled: Network = torch.compile(network, dynamic=False, mode=how)

    def __call__(self, x: torch.Tensor, *more: Any) -> Any:
        if len(x) != self.size:
            return self.network(x, *more)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # nothing of the call before is needed
        return self.compiled(x, *more)


def padded(network: Network, sizes: Sequence[int], graphs: bool) -> Network:
    """Let a network see batches of a few sizes alone, to which any batch is filled up.

    Args:
        network: compiled or recorded; what it returns and the gradients that it hands back are
            copied, for CUDA graphs write the next ones there.
        sizes: in ascending order; batches that are larger stay as they are.
        graphs: whether it consists of CUDA graphs.
    """

    def call(x: torch.Tensor) -> torch.Tensor:
        missing = next((size for size in sizes if size >= len(x)), len(x)) - len(x)
        filling = x[:1].detach().expand(missing, *x.shape[1:])
        if missing and x.is_contiguous(memory_format=torch.channels_last):
            filling = filling.contiguous(memory_format=torch.channels_last)  # as all rows then are
        rows = torch.cat([x, filling]) if missing else x.view_as(x)
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # nothing of the call before is needed
            if rows.requires_grad:
                rows.register_hook(torch.clone)
        with torch.set_grad_enabled(rows.requires_grad):  # two programs a size and no more
            logits: torch.Tensor = network(rows)[: len(x)]
        return logits.clone() if graphs else logits

    return call


def compiled_for(network: Network, sizes: Sequence[int], device: torch.device) -> Network:
    """A network compiled for batches of a few sizes; on CUDA as CUDA graphs."""
    graphs = device.type == "cuda"
    mode = REDUCE_OVERHEAD if graphs else None
    return padded(torch.compile(network, dynamic=False, mode=mode), sizes, graphs)


def recorded(network: Network, x: torch.Tensor) -> Network:
    """A network's own kernels as CUDA graphs: for batches like x, to which others are filled up.

    Args:
        network: whose parameters stay where they are, and want no gradients; it sets its own
            precision, or the backward pass would be recorded in that, too.
        x: (B, 3, H, W), with a gradient.
    """
    gc.collect()  # graphs lie in cycles, and must not go while others are recorded
    gc.disable()
    try:
        # A module's own forward pass would be replaced: this is a function.
        graphs = torch.cuda.make_graphed_callables(lambda x: network(x), (x,))
    finally:
        gc.enable()
    return padded(graphs, [len(x)], graphs=True)


def require_alike(program: Network, network: Network, x: torch.Tensor) -> None:
    """Try a compiled or recorded network on random images beside the network as it is.

    An attack that follows other gradients flatters a network, and nothing else would tell. The
    first call may compile and the second record; in the third, the batch has to be filled up.

    Args:
        x: a whole batch (B, 3, H, W).

    Raises:
        RuntimeError: their gradients differ.
    """
    for first in (0, 0, 1 % len(x)):
        images = torch.rand_like(x)[first:]
        gradients = []
        for call, each in ((program, images), (network, images[-TRIED:])):
            each = each.detach().requires_grad_()
            lengths = call(each)[-TRIED:].float().norm(dim=1)
            gradients.append(torch.autograd.grad(lengths.sum(), each)[0][-TRIED:].flatten())
        found, own = gradients
        if own.any() and not torch.cosine_similarity(found, own, dim=0) > ALIKE:
            raise RuntimeError("its gradients are not the network's")


def compiles(
    rehearse: Callable[[], Any],
    name: str,
    setting: bool | str,
    context: DistributedContext,
    logger: Logger,
) -> bool:
    """Whether what `rehearse` calls can be compiled, on all ranks; it is compiled afterwards.

    Under `auto` a failure is a warning; else it is an error, which `name`s the setting.
    """
    reason = failure(rehearse_tiny, context)  # before ranks wait for each other in `rehearse`
    reason = reason or failure(rehearse, context)
    if reason and setting != "auto":
        raise SharedUserError(f"compiling the network failed ({reason}); set {name} to false")
    if reason:
        logger.warning(f"the network runs as it is, for compiling it failed ({reason})")
    return not reason


def failure(attempt: Callable[[], Any], context: DistributedContext) -> str:
    """The first line of the error that an attempt ends with, on any rank, or nothing."""
    reason = ""
    try:
        devices = [context.device] if context.device.type == "cuda" else []
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # a setting of its own
            attempt()
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of Dynamo, Inductor, Triton or a compiler, which share no class
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return next(filter(None, context.gather(reason)), "")


def rehearse_tiny() -> None:
    """Compile something that any working installation can."""
    x = torch.ones(2, requires_grad=True)
    x = x.cuda() if torch.cuda.is_available() else x
    torch.compile(lambda x: (2 * x).relu().sum())(x).backward()
