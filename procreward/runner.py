"""Putting due queries to the scorers, and counting what came back.

* :class:`DueQuery` - a question and which of the two models it is for.
* :class:`Failure` - what stands in for an answer when the model raised.
* :func:`failure_reason` - why an answer is none.
* :class:`QueryRunner` - asks, one call per model however many streams have questions due.
* :class:`QueryStats` - how that has gone so far.

Models are not made for two threads, so those of one process take turns at each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from procreward.errors import (
    ModelError,
    ProcrewardError,
    ScorerError,
    ScorerFailedError,
    ServerError,
)
from procreward.registry import ScorerHandle, built_scorer, get_scorer
from procreward.types import Query, Score, Scorer

__all__ = [
    "Answer",
    "DueQuery",
    "Failure",
    "QueryRunner",
    "QueryStats",
    "Role",
    "failure_reason",
]

logger = logging.getLogger(__name__)

Role: TypeAlias = Literal["scorer", "judge"]

# One each per scorer of this process. Re-entrant: the garbage collector may close an environment,
# which releases its streams, in the middle of a call.
_turns: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)


@dataclass(frozen=True, slots=True, kw_only=True)
class DueQuery:
    """A query that is to be put to a model now.

    Attributes:
        role: Whether the scorer (progress) or the judge (completion) is asked.
        query: The question.
    """

    role: Role
    query: Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A query to which the model gave no answer because it raised.

    Attributes:
        reason: Name of the exception, or what a server failed of (``"timeout"``), for counting.
        message: What it said.
    """

    reason: str
    message: str


Answer: TypeAlias = Score | Failure
"""What a model made of one query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryStats:
    """How the queries have gone since the runner was built; a snapshot.

    Attributes:
        queries: Queries put to the scorer and the judge.
        failures: How many of them got no usable answer.
        consecutive_failures: Calls in a row, up to now, in which no query of a model was answered.
        invalid_reasons: Reason to number of failures.
        clamped: Answers whose number lay out of range and was clamped by the scorer
            (``Score.details["clamped"]``).
        waiting_s: Seconds spent inside the models, and waiting for a turn at them.
        blocked_s: Seconds for which the caller's thread stood still for answers; the same as
            ``waiting_s``, unless a wrapper asks with ``latency="deferred"``.
    """

    queries: int = 0
    failures: int = 0
    consecutive_failures: int = 0
    invalid_reasons: Mapping[str, int] = field(default_factory=dict)
    clamped: int = 0
    waiting_s: float = 0.0
    blocked_s: float = 0.0


class QueryRunner:
    """Asks the scorer and the judge, gets each from the process-wide cache at the first query.

    A model that raises has failed to answer: that is counted, and the caller holds its potential.
    A scorer that breaks its contract (wrong number or type of answers, a value out of range, input
    that it refuses) is a defect and raises at once, as does a model that cannot be loaded.
    """

    def __init__(
        self,
        scorer: ScorerHandle,
        judge: ScorerHandle | None = None,
        *,
        max_consecutive_failures: int,
    ) -> None:
        """Keep the handles; builds nothing.

        Args:
            scorer: Who is asked for progress.
            judge: Who is asked for completion, or None.
            max_consecutive_failures: Calls in a row without any answer after which
                :meth:`run` raises.
        """
        self._handles: dict[Role, ScorerHandle] = {"scorer": scorer}
        if judge is not None:
            self._handles["judge"] = judge
        self._max_failures = max_consecutive_failures
        self._in_a_row: dict[Role, int] = dict.fromkeys(self._handles, 0)
        self._queries = 0
        self._clamped = 0
        self._reasons: Counter[str] = Counter()
        self._waiting_s = 0.0
        self._stats = QueryStats()

    @property
    def stats(self) -> QueryStats:
        """The counts so far; may be read from any thread."""
        return self._stats

    def _publish(self) -> None:
        # Another thread reads what is put here, so it is put here whole.
        self._stats = QueryStats(
            queries=self._queries,
            failures=self._reasons.total(),
            consecutive_failures=max(self._in_a_row.values()),
            invalid_reasons=dict(self._reasons),
            clamped=self._clamped,
            waiting_s=self._waiting_s,
            blocked_s=self._waiting_s,
        )

    def run(self, dues: Sequence[DueQuery]) -> list[Answer]:
        """Put the queries to their models, at most one call per model.

        Args:
            dues: What is due, of one stream or of many.

        Returns:
            One answer per query, in order.

        Raises:
            ScorerFailedError: After ``max_consecutive_failures`` calls in a row without an answer.
            ScorerError: If a scorer breaks its contract.
            ModelError: If a scorer cannot be built.
        """
        answers: dict[int, Answer] = {}
        for role, places in self._by_role(dues).items():
            got = self._ask(role, [dues[place].query for place in places])
            answers.update(zip(places, got, strict=True))
        return [answers[place] for place in range(len(dues))]

    def run_many(self, groups: Sequence[Sequence[DueQuery]]) -> Iterator[list[Answer]]:
        """Put groups of queries to their models in one call, and count as if in one call each.

        If that call fails, every group is put anew by itself: what one query or a batch too large
        brings down is not held against the others. So the answers are those of one :meth:`run` per
        group, as far as a model answers a query alike in any company.

        Args:
            groups: What was due together, oldest first.

        Yields:
            One answer per query of each group, in order. Groups before one that raises are yielded
            first.

        Raises:
            ScorerFailedError: As :meth:`run` does, as the other two.
            ScorerError: If a scorer breaks its contract.
            ModelError: If a scorer cannot be built.
        """
        merged = self._merged(groups) if len(groups) > 1 else None
        for number, dues in enumerate(groups):
            if merged is None:
                yield self.run(dues)
                continue
            answers: list[Answer] = list(merged[number])
            for role, places in self._by_role(dues).items():
                self._count(role, [answers[place] for place in places])
            yield answers

    def _merged(self, groups: Sequence[Sequence[DueQuery]]) -> list[list[Score]] | None:
        """The answers of one call per model; None if it failed, whatever the reason."""
        dues = [due for group in groups for due in group]
        by_role = self._by_role(dues)
        scorers = {role: get_scorer(self._handles[role]) for role in by_role}
        scores: dict[int, Score] = {}
        try:
            for role, places in by_role.items():
                got = self._score(role, scorers[role], [dues[place].query for place in places])
                scores.update(zip(places, got, strict=True))
        except Exception as error:
            logger.debug("asking about %d steps at once failed: %s", len(groups), error)
            return None
        answers = iter([scores[place] for place in range(len(dues))])
        return [[next(answers) for _ in group] for group in groups]

    def _by_role(self, dues: Sequence[DueQuery]) -> dict[Role, list[int]]:
        """Places of the queries for each model that has any, the scorer first."""
        places: dict[Role, list[int]] = {role: [] for role in self._handles}
        for place, due in enumerate(dues):
            places[due.role].append(place)
        return {role: those for role, those in places.items() if those}

    def release(self, streams: Iterable[str]) -> None:
        """Tell the models that streams have ended, those that want to know; builds none of them.

        Args:
            streams: Names of the streams, as in :attr:`procreward.types.Query.stream`.
        """
        names = tuple(streams)
        if not names:
            return
        # Scorer and judge may be one model.
        for handle in {handle.key: handle for handle in self._handles.values()}.values():
            release = getattr(built_scorer(handle), "release", None)
            if callable(release):
                with _turns[handle.key]:
                    release(names)

    def announce(self, dues: Sequence[DueQuery]) -> None:
        """Tell the models, those that look ahead, what they are asked in the call after the next.

        Args:
            dues: What will be due.
        """
        for role, places in self._by_role(dues).items():
            handle = self._handles[role]
            announce = getattr(built_scorer(handle), "announce", None)
            if not callable(announce):
                continue
            try:
                with _turns[handle.key]:
                    announce([dues[place].query for place in places])
            except Exception as error:
                # It comes again when they are asked.
                logger.debug("announcing to %s failed: %s", self._name(role), error)

    def forget(self) -> None:
        """Have the models forget all that they keep from earlier questions, those that do."""
        for handle in {handle.key: handle for handle in self._handles.values()}.values():
            forget = getattr(built_scorer(handle), "forget", None)
            if callable(forget):
                with _turns[handle.key]:
                    forget()

    def _score(self, role: Role, scorer: Scorer, queries: list[Query]) -> list[Score]:
        started = time.perf_counter()
        try:
            with _turns[self._handles[role].key]:
                return _checked(scorer.score(queries), len(queries), self._name(role))
        finally:
            self._waiting_s += time.perf_counter() - started
            self._publish()

    def _ask(self, role: Role, queries: list[Query]) -> list[Answer]:
        scorer = get_scorer(self._handles[role])
        answers: list[Answer]
        try:
            answers = list(self._score(role, scorer, queries))
        except Exception as error:
            if isinstance(error, ProcrewardError) and not isinstance(error, ModelError):
                raise
            reason = error.reason if isinstance(error, ServerError) else type(error).__name__
            failure = Failure(reason=reason, message=str(error).rstrip("."))
            answers = [failure] * len(queries)
        self._count(role, answers)
        return answers

    def _count(self, role: Role, answers: list[Answer]) -> None:
        self._queries += len(answers)
        reasons = [reason for reason in map(failure_reason, answers) if reason is not None]
        for answer in answers:
            if isinstance(answer, Score) and answer.details.get("clamped"):
                self._clamped += 1
        if reasons and not self._reasons:
            logger.warning(
                "a query to %s failed (%s); the potential is held. Further ones are only counted.",
                self._name(role),
                _described(answers[-1]),
            )
        self._reasons.update(reasons)
        self._in_a_row[role] = self._in_a_row[role] + 1 if len(reasons) == len(answers) else 0
        self._publish()
        if self._in_a_row[role] >= self._max_failures:
            raise ScorerFailedError(
                f"{self._in_a_row[role]} queries in a row to {self._name(role)} failed; the last: "
                f"{_described(answers[-1])}. Check the model, the frames and the instruction "
                "(`procreward verify scorer NAME`), or raise `max_consecutive_failures`."
            )

    def _name(self, role: Role) -> str:
        return f"{role} {self._handles[role].preset.name!r}"


def failure_reason(answer: Answer) -> str | None:
    """Return why an answer is none, or None if it is one."""
    if isinstance(answer, Failure):
        return answer.reason
    return None if answer.valid else answer.reason


def _described(answer: Answer) -> str:
    if isinstance(answer, Failure):
        return f"{answer.reason}: {answer.message}"
    return f"{answer.reason}, output {answer.text[:200]!r}"


def _checked(scores: object, expected: int, name: str) -> list[Score]:
    if not isinstance(scores, list | tuple):
        raise ScorerError(f"{name} must return a list of Score, got {type(scores).__name__}.")
    if len(scores) != expected:
        raise ScorerError(
            f"{name} must return one Score per query, got {len(scores)} for {expected} queries."
        )
    for score in scores:
        if not isinstance(score, Score):
            raise ScorerError(f"{name} must return Score objects, got {type(score).__name__}.")
    return list(scores)
