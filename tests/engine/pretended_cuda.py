"""A CUDA device that is none: tensors that say they are there, on the CPU's memory.

What a GPU refuses is refused here too, so that code for one can be tried without: tensors of two
devices in one operation, and what a CUDA graph cannot hold while one is captured. A graph replays
what was captured and nothing else: the same operations on the same memory, on one device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_ATEN = torch.ops.aten
_WAITS = (
    _ATEN._local_scalar_dense.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
)
"""Operations whose result the host waits for."""


class _There(torch.Tensor):
    """A tensor that says it is on the device."""

    memory: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, memory: torch.Tensor, device: torch.device) -> Any:
        with torch.inference_mode(False):  # or `detach` fails
            made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # private
                cls,
                memory.shape,
                strides=memory.stride(),
                storage_offset=memory.storage_offset(),
                dtype=memory.dtype,
                device="meta",  # what torch itself sees; a build without CUDA cannot guard that
            )
        made.memory, made.place = memory, device
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute in torch
        return self.place

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of the pretended device")


class _Stream:
    """A queue of one device, as far as capturing asks for one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: _Stream) -> None:
        """Everything runs at once here."""


class PretendedCuda(TorchDispatchMode):
    """Two devices; see :func:`pretend_cuda`.

    Attributes:
        waits: Names of the operations for which the host waited so far.
        captured: How many graphs were captured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.captured = 0
        self._graph: _Graph | None = None

    def move(self, model: torch.nn.Module, device: torch.device) -> Any:
        """Copy a model to one of the devices."""
        model = copy.deepcopy(model)
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    kept[name] = None if tensor is None else _There(tensor.detach(), device)
        return model

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
        there = {one.device for one in tensors if isinstance(one, _There)}
        here = any(one.ndim for one in tensors if not isinstance(one, _There))
        asked = next((one for one in leaves if isinstance(one, torch.device)), None)
        copies = func is _ATEN.copy_.default
        if not copies and (len(there) > 1 or (there and here)):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, got "
                f"{[str(one.device) for one in tensors]}"
            )
        place = next(iter(there), None)
        if copies:
            place = args[0].device if isinstance(args[0], _There) else None
        elif asked is not None:
            place = torch.device("cuda", asked.index or 0) if asked.type == "cuda" else None
        if there and (place is None or func in _WAITS or _picks(func, args)):
            self._wait(str(func))
        if self._graph is not None and place is not None and here:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        args, kwargs = tree_map(_memory, (args, kwargs))
        result = func(*args, **kwargs)
        if self._graph is not None and place == self._graph.device:
            self._graph.add(func, args, kwargs, result)
        if place is None:
            return result
        return tree_map(
            lambda one: _There(one, place) if isinstance(one, torch.Tensor) else one, result
        )

    def _wait(self, name: str) -> None:
        if self._graph is not None:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        self.waits.append(name)


def _picks(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether elements are picked by a mask, whose number the host must know."""
    if func not in (_ATEN.index.Tensor, _ATEN.index_put_.default):
        return False
    return any(one is not None and one.dtype == torch.bool for one in args[1])


def _memory(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.memory if isinstance(value, _There) else value


def _address(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None


class _Graph:
    """What was captured, to be done again on the same memory."""

    device: torch.device

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take an operation in."""
        changes = func._schema.is_mutable
        given = {_address(one) for one in tree_leaves((args, kwargs))}
        if not changes and all(_address(one) in given for one in tree_leaves(result)):
            return  # views of memory that stays where it is

        def again() -> None:
            new = func(*args, **kwargs)
            if not changes:
                for old, fresh in zip(tree_leaves(result), tree_leaves(new), strict=True):
                    old.copy_(fresh)

        self._steps.append(again)

    def replay(self) -> None:
        """Do it all again."""
        for step in self._steps:
            step()


@contextmanager
def pretend_cuda(patch: pytest.MonkeyPatch) -> Iterator[PretendedCuda]:
    """Have two CUDA devices in a context of this thread.

    Args:
        patch: Undone by the caller, after the context.

    Yields:
        Both of them.
    """
    devices = PretendedCuda()
    current = [torch.device("cuda", 0)]
    default_stream: list[_Stream] = []

    @contextmanager
    def device(value: torch.device) -> Iterator[None]:
        before, current[0] = current[0], torch.device("cuda", value.index or 0)
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def stream(value: _Stream) -> Iterator[None]:
        with device(value.device):
            yield

    class Capture:
        def __init__(self, graph: _Graph, pool: Any, stream: Any = None, **_: Any) -> None:
            # As torch does: one stream for the whole process, made where it is first needed.
            if stream is None and not default_stream:
                default_stream.append(_Stream(current[0]))
            self._graph = graph
            graph.device = (stream or default_stream[0]).device

        def __enter__(self) -> None:
            devices._graph = self._graph

        def __exit__(self, *_: object) -> None:
            devices._graph = None
            devices.captured += 1

    replaced = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: current[0].index,
        "get_device_capability": lambda device=None: (9, 0),
        "memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (2**33, 2**34),
        "empty_cache": lambda: None,
        "graph_pool_handle": lambda: (0, 1),
        "Stream": lambda device=None: _Stream(device or current[0]),
        "current_stream": lambda device=None: _Stream(device or current[0]),
        "device": device,
        "stream": stream,
        "CUDAGraph": _Graph,
        "graph": Capture,
    }
    for name, value in replaced.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    patch.setattr(torch.Tensor, "tolist", lambda self: self.cpu().numpy().tolist())
    # `torch.tensor(..., device=...)` then makes its tensor on the CPU and moves it, for us to see.
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]  # private
    try:
        with devices:
            yield devices
    finally:
        torch._C._set_only_lift_cpu_tensors(False)  # type: ignore[attr-defined]  # private
