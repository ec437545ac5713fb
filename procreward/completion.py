"""Whether a subtask is complete, stalled or going backwards, from the scores so far.

One answer of a model is weak evidence; :class:`CompletionTracker` asks for several.
"""

from __future__ import annotations

from collections import deque

from procreward.checks import check, check_int, check_unit
from procreward.types import Score, Verdict

__all__ = ["CompletionTracker"]

# Sums of decimal fractions miss by an ulp; nobody means a threshold that finely.
_TOLERANCE = 1e-9


class CompletionTracker:
    """Turns the scores of one episode into verdicts.

    **Votes.** A score votes by its ``complete`` label if it has one, else by ``success_prob >=
    complete_threshold``, else by ``progress >= complete_threshold``. A failed query casts no vote:
    it neither speaks for completion nor against it, and the votes before it still count. The
    subtask is complete when ``confirm_queries`` of the last ``confirm_window`` votes say so.

    **Hysteresis.** Without ``release_threshold`` the subtask is complete for just as long as the
    votes say so. With it, a complete subtask stays complete until the reading (``success_prob``,
    else ``progress``, else the label as 0 or 1) is below ``release_threshold`` in
    ``confirm_queries`` answered queries in a row; the votes then start anew.

    **Stall.** ``stalled`` is set when the best progress has not risen by ``stall_delta`` in the
    last ``stall_queries`` queries with a progress, and cleared when it does. Slow progress adds
    up. A complete subtask is not stalled.

    **Regression.** ``regressed`` is set while progress is ``regression_delta`` or more below the
    best of the episode.

    Args:
        complete_threshold: Least reading in (0, 1] that votes for completion.
        confirm_queries: Votes that are needed, at least 1.
        confirm_window: Latest votes that are counted, at least ``confirm_queries``; equal to it
            means votes in a row.
        release_threshold: Reading in [0, ``complete_threshold``] below which completion is given
            up, or None.
        min_progress: Least progress in [0, 1] for a vote to count as one for completion, a guard
            against a judge that is fooled; the latest known progress is used if the score has
            none, and while none is known no vote is one for completion. None for no guard.
        stall_queries: Queries without improvement that make a stall, at least 1, or None for never.
        stall_delta: Rise of the best progress in [0, 1] that counts as improvement.
        regression_delta: Fall from the best progress in (0, 1] that counts as regression, or None
            for never.

    Raises:
        ConfigError: If a setting is out of range.

    Example:
        >>> tracker = CompletionTracker(
        ...     complete_threshold=0.9, confirm_queries=2, confirm_window=3
        ... )
        >>> readings = [0.5, 0.95, 0.4, 1.0, 0.2, 0.2]
        >>> [tracker.update(Score(progress=p), i).complete for i, p in enumerate(readings)]
        [False, False, False, True, False, False]
    """

    def __init__(
        self,
        *,
        complete_threshold: float,
        confirm_queries: int = 2,
        confirm_window: int = 3,
        release_threshold: float | None = None,
        min_progress: float | None = None,
        stall_queries: int | None = None,
        stall_delta: float = 0.02,
        regression_delta: float | None = None,
    ):
        check_unit("complete_threshold", complete_threshold, allow_zero=False)
        check_int("confirm_queries", confirm_queries, least=1)
        fix = "`confirm_queries` of these votes are needed."
        check_int("confirm_window", confirm_window, least=confirm_queries, fix=fix)
        ok = release_threshold is None or 0.0 <= release_threshold <= complete_threshold
        rule = f"in [0, {complete_threshold}] (`complete_threshold`) or None"
        check(ok, "release_threshold", rule, release_threshold)
        if min_progress is not None:
            check_unit("min_progress", min_progress, allow_zero=True)
        if stall_queries is not None:
            check_int("stall_queries", stall_queries, least=1)
        check_unit("stall_delta", stall_delta, allow_zero=False)
        if regression_delta is not None:
            check_unit("regression_delta", regression_delta, allow_zero=False)
        self.complete_threshold = complete_threshold
        self.confirm_queries = confirm_queries
        self.confirm_window = confirm_window
        self.release_threshold = release_threshold
        self.min_progress = min_progress
        self.stall_queries = stall_queries
        self.stall_delta = stall_delta
        self.regression_delta = regression_delta
        self._votes: deque[bool] = deque(maxlen=confirm_window)
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new episode or another subtask begins."""
        self._votes.clear()
        self._complete = False
        self._low_readings = 0
        self._progress: float | None = None
        self._best = 0.0
        self._improved_from = 0.0
        self._without_improvement = 0
        self._verdict = self._make_verdict(0, None)

    @property
    def verdict(self) -> Verdict:
        """The latest verdict; before the first query one that knows nothing."""
        return self._verdict

    @property
    def best(self) -> float | None:
        """Best progress of the episode in [0, 1], or None before the first."""
        return None if self._progress is None else self._best

    def update(self, score: Score | None, step: int) -> Verdict:
        """Take in the answer to one query.

        Args:
            score: The answer, or None when the scorer gave none at all.
            step: Step of the episode that the query was about.

        Returns:
            The verdict after it.
        """
        if score is not None and score.progress is not None:
            self._track_progress(score.progress)
        if score is not None and score.valid:
            self._track_completion(score)
        self._verdict = self._make_verdict(step, score)
        return self._verdict

    def _track_progress(self, progress: float) -> None:
        first = self._progress is None
        self._progress = progress
        if first or progress > self._best:
            self._best = progress
        if first or progress - self._improved_from >= self.stall_delta - _TOLERANCE:
            self._improved_from = progress
            self._without_improvement = 0
        else:
            self._without_improvement += 1

    def _track_completion(self, score: Score) -> None:
        self._votes.append(self._vote(score))
        confirmed = sum(self._votes) >= self.confirm_queries
        if self.release_threshold is None or not self._complete:
            self._complete = confirmed
            self._low_readings = 0
            return
        low = _reading(score) < self.release_threshold
        self._low_readings = self._low_readings + 1 if low else 0
        if self._low_readings >= self.confirm_queries:
            self._complete = False
            self._votes.clear()

    def _vote(self, score: Score) -> bool:
        if self.min_progress is not None and (
            self._progress is None or self._progress < self.min_progress
        ):
            return False
        if score.complete is not None:
            return score.complete
        return _reading(score) >= self.complete_threshold

    def _make_verdict(self, step: int, score: Score | None) -> Verdict:
        progress = self._progress
        return Verdict(
            complete=self._complete,
            progress=progress,
            stalled=not self._complete
            and self.stall_queries is not None
            and self._without_improvement >= self.stall_queries,
            regressed=progress is not None
            and self.regression_delta is not None
            and self._best - progress >= self.regression_delta - _TOLERANCE,
            step=step,
            valid=score is not None and score.valid,
            text="" if score is None else score.text,
        )


def _reading(score: Score) -> float:
    """The number a valid score is compared with thresholds by."""
    if score.success_prob is not None:
        return score.success_prob
    if score.progress is not None:
        return score.progress
    return float(bool(score.complete))
