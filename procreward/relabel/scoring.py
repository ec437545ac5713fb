"""Asking the models about a group of episodes.

* :class:`GroupJob` - everything that it takes, picklable, so that it can be sent anywhere.
* :func:`score_group` - does it; what comes back depends on the job alone.

The frames of an episode are decoded once, ahead of the model and beside it, and go through the same
stream as those of an environment. Recorded frames need not wait for answers once something is
known, so the queries of one call are taken from all episodes of the group, several of each.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from procreward.config import RewardConfig
from procreward.errors import DatasetError, FrameError, ScorerFailedError
from procreward.plan import StreamPlan
from procreward.registry import get_scorer
from procreward.relabel.ahead import Ahead
from procreward.relabel.episodes import Episode, Source
from procreward.relabel.formats import open_source
from procreward.relabel.readings import EpisodeReadings, Reading
from procreward.relabel.showing import Showing
from procreward.runner import Answer, DueQuery, Failure, QueryRunner
from procreward.session import EpisodeStream
from procreward.types import Frame

__all__ = ["EpisodeJob", "GroupJob", "GroupResult", "score_group"]

logger = logging.getLogger(__name__)

AHEAD_BYTES = 256 * 1024 * 1024
"""Decoded pictures that may wait for the model, of all episodes of a group together."""

_NO_LAG_LIMIT = 1 << 40
_BLANK: Mapping[str, Frame] = {"blank": np.ones((1, 1, 3), np.uint8)}

Windows = tuple[int, tuple[int, ...], tuple[int, ...]]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupJob:
    """What is asked about a group of episodes; picklable unless the scorer is a live object.

    Attributes:
        source: Path of the dataset.
        format: Name of its format.
        config: The settings; those that decide what is asked.
        views: The dataset's views that are shown, empty for its first one.
        fps: Frames per second where the dataset does not say, or None.
        batch_queries: Queries of a call, about.
        skip_broken: Whether an episode that cannot be read is skipped, or stops the job.
        episodes: Which episodes.
    """

    source: str
    format: str
    config: RewardConfig
    views: tuple[str, ...] = ()
    fps: float | None = None
    batch_queries: int = 32
    skip_broken: bool = False
    episodes: tuple[EpisodeJob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """What came of a group.

    Attributes:
        episodes: The readings, in the job's order.
        asked: Queries that were put to the models for it.
        decoded: Frames that were decoded for it.
        account: How the models describe themselves, ``"scorer"`` and ``"judge"``; empty if none was
            asked.
    """

    episodes: tuple[EpisodeReadings, ...]
    asked: int
    decoded: int
    account: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Step:
    """A step of an episode on its way through the models."""

    step: int
    dues: list[DueQuery]
    answers: list[Answer] | None = None
    reading: Reading | None = None


@dataclass(slots=True)
class _Tally:
    """How a group goes."""

    on_frames: Callable[[int], object]
    asked: int = 0
    decoded: int = 0
    raised: int = 0


class _Asking:
    """An episode while it is being asked about."""

    def __init__(
        self,
        plan: StreamPlan,
        episode: Episode,
        job: EpisodeJob,
        pictures: Iterator[Mapping[str, Frame]],
        fps: float | None,
    ) -> None:
        self.episode, self.job = episode, job
        self.stream = EpisodeStream(plan, fps=fps, max_lag_steps=_NO_LAG_LIMIT)
        self.readings: list[Reading] = []
        self.error = ""
        self.step = 0
        self._pictures = pictures
        self._steps: deque[_Step] = deque()
        self._same = {_windows(one): one for one in job.known}
        self._denser = {one.frame: one for one in job.denser}

    @property
    def over(self) -> bool:
        """Whether all is asked and answered."""
        done = 0 < self.episode.frames == self.step and not self._steps
        return bool(self.error) or done

    def collect(self, limit: int) -> list[DueQuery]:
        """Go on until a number of pictures wait for answers, or nothing more can be asked."""
        if self.episode.frames == 0:
            next(self._pictures, None)  # says what is wrong
            raise DatasetError(f"Episode {self.episode.name!r} must have frames, got none.")
        while len(self._waiting()) < limit and self.step < self.episode.frames:
            if self.stream.must_wait(self.step):
                break
            self._go_on()
        return [due for step in self._waiting() for due in step.dues]

    def take(self, answers: list[Answer]) -> None:
        """Take in the answers to what :meth:`collect` returned."""
        rest = iter(answers)
        for step in self._waiting():
            step.answers = [next(rest) for _ in step.dues]
        self._settle()

    def _waiting(self) -> list[_Step]:
        return [step for step in self._steps if step.answers is None]

    def _go_on(self) -> None:
        episode, step = self.episode, self.step
        pictures, last = next(self._pictures, None), step == episode.frames - 1
        # Read to the end, where some damage is noticed only.
        longer = last and next(self._pictures, None) is not None
        if pictures is None or longer:
            got = "more" if longer else f"only {step}"
            raise DatasetError(
                f"Episode {episode.name!r} must have {episode.frames} frames, got {got}."
            )
        if step == 0:
            dues = self.stream.begin(pictures, self.job.instruction)
        else:
            dues = self.stream.advance(pictures, step, truncated=last)
        self.step += 1
        known = self._lookup(step, dues) if dues else None
        answers = [] if not dues else None if known is None else known.answers
        self._steps.append(_Step(step, dues, answers, known))
        self._settle()

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


def _windows(reading: Reading) -> Windows:
    return reading.frame, reading.window, reading.judge_window


def _reading(step: _Step) -> Reading:
    assert step.answers is not None
    judge: tuple[tuple[int, ...], Answer | None] = ((), None)
    if len(step.dues) > 1:
        judge = step.dues[1].query.frame_steps, step.answers[1]
    return Reading.of(step.step, step.dues[0].query.frame_steps, step.answers[0], *judge)


def score_group(
    job: GroupJob,
    source: Source | None = None,
    *,
    on_frames: Callable[[int], object] = lambda count: None,
) -> GroupResult:
    """Ask the models about every episode of a group.

    Args:
        job: What is asked.
        source: The dataset, if it is open already.
        on_frames: Called with the number of frames that are done with, as they are.

    Returns:
        The readings.

    Raises:
        DatasetError: If an episode cannot be read and is not to be skipped; it is named.
        ScorerFailedError: If the models raise too often in a row, or at every query of the group.
        ScorerError: If a model breaks its contract.
        ModelError: If a model cannot be loaded.
    """
    source = open_source(job.source, job.format) if source is None else source
    plan = StreamPlan.from_config(job.config)
    episodes = {episode.index: episode for episode in source.episodes}
    tally = _Tally(on_frames)
    found: dict[int, EpisodeReadings] = {}
    rest: list[EpisodeJob] = []
    for one in job.episodes:
        episode = episodes[one.index]
        readings = _replay(plan, episode, one)
        if readings is None:
            rest.append(one)
            continue
        found[one.index] = _readings(source, episode, one, readings, "")
        on_frames(episode.frames)
    if rest:
        found |= _ask_all(job, source, plan, [(episodes[one.index], one) for one in rest], tally)
    ordered = tuple(found[one.index] for one in job.episodes)
    _check_any(tally, ordered)
    account = _account(plan) if tally.asked else {}
    return GroupResult(episodes=ordered, asked=tally.asked, decoded=tally.decoded, account=account)


def _account(plan: StreamPlan) -> dict[str, Any]:
    handles = {"scorer": plan.scorer, "judge": plan.judge}
    return {
        role: None if handle is None else dict(get_scorer(handle).describe())
        for role, handle in handles.items()
    }


def _check_any(tally: _Tally, episodes: tuple[EpisodeReadings, ...]) -> None:
    """Refuse a group that no model said anything about, which a later run could not tell."""
    if tally.asked and tally.raised == tally.asked:
        last = next(one.failed for each in reversed(episodes) for one in reversed(each.readings))
        raise ScorerFailedError(
            f"All {tally.asked} queries about the episodes from {episodes[0].name!r} on failed, "
            f"the last one with {last}. Nothing of them is kept; check the model and run it again."
        )


def _readings(
    source: Source, episode: Episode, job: EpisodeJob, readings: list[Reading], error: str
) -> EpisodeReadings:
    return EpisodeReadings(
        index=episode.index,
        name=episode.name,
        fingerprint=source.fingerprint(episode),
        instruction=job.instruction,
        readings=() if error else tuple(readings),
        error=error,
    )


def _replay(plan: StreamPlan, episode: Episode, job: EpisodeJob) -> list[Reading] | None:
    """Answer an episode from what is known, without its pictures; None if something is missing."""
    if episode.frames == 0 or not (job.known or job.denser):
        return None
    asking = _Asking(plan, episode, job, repeat(_BLANK, episode.frames), None)
    return None if asking.collect(1) else asking.readings


def _ask_all(
    job: GroupJob,
    source: Source,
    plan: StreamPlan,
    todo: list[tuple[Episode, EpisodeJob]],
    tally: _Tally,
) -> dict[int, EpisodeReadings]:
    runner, showing = plan.runner(), Showing.of(plan, source.views, job.views)
    with ExitStack() as stack:
        asking = []
        for episode, one in todo:
            pictures = _pictures(stack, source, showing, episode, AHEAD_BYTES // len(todo))
            each = _Asking(plan, episode, one, pictures, episode.fps or job.fps)
            stack.callback(_release, runner, each)
            asking.append(each)
        while going := [each for each in asking if not each.over]:
            _round(job, runner, going, tally)
    return {
        each.episode.index: _readings(source, each.episode, each.job, each.readings, each.error)
        for each in asking
    }


def _pictures(
    stack: ExitStack, source: Source, showing: Showing, episode: Episode, max_bytes: int
) -> Iterator[Mapping[str, Frame]]:
    def opened() -> Iterator[Mapping[str, Frame]]:
        return showing.show(source.frames(episode, showing.views))

    # Simulators draw on the thread that made them only.
    if not getattr(source, "background", True):
        pictures = opened()
        close = getattr(pictures, "close", None)
        if callable(close):
            stack.callback(close)
        return pictures
    return iter(stack.enter_context(Ahead(opened, max_bytes=max_bytes)))


def _release(runner: QueryRunner, asking: _Asking) -> None:
    runner.release(asking.stream.end())


def _round(job: GroupJob, runner: QueryRunner, going: list[_Asking], tally: _Tally) -> None:
    """Put the next queries of all episodes to the models."""
    limit = max(1, job.batch_queries // len(going))
    batch: list[tuple[_Asking, list[DueQuery]]] = []
    for asking in going:
        before = asking.step
        try:
            dues = asking.collect(limit)
        except (DatasetError, FrameError, OSError) as error:
            if not job.skip_broken:
                raise _named(asking.episode, error) from error
            logger.warning("%s", _named(asking.episode, error))
            asking.error = _lasting(str(_named(asking.episode, error)))
            tally.on_frames(asking.episode.frames - before)
            continue
        finally:
            tally.decoded += asking.step - before
        tally.on_frames(asking.step - before)
        batch.append((asking, dues))
    answers = runner.run([due for _, dues in batch for due in dues])
    tally.asked += len(answers)
    tally.raised += sum(isinstance(answer, Failure) for answer in answers)
    place = 0
    for asking, dues in batch:
        asking.take(answers[place : place + len(dues)])
        place += len(dues)
        if asking.over:
            _release(runner, asking)


def _named(episode: Episode, error: Exception) -> DatasetError:
    """Say which episode it is, where the message does not."""
    text = str(error)
    return DatasetError(text if episode.name in text else f"Episode {episode.name!r}: {text}")


def _lasting(text: str) -> str:
    """Leave out what differs from run to run: how far a decoder's threads came."""
    return re.sub(r" after \d+ frames|\.? ffmpeg: .*", "", text, flags=re.DOTALL).rstrip(".") + "."
