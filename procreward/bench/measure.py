"""Runs a job on three paths in turns and compares time and answers.

The paths are ours, the documented one (one question at a time) and transformers' batched one. A
block is a few moments of ours with one moment of each baseline among them, so that whatever else
the machine does hits all three; ratios are taken block by block and their median counts. The
baselines' moments are compared answer by answer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from procreward.checks import check
from procreward.engine.fast import EngineStats, FastEngine
from procreward.types import Query, Score, Scorer

__all__ = ["Figures", "Goal", "Job", "compare", "judge_goals", "run_job"]

Figures = dict[str, float]
"""Flat results: ``<job>_<what>`` to number."""

Say = Callable[[str], None]

_VALUES = ("nll_", "log_true", "log_false")
_MISSING = 1.0
"""Difference of two scores where only one has a value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """Something to measure.

    Attributes:
        name: Prefix of its figures.
        engine: Our engine, for its counts.
        ours: The scorer on our engine.
        documented: The same scorer on :class:`~procreward.bench.baselines.OneByOne`.
        batched: The same scorer on :class:`~procreward.bench.baselines.Batched`.
        moments: The questions of each moment, which are asked together.
        warm_up: Questions that are asked first on each path and do not count.
        every: Moments of ours to one of each baseline.
        documented_queries: Most questions of a moment that the documented path is asked.
    """

    name: str
    engine: FastEngine
    ours: Scorer
    documented: Scorer
    batched: Scorer
    moments: Iterable[list[Query]]
    warm_up: Sequence[Query]
    every: int = 4
    documented_queries: int = 64


@dataclass(slots=True)
class _Block:
    """Seconds and questions of each path."""

    seconds: dict[str, float] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def add(self, path: str, seconds: float, asked: int) -> None:
        self.seconds[path] = self.seconds.get(path, 0.0) + seconds
        self.asked[path] = self.asked.get(path, 0) + asked

    def per_query(self, path: str) -> float:
        return self.seconds[path] / self.asked[path]


@dataclass(slots=True)
class _Comparison:
    """How often answers are the same, and by how much they differ at most."""

    same: int = 0
    asked: int = 0
    difference: float = 0.0

    def add(self, ours: Sequence[Score], theirs: Sequence[Score]) -> None:
        for one, other in zip(ours, theirs, strict=True):
            same, difference = compare(one, other)
            self.same += same
            self.asked += 1
            self.difference = max(self.difference, difference)


def compare(one: Score, other: Score) -> tuple[bool, float]:
    """Compare two answers to one question.

    Args:
        one: An answer.
        other: Another.

    Returns:
        Whether the texts are the same, and the largest difference of what was read from them:
        likelihoods in nats where there are any, else progress.
    """
    names = [name for name in one.details if name.startswith(_VALUES)]
    if names:
        gaps = [abs(one.details[name] - other.details[name]) for name in names]
    elif one.progress is None or other.progress is None:
        gaps = [0.0 if one.progress == other.progress else _MISSING]
    else:
        gaps = [abs(one.progress - other.progress)]
    return one.text == other.text, max(gaps)


def run_job(job: Job) -> Figures:
    """Measure a job.

    Args:
        job: The job.

    Returns:
        ``ratio`` (documented / ours), ``vs_batched`` (batched / ours), milliseconds per query of
        each path, ``max_abs_diff``, ``same_text`` and what the engine counted, each with the job's
        name in front.
    """
    _warm_up(job)
    before = job.engine.stats
    blocks: list[_Block] = []
    comparison = _Comparison()
    texts: dict[str, str] = {}
    tokens: list[float] = []
    changed: list[bool] = []
    streams: set[str] = set()
    number = -1
    for number, queries in enumerate(job.moments):
        streams = _release_ended(job, streams, queries)
        if number % job.every == 0:
            blocks.append(_Block())
        scores = _moment(job, blocks[-1], comparison, queries, number)
        for query, score in zip(queries, scores, strict=True):
            tokens.append(score.details.get("tokens", 0.0))
            if query.stream in texts:
                changed.append(texts[query.stream] != score.text)
            texts[query.stream] = score.text
    # A last block that was cut short has its baselines all the same.
    check(number >= 0, "moments", "at least one", number + 1)
    figures = _times(blocks)
    figures["max_abs_diff"] = comparison.difference
    figures["same_text"] = comparison.same / comparison.asked
    figures["compared"] = float(comparison.asked)
    figures["answer_tokens"] = statistics.fmean(tokens)
    figures["changed_text_share"] = statistics.fmean(changed) if changed else 0.0
    figures |= _counts(before, job.engine.stats, number + 1)
    return {f"{job.name}_{key}": value for key, value in figures.items()}


def _moment(
    job: Job, block: _Block, comparison: _Comparison, queries: list[Query], number: int
) -> list[Score]:
    """Ask the questions of one moment: our path always, the baselines in their turn."""
    few = [replace(query, stream="") for query in queries]
    paths: list[tuple[str, Scorer, list[Query]]] = [("ours", job.ours, queries)]
    if number % job.every == 0:
        paths.append(("documented", job.documented, few[: job.documented_queries]))
        paths.append(("batched", job.batched, few))
        # Whoever comes first finds other caches than who comes last.
        turn = number // job.every % len(paths)
        paths = paths[turn:] + paths[:turn]
    scores: dict[str, list[Score]] = {}
    for path, scorer, asked in paths:
        began = time.perf_counter()
        scores[path] = scorer.score(asked)
        block.add(path, time.perf_counter() - began, len(asked))
    if "documented" in scores:
        ours = scores["ours"]
        comparison.add(ours[: job.documented_queries], scores["documented"])
    return scores["ours"]


def _warm_up(job: Job) -> None:
    queries = list(job.warm_up)
    bare = [replace(query, stream="") for query in queries]
    for scorer, asked in ((job.documented, bare), (job.batched, bare)):
        scorer.score(asked)
    for _ in range(2):  # the second time with a draft
        job.ours.score(queries)
    job.engine.release({query.stream for query in queries})


def _release_ended(job: Job, before: set[str], queries: Sequence[Query]) -> set[str]:
    """Let the engine forget episodes that are over, as a wrapper does."""
    now = {query.stream for query in queries}
    ended = before - now
    if ended:
        job.engine.release(ended)
    return now


def _times(blocks: Sequence[_Block]) -> Figures:
    def median(of: Callable[[_Block], float]) -> float:
        return statistics.median(map(of, blocks))

    figures = {
        "ratio": median(lambda block: block.per_query("documented") / block.per_query("ours")),
        "vs_batched": median(lambda block: block.per_query("batched") / block.per_query("ours")),
    }
    for path in ("ours", "documented", "batched"):
        figures[f"{path}_ms_per_query"] = 1000 * median(
            lambda block, path=path: block.per_query(path)  # type: ignore[misc]  # a lambda's default
        )
    figures["blocks"] = float(len(blocks))
    figures["queries"] = float(sum(block.asked["ours"] for block in blocks))
    return figures


def _counts(before: EngineStats, after: EngineStats, calls: int) -> Figures:
    """What the engine did between two snapshots, as shares and per call."""

    def more(name: str) -> float:
        return float(getattr(after, name) - getattr(before, name))

    def share(part: str, rest: str) -> float:
        whole = more(part) + more(rest)
        return more(part) / whole if whole else 0.0

    offered = more("drafts_offered")
    return {
        "passes_per_call": more("passes") / calls,
        "draft_acceptance": more("drafts_accepted") / offered if offered else 0.0,
        "frames_reused_share": share("frames_reused", "frames_encoded"),
        "tokens_reused_share": share("tokens_reused", "tokens_read"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure is to reach.

    Attributes:
        figure: Its name.
        bound: The bound.
        least: Whether it is to be at least that, or at most.
    """

    figure: str
    bound: float
    least: bool = True

    def met(self, figures: Figures) -> bool | None:
        """Whether the goal is met; None where the figure was not measured."""
        value = figures.get(self.figure)
        if value is None:
            return None
        return value >= self.bound if self.least else value <= self.bound


def judge_goals(figures: Figures, goals: Iterable[Goal], say: Say) -> int:
    """Say of every goal whether it is met.

    Args:
        figures: What was measured.
        goals: The goals; those whose figure is missing are left out.
        say: Takes one line.

    Returns:
        How many are missed.
    """
    missed = 0
    for goal in goals:
        met = goal.met(figures)
        if met is None:
            continue
        missed += not met
        sign = ">=" if goal.least else "<="
        value = figures[goal.figure]
        say(f"{goal.figure:40} {value:12.6g}  goal {sign} {goal.bound:g}: {_word(met)}")
    return missed


def _word(met: bool) -> str:
    return "met" if met else "MISSED"
