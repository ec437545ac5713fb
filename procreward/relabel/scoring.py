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

import logging
import re
import time
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

_Batch = list[tuple[Asking, list[DueQuery]]]


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
    makes no difference to which queries are put together.
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
        self._job, self._source = job, source
        self._plan = StreamPlan.from_config(job.config)
        self._runner = self._plan.runner()
        self._showing = Showing.of(self._plan, source.views, job.views)
        self._stack = ExitStack()
        self._readers: list[Ahead] = []
        self._found: dict[int, EpisodeReadings] = {}
        self._asking: list[Asking] = []
        self._picture_bytes = 0
        self._replayed = self._asked = self._decoded = self._raised = 0
        try:
            self._open(ahead_bytes, [] if after is None else after._readers)
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

    def _open(self, ahead_bytes: int, before: list[Ahead]) -> None:
        job, source = self._job, self._source
        episodes = {episode.index: episode for episode in source.episodes}
        rest = []
        for one in job.episodes:
            episode = episodes[one.index]
            readings = _replay(self._plan, episode, one)
            if readings is None:
                rest.append((episode, one))
                continue
            self._found[one.index] = self._readings(episode, one, readings, "")
            self._replayed += episode.frames
        for number, (episode, one) in enumerate(rest):
            after = before[number % len(before)] if before else None
            pictures = self._pictures(episode, ahead_bytes // len(rest), after)
            asking = Asking(self._plan, episode, one, pictures, episode.fps or job.fps)
            self._stack.callback(self._release, asking)
            self._asking.append(asking)

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
        for one in self._asking:
            self._found[one.job.index] = self._readings(
                one.episode, one.job, one.readings, one.error
            )
        episodes = tuple(self._found[one.index] for one in self._job.episodes)
        self._check_any(episodes)
        return GroupResult(
            episodes=episodes,
            asked=self._asked,
            decoded=self._decoded,
            waited_s=sum(one.waited_s for one in self._asking),
            account=_account(self._plan) if self._asked else {},
        )

    def time_queries(self) -> tuple[int, float]:
        """Ask the first queries and time what follows; the readings are of no use.

        Returns:
            Queries that were timed and answered, and seconds, those of their pictures included.
        """
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
            readings=() if error else tuple(readings),
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
                dues = asking.collect(max(1, limit // len(going)))
            except (DatasetError, FrameError, OSError) as error:
                if not self._job.skip_broken:
                    raise _named(asking.episode, error) from error
                logger.warning("%s", _named(asking.episode, error))
                asking.error = _lasting(str(_named(asking.episode, error)))
                on_frames(asking.episode.frames - before)
                continue
            finally:
                self._decoded += asking.step - before
            on_frames(asking.step - before)
            if dues:
                batch.append((asking, dues))
                self._picture_bytes = max(self._picture_bytes, _picture_bytes(dues))
        return batch

    def _ask(self, batch: _Batch) -> None:
        """Put queries to the models."""
        batch = [(asking, dues) for asking, dues in batch if not asking.error]
        answers = self._runner.run([due for _, dues in batch for due in dues])
        self._asked += len(answers)
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
        if self._asked and self._raised == self._asked:
            last = next(
                one.failed for each in reversed(episodes) for one in reversed(each.readings)
            )
            raise ScorerFailedError(
                f"All {self._asked} queries about the episodes from {episodes[0].name!r} on "
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
