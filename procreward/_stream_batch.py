"""The episodes of many sub-environments, whose due queries are put to the models together.

What :class:`procreward.vector.VectorProgressReward` and
:class:`procreward.integrations.sb3.VecProgressReward` have in common.

* :class:`StreamBatch` - one running episode per sub-environment, and one query runner for all.
* :class:`Ask` - the queries of one sub-environment that are due now.
* :func:`first_entries` - what ``info`` says of episodes that have just begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from procreward.runner import DueQuery
from procreward.session import EpisodeStream, Outcome, StreamPlan
from procreward.types import Frame
from procreward.wrapping import InfoEntry, info_entry

__all__ = ["Ask", "StreamBatch", "first_entries"]

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


class StreamBatch:
    """One running episode per sub-environment, and one query runner for all.

    Attributes:
        plan: The settings.
        runner: Who asks the models.
        streams: The running episodes, None before the first.
        outcomes: What each sub-environment's latest step or reset came to, None before the first.
    """

    def __init__(self, plan: StreamPlan, num_envs: int, *, fps: float | None) -> None:
        """Build no episode yet, and load nothing.

        Args:
            plan: The settings.
            num_envs: Number of sub-environments.
            fps: Steps per second of the source, or None when unknown.
        """
        self.plan, self._fps = plan, fps
        self.runner = plan.runner()
        self.streams: list[EpisodeStream | None] = [None] * num_envs
        self.outcomes: list[Outcome | None] = [None] * num_envs

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
        stream = EpisodeStream(self.plan, fps=self._fps)
        ask = Ask(index, stream, stream.begin(frames, instruction))
        self.streams[index] = stream
        return ask

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

    def settle(self, asks: Sequence[Ask]) -> list[Outcome]:
        """Put all due queries to the models at once, and settle the steps they belong to.

        Args:
            asks: What is due.

        Returns:
            What each came to, in order.

        Raises:
            ScorerError: If a scorer breaks its contract, or fails too often.
            ModelError: If a scorer cannot be loaded.
        """
        answers = iter(self.runner.run([due for ask in asks for due in ask.dues]))
        return [ask.stream.apply(list(islice(answers, len(ask.dues)))) for ask in asks]

    def release(self, streams: Iterable[EpisodeStream | None]) -> None:
        """Tell the models that they may forget episodes.

        Args:
            streams: The episodes that are over.
        """
        self.runner.release(
            name for stream in streams if stream is not None for name in stream.end()
        )

    def _running(self, running: Mask) -> Iterable[tuple[int, EpisodeStream]]:
        for index, stream in enumerate(self.streams):
            if stream is not None and running[index]:
                yield index, stream


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
