"""Cuts work into batches that fit the device's memory.

How much memory a prompt of so many tokens takes depends on model, precision, attention and picture
sizes. It is measured instead of modelled: a first, small batch shows what a token costs at most,
later ones grow as far as the free memory allows, and whatever was too large is halved.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from procreward.checks import check_int
from procreward.errors import ConfigError, ModelError

__all__ = ["MicroBatcher", "TokenBudget", "memory_error", "memory_guard", "plan_batch"]

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

FIRST_TOKENS = 4096
"""Size of the batch that is measured first on an accelerator."""

CPU_TOKENS = 16384
"""Size of a batch on the CPU: beyond it, larger ones are not faster."""

LONG_TOKENS = 1024
"""Prompts from this length on are not padded on the CPU."""

_FULL = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_SHARE = 0.8
_GROWTH = 4


class TokenBudget:
    """How many tokens, padding included, a batch on an accelerator may hold.

    Args:
        first: Tokens of the first batch.
    """

    def __init__(self, first: int = FIRST_TOKENS) -> None:
        self._first = first
        self._proved = 0
        self._cap: int | None = None
        self._bytes_per_token: float | None = None

    @property
    def proved(self) -> int:
        """Tokens of the largest batch that fitted; 0 before the first."""
        return self._proved

    def tokens(self, free: int) -> int:
        """Return the budget.

        Args:
            free: Bytes that can be allocated now.

        Returns:
            Tokens: what fits into four fifths of the free memory, at most four times the largest
            batch so far and never less than it, and no more than half of what failed.
        """
        if self._bytes_per_token is None:
            budget = self._first
        else:
            fitting = int(_SHARE * free / self._bytes_per_token)
            budget = max(self._proved, min(fitting, _GROWTH * max(self._proved, self._first)))
        return budget if self._cap is None else min(budget, self._cap)

    def learn(self, tokens: int, peak: int) -> None:
        """Take in that a batch fitted.

        Args:
            tokens: Its tokens, padding included.
            peak: Bytes it took at most.
        """
        bound = max(peak, 1) / max(tokens, 1)
        if tokens >= self._proved or self._bytes_per_token is None:
            self._bytes_per_token = bound
        self._proved = max(self._proved, tokens)

    def fail(self, tokens: int) -> None:
        """Take in that a batch did not fit; the budget stays below half of it from now on."""
        half = max(tokens // 2, 1)
        self._cap = half if self._cap is None else min(self._cap, half)
        self._proved = min(self._proved, self._cap)


class MicroBatcher(Generic[Item, Result]):
    """Runs work in batches; see the module's text. Use one for each kind of work.

    Args:
        device: Where the work runs.
        limit: Most items of a batch; None for no limit.

    Raises:
        ConfigError: If ``limit`` is below 1.
    """

    def __init__(self, device: torch.device, *, limit: int | None = None) -> None:
        if limit is not None:
            check_int("batch_size", limit, least=1)
        self._device = device
        self._limit = limit
        self._cuda = device.type == "cuda"
        self._budget = TokenBudget(FIRST_TOKENS if self._cuda else CPU_TOKENS)

    def run(
        self,
        items: Sequence[Item],
        costs: Sequence[int],
        call: Callable[[list[Item]], list[Result]],
    ) -> list[Result]:
        """Answer all items, those of similar cost together.

        Args:
            items: The work.
            costs: Tokens of each item: a batch costs its longest item times its size.
            call: Does a batch; returns one result per item, in order. It may be called again with
                some of its items after it ran out of memory.

        Returns:
            One result per item, in order.

        Raises:
            ModelError: If a single item does not fit the memory.
        """
        if len(items) != len(costs):
            raise ConfigError(
                f"`costs` must hold one number per item, got {len(costs)} for {len(items)}."
            )
        # The most expensive first: what does not fit shows at once.
        waiting = sorted(range(len(items)), key=lambda index: -costs[index])
        results: dict[int, Result] = {}
        while waiting:
            ordered = [costs[index] for index in waiting]
            size = plan_batch(
                ordered,
                self._tokens(ordered),
                limit=self._limit,
                equal_from=None if self._cuda else LONG_TOKENS,
            )
            chosen = waiting[:size]
            answers = self._call(call, [items[index] for index in chosen], size * ordered[0])
            if answers is not None:
                results.update(zip(chosen, answers, strict=True))
                waiting = waiting[size:]
        return [results[index] for index in range(len(items))]

    def _tokens(self, costs: Sequence[int]) -> int:
        if not self._cuda:
            return self._budget.tokens(0)
        if len(costs) == 1 or len(costs) * costs[0] <= self._budget.proved:
            return self._budget.proved  # saves asking the driver
        return self._budget.tokens(_free_bytes(self._device))

    def _call(
        self, call: Callable[[list[Item]], list[Result]], batch: list[Item], tokens: int
    ) -> list[Result] | None:
        """Run a batch; returns None when it did not fit and a smaller one may."""
        measured, before = self._cuda and tokens > self._budget.proved, 0
        if measured:
            # Or the peak may be that of another model, and this one's batches would stay small.
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
        try:
            answers = call(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if len(batch) == 1:
                raise memory_error(self._device, error) from error
            logger.warning(
                "%d prompts (%d tokens) at once do not fit the memory of %s; going on with half.",
                len(batch),
                tokens,
                self._device,
            )
        else:
            if measured:
                peak = torch.cuda.max_memory_allocated(self._device)
                self._budget.learn(tokens, peak - before)
            return answers
        # Outside of the handler: the traceback keeps the tensors of the failed batch alive.
        self._budget.fail(tokens)
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
        return None


def plan_batch(
    costs: Sequence[int], budget: int, *, limit: int | None = None, equal_from: int | None = None
) -> int:
    """Decide how many of the waiting items to do next.

    Args:
        costs: Tokens of each, the largest first.
        budget: Tokens of a batch, padding included.
        limit: Most items of a batch; None for no limit.
        equal_from: Items of at least so many tokens share a batch only with equally long ones.
            On the CPU that pays: where rows are padded, attention needs a mask, loses the causal
            kernel that skips half of the work, and takes longer than batching saves. None for an
            accelerator.

    Returns:
        The size of the batch, at least 1.
    """
    longest = max(costs[0], 1)
    size = max(budget // longest, 1)
    if limit is not None:
        size = min(size, limit)
    if equal_from is not None and longest >= equal_from:
        size = min(size, sum(cost == costs[0] for cost in costs))
    return min(size, len(costs))


@contextmanager
def memory_guard(device: torch.device) -> Iterator[None]:
    """Turn running out of memory into our own error, for work that is not split.

    Args:
        device: Where the work runs.

    Raises:
        ModelError: If the work does not fit.
    """
    try:
        yield
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        raise memory_error(device, error) from error


def memory_error(device: torch.device, error: Exception) -> ModelError:
    """Return the error for work that does not fit the memory even by itself.

    Args:
        device: Where it ran.
        error: What torch said.

    Returns:
        An error to raise.
    """
    return ModelError(
        f"Not enough memory on {device} for this batch: {error}. Ask with fewer or smaller "
        "frames, or a smaller `batch_size`."
    )


def _out_of_memory(error: RuntimeError) -> bool:
    # Neither the CPU nor what CUDA's libraries and graphs allocate has an error class of its own.
    return isinstance(error, torch.OutOfMemoryError) or any(one in str(error) for one in _FULL)


def _free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated: free on the device, or held by torch and unused."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + int(unused)
