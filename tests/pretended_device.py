"""A pretended accelerator: tensors with real values whose device is not the CPU.

Inside `pretended_device()`, everything sent to or made on `DEVICE` computes on the CPU but obeys
an accelerator's rules: operations on tensors of two devices raise `DeviceMismatch`, and every
time the host would have to wait for the device is logged with its place in the code. PyTorch's
own fake tensors cannot serve, since their backward pass asks for a CUDA driver.

The device is called `meta` because autograd runs that one in the calling thread without a driver.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
ROOT = Path(__file__).resolve().parent.parent
COPIES = ("_to_copy", "copy_")
# The host waits for these, since the size of the result or the next statement depends on values.
WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class DeviceMismatch(RuntimeError):
    """An operation on tensors of two devices, which CUDA refuses too."""


class Synchronisation(NamedTuple):
    """One wait of the host for the device: the operation and its place, `FILE:LINE`."""

    operation: str
    where: str


class PretendedTensor(torch.Tensor):
    """A tensor on `DEVICE`; `host` holds its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> PretendedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), dtype=host.dtype, device=DEVICE
        )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} on a pretended tensor outside of pretended_device()")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.__reduce_ex__(protocol)  # in a file: the values

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendedTensor({tuple(self.shape)}, {self.dtype})"


class PretendedDevice(TorchDispatchMode):
    """Runs every operation; `synchronisations` logs those that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.synchronisations: list[Synchronisation] = []

    def counted(self, work: Callable[[], Any]) -> tuple[Any, list[Synchronisation]]:
        """What some work returns, and the synchronisations that it made."""
        before = len(self.synchronisations)
        return work(), self.synchronisations[before:]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        pretended = [t for t in tensors if isinstance(t, PretendedTensor)]
        on_device = bool(pretended)
        if name == "copy_":
            on_device = isinstance(args[0], PretendedTensor)
        elif kwargs.get("device") is not None:
            on_device = torch.device(kwargs["device"]) == DEVICE
            kwargs["device"] = torch.device("cpu")
        if pretended and name not in COPIES:
            require_one_device(name, tensors)
        if (on_device or pretended) and waits(name, args, kwargs, on_device):
            self.synchronisations.append(Synchronisation(name, place()))
        results = func(*tree_map(host_of, args), **tree_map(host_of, kwargs))
        wrappers = {id(t.host): t for t in pretended}  # in-place operations return their argument
        if any(tensor.shape != tensor.host.shape for tensor in pretended):
            with torch._C._DisableTorchDispatch():  # squeeze_ and its like change the shape too
                func(*args, **kwargs)
        if not on_device:
            return results

        def wrapped(result: Any) -> Any:
            if id(result) in wrappers:
                return wrappers[id(result)]
            return PretendedTensor(result) if isinstance(result, torch.Tensor) else result

        return tree_map(wrapped, results)


def host_of(value: Any) -> Any:
    """The values of a pretended tensor; anything else as it is."""
    return value.host if isinstance(value, PretendedTensor) else value


def require_one_device(name: str, tensors: list[torch.Tensor]) -> None:
    """CUDA takes single numbers and indices from the CPU, and nothing else."""
    others = [t for t in tensors if not isinstance(t, PretendedTensor) and t.dim() > 0]
    if others and name not in INDEXING:
        shapes = [tuple(tensor.shape) for tensor in others]
        raise DeviceMismatch(f"{name} at {place()}: device and CPU tensors {shapes}")


def waits(name: str, args: Any, kwargs: dict[str, Any], on_device: bool) -> bool:
    """Whether the host waits for the device in this operation.

    As `torch.cuda.set_sync_debug_mode` sees it: a copy in either direction waits unless it is
    non-blocking, and one to the CPU is of no use before it has arrived.
    """
    if name in COPIES:
        source = args[1] if name == "copy_" else args[0]
        crosses = isinstance(source, PretendedTensor) != on_device
        asynchronous = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
        return crosses and not (on_device and asynchronous)
    if name in INDEXING:
        indices = [i for i in args[1] if isinstance(i, torch.Tensor)]
        masks = (torch.bool, torch.uint8)
        return any(i.dtype in masks or not isinstance(i, PretendedTensor) for i in indices)
    return name in WAITS


def place() -> str:
    """File and line of the innermost caller outside of PyTorch and of this file."""
    torch_folder = str(Path(torch.__file__).parent)
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith((torch_folder, __file__)):
        frame = frame.f_back
    path = frame.f_code.co_filename.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
    return f"{path}:{frame.f_lineno}"


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """The device within a block; PyTorch is as before afterwards."""
    make_tensor, autocast = torch.tensor, torch.autocast

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        made = make_tensor(data, **options)  # torch.tensor would drop the values on `meta`
        return made if device is None else made.to(device)

    def autocast_of(device_type: str, *arguments: Any, **options: Any) -> Any:
        if device_type == DEVICE.type:
            return nullcontext()  # fp32 alone is pretended
        return autocast(device_type, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, PretendedDevice() as device:
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "autocast", autocast_of)
        yield device
