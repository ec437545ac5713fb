"""A scorer that follows a script: progress by environment step, or computed from the query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from procreward.checks import check_int, check_names
from procreward.config import ScorerConfig
from procreward.errors import ConfigError
from procreward.scorers import check_query
from procreward.types import Query, Score

__all__ = ["Scripted"]

OPTIONS = ("progress", "ramp_steps")


class Scripted:
    """Read progress off a list by the step of a query's newest frame.

    The last entry holds for all later steps. An entry None is a query that the model could not
    answer. Without a list, progress rises in a straight line over ``ramp_steps`` steps.

    Example:
        >>> import numpy as np
        >>> frames = {"main": np.zeros((1, 8, 8, 3), np.uint8)}
        >>> query = Query(frames=frames, instruction="go", frame_steps=(2,))
        >>> [score.progress for score in Scripted([0.0, 0.25, 0.5]).score([query])]
        [0.5]
    """

    def __init__(
        self,
        progress: Sequence[float | None] | Callable[[Query], float | None] | None = None,
        *,
        ramp_steps: int = 50,
    ) -> None:
        """Keep the script.

        Args:
            progress: Values in [0, 1] or None, one per environment step; or a function that gives
                such a value for a query.
            ramp_steps: Steps from progress 0 to 1 when ``progress`` is None.

        Raises:
            ConfigError: If the list is empty or ``ramp_steps`` is below 1.
        """
        if progress is not None and not callable(progress) and len(progress) == 0:
            raise ConfigError("`progress` must have at least one entry, got an empty list.")
        check_int("ramp_steps", ramp_steps, least=1)
        self._progress = progress
        self._ramp_steps = ramp_steps

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Scripted:
        """Build from ``config.options``: ``progress`` (a list), ``ramp_steps``."""
        check_names("scripted option", config.options, OPTIONS)
        options: dict[str, Any] = dict(config.options)
        return cls(**options)

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Return the scripted answer of every query.

        Raises:
            FrameError: If a query's clips are malformed.
            InstructionError: If a query's instruction is empty.
            ScorerError: If the script holds a value outside [0, 1].
        """
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Score:
        check_query(query)
        value = self._value(query)
        if value is None:
            return Score(reason="scripted", mode="scripted")
        text = f"<progress>{100 * value:g}%</progress>"
        return Score(progress=float(value), text=text, mode="scripted")

    def _value(self, query: Query) -> float | None:
        step = query.frame_steps[-1]
        if self._progress is None:
            return min(1.0, step / self._ramp_steps)
        if callable(self._progress):
            return self._progress(query)
        return self._progress[min(step, len(self._progress) - 1)]

    def describe(self) -> Mapping[str, object]:
        """Return the name and the script, as far as it is data."""
        if self._progress is None:
            return {"name": "scripted", "ramp_steps": self._ramp_steps}
        if callable(self._progress):
            return {"name": "scripted", "progress": "callable"}
        return {"name": "scripted", "progress": list(self._progress)}
