"""An episode while the models are asked about it.

* :class:`EpisodeJob` - what is asked about it.
* :class:`Asking` - its pictures in, queries out; answers in, readings out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from procreward.errors import DatasetError
from procreward.plan import StreamPlan
from procreward.relabel.episodes import Episode
from procreward.relabel.readings import Reading
from procreward.runner import Answer, DueQuery
from procreward.session import EpisodeStream
from procreward.types import Frame

__all__ = ["Asking", "EpisodeJob"]

_NO_LAG_LIMIT = 1 << 40

_Windows = tuple[int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeJob:
    """What is asked about one episode.

    Attributes:
        index: Its place in the dataset.
        instruction: The task in words.
        known: Readings that stand for a query with the same windows.
        denser: Readings that stand for a query about the same picture, whatever its windows: those
            of a run that asked more often.
    """

    index: int
    instruction: str
    known: tuple[Reading, ...] = ()
    denser: tuple[Reading, ...] = ()


@dataclass(slots=True)
class _Step:
    """A step of an episode on its way through the models."""

    step: int
    dues: list[DueQuery]
    answers: list[Answer] | None = None
    reading: Reading | None = None


class Asking:
    """An episode while the models are asked about it.

    Recorded pictures need not wait for answers once something is known, so several queries of an
    episode may be outstanding. Which ones are asked together depends on the calls of
    :meth:`collect` and :meth:`take` alone, never on how fast pictures or answers come.

    Attributes:
        episode: Which one.
        job: What is asked.
        stream: What its pictures go through.
        readings: What was answered so far.
        step: Pictures taken so far.
        waited_s: Seconds that it took to get them.
    """

    def __init__(
        self,
        plan: StreamPlan,
        episode: Episode,
        job: EpisodeJob,
        pictures: Iterator[Mapping[str, Frame]],
        fps: float | None,
    ) -> None:
        """Take no picture yet.

        Args:
            plan: The settings.
            episode: Which one.
            job: What is asked.
            pictures: Name of a view to picture, of all its frames.
            fps: Frames per second, or None.
        """
        self.episode, self.job = episode, job
        self.stream = EpisodeStream(plan, fps=fps, max_lag_steps=_NO_LAG_LIMIT)
        self.readings: list[Reading] = []
        self.step = 0
        self.waited_s = 0.0
        self._pictures = pictures
        self._steps: deque[_Step] = deque()
        self._asked: deque[list[_Step]] = deque()
        self._same = {_windows(one): one for one in job.known}
        self._denser = {one.frame: one for one in job.denser}

    @property
    def seen(self) -> bool:
        """Whether all of its pictures have been taken."""
        return 0 < self.episode.frames == self.step

    @property
    def over(self) -> bool:
        """Whether all is asked and answered."""
        return self.seen and not self._steps

    def collect(self, limit: int) -> list[DueQuery]:
        """Go on until a number of further pictures wait for answers, or nothing can be asked.

        Args:
            limit: The number, at least 1.

        Returns:
            The queries about them; the answers go to :meth:`take`, in the order of the calls.

        Raises:
            DatasetError: If pictures are missing, or there are more of them.
        """
        if self.episode.frames == 0:
            next(self._pictures, None)  # says what is wrong
            raise DatasetError(f"Episode {self.episode.name!r} must have frames, got none.")
        found: list[_Step] = []
        while len(found) < limit and not self.seen and not self.stream.must_wait(self.step):
            step = self._go_on()
            if step.answers is None:
                found.append(step)
        if found:
            self._asked.append(found)
        return [due for step in found for due in step.dues]

    def take(self, answers: Sequence[Answer]) -> None:
        """Take in the answers to what the oldest call of :meth:`collect` returned."""
        rest = iter(answers)
        for step in self._asked.popleft():
            step.answers = [next(rest) for _ in step.dues]
        self._settle()

    def look_through(self) -> None:
        """Take all pictures that are left, to see whether they are whole; nothing more is asked.

        Raises:
            DatasetError: As :meth:`collect` does.
        """
        found = self.step + sum(1 for _ in self._pictures)
        if found != self.episode.frames:
            raise self._miscounted(found)

    def _go_on(self) -> _Step:
        episode, step = self.episode, self.step
        last = step == episode.frames - 1
        started = time.perf_counter()
        try:
            pictures = next(self._pictures, None)
            # Read to the end, where some damage is noticed only.
            longer = last and next(self._pictures, None) is not None
        finally:
            self.waited_s += time.perf_counter() - started
        if pictures is None or longer:
            raise self._miscounted(step + 2 if longer else step)
        if step == 0:
            dues = self.stream.begin(pictures, self.job.instruction)
        else:
            dues = self.stream.advance(pictures, step, truncated=last)
        self.step += 1
        known = self._lookup(step, dues) if dues else None
        answers = [] if not dues else None if known is None else known.answers
        found = _Step(step, dues, answers, known)
        self._steps.append(found)
        self._settle()
        return found

    def _miscounted(self, found: int) -> DatasetError:
        frames = self.episode.frames
        got = "more" if found > frames else f"only {found}"
        return DatasetError(f"Episode {self.episode.name!r} must have {frames} frames, got {got}.")

    def _lookup(self, step: int, dues: list[DueQuery]) -> Reading | None:
        windows = [due.query.frame_steps for due in dues]
        judge = windows[1] if len(windows) > 1 else ()
        found = self._same.get((step, windows[0], judge))
        return self._denser.get(step) if found is None else found

    def _settle(self) -> None:
        while self._steps and self._steps[0].answers is not None:
            done = self._steps.popleft()
            assert done.answers is not None
            self.stream.apply(done.answers)
            if done.dues:
                self.readings.append(done.reading or _reading(done))


def _windows(reading: Reading) -> _Windows:
    return reading.frame, reading.window, reading.judge_window


def _reading(step: _Step) -> Reading:
    assert step.answers is not None
    judge: tuple[tuple[int, ...], Answer | None] = ((), None)
    if len(step.dues) > 1:
        judge = step.dues[1].query.frame_steps, step.answers[1]
    return Reading.of(step.step, step.dues[0].query.frame_steps, step.answers[0], *judge)
