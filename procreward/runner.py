"""Putting due queries to the scorers, and counting what came back.

* :class:`DueQuery` - a question and which of the two models it is for.
* :class:`Failure` - what stands in for an answer when the model raised.
* :class:`QueryRunner` - asks, one call per model however many streams have questions due.
* :class:`QueryStats` - how that has gone so far.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from procreward.types import Query, Score

__all__ = ["Answer", "DueQuery", "Failure", "QueryRunner", "QueryStats", "Role"]

logger = logging.getLogger(__name__)

Role: TypeAlias = Literal["scorer", "judge"]


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
        waiting_s: Seconds spent inside the models.
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

    @property
    def stats(self) -> QueryStats:
        """The counts so far."""
        return QueryStats(
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
        if not dues:
            return []
        answers: dict[int, Answer] = {}
        for role in self._handles:
            places = [place for place, due in enumerate(dues) if due.role == role]
            if places:
                got = self._ask(role, [dues[place].query for place in places])
                answers.update(zip(places, got, strict=True))
        return [answers[place] for place in range(len(dues))]

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
                release(names)

    def _ask(self, role: Role, queries: list[Query]) -> list[Answer]:
        scorer = get_scorer(self._handles[role])
        started = time.perf_counter()
        answers: list[Answer]
        try:
            answers = list(_checked(scorer.score(queries), len(queries), self._name(role)))
        except Exception as error:
            if isinstance(error, ProcrewardError) and not isinstance(error, ModelError):
                raise
            reason = error.reason if isinstance(error, ServerError) else type(error).__name__
            failure = Failure(reason=reason, message=str(error).rstrip("."))
            answers = [failure] * len(queries)
        finally:
            self._waiting_s += time.perf_counter() - started
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
