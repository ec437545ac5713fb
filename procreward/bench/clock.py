"""Time and memory on a CPU and on a GPU, and what a machine can do at most."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Ceilings", "Clock", "Stopwatch", "measure_ceilings"]

_GIB = 1024**3


class Clock:
    """Measures whole calls on one device.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"

    def synchronise(self) -> None:
        """Wait until the device has done all that it was told."""
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Time one call to its end on the device.

        Args:
            call: What to run.
        """
        self.synchronise()
        began = time.perf_counter()
        call()
        self.synchronise()
        return time.perf_counter() - began

    def reset_peak(self) -> None:
        """Forget the peak of memory so far; without CUDA it is the process's own and stays."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak_gib(self) -> float:
        """Return the peak of memory: the device's, or that of the process since its start."""
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device) / _GIB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / _GIB


class Stopwatch:
    """Sums up parts of calls, by name, without making the device wait.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open: dict[str, Any] = {}
        self._laps: list[tuple[str, Any, Any]] = []

    def start(self, name: str) -> None:
        """Begin a part; one that is running is begun anew.

        Args:
            name: The part.
        """
        self._open[name] = self._now()

    def stop(self, name: str) -> None:
        """End a part; nothing happens if it is not running.

        Args:
            name: The part.
        """
        began = self._open.pop(name, None)
        if began is not None:
            self._laps.append((name, began, self._now()))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs in the context.

        Args:
            name: The part.
        """
        self.start(name)
        yield
        self.stop(name)

    def take(self) -> dict[str, float]:
        """Return the seconds of each part and begin anew; the device must be idle."""
        seconds: dict[str, float] = {}
        for name, began, ended in self._laps:
            lap = began.elapsed_time(ended) / 1000 if self._cuda else ended - began
            seconds[name] = seconds.get(name, 0.0) + lap
        self._laps.clear()
        self._open.clear()
        return seconds

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch
        event.record()
        return event


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What a machine can do at most, as measured.

    Attributes:
        flops: Operations per second of a large matrix product in the model's precision.
        bandwidth: Bytes per second, read and written, of a large copy on the device.
    """

    flops: float
    bandwidth: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a machine's two ceilings.

    Args:
        device: The device.
        dtype: Precision of the product.
    """
    clock = Clock(device)
    large = device.type == "cuda"
    side, count = (8192, 2**29) if large else (512, 2**22)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.zeros(count, dtype=torch.int16, device=device)
    target = torch.empty_like(source)
    repeats = 10 if large else 2

    def best(call: Callable[[], Any]) -> float:
        def several() -> None:
            for _ in range(repeats):
                call()

        clock.seconds(several)  # the first run sets libraries up
        return statistics.median(clock.seconds(several) for _ in range(3)) / repeats

    product = best(lambda: torch.mm(left, right))
    copying = best(lambda: target.copy_(source))
    return Ceilings(flops=2 * side**3 / product, bandwidth=2 * source.nbytes / copying)
