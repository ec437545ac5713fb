"""What an episode comes to in figures: stalls, drops, value-order correlation.

* :class:`Thresholds` - what counts as a stall or a drop.
* :func:`find_flags` - stretches of an episode that deserve a look.
* :func:`value_order_correlation` - VOC.
* :func:`spans` - where a condition holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from procreward.completion import CompletionTracker
from procreward.models.nano.metrics import spearman
from procreward.report.records import StepTrace
from procreward.types import Score, Verdict

__all__ = ["Flag", "FlagKind", "Thresholds", "find_flags", "spans", "value_order_correlation"]

FlagKind: TypeAlias = Literal["stall", "drop", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts as a stall or a drop, as :class:`~procreward.completion.CompletionTracker` says.

    Attributes:
        stall_queries: Readings without a new best that make a stall.
        stall_delta: Rise of the best reading in (0, 1] that ends one.
        regression_delta: Fall below the best reading in (0, 1] that makes a drop.
    """

    stall_queries: int = 5
    stall_delta: float = 0.02
    regression_delta: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A stretch of an episode that deserves a look.

    Attributes:
        kind: ``"stall"``: the best reading did not rise; ``"drop"``: the readings were below the
            best one; ``"invalid"``: a query without a usable answer.
        start: First step. Of a stall, that of the reading which the others did not exceed; of a
            drop, that of the first low reading.
        end: Last step: that of the reading which ends it, or of the episode's last one.
        best: The best reading so far in [0, 1]; None for an invalid answer.
        lowest: The lowest reading of a drop; None for the others.
    """

    kind: FlagKind
    start: int
    end: int
    best: float | None = None
    lowest: float | None = None


def find_flags(trace: Sequence[StepTrace], thresholds: Thresholds | None = None) -> list[Flag]:
    """Find stalls, drops and invalid answers.

    Completion is taken from the record, so a task that counts as done does not stall.

    Args:
        trace: The steps of an episode.
        thresholds: What counts.

    Returns:
        The flags, by their first step.
    """
    limits = thresholds or Thresholds()
    asked = [entry for entry in trace if entry.queried]
    read = [entry for entry in asked if entry.valid and entry.progress is not None]
    values = [entry.progress or 0.0 for entry in read]
    verdicts = _verdicts(read, limits)
    after = [entry.step for entry in read[1:]] + [entry.step for entry in read[-1:]]
    flags = [
        Flag(kind="invalid", start=entry.step, end=entry.step) for entry in asked if not entry.valid
    ]
    for first, last in spans(verdict.stalled for verdict in verdicts):
        start = read[max(0, first - limits.stall_queries)].step
        best = max(values[: last + 1])
        flags.append(Flag(kind="stall", start=start, end=after[last], best=best))
    for first, last in spans(verdict.regressed for verdict in verdicts):
        start, best = read[first].step, max(values[:first])
        lowest = min(values[first : last + 1])
        flags.append(Flag(kind="drop", start=start, end=after[last], best=best, lowest=lowest))
    return sorted(flags, key=lambda flag: (flag.start, flag.kind))


def _verdicts(read: Sequence[StepTrace], limits: Thresholds) -> list[Verdict]:
    tracker = CompletionTracker(
        complete_threshold=1.0,
        confirm_queries=1,
        confirm_window=1,
        stall_queries=limits.stall_queries,
        stall_delta=limits.stall_delta,
        regression_delta=limits.regression_delta,
    )
    return [
        tracker.update(Score(progress=entry.progress, complete=entry.complete), entry.step)
        for entry in read
    ]


def value_order_correlation(trace: Iterable[StepTrace]) -> float | None:
    """Return how well the order of the readings is the order of time (VOC).

    Spearman's rank correlation between the valid readings and the steps of their queries, in
    [-1, 1], as Generative Value Learning (Ma et al., 2024, arXiv:2411.04549) defines it; 0.0 if all
    readings are equal. It measures order only: a clock scores 1.0, and so does a model that never
    gets beyond 10 percent.

    Returns:
        The correlation, or None with fewer than two readings.
    """
    readings = [
        (entry.step, entry.progress)
        for entry in trace
        if entry.queried and entry.valid and entry.progress is not None
    ]
    if len(readings) < 2:
        return None
    steps, values = zip(*readings, strict=True)
    return spearman(values, steps)


def spans(flags: Iterable[bool]) -> list[tuple[int, int]]:
    """Return first and last index of every run of true values.

    Example:
        >>> spans([False, True, True, False, True])
        [(1, 2), (4, 4)]
    """
    found: list[tuple[int, int]] = []
    for index, flag in enumerate(flags):
        if flag and found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        elif flag:
            found.append((index, index))
    return found
