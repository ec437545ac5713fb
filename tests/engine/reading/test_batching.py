from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from procreward.engine.reading.batching import MicroBatcher, TokenBudget, memory_guard, plan_batch
from procreward.errors import ConfigError, ModelError

CPU = torch.device("cpu")
Call = Callable[[list[int]], list[int]]


def squares(most: int, batches: list[list[int]]) -> Call:
    """Squares its items, whose numbers are their costs; more than ``most`` tokens do not fit."""

    def call(items: list[int]) -> list[int]:
        if len(items) * max(items) > most:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        batches.append(items)
        return [item**2 for item in items]

    return call


@given(st.lists(st.integers(1, 3000), max_size=30), st.integers(1, 60_000), st.none() | st.just(3))
def test_every_item_is_answered_once_and_in_order(
    costs: list[int], most: int, limit: int | None
) -> None:
    batches: list[list[int]] = []
    batcher = MicroBatcher[int, int](CPU, limit=limit)
    if max(costs, default=0) > most:
        with pytest.raises(ModelError, match="Not enough memory on cpu"):
            batcher.run(costs, costs, squares(most, batches))
        return
    assert batcher.run(costs, costs, squares(most, batches)) == [cost**2 for cost in costs]
    assert sorted(item for batch in batches for item in batch) == sorted(costs)
    assert all(len(batch) <= (limit or 30) for batch in batches)


def test_what_did_not_fit_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def call(items: list[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 4:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return items

    batcher = MicroBatcher[int, int](CPU)
    with caplog.at_level(logging.WARNING):
        assert batcher.run(range(16), [100] * 16, call) == list(range(16))
    assert tried == [16, 8, 4, 4, 4, 4]
    assert "16 prompts (1600 tokens) at once do not fit the memory of cpu" in caplog.text
    tried.clear()
    batcher.run(range(8), [100] * 8, call)
    assert tried == [4, 4]


def test_batches_hold_items_of_similar_length() -> None:
    batches: list[list[int]] = []
    costs = [10, 900, 20, 800, 30, 850]
    MicroBatcher[int, int](CPU, limit=3).run(costs, costs, squares(10**9, batches))
    assert batches == [[900, 850, 800], [30, 20, 10]]


def test_long_prompts_on_the_cpu_are_not_padded() -> None:
    batches: list[list[int]] = []
    costs = [2000, 1900, 2000, 1023, 5]
    MicroBatcher[int, int](CPU).run(costs, costs, squares(10**9, batches))
    assert batches == [[2000, 2000], [1900], [1023, 5]]


def test_a_torch_error_of_the_cpu_allocator_counts_as_out_of_memory() -> None:
    def call(items: list[int]) -> list[int]:
        return [torch.empty(2**52, dtype=torch.float64).numel() for _ in items]

    with pytest.raises(ModelError, match="fewer or smaller frames"):
        MicroBatcher[int, int](CPU).run([1, 2], [1, 1], call)


@pytest.mark.parametrize(
    "text",
    ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `create`"],
)
def test_a_library_that_finds_no_memory_halves_the_batch(text: str) -> None:
    sizes: list[int] = []

    def call(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2:
            raise RuntimeError(text)
        return items

    assert MicroBatcher[int, int](CPU).run([1, 2, 3, 4], [1] * 4, call) == [1, 2, 3, 4]
    assert sizes == [4, 2, 2]


def test_the_peak_of_another_model_does_not_keep_batches_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peak = [60_000_000_000]  # of one that ran before
    sizes: list[int] = []

    def call(items: list[int]) -> list[int]:
        sizes.append(len(items))
        peak[0] = max(peak[0], len(items) * 1000 * 1000)  # a kilobyte per token
        return items

    figures = {
        "memory_allocated": lambda device: 0,
        "memory_reserved": lambda device: 0,
        "mem_get_info": lambda device: (20_000_000_000, 80_000_000_000),
        "max_memory_allocated": lambda device: peak[0],
        "reset_peak_memory_stats": lambda device: peak.__setitem__(0, 0),
    }
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, figure)
    MicroBatcher[int, int](torch.device("cuda:0")).run(list(range(64)), [1000] * 64, call)
    assert sizes == [4, 16, 44]


def test_work_that_is_not_split_raises_our_error() -> None:
    with (
        pytest.raises(ModelError, match="Not enough memory on cpu for this batch: tried"),
        memory_guard(CPU),
    ):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")
    with pytest.raises(RuntimeError, match="shapes differ"), memory_guard(CPU):
        raise RuntimeError("shapes differ")


def test_other_errors_pass_unchanged() -> None:
    def call(items: list[int]) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        MicroBatcher[int, int](CPU).run([1], [1], call)


def test_no_items_no_calls() -> None:
    assert MicroBatcher[int, int](CPU).run([], [], squares(1, [])) == []


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        MicroBatcher[int, int](CPU, limit=0)
    with pytest.raises(ConfigError, match="one number per item, got 1 for 2"):
        MicroBatcher[int, int](CPU).run([1, 2], [1], squares(10, []))


def test_a_batch_fills_the_budget_but_holds_at_least_one() -> None:
    assert plan_batch([100, 90, 10], 250) == 2
    assert plan_batch([100, 90, 10], 1000) == 3
    assert plan_batch([100, 90, 10], 50) == 1
    assert plan_batch([100, 90, 10], 1000, limit=1) == 1
    assert plan_batch([0, 0], 10) == 2
    assert plan_batch([100, 100, 99], 1000, equal_from=100) == 2
    assert plan_batch([99, 98], 1000, equal_from=100) == 2


def test_the_budget_grows_with_what_was_measured() -> None:
    budget = TokenBudget(1000)
    assert budget.tokens(free=10**9) == 1000
    budget.learn(1000, peak=50_000_000)  # 50 kB a token
    assert budget.tokens(free=100_000_000) == 1600  # 80 MB of it
    assert budget.tokens(free=10**12) == 4000  # no more than four times at once
    assert budget.tokens(free=10_000_000) == 1000  # that much fitted
    budget.learn(4000, peak=80_000_000)  # 20 kB: the first peak held a fixed part
    assert budget.tokens(free=300_000_000) == 12_000
    budget.learn(10, peak=50_000_000)  # a small batch says little
    assert budget.tokens(free=300_000_000) == 12_000


def test_the_budget_stays_below_what_failed() -> None:
    budget = TokenBudget(1000)
    budget.learn(3000, peak=1000)
    budget.fail(5000)
    assert budget.tokens(free=10**12) == 2500
    budget.fail(2000)
    assert budget.tokens(free=10**12) == 1000
    assert budget.proved == 1000
    budget.fail(1)
    assert budget.tokens(free=0) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_measured_and_running_out_of_it_halves_the_batch() -> None:
    device = torch.device("cuda")
    sizes: list[int] = []
    _, total = torch.cuda.mem_get_info(device)

    def call(items: list[int]) -> list[int]:
        sizes.append(len(items))
        # A batch of 20 000 tokens takes the whole device.
        torch.empty(len(items) * 1000 * (total // 20_000), dtype=torch.uint8, device=device)
        return items

    batcher = MicroBatcher[int, int](device)
    items = list(range(64))
    assert batcher.run(items, [1000] * 64, call) == items
    assert sizes[0] == 4  # the first is small
    assert max(sizes) <= 16  # four fifths of the memory
    assert max(sizes) > 4
