"""Vector environments of known sub-environments, two ways to reward them, and their traces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from procreward.types import Query, Score
from procreward.vector import VectorProgressReward
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv

DISABLED, NEXT_STEP, SAME_STEP = (
    AutoresetMode.DISABLED,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.SAME_STEP,
)
WAYS = {
    "same step": (DISABLED, SAME_STEP),
    "next step": (NEXT_STEP, NEXT_STEP),
    "disabled": (DISABLED, DISABLED),
}
"""Base and shown mode, wherever completion can end an episode."""

Maker = Callable[[], gym.Env[Any, Any]]


class ByTask:
    """Answers by instruction and step; counts its calls and keeps the names it is to forget."""

    def __init__(self, answers: Mapping[str, Sequence[float | None]]):
        self.answers = answers
        self.calls: list[list[tuple[str, int]]] = []
        self.streams: list[str] = []
        self.released: list[str] = []

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.calls.append([(query.instruction, query.frame_steps[-1]) for query in queries])
        self.streams += [query.stream for query in queries]
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Score:
        script = self.answers[query.instruction]
        answer = script[min(query.frame_steps[-1], len(script) - 1)]
        return Score(reason="unparsable") if answer is None else Score(progress=answer)

    def release(self, streams: Sequence[str]) -> None:
        self.released += streams

    def describe(self) -> Mapping[str, object]:
        return {"name": "by task"}


class Slow:
    """Another scorer's answers, some milliseconds later; None for at once."""

    def __init__(self, inner: Any, delay_s: float | None = 0.003):
        self.inner, self.delay_s = inner, delay_s
        self.threads: set[str] = set()

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.threads.add(threading.current_thread().name)
        if self.delay_s is not None:
            time.sleep(self.delay_s)
        answers: list[Score] = self.inner.score(queries)
        return answers

    def release(self, streams: Sequence[str]) -> None:
        release = getattr(self.inner, "release", None)
        if release is not None:
            release(streams)

    def describe(self) -> Mapping[str, object]:
        return {"name": "slow"}


class Gated(Slow):
    """Another scorer's answers, once it is told to let them through."""

    def __init__(self, inner: Any, *, is_open: bool = False):
        super().__init__(inner, None)
        self.gate = threading.Event()
        self.asked = threading.Event()
        if is_open:
            self.gate.set()

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.asked.set()
        assert self.gate.wait(30.0)
        return super().score(queries)


class MeanGrey:
    """Progress is the mean grey level of the window, so that answers depend on its frames."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        return [
            Score(progress=float(np.mean([clip.mean() for clip in query.frames.values()]) / 255))
            for query in queries
        ]

    def describe(self) -> Mapping[str, object]:
        return {"name": "mean grey"}


def counters(lengths: Sequence[int], end: str = "truncated", **kwargs: Any) -> list[Maker]:
    """Makers of a CounterEnv each, whose instruction is "count I"."""

    def maker(index: int, length: int) -> Maker:
        return lambda: CounterEnv(length, end, instruction=f"count {index}", **kwargs)

    return [maker(index, length) for index, length in enumerate(lengths)]


def batched(
    makers: Sequence[Maker],
    way: tuple[AutoresetMode, AutoresetMode] = WAYS["same step"],
    kind: Any = SyncVectorEnv,
    **settings: Any,
) -> VectorProgressReward:
    """One VectorProgressReward above all."""
    base, shown = way
    return VectorProgressReward(kind(makers, autoreset_mode=base), autoreset_mode=shown, **settings)


def stacked(
    makers: Sequence[Maker],
    way: tuple[AutoresetMode, AutoresetMode] = WAYS["same step"],
    kind: Any = SyncVectorEnv,
    **settings: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """A ProgressReward in every sub-environment: what it all has to be equal to."""

    def wrapped(make: Maker) -> Maker:
        return lambda: ProgressReward(make(), **settings)

    return kind([wrapped(make) for make in makers], autoreset_mode=way[1])


def trace(
    envs: gym.vector.VectorEnv[Any, Any, Any], num_steps: int, seed: Any = 0
) -> list[tuple[Any, ...]]:
    """Everything that a reset and some random steps return; closes the environment."""
    actions = np.random.default_rng(5)
    space = envs.single_action_space
    try:
        out: list[tuple[Any, ...]] = [envs.reset(seed=seed)]
        over = np.zeros(envs.num_envs, bool)
        for _ in range(num_steps):
            if over.any() and envs.metadata["autoreset_mode"] is DISABLED:
                out.append(envs.reset(options={"reset_mask": over}))
            if isinstance(space, gym.spaces.Discrete):
                action = actions.integers(0, 2, envs.num_envs)
            else:
                action = actions.uniform(-1, 1, (envs.num_envs, 2)).astype(np.float32)
            out.append(envs.step(action))
            over = out[-1][2] | out[-1][3]
        return out
    finally:
        envs.close()


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Values, dtypes and keys are equal, all the way down."""
    if isinstance(one, Mapping):
        assert sorted(one) == sorted(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, tuple | list):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}[{number}]")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        if one.dtype == object:
            assert_same(list(one), list(other), where)
        else:
            np.testing.assert_array_equal(one, other, err_msg=where)
    else:
        assert one == other, where


KINDS = [SyncVectorEnv, AsyncVectorEnv]


class BlocksEnv(CounterEnv):
    """Shows random blocks, so that a model trained on pictures has something to see."""

    def __init__(self, length: int) -> None:
        super().__init__(length, "truncated", instruction="close the drawer")

    def render(self) -> Any:
        coarse = np.random.default_rng([self.seeds, self.count]).integers(0, 256, (8, 8, 3))
        return coarse.astype(np.uint8).repeat(16, 0).repeat(16, 1)

    @property
    def seeds(self) -> int:
        return len(self.resets) + 10 * self.num_steps


def actions(envs: VectorProgressReward) -> Any:
    return np.zeros(envs.num_envs, int)


@pytest.fixture
def no_thread_stays() -> Iterator[None]:
    """A thread that asks models ends with its environment."""
    yield
    for thread in threading.enumerate():
        if thread.name == "procreward-asking":
            thread.join(10.0)
            assert not thread.is_alive()
