"""``CompletionChecker``: is the subtask done yet? For a robot's stream, without an environment."""

from __future__ import annotations

from collections.abc import Mapping

from procreward.checks import check, is_number
from procreward.config import DEFAULT, RewardConfig, ScorerSpec, given_settings
from procreward.instruction import check_instruction
from procreward.runner import QueryStats
from procreward.session import EpisodeStream, Outcome, StreamPlan
from procreward.types import Frame, Score, Verdict

__all__ = ["MAIN_VIEW", "CompletionChecker"]

MAIN_VIEW = "main"
"""Name of the view when frames come without one."""


class CompletionChecker:
    """Watches one stream of frames and says when its subtask is complete.

    The frames go through the same buffer, schedule and completion tracker as those of
    :class:`~procreward.wrapper.ProgressReward`, so that a checker agrees with the wrapper on the
    same frames.

    Example:
        >>> import gymnasium as gym
        >>> from procreward import CompletionChecker
        >>> judge = {"name": "scripted", "options": {"progress": [0.5, 1.0, 1.0]}}
        >>> checker = CompletionChecker(judge, "reach the goal")
        >>> env = gym.make("procreward.envs:procreward/Toy-v0", render_mode="rgb_array")
        >>> _ = env.reset(seed=0)
        >>> for _ in range(3):
        ...     checker.push(env.render())
        ...     print(checker.verdict().complete)
        False
        False
        True
        >>> env.close()
    """

    def __init__(
        self,
        judge: ScorerSpec,
        instruction: str,
        *,
        every_k_frames: int = 1,
        window_frames: int | None = DEFAULT.window_frames,
        frame_stride_frames: int | None = None,
        pad: bool | None = DEFAULT.pad,
        skip_unchanged: float | None = DEFAULT.skip_unchanged,
        complete_threshold: float | None = DEFAULT.complete_threshold,
        confirm_queries: int = DEFAULT.confirm_queries,
        confirm_window: int = DEFAULT.confirm_window,
        release_threshold: float | None = DEFAULT.release_threshold,
        stall_queries: int | None = DEFAULT.stall_queries,
        stall_delta: float = DEFAULT.stall_delta,
        regression_delta: float | None = DEFAULT.regression_delta,
        max_consecutive_failures: int = DEFAULT.max_consecutive_failures,
        fps: float | None = None,
    ) -> None:
        """Check the settings; load nothing.

        Args:
            judge: The model that is asked, as :func:`procreward.registry.resolve` takes it. A
                progress model does as well as a judge: it votes by its threshold.
            instruction: The subtask in words.
            every_k_frames: Frames from one query to the next, at least 1.
            window_frames: Frames in a query; None for the preset's.
            frame_stride_frames: Pushed frames between neighbouring frames of a window; None for
                the preset's.
            pad: Whether the first windows repeat the first frame; None for the preset's.
            skip_unchanged: Mean absolute difference in grey levels [0, 255] under which a query is
                left out; None never leaves one out.
            complete_threshold: Reading in (0, 1] that votes for completion; None for the preset's.
            confirm_queries: Votes that completion needs among the last ``confirm_window``.
            confirm_window: Votes that are counted.
            release_threshold: Reading in [0, threshold] under which completion is given up, or
                None.
            stall_queries: Queries without improvement that make a stall, or None.
            stall_delta: Rise of progress in (0, 1] that counts as improvement.
            regression_delta: Fall of progress in (0, 1] that counts as regression, or None.
            max_consecutive_failures: Failed queries in a row after which an error is raised.
            fps: Frames pushed per second, for models that are told; None when unknown.

        Raises:
            ConfigError: If a setting is out of range.
            UnknownNameError: If there is no such judge.
            InstructionError: If the instruction is empty.
        """
        ok = fps is None or (is_number(fps) and fps > 0)
        check(ok, "fps", "above 0, or None when unknown", fps)
        given = given_settings(locals())
        del given["judge"], given["instruction"]
        config = RewardConfig.for_frames(
            judge, every_k_frames=every_k_frames, frame_stride_frames=frame_stride_frames, **given
        )
        plan = StreamPlan.from_config(config)
        self._stream = EpisodeStream(plan, fps=fps)
        self._runner = plan.runner()
        self._outcome: Outcome | None = None
        self._last_score: Score | None = None
        self.reset(instruction)

    @property
    def instruction(self) -> str:
        """The subtask in words."""
        return self._instruction

    @property
    def stats(self) -> QueryStats:
        """How the queries have gone so far; a snapshot."""
        return self._runner.stats

    @property
    def outcome(self) -> Outcome | None:
        """What the latest frame came to; None before the first."""
        return self._outcome

    @property
    def last_score(self) -> Score | None:
        """The judge's answer to the subtask's latest query, None if it raised or was not asked."""
        return self._last_score

    def reset(self, instruction: str | None = None) -> None:
        """Forget the stream so far: another subtask, or another attempt, begins.

        Args:
            instruction: The new subtask in words; None keeps the old one.

        Raises:
            InstructionError: If the instruction is empty.
        """
        if instruction is not None:
            self._instruction = check_instruction(instruction)
        self._runner.release(self._stream.end())
        self._outcome = self._last_score = None

    def close(self) -> None:
        """Let the judge forget the stream, as :meth:`reset` does; for after the last frame."""
        self.reset()

    def push(self, frames: Frame | Mapping[str, Frame]) -> None:
        """Show the next frame, and ask the judge if a query is due.

        Args:
            frames: One picture, ``(height, width, 3) uint8``, or view name to picture; copied.

        Raises:
            FrameError: If it is not a picture, or differs in views or shape from those before.
            ScorerError: If the judge breaks its contract, or fails too often.
            ModelError: If the judge cannot be loaded.
        """
        views = frames if isinstance(frames, Mapping) else {MAIN_VIEW: frames}
        if self._outcome is None:
            dues = self._stream.begin(views, self._instruction)
        else:
            dues = self._stream.advance(views, self._stream.step + 1)
        self._outcome = self._stream.apply(self._runner.run(dues))
        if self._outcome.queried:
            self._last_score = self._outcome.score

    def verdict(self) -> Verdict:
        """Return what is known so far; before the first frame a verdict that knows nothing."""
        if self._outcome is None:
            return Verdict(
                complete=False, progress=None, stalled=False, regressed=False, step=0, valid=False
            )
        return self._outcome.verdict
