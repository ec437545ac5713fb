"""A scorer that always gives the same answer: the wiring without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from procreward.checks import check_names
from procreward.config import ScorerConfig
from procreward.scorers import check_query
from procreward.types import Query, Score

__all__ = ["Constant"]

OPTIONS = ("progress", "success_prob", "complete")


class Constant:
    """Answer every query alike.

    Example:
        >>> Constant(0.25).describe()["progress"]
        0.25
    """

    def __init__(
        self,
        progress: float | None = 0.5,
        *,
        success_prob: float | None = None,
        complete: bool | None = None,
    ) -> None:
        """Keep the answer.

        Args:
            progress: Progress in [0, 1], or None.
            success_prob: Probability of completion in [0, 1], or None.
            complete: Completion label, or None.

        Raises:
            ScorerError: If a value is outside [0, 1].
        """
        self._score = Score(
            progress=progress,
            success_prob=success_prob,
            complete=complete,
            text="" if progress is None else f"<progress>{100 * progress:g}%</progress>",
            reason="constant scorer without a value",
            mode="constant",
        )

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Constant:
        """Build from ``config.options``: ``progress``, ``success_prob``, ``complete``."""
        check_names("constant option", config.options, OPTIONS)
        options: dict[str, Any] = dict(config.options)
        return cls(**options)

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Return the one answer for every query.

        Raises:
            FrameError: If a query's clips are malformed.
            InstructionError: If a query's instruction is empty.
        """
        for query in queries:
            check_query(query)
        return [self._score for _ in queries]

    def describe(self) -> Mapping[str, object]:
        """Return the name and the values."""
        score = self._score
        return {
            "name": "constant",
            "progress": score.progress,
            "success_prob": score.success_prob,
            "complete": score.complete,
        }
