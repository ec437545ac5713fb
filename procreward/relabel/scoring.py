"""Asking the models about a group of episodes.

* :class:`GroupJob` - everything that it takes, picklable, so that it can be sent anywhere.
* :func:`score_group` - does it; what comes back depends on the job alone.
* :class:`OpenGroup` - the same in two parts: its pictures are decoded as soon as it is open.

The frames of an episode are decoded once, ahead of the model and beside it, and go through the same
stream as those of an environment. Recorded frames need not wait for answers once something is
known, so the queries of one call are taken from all episodes of the group, several of each; and
those of the next call before this one is made, so that a model may look at their frames meanwhile.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, TypeVar

import numpy as np

from procreward.config import RewardConfig
from procreward.errors import DatasetError, FrameError, ScorerFailedError
from procreward.plan import StreamPlan
from procreward.registry import get_scorer
from procreward.relabel.ahead import Ahead
from procreward.relabel.asking import Asking, EpisodeJob
from procreward.relabel.episodes import Episode, Source
from procreward.relabel.formats import open_source
from procreward.relabel.readings import EpisodeReadings, Reading
from procreward.relabel.showing import Showing
from procreward.runner import DueQuery, Failure
from procreward.types import Frame

__all__ = ["EpisodeJob", "GroupJob", "GroupResult", "OpenGroup", "score_group"]

logger = logging.getLogger(__name__)

AHEAD_BYTES = 256 * 1024 * 1024
"""Decoded pictures that may wait for the model, of all open episodes together."""

CALL_BYTES = 512 * 1024 * 1024
"""Pictures in the queries of one call: where windows are long, fewer queries are put together."""

_BLANK: Mapping[str, Frame] = {"blank": np.ones((1, 1, 3), np.uint8)}

# A full disk or too many open files are no fault of an episode.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}

_Batch = list[tuple[Asking, list[DueQuery]]]
_Result = TypeVar("_Result")


class _SkippedError(Exception):
    """An episode cannot be read, and is to be skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupJob:
    """What is asked about a group of episodes; picklable unless the scorer is a live object.

    Attributes:
        source: Path of the dataset.
        format: Name of its format.
        config: The settings; those that decide what is asked.
        views: The dataset's views that are shown, as ``--views`` has them; empty for its first one.
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
    batch_queries: int = 64
    skip_broken: bool = False
    episodes: tuple[EpisodeJob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupResult:
    """What came of a group.

    Attributes:
        episodes: The readings, in the job's order.
        asked: Queries that were put to the models for it.
        decoded: Frames that were decoded for it.
        waited_s: Seconds for which the models stood still for pictures.
        account: How the models describe themselves, ``"scorer"`` and ``"judge"``; empty if none was
            asked.
    """

    episodes: tuple[EpisodeReadings, ...]
    asked: int
    decoded: int
    waited_s: float = 0.0
    account: Mapping[str, Any] = field(default_factory=dict)


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
    with OpenGroup(job, source, ahead_bytes=AHEAD_BYTES) as group:
        return group.score(on_frames)


class OpenGroup:
    """A group whose pictures are being decoded; a context manager.

    What is known already is looked up at once, and needs no pictures. When pictures are decoded
    makes no difference to which queries are put together. Nor does how far a damaged video can be
    decoded, which differs from time to time: where an episode is skipped, the others are asked
    about anew without it.
    """

    def __init__(
        self, job: GroupJob, source: Source, *, ahead_bytes: int, after: OpenGroup | None = None
    ) -> None:
        """Start decoding.

        Args:
            job: What is asked.
            source: The dataset.
            ahead_bytes: Decoded pictures that may wait, in bytes.
            after: A group that is being scored; an episode of this one is opened whenever one of
                that is decoded, so that there are no more decoders than before.
        """
        self._job, self._source, self._ahead_bytes = job, source, ahead_bytes
        self._plan = StreamPlan.from_config(job.config)
        self._runner = self._plan.runner()
        self._showing = Showing.of(self._plan, source.views, job.views)
        self._stack = ExitStack()
        self._readers: list[Ahead] = []
        self._found: dict[int, EpisodeReadings] = {}
        self._rest: list[tuple[Episode, EpisodeJob]] = []
        self._asking: list[Asking] = []
        self._told: Counter[int] = Counter()
        self._picture_bytes = 0
        self._replayed = self._asked = self._answerable = self._raised = self._decoded = 0
        try:
            self._look_up()
            self._open([] if after is None else after._readers)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OpenGroup:
        """Return the group itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop decoding, and let the models forget the episodes."""
        self.close()

    def close(self) -> None:
        """Stop decoding, and let the models forget the episodes; may be called again."""
        self._stack.close()

    def _look_up(self) -> None:
        episodes = {episode.index: episode for episode in self._source.episodes}
        for one in self._job.episodes:
            episode = episodes[one.index]
            readings = _replay(self._plan, episode, one)
            if readings is None:
                self._rest.append((episode, one))
                continue
            self._found[one.index] = self._readings(episode, one, readings, "")
            self._replayed += episode.frames

    def _open(self, before: list[Ahead]) -> None:
        rest = [(episode, one) for episode, one in self._rest if one.index not in self._found]
        for number, (episode, one) in enumerate(rest):
            after = before[number % len(before)] if before else None
            pictures = self._pictures(episode, self._ahead_bytes // len(rest), after)
            asking = Asking(self._plan, episode, one, pictures, episode.fps or self._job.fps)
            self._stack.callback(self._release, asking)
            self._asking.append(asking)

    def _without_broken(self, work: Callable[[], _Result]) -> _Result:
        """Do some work, anew whenever it meets an episode that is skipped."""
        while True:
            try:
                return work()
            except _SkippedError:
                # Others that are damaged, lest each of them have the work done anew.
                for asking in self._asking:
                    with suppress(_SkippedError):
                        self._look_through(asking)
                self.close()
                self._readers, self._asking = [], []
                self._picture_bytes = self._answerable = self._raised = 0
                self._runner = self._plan.runner()
                self._open([])

    def _look_through(self, asking: Asking) -> None:
        with self._skipping(asking):
            asking.look_through()

    @contextmanager
    def _skipping(self, asking: Asking) -> Iterator[None]:
        """Note what makes an episode unreadable, if it is to be skipped."""
        episode = asking.episode
        try:
            yield
        except (DatasetError, FrameError, OSError) as error:
            named = _named(episode, error)
            if not self._job.skip_broken or getattr(error, "errno", None) in _OF_THE_MACHINE:
                raise named from error
            if asking.job.index not in self._found:
                logger.warning("%s", named)
                found = self._readings(episode, asking.job, [], _lasting(str(named)))
                self._found[asking.job.index] = found
            raise _SkippedError from error

    def _pictures(
        self, episode: Episode, max_bytes: int, after: Ahead | None
    ) -> Iterator[Mapping[str, Frame]]:
        source, showing = self._source, self._showing

        def opened() -> Iterator[Mapping[str, Frame]]:
            return showing.show(source.frames(episode, showing.views))

        # Simulators draw on the thread that made them only.
        if not getattr(source, "background", True):
            pictures = opened()
            close = getattr(pictures, "close", None)
            if callable(close):
                self._stack.callback(close)
            return pictures
        reader = Ahead(opened, max_bytes=max_bytes, after=after)
        self._readers.append(self._stack.enter_context(reader))
        return iter(reader)

    def score(self, on_frames: Callable[[int], object] = lambda count: None) -> GroupResult:
        """Ask; see :func:`score_group`."""
        on_frames(self._replayed)
        self._without_broken(lambda: self._ask_all(on_frames))
        for one in self._asking:
            self._found[one.job.index] = self._readings(one.episode, one.job, one.readings, "")
        for episode, _ in self._rest:
            self._tell(episode.index, episode.frames, on_frames)
        episodes = tuple(self._found[one.index] for one in self._job.episodes)
        self._check_any(episodes)
        return GroupResult(
            episodes=episodes,
            asked=self._asked,
            decoded=self._decoded,
            waited_s=sum(one.waited_s for one in self._asking),
            account=_account(self._plan) if self._answerable else {},
        )

    def _ask_all(self, on_frames: Callable[[int], object]) -> None:
        if self._asking:
            # Whatever was asked before, answers are the same, to the last bit.
            self._runner.forget()
        batch = self._collect(on_frames)
        while batch:
            # What need not wait for the answers to this one.
            following = self._collect(on_frames)
            self._runner.announce([due for _, dues in following for due in dues])
            self._ask(batch)
            batch = following or self._collect(on_frames)

    def time_queries(self) -> tuple[int, float]:
        """Ask the first queries and time what follows; the readings are of no use.

        Returns:
            Queries that were timed and answered, and seconds, those of their pictures included.
        """
        return self._without_broken(self._time_queries)

    def _time_queries(self) -> tuple[int, float]:
        self._ask(self._collect(lambda count: None))  # which loads the models
        raised, started = self._raised, time.perf_counter()
        batch = self._collect(lambda count: None)
        self._ask(batch)
        taken = time.perf_counter() - started
        return sum(len(dues) for _, dues in batch) - (self._raised - raised), taken

    def _readings(
        self, episode: Episode, job: EpisodeJob, readings: list[Reading], error: str
    ) -> EpisodeReadings:
        return EpisodeReadings(
            index=episode.index,
            name=episode.name,
            fingerprint=self._source.fingerprint(episode),
            instruction=job.instruction,
            readings=tuple(readings),
            error=error,
        )

    def _release(self, asking: Asking) -> None:
        self._runner.release(asking.stream.end())

    def _collect(self, on_frames: Callable[[int], object]) -> _Batch:
        """Take the next queries of all episodes, as far as they need not wait for answers."""
        going = [one for one in self._asking if not one.seen]
        if not going:
            return []
        limit = self._job.batch_queries
        if self._picture_bytes:
            limit = min(limit, CALL_BYTES // self._picture_bytes)
        batch = []
        for asking in going:
            before = asking.step
            try:
                with self._skipping(asking):
                    dues = asking.collect(max(1, limit // len(going)))
            finally:
                self._decoded += asking.step - before
            self._tell(asking.job.index, asking.step, on_frames)
            if dues:
                batch.append((asking, dues))
                self._picture_bytes = max(self._picture_bytes, _picture_bytes(dues))
        return batch

    def _tell(self, index: int, frames: int, on_frames: Callable[[int], object]) -> None:
        """Say how far an episode is, if it has been no farther yet."""
        before, self._told[index] = self._told[index], max(frames, self._told[index])
        on_frames(self._told[index] - before)

    def _ask(self, batch: _Batch) -> None:
        """Put queries to the models."""
        answers = self._runner.run([due for _, dues in batch for due in dues])
        self._asked += len(answers)
        self._answerable += len(answers)
        self._raised += sum(isinstance(answer, Failure) for answer in answers)
        place = 0
        for asking, dues in batch:
            asking.take(answers[place : place + len(dues)])
            place += len(dues)
        for asking in self._asking:
            if asking.over:
                self._release(asking)

    def _check_any(self, episodes: tuple[EpisodeReadings, ...]) -> None:
        """Refuse a group that no model said anything about, which a later run could not tell."""
        if self._answerable and self._raised == self._answerable:
            last = next(
                one.failed for each in reversed(episodes) for one in reversed(each.readings)
            )
            raise ScorerFailedError(
                f"All {self._answerable} queries about the episodes from {episodes[0].name!r} on "
                f"failed, the last one with {last}. Nothing of them is kept; check the model and "
                "run it again."
            )


def _picture_bytes(dues: list[DueQuery]) -> int:
    """Bytes of the largest window among some queries, those of both models about a picture."""
    sizes: dict[str, int] = {}
    for due in dues:
        size = sum(clip.nbytes for clip in due.query.frames.values())
        sizes[due.role] = max(sizes.get(due.role, 0), size)
    return sum(sizes.values())


def _account(plan: StreamPlan) -> dict[str, Any]:
    handles = {"scorer": plan.scorer, "judge": plan.judge}
    return {
        role: None if handle is None else dict(get_scorer(handle).describe())
        for role, handle in handles.items()
    }


def _replay(plan: StreamPlan, episode: Episode, job: EpisodeJob) -> list[Reading] | None:
    """Answer an episode from what is known, without its pictures; None if something is missing."""
    if episode.frames == 0 or not (job.known or job.denser):
        return None
    asking = Asking(plan, episode, job, repeat(_BLANK, episode.frames), None)
    return None if asking.collect(1) else asking.readings


def _named(episode: Episode, error: Exception) -> DatasetError:
    """Say which episode it is, where the message does not."""
    text = str(error)
    return DatasetError(text if episode.name in text else f"Episode {episode.name!r}: {text}")


def _lasting(text: str) -> str:
    """Leave out what differs from run to run: how far a decoder's threads came."""
    return re.sub(r" after \d+ frames|\.? ffmpeg: .*", "", text, flags=re.DOTALL).rstrip(".") + "."
