"""The one middle: frames of an episode in, due queries out; answers in, reward and verdict out.

* :class:`EpisodeStream` - buffer, schedule, potential, completion and shaping of one stream.
* :class:`~procreward.plan.StreamPlan` - its settings.
* :class:`~procreward.outcome.Outcome` - what a step came to.

The wrapper feeds a stream from an environment, the checker from a robot, ``score_video`` from a
file. Asking (:meth:`EpisodeStream.advance`) and answering (:meth:`EpisodeStream.apply`) are two
methods, so that the due queries of many streams can be put to a model in one call
(:meth:`procreward.runner.QueryRunner.run`), and so that a stream can go on while its answers are
still on their way.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from procreward.errors import FrameError, InstructionError, ScorerError
from procreward.frames import FrameBuffer
from procreward.instruction import check_instruction
from procreward.outcome import EpisodeLedger, Outcome, StepEnd
from procreward.plan import StreamPlan, WindowPlan
from procreward.runner import Answer, DueQuery, Role, failure_reason
from procreward.schedule import ChangeDetector, QuerySchedule
from procreward.types import Frame, Query, Score
from procreward.views import shown_to

__all__ = ["EpisodeStream", "Outcome", "StreamPlan", "WindowPlan"]


@dataclass(frozen=True, slots=True)
class _Outstanding:
    """A step that has not been settled, and what was asked about it."""

    end: StepEnd
    dues: list[DueQuery]


class _Feed:
    """How frames reach one model: its buffer and its schedule."""

    def __init__(self, every_k_steps: int, plan: WindowPlan):
        self.buffer = FrameBuffer(
            plan.window_frames, frame_stride_steps=plan.frame_stride_steps, pad=plan.pad
        )
        self.schedule = QuerySchedule(
            every_k_steps,
            window_frames=plan.window_frames,
            frame_stride_steps=plan.frame_stride_steps,
        )


class EpisodeStream:
    """Buffer, schedule, potential, completion and shaping of one stream of frames.

    Every step is two calls: :meth:`begin` or :meth:`advance`, which return the queries that are due
    (often none), and :meth:`apply` with their answers. Episodes follow each other in one stream;
    nothing of the last one is left after :meth:`begin`. Before that, and when the last one is over,
    :meth:`end` names what models may forget.

    **Blocking** streams settle a step before the next one. With ``max_lag_steps`` a stream may go
    on while answers are outstanding: :meth:`apply` settles the oldest step that is not, and
    :meth:`must_wait` says when to do so first. What is asked never depends on an answer that is
    outstanding, so the same frames earn the same. Only an end that completion declares comes
    later: see :meth:`declared_end`.

    Example:
        >>> import numpy as np
        >>> from procreward.config import RewardConfig
        >>> config = RewardConfig(scorer={"name": "scripted", "options": {"progress": [0.0, 0.5]}},
        ...                       every_k_steps=1, gamma=1.0)
        >>> plan = StreamPlan.from_config(config)
        >>> stream, runner = EpisodeStream(plan), plan.runner()
        >>> frames = {"main": np.full((8, 8, 3), 9, np.uint8)}
        >>> start = stream.apply(runner.run(stream.begin(frames, "reach the goal")))
        >>> stream.apply(runner.run(stream.advance(frames, 1))).shaping
        0.5
    """

    def __init__(
        self, plan: StreamPlan, *, fps: float | None = None, max_lag_steps: int | None = None
    ) -> None:
        """Build the parts.

        Args:
            plan: The settings; without ``skip_unchanged`` where ``max_lag_steps`` is given.
            fps: Steps per second of the source, passed on to the scorers, or None when unknown.
            max_lag_steps: Steps after which a query must have been answered, at least 1; None for
                at once.
        """
        config = plan.config
        self.plan = plan
        self._fps = fps
        self._max_lag = max_lag_steps
        self._feeds: dict[Role, _Feed] = {"scorer": _Feed(config.every_k_steps, plan.window)}
        if plan.judge_window is not None:
            self._feeds["judge"] = _Feed(config.every_k_steps, plan.judge_window)
        self._schedules = [feed.schedule for feed in self._feeds.values()]
        self._changes = (
            None if config.skip_unchanged is None else ChangeDetector(config.skip_unchanged)
        )
        self._ledger = EpisodeLedger(plan)
        self._instruction = ""
        self._stream = ""
        self._outstanding: deque[_Outstanding] = deque()
        self._newest = StepEnd(step=0)
        self._declared: int | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy of a running episode a stream of its own.

        It may go on differently, and models know a frame by its stream and step.
        """
        self.__dict__.update(state)
        self._stream = uuid.uuid4().hex if self._stream else ""

    @property
    def step(self) -> int:
        """Step of the episode that was begun or advanced to last."""
        return self._newest.step

    @property
    def instruction(self) -> str:
        """The episode's instruction, empty before the first :meth:`begin`."""
        return self._instruction

    @property
    def outlook(self) -> Outcome:
        """The newest step as of the latest answer, which may be to an older one; not paid."""
        return self._ledger.outlook(self._newest)

    def begin(self, frames: Mapping[str, Frame], instruction: str) -> list[DueQuery]:
        """Begin an episode with its first frame, at step 0.

        Args:
            frames: View name to picture, ``(height, width, 3) uint8``; copied.
            instruction: The task in words.

        Returns:
            The queries that are due, to be answered with :meth:`apply`.

        Raises:
            InstructionError: If the instruction is empty.
            FrameError: If a frame is not a picture.
        """
        self._instruction = check_instruction(instruction)
        # Random, so that a cache that outlives this process never takes one episode for another.
        self._stream = uuid.uuid4().hex
        for feed in self._feeds.values():
            feed.buffer.clear()
        self._ledger.reset()
        if self._changes is not None:
            self._changes.reset()
        self._outstanding.clear()
        self._declared = None
        return self._go_on(frames, StepEnd(step=0))

    def end(self) -> tuple[str, ...]:
        """Part with the episode's stream, for :meth:`procreward.runner.QueryRunner.release`.

        Queries from here to the next :meth:`begin` belong to no stream.

        Returns:
            The stream's name, or nothing when there is no episode or its stream was parted with.
        """
        ended = (self._stream,) if self._stream else ()
        self._stream = ""
        return ended

    def wants_frame(self, step: int, *, ended: bool = False) -> bool:
        """Tell whether :meth:`advance` needs the frames of a step.

        Args:
            step: The step, above the last one.
            ended: Whether the episode ends with it.
        """
        # The schedules differ in their windows only, so one speaks for both of what is due.
        if self._schedules[0].due(step, ended=ended, known=self._ledger.known):
            return True
        return any(schedule.wants_frame(step) for schedule in self._schedules)

    def must_wait(self, step: int) -> bool:
        """Tell whether an outstanding answer is needed before a step.

        That is so while no potential is known, since every step is asked about until one is, and
        where a query is ``max_lag_steps`` old by then.

        Args:
            step: The step, above the last one.
        """
        oldest = next((one.end.step for one in self._outstanding if one.dues), None)
        if oldest is None:
            return False
        return not self._ledger.known or step - oldest >= (self._max_lag or 0)

    def declared_end(self, step: int) -> tuple[bool, bool]:
        """Tell whether completion ends the episode with a step; blocking streams never tell.

        It does ``max_lag_steps`` after the first query, later than the reset, whose answer made
        the task count as complete. Ask when :meth:`must_wait` is False, and pass it on to
        :meth:`advance`.

        Args:
            step: The step, above the last one.

        Returns:
            Whether it terminates the episode, and whether it cuts it off.
        """
        ends = self._declared is not None and step >= self._declared
        mode = self.plan.config.on_complete
        return ends and mode == "terminate", ends and mode == "truncate"

    def advance(
        self,
        frames: Mapping[str, Frame] | None,
        step: int,
        *,
        terminated: bool = False,
        truncated: bool = False,
    ) -> list[DueQuery]:
        """Go on to the next step of the episode.

        Args:
            frames: View name to picture, ``(height, width, 3) uint8``; copied. May be None where
                :meth:`wants_frame` is False, and is not looked at there.
            step: The step, above the last one.
            terminated: Whether the environment reached a terminal state.
            truncated: Whether the environment cut the episode off.

        Returns:
            The queries that are due, to be answered with :meth:`apply`.

        Raises:
            FrameError: If frames are missing where they are wanted, or are not pictures.
        """
        if not self._instruction:
            raise InstructionError("advance() needs an episode; call begin() first.")
        if self._max_lag is None:
            # A step whose answers were lost to an exception is not paid.
            self._outstanding.clear()
        wanted = self.wants_frame(step, ended=terminated or truncated)
        if wanted and frames is None:
            raise FrameError(f"`frames` must be given at step {step}, as wants_frame() says.")
        end = StepEnd(step=step, terminated=terminated, truncated=truncated)
        return self._go_on(frames if wanted else None, end)

    def _go_on(self, frames: Mapping[str, Frame] | None, end: StepEnd) -> list[DueQuery]:
        self._newest = end
        dues = [] if frames is None else self._ask(frames, end)
        if dues:
            self._newest = end = replace(end, queried=True)
        self._outstanding.append(_Outstanding(end, dues))
        return list(dues)

    def _ask(self, frames: Mapping[str, Frame], end: StepEnd) -> list[DueQuery]:
        ended = end.terminated or end.truncated
        due = self._schedules[0].due(end.step, ended=ended, known=self._ledger.known)
        for role, feed in self._feeds.items():
            if due or feed.schedule.wants_frame(end.step):
                feed.buffer.push(shown_to(role, frames), end.step)
        if not due or self._may_skip(ended=ended):
            return []
        return [DueQuery(role=role, query=self._query(feed)) for role, feed in self._feeds.items()]

    def _may_skip(self, *, ended: bool) -> bool:
        if self._changes is None or ended or not self._ledger.valid:
            return False
        if self._ledger.complete and self.plan.config.on_complete != "info":
            return False
        return not self._changes.changed(self._latest())

    def _latest(self) -> dict[str, Frame]:
        return {
            f"{role}:{view}": frame
            for role, feed in self._feeds.items()
            for view, frame in feed.buffer.latest().items()
        }

    def _query(self, feed: _Feed) -> Query:
        clips, steps = feed.buffer.window()
        return Query(
            frames=clips,
            instruction=self._instruction,
            frame_steps=steps,
            stream=self._stream,
            fps=self._fps,
        )

    def apply(self, answers: Sequence[Answer]) -> Outcome:
        """Take in the answers to the oldest step that is not settled, and settle it.

        Args:
            answers: One per query that :meth:`begin` or :meth:`advance` returned, in order; empty
                if none was due.

        Returns:
            Potential, shaping, verdict and how the episode ends, if it does.

        Raises:
            ScorerError: If the number of answers is not that of the due queries.
        """
        oldest = self._outstanding[0] if self._outstanding else None
        if oldest is None or len(answers) != len(oldest.dues):
            due = "no step" if oldest is None else f"{len(oldest.dues)} due queries"
            raise ScorerError(
                f"apply() needs one answer per due query, got {len(answers)} for {due}; call it "
                "once after each begin() or advance()."
            )
        self._outstanding.popleft()
        end = oldest.end
        if not end.queried:
            return self._ledger.settle(end)
        by_role = {due.role: answer for due, answer in zip(oldest.dues, answers, strict=True)}
        score, judge_score = _score(by_role["scorer"]), _score(by_role.get("judge"))
        self._ledger.take(end.step, score, judge_score)
        if self._changes is not None and self._ledger.valid:
            self._changes.queried(self._latest())
        outcome = self._ledger.settle(self._completed(end), score=score, judge_score=judge_score)
        reason = failure_reason(by_role["scorer"])
        return outcome if reason is None else replace(outcome, reason=reason)

    def _completed(self, end: StepEnd) -> StepEnd:
        """Let completion end the episode, now or when everybody can know of it."""
        mode = self.plan.config.on_complete
        # Only at a query, so that the last potential is never a stale one, also when the task
        # counts as complete from the reset on.
        if mode == "info" or end.step == 0 or not self._ledger.complete:
            return end
        if self._max_lag is None:
            return replace(
                end,
                terminated=end.terminated or mode == "terminate",
                truncated=end.truncated or mode == "truncate",
            )
        if self._declared is None:
            self._declared = end.step + self._max_lag
        return end


def _score(answer: Answer | None) -> Score | None:
    return answer if isinstance(answer, Score) else None
