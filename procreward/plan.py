"""A :class:`~procreward.config.RewardConfig` with nothing left open.

* :class:`StreamPlan` - every setting of a stream, the gaps filled from the scorers' presets.
* :class:`WindowPlan` - what a query shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from procreward.completion import CompletionTracker
from procreward.config import Preset, RewardConfig, ScorerSpec
from procreward.registry import ScorerHandle, resolve
from procreward.runner import QueryRunner
from procreward.types import Scorer

__all__ = ["StreamPlan", "WindowPlan"]


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
        config: The settings as given, live scorers by their names in this process.
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
            # A plan is copied and pickled with its environment, and a model is not.
            config=config.replace(
                scorer=_named(config.scorer, scorer),
                judge=None if judge is None else _named(config.judge, judge),
            ),
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


def _named(given: ScorerSpec | None, handle: ScorerHandle) -> ScorerSpec | None:
    return handle.spec if isinstance(given, Scorer) else given


def _window(config: RewardConfig, preset: Preset) -> WindowPlan:
    return WindowPlan(
        window_frames=config.window_frames or preset.window_frames,
        frame_stride_steps=config.frame_stride_steps or preset.frame_stride_steps,
        pad=preset.pad if config.pad is None else config.pad,
    )
