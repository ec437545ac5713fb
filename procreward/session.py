"""The one middle: frames of an episode in, due queries out; answers in, reward and verdict out.

* :class:`StreamPlan` - a :class:`~procreward.config.RewardConfig` with nothing left open.
* :class:`EpisodeStream` - buffer, schedule, potential, completion and shaping of one stream.
* :class:`Outcome` - what a step came to.

The wrapper feeds a stream from an environment, the checker from a robot, ``score_video`` from a
file. Asking (:meth:`EpisodeStream.advance`) and answering (:meth:`EpisodeStream.apply`) are two
methods, so that the due queries of many streams can be put to a model in one call
(:meth:`procreward.runner.QueryRunner.run`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from procreward.completion import CompletionTracker
from procreward.config import Preset, RewardConfig
from procreward.errors import FrameError, InstructionError, ScorerError
from procreward.frames import FrameBuffer
from procreward.instruction import check_instruction
from procreward.registry import ScorerHandle, resolve
from procreward.runner import Answer, DueQuery, QueryRunner, Role
from procreward.schedule import ChangeDetector, QuerySchedule
from procreward.shaping import Potential, Shaper, SuccessBonus
from procreward.types import Frame, Query, Score, Verdict

__all__ = ["EpisodeStream", "Outcome", "StreamPlan", "WindowPlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """What a query shows.

    Attributes:
        window_frames: Frames in a full window, at least 1.
        frame_stride_steps: Environment steps between neighbouring frames, at least 1.
        pad: Whether windows at an episode's start are filled with its first frame.
    """

    window_frames: int
    frame_stride_steps: int
    pad: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """Every setting of a stream, with the gaps of its config filled from the scorers' presets.

    Attributes:
        config: The settings as given.
        scorer: Who is asked for progress.
        judge: Who is asked for completion, or None.
        window: What the scorer is shown.
        judge_window: What the judge is shown, by the judge's own preset.
        frame_size: ``(width, height)`` in pixels of rendered cameras, or None for the default.
        complete_threshold: Value in (0, 1] at which a reading votes for completion.
    """

    config: RewardConfig
    scorer: ScorerHandle
    judge: ScorerHandle | None
    window: WindowPlan
    judge_window: WindowPlan | None
    frame_size: tuple[int, int] | None
    complete_threshold: float

    @classmethod
    def from_config(cls, config: RewardConfig) -> StreamPlan:
        """Look up the scorers and fill the gaps; builds and loads nothing.

        Raises:
            UnknownNameError: If there is no such scorer.
            ConfigError: If a threshold does not fit another.
        """
        scorer = resolve(config.scorer)
        judge = None if config.judge is None else resolve(config.judge)
        decider = scorer if judge is None else judge
        return cls(
            config=config,
            scorer=scorer,
            judge=judge,
            window=_window(config, scorer.preset),
            judge_window=None if judge is None else _window(RewardConfig(), judge.preset),
            frame_size=config.frame_size or scorer.preset.frame_size,
            complete_threshold=config.complete_threshold or decider.preset.complete_threshold,
        )

    def tracker(self) -> CompletionTracker:
        """Return a new completion tracker with these settings."""
        config = self.config
        return CompletionTracker(
            complete_threshold=self.complete_threshold,
            confirm_queries=config.confirm_queries,
            confirm_window=config.confirm_window,
            release_threshold=config.release_threshold,
            min_progress=config.min_progress,
            stall_queries=config.stall_queries,
            stall_delta=config.stall_delta,
            regression_delta=config.regression_delta,
        )

    def runner(self) -> QueryRunner:
        """Return a new query runner for the scorer and the judge."""
        limit = self.config.max_consecutive_failures
        return QueryRunner(self.scorer, self.judge, max_consecutive_failures=limit)


def _window(config: RewardConfig, preset: Preset) -> WindowPlan:
    return WindowPlan(
        window_frames=config.window_frames or preset.window_frames,
        frame_stride_steps=config.frame_stride_steps or preset.frame_stride_steps,
        pad=preset.pad if config.pad is None else config.pad,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one step of a stream came to.

    Attributes:
        step: Step of the episode, 0 at the reset.
        potential: The potential the shaping used: held between queries; 0.0 before the first
            reading and, in mode ``"pbrs"``, at a terminal state.
        shaping: Shaping reward of the step; 0.0 at the reset.
        bonus: Success bonus of the step; not 0.0 at most once an episode.
        terminated: Whether the episode terminates here, by its environment or by completion.
        truncated: Whether it is cut off here, by its environment or by completion.
        queried: Whether the scorer was asked at this step.
        valid: Whether the scorer's latest query was answered.
        age_steps: Steps since the frame that the potential was read from (since the reset while
            nothing is known).
        verdict: Progress, completion, stall and regression, as of the latest query.
        score: The scorer's answer at this step, or None if it gave none or was not asked.
        judge_score: The judge's answer at this step, likewise.
    """

    step: int
    potential: float
    shaping: float
    bonus: float
    terminated: bool
    truncated: bool
    queried: bool
    valid: bool
    age_steps: int
    verdict: Verdict
    score: Score | None = None
    judge_score: Score | None = None

    @property
    def progress(self) -> float:
        """Latest valid progress in [0, 1], 0.0 before the first."""
        return 0.0 if self.verdict.progress is None else self.verdict.progress

    @property
    def complete(self) -> bool:
        """Whether the task counts as done."""
        return self.verdict.complete


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

    Every step is two calls, in this order: :meth:`begin` or :meth:`advance`, which return the
    queries that are due (often none), then :meth:`apply` with their answers. Episodes follow each
    other in one stream; nothing of the last one is left after :meth:`begin`. Before that, and when
    the last one is over, :meth:`end` names what models may forget.

    Example:
        >>> import numpy as np
        >>> config = RewardConfig(scorer={"name": "scripted", "options": {"progress": [0.0, 0.5]}},
        ...                       every_k_steps=1, gamma=1.0)
        >>> plan = StreamPlan.from_config(config)
        >>> stream, runner = EpisodeStream(plan), plan.runner()
        >>> frames = {"main": np.full((8, 8, 3), 9, np.uint8)}
        >>> start = stream.apply(runner.run(stream.begin(frames, "reach the goal")))
        >>> stream.apply(runner.run(stream.advance(frames, 1))).shaping
        0.5
    """

    def __init__(self, plan: StreamPlan, *, fps: float | None = None) -> None:
        """Build the parts.

        Args:
            plan: The settings.
            fps: Steps per second of the source, passed on to the scorers, or None when unknown.
        """
        config = plan.config
        self.plan = plan
        self._fps = fps
        self._feeds: dict[Role, _Feed] = {"scorer": _Feed(config.every_k_steps, plan.window)}
        if plan.judge_window is not None:
            self._feeds["judge"] = _Feed(config.every_k_steps, plan.judge_window)
        self._schedules = [feed.schedule for feed in self._feeds.values()]
        self._changes = (
            None if config.skip_unchanged is None else ChangeDetector(config.skip_unchanged)
        )
        self._potential = Potential(
            ratchet=config.ratchet, smooth_alpha=config.smooth_alpha, offset=config.offset
        )
        self._shaper = Shaper(config.shaping, gamma=config.gamma, scale=config.scale)
        self._bonus = SuccessBonus(config.success_bonus)
        self._progress_tracker = plan.tracker()
        self._completion_tracker = self._progress_tracker if plan.judge is None else plan.tracker()
        self._instruction = ""
        self._stream = ""
        self._pending: list[DueQuery] | None = None
        self._start(0)

    def _start(self, step: int) -> None:
        self._step = self._read_step = step
        self._terminated = self._truncated = self._valid = False
        self._verdict = self._progress_tracker.verdict

    @property
    def step(self) -> int:
        """Step of the episode that was begun or advanced to last."""
        return self._step

    @property
    def instruction(self) -> str:
        """The episode's instruction, empty before the first :meth:`begin`."""
        return self._instruction

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
        for part in (self._potential, self._shaper, self._bonus):
            part.reset()
        for tracker in (self._progress_tracker, self._completion_tracker):
            tracker.reset()
        if self._changes is not None:
            self._changes.reset()
        self._start(0)
        return self._ask(frames)

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
        schedules = self._schedules
        # The schedules differ in their windows only, so one speaks for both of what is due.
        if schedules[0].due(step, ended=ended, known=self._potential.known):
            return True
        return any(schedule.wants_frame(step) for schedule in schedules)

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
        ended = terminated or truncated
        wanted = self.wants_frame(step, ended=ended)
        if wanted and frames is None:
            raise FrameError(f"`frames` must be given at step {step}, as wants_frame() says.")
        self._step, self._terminated, self._truncated = step, terminated, truncated
        if wanted and frames is not None:
            return self._ask(frames)
        self._pending = []
        return []

    def _ask(self, frames: Mapping[str, Frame]) -> list[DueQuery]:
        step, known = self._step, self._potential.known
        ended = self._terminated or self._truncated
        self._pending = []
        due = self._schedules[0].due(step, ended=ended, known=known)
        for feed in self._feeds.values():
            if due or feed.schedule.wants_frame(step):
                feed.buffer.push(frames, step)
        if not due:
            return []
        if self._may_skip(frames, ended=ended):
            return []
        self._pending = [
            DueQuery(role=role, query=self._query(feed)) for role, feed in self._feeds.items()
        ]
        return list(self._pending)

    def _may_skip(self, frames: Mapping[str, Frame], *, ended: bool) -> bool:
        if self._changes is None or ended or not self._valid:
            return False
        if self._verdict.complete and self.plan.config.on_complete != "info":
            return False
        return not self._changes.changed(frames)

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
        """Take in the answers to the queries that were due, and settle the step.

        Args:
            answers: One per query that :meth:`begin` or :meth:`advance` returned, in order; empty
                if none was due.

        Returns:
            Potential, shaping, verdict and how the episode ends, if it does.

        Raises:
            ScorerError: If the number of answers is not that of the due queries.
        """
        pending = self._pending
        if pending is None or len(answers) != len(pending):
            due = "no step" if pending is None else f"{len(pending)} due queries"
            raise ScorerError(
                f"apply() needs one answer per due query, got {len(answers)} for {due}; call it "
                "once after each begin() or advance()."
            )
        self._pending = None
        if not pending:
            return self._settle(queried=False, score=None, judge_score=None)
        scores = {due.role: _score_of(answer) for due, answer in zip(pending, answers, strict=True)}
        score, judge_score = scores["scorer"], scores.get("judge")
        self._take(score, judge_score)
        return self._settle(queried=True, score=score, judge_score=judge_score)

    def _take(self, score: Score | None, judge_score: Score | None) -> None:
        reading = _reading(score)
        self._valid = reading is not None
        self._potential.update(reading)
        self._progress_tracker.update(score, self._step)
        if self._completion_tracker is not self._progress_tracker:
            self._completion_tracker.update(self._guarded(judge_score), self._step)
        self._verdict = self._merged_verdict()
        if reading is not None:
            self._read_step = self._step
            if self._changes is not None:
                self._changes.queried(self._feeds["scorer"].buffer.latest())

    def _guarded(self, judge_score: Score | None) -> Score | None:
        """Give a judge that knows no progress the scorer's, for the guard `min_progress`."""
        if judge_score is None or not judge_score.valid or judge_score.progress is not None:
            return judge_score
        if self.plan.config.min_progress is None:
            return judge_score
        return replace(judge_score, progress=self._progress_tracker.verdict.progress)

    def _settle(self, *, queried: bool, score: Score | None, judge_score: Score | None) -> Outcome:
        config = self.plan.config
        verdict = self._verdict
        potential = self._potential.value if self._potential.known else None
        terminated, truncated = self._terminated, self._truncated
        shaping = bonus = 0.0
        if self._step == 0:
            self._shaper.reset(potential)
            self._bonus.reset(success=verdict.complete)
        else:
            # Only at a query, so that the last potential is never a stale one, also when the task
            # counts as complete from the reset on.
            ends = verdict.complete and queried
            terminated |= ends and config.on_complete == "terminate"
            truncated |= ends and config.on_complete == "truncate"
            shaping = self._shaper.step(potential, terminated=terminated)
            bonus = self._bonus.step(verdict.complete)
        zeroed = terminated and config.shaping == "pbrs"
        return Outcome(
            step=self._step,
            potential=0.0 if zeroed or potential is None else potential,
            shaping=shaping,
            bonus=bonus,
            terminated=terminated,
            truncated=truncated,
            queried=queried,
            valid=self._valid,
            age_steps=self._step - self._read_step,
            verdict=verdict,
            score=score,
            judge_score=judge_score,
        )

    def _merged_verdict(self) -> Verdict:
        verdict = self._progress_tracker.verdict
        if self._completion_tracker is self._progress_tracker:
            return verdict
        complete = self._completion_tracker.verdict.complete
        return replace(verdict, complete=complete, stalled=verdict.stalled and not complete)


def _score_of(answer: Answer) -> Score | None:
    return answer if isinstance(answer, Score) else None


def _reading(score: Score | None) -> float | None:
    """The number a potential is made of: progress, else the completion as far as it is known."""
    if score is None:
        return None
    if score.progress is not None:
        return score.progress
    if score.success_prob is not None:
        return score.success_prob
    return None if score.complete is None else float(score.complete)
