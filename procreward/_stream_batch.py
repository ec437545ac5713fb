"""The episodes of many sub-environments, whose due queries are put to the models together.

What :class:`procreward.vector.VectorProgressReward` and
:class:`procreward.integrations.sb3.VecProgressReward` have in common.

* :class:`StreamBatch` - one running episode per sub-environment, and one query runner for all.
* :class:`Ask` - the queries of one sub-environment that are due now.
* :class:`BatchRewarded` - what both wrappers tell about themselves.
* :func:`first_entries` - what ``info`` says of episodes that have just begun.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from procreward._asking import AskingThread
from procreward.config import RewardConfig
from procreward.deferred import Latency, LateReward
from procreward.runner import Answer, DueQuery, QueryStats
from procreward.session import EpisodeStream, Outcome, StreamPlan
from procreward.types import Frame
from procreward.wrapping import InfoEntry, info_entry, step_reward

__all__ = ["Ask", "BatchRewarded", "StreamBatch", "first_entries"]

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ask:
    """One sub-environment's due queries, often none.

    Attributes:
        index: Which sub-environment.
        stream: Its episode.
        dues: What is to be asked.
    """

    index: int
    stream: EpisodeStream
    dues: list[DueQuery]


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was asked at one time and is not settled.

    Attributes:
        asks: Steps of episodes, and beginnings.
        step: Which call of ``step()`` it was, or None if no step is paid.
        env_rewards: The environment's own rewards of the steps that are paid, by sub-environment;
            these steps come first in ``asks``.
        answers: Promise of the answers to all of ``asks``, or None where nothing is due.
    """

    asks: Sequence[Ask] = ()
    step: int | None = None
    env_rewards: Mapping[int, float] = field(default_factory=dict)
    answers: Future[list[Answer]] | None = None

    @property
    def ready(self) -> bool:
        return self.answers is None or self.answers.done()


class StreamBatch:
    """One running episode per sub-environment, and one query runner for all.

    A step of the vector environment is, in this order: :meth:`settle_ready`, the sub-environments'
    own step, :meth:`ends`, :meth:`wanted`, :meth:`advance`, :meth:`begin` where episodes are over,
    and :meth:`settle`.

    Attributes:
        plan: The settings.
        runner: Who asks the models.
        max_lag_steps: Steps after which a query must have been answered, or None for at once.
        streams: The running episodes, None before the first.
        outcomes: What each sub-environment's latest step or reset came to, None before the first.
        num_steps: Calls of ``step()`` so far that are to be paid later.
    """

    def __init__(
        self,
        plan: StreamPlan,
        num_envs: int,
        *,
        fps: float | None,
        max_lag_steps: int | None = None,
    ) -> None:
        """Build no episode yet, and load nothing.

        Args:
            plan: The settings.
            num_envs: Number of sub-environments.
            fps: Steps per second of the source, or None when unknown.
            max_lag_steps: Steps after which a query must have been answered, at least 1; None for
                at once.
        """
        self.plan, self._fps = plan, fps
        self.runner = plan.runner()
        self.max_lag_steps = max_lag_steps
        self.streams: list[EpisodeStream | None] = [None] * num_envs
        self.outcomes: list[Outcome | None] = [None] * num_envs
        self.num_steps = 0
        self._thread = None if max_lag_steps is None else AskingThread(self.runner)
        self._turns: deque[_Turn] = deque()
        self._late: list[LateReward] = []
        self._blocked_s = 0.0

    @property
    def stats(self) -> QueryStats:
        """How the queries have gone so far; a snapshot."""
        stats = self.runner.stats
        return stats if self._thread is None else replace(stats, blocked_s=self._blocked_s)

    @property
    def pending(self) -> int:
        """Steps of sub-environments that cannot be collected yet."""
        count, late = 0, False
        for turn in self._turns:
            late = late or not turn.ready
            count += len(turn.env_rewards) if late else 0
        return count

    @property
    def instructions(self) -> tuple[str, ...]:
        """The running episodes' instructions, empty before the first."""
        return tuple("" if stream is None else stream.instruction for stream in self.streams)

    def begin(self, index: int, frames: Mapping[str, Frame], instruction: str) -> Ask:
        """Begin an episode, with a stream of its own.

        Args:
            index: Which sub-environment has been reset.
            frames: View name to first picture, ``(height, width, 3) uint8``; copied.
            instruction: The task in words.
        """
        # A new one, since the old one's last queries may still be under way.
        stream = EpisodeStream(self.plan, fps=self._fps, max_lag_steps=self.max_lag_steps)
        ask = Ask(index, stream, stream.begin(frames, instruction))
        self.streams[index] = stream
        return ask

    def ends(self, running: Mask) -> tuple[Mask, Mask]:
        """Wait for the answers that the next step needs, and tell which episodes completion ends.

        Args:
            running: Which sub-environments have gone on by a step, ``(num_envs,) bool``.

        Returns:
            Which episodes it terminates in this step and which it cuts off, ``(num_envs,) bool``
            each. None of them when blocking: what is asked in a step decides about it.

        Raises:
            ScorerError: If a scorer breaks its contract, or fails too often.
            ModelError: If a scorer cannot be loaded.
        """
        terminated, truncated = np.zeros(len(running), bool), np.zeros(len(running), bool)
        if self._thread is not None:
            self.settle_ready()
            for index, stream in self._running(running):
                while stream.must_wait(stream.step + 1):
                    self._settle_oldest()
                terminated[index], truncated[index] = stream.declared_end(stream.step + 1)
        return terminated, truncated

    def wanted(self, running: Mask, ended: Mask) -> list[int]:
        """Return the sub-environments whose next frames are needed.

        Args:
            running: Which ones have gone on by a step, ``(num_envs,) bool``.
            ended: Which of them have ended by it, ``(num_envs,) bool``.
        """
        return [
            index
            for index, stream in self._running(running)
            if stream.wants_frame(stream.step + 1, ended=bool(ended[index]))
        ]

    def advance(
        self,
        running: Mask,
        frames: Mapping[int, Mapping[str, Frame]],
        *,
        terminated: Mask,
        truncated: Mask,
    ) -> list[Ask]:
        """Go on by a step in some of the episodes.

        Args:
            running: Which ones, ``(num_envs,) bool``.
            frames: Sub-environment to view name to picture, at least for those :meth:`wanted`.
            terminated: Which ones the environment has terminated, ``(num_envs,) bool``.
            truncated: Which ones it has cut off, ``(num_envs,) bool``.
        """
        return [
            Ask(
                index,
                stream,
                stream.advance(
                    frames.get(index),
                    stream.step + 1,
                    terminated=bool(terminated[index]),
                    truncated=bool(truncated[index]),
                ),
            )
            for index, stream in self._running(running)
        ]

    def settle(
        self,
        asks: Sequence[Ask],
        started: Sequence[Ask] = (),
        env_rewards: Mapping[int, float] | None = None,
    ) -> list[Outcome]:
        """Put all due queries to the models at once, and settle the steps they belong to.

        Args:
            asks: Steps of episodes, and beginnings.
            started: Beginnings that follow in the same step.
            env_rewards: In a step, the environment's own rewards of ``asks``, by sub-environment;
                None outside.

        Returns:
            What each came to, in order. When deferred, what is known of each; what a step comes to
            is told by :meth:`collect`.

        Raises:
            ScorerError: If a scorer breaks its contract, or fails too often.
            ModelError: If a scorer cannot be loaded.
        """
        everything = [*asks, *started]
        dues = [due for ask in everything for due in ask.dues]
        if self._thread is None:
            return _applied(everything, self.runner.run(dues))
        if not everything:
            return []
        answers = self._thread.ask(dues) if dues else None
        step = None
        if env_rewards is not None:
            step, self.num_steps = self.num_steps, self.num_steps + 1
        self._turns.append(_Turn(everything, step, env_rewards or {}, answers))
        self.settle_ready()
        return [ask.stream.outlook for ask in everything]

    def settle_ready(self) -> None:
        """Settle what has been answered; does not wait.

        Raises:
            ScorerError: If a scorer broke its contract, or failed too often.
            ModelError: If a scorer could not be loaded.
        """
        while self._turns and self._turns[0].ready:
            self._settle_oldest()

    def collect(self, *, wait: bool) -> list[LateReward]:
        """Return what steps have paid that were not told of yet, oldest first.

        Args:
            wait: Whether to wait for all that is outstanding.

        Raises:
            ScorerError: If a scorer broke its contract, or failed too often.
            ModelError: If a scorer could not be loaded.
        """
        self.settle_ready()
        while wait and self._turns:
            self._settle_oldest()
        late, self._late = self._late, []
        return late

    def release(self, streams: Iterable[EpisodeStream | None]) -> None:
        """Tell the models that they may forget episodes.

        Args:
            streams: The episodes that are over.
        """
        names = [name for stream in streams if stream is not None for name in stream.end()]
        if self._thread is None:
            self.runner.release(names)
        elif names:
            self._turns.append(_Turn(answers=self._thread.release(names)))

    def close(self) -> None:
        """Let the models forget all episodes; what is outstanding is neither asked nor paid."""
        self.release(self.streams)
        if self._thread is None:
            return
        self._thread.close()
        for turn in self._turns:
            if turn.answers is not None and turn.ready and not turn.answers.cancelled():
                error = turn.answers.exception()
                if error is not None:
                    logger.warning("an error came too late to be raised: %r", error)
                    break
        self._turns.clear()

    def _settle_oldest(self) -> None:
        """Wait for the oldest turn's answers, and settle it."""
        turn = self._turns[0]
        started = time.perf_counter()
        try:
            answers = [] if turn.answers is None else turn.answers.result()
        except BaseException:
            if turn.ready:  # else it was the wait that was interrupted
                self._abandon()
            raise
        finally:
            self._blocked_s += time.perf_counter() - started
        self._turns.popleft()
        outcomes = _applied(turn.asks, answers)
        if turn.step is not None:
            self._late += self._paid(turn, turn.step, outcomes)

    def _paid(self, turn: _Turn, step: int, outcomes: Sequence[Outcome]) -> list[LateReward]:
        weight = self.plan.config.env_reward_weight
        paid = []
        for ask, outcome in zip(turn.asks[: len(turn.env_rewards)], outcomes, strict=False):
            env_reward = turn.env_rewards[ask.index]
            paid.append(
                LateReward(
                    step=step,
                    index=ask.index,
                    reward=step_reward(outcome, env_reward, weight),
                    entry=info_entry(outcome, env_reward=env_reward),
                )
            )
        return sorted(paid, key=lambda late: late.index)

    def _abandon(self) -> None:
        """Give up what is outstanding, and the running episodes, which cannot be paid without."""
        self.release(self.streams)
        self._turns.clear()
        self.streams = [None] * len(self.streams)

    def _running(self, running: Mask) -> Iterable[tuple[int, EpisodeStream]]:
        for index, stream in enumerate(self.streams):
            if stream is not None and running[index]:
                yield index, stream


class BatchRewarded:
    """What both wrappers of many sub-environments tell about themselves."""

    _plan: StreamPlan
    _batch: StreamBatch

    @property
    def config(self) -> RewardConfig:
        """The settings, keywords and config object merged."""
        return self._plan.config

    @property
    def instructions(self) -> tuple[str, ...]:
        """The running episodes' instructions, empty before the first reset."""
        return self._batch.instructions

    @property
    def stats(self) -> QueryStats:
        """How the queries of all sub-environments have gone so far; a snapshot."""
        return self._batch.stats

    @property
    def latency(self) -> Latency:
        """Whether rewards are returned by the step itself or told by ``collect()``."""
        return "blocking" if self._batch.max_lag_steps is None else "deferred"

    @property
    def max_lag_steps(self) -> int | None:
        """Steps after which a query must have been answered, or None when blocking."""
        return self._batch.max_lag_steps

    @property
    def pending(self) -> int:
        """Rewards, one per step and sub-environment, that ``collect()`` would not return yet."""
        return self._batch.pending


def _applied(asks: Sequence[Ask], answers: Sequence[Answer]) -> list[Outcome]:
    rest = iter(answers)
    return [ask.stream.apply(list(islice(rest, len(ask.dues)))) for ask in asks]


def first_entries(asks: Sequence[Ask], outcomes: Sequence[Outcome]) -> dict[int, InfoEntry]:
    """Return the entries of episodes that have just begun, by sub-environment.

    Args:
        asks: What :meth:`StreamBatch.begin` returned.
        outcomes: What it came to.
    """
    return {
        ask.index: info_entry(outcome, env_reward=0.0)
        for ask, outcome in zip(asks, outcomes, strict=True)
    }
