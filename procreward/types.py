"""The values that flow through procreward: frames in, a score out.

* :class:`Query` - what a scorer is asked: a window of frames per view and an instruction.
* :class:`Score` - what it answered: progress, completion, the raw text.
* :class:`Verdict` - what the completion tracker makes of the scores so far.
* :class:`Scorer` - the protocol every reward model implements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from procreward.errors import ScorerError

__all__ = ["Frame", "Frames", "Query", "Score", "Scorer", "Verdict"]

Frame: TypeAlias = npt.NDArray[np.uint8]
"""One upright RGB picture, ``(height, width, 3) uint8``."""

Frames: TypeAlias = npt.NDArray[np.uint8]
"""A clip, oldest frame first, ``(num_frames, height, width, 3) uint8``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """One question to a reward model.

    Attributes:
        frames: View name to clip, ``(num_frames, height, width, 3) uint8``, oldest first; the last
            frame is the moment that is judged.
        instruction: The task in words, never empty.
        frame_steps: For each frame, the step of the episode at which it was taken. Equal
            neighbours are padding (the first frame repeated at an episode's start).
        stream: Names the episode the frames belong to, so that an engine can reuse what it
            computed for the same ``(stream, view, step)`` before. Never reused for another episode.
        fps: Frames (environment steps) per second of the source, or None when unknown.
    """

    frames: Mapping[str, Frames]
    instruction: str
    frame_steps: tuple[int, ...]
    stream: str = ""
    fps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One answer of a reward model.

    Attributes:
        progress: Share of the task that is done, in [0, 1], or None when the model did not give a
            usable one (then ``reason`` says why).
        success_prob: Probability of completion in [0, 1], or None.
        complete: The model's own completion label, or None.
        text: The raw model output.
        reason: Why there is no progress (``"unparsable"``, ``"truncated"``, ``"n/a"``, ...).
        mode: How the number was read, such as ``"reasoning"`` or ``"direct"``.
        spread: Standard deviation of the readout in progress units, or None.
        details: Further figures, such as label scores; ``"clamped"`` is 1.0 where the model's
            number was out of range and was clamped.

    Raises:
        ScorerError: If a value is no number in [0, 1], ``complete`` is no bool, a text is none,
            ``spread`` or a detail is not finite, or neither a value nor a reason is given.
    """

    progress: float | None = None
    success_prob: float | None = None
    complete: bool | None = None
    text: str = ""
    reason: str = ""
    mode: str = ""
    spread: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Plain Python values: NumPy's would turn up in `info`, whose types never change.
        for name in ("progress", "success_prob"):
            object.__setattr__(self, name, _unit_or_none(name, getattr(self, name)))
        if self.complete is not None:
            if not isinstance(self.complete, bool | np.bool_):
                raise ScorerError(
                    f"`Score.complete` must be a bool or None, got {self.complete!r}. Compare the "
                    "model's number with a threshold, or give it as `success_prob`."
                )
            object.__setattr__(self, "complete", bool(self.complete))
        for name in ("text", "reason", "mode"):
            if not isinstance(getattr(self, name), str):
                raise ScorerError(
                    f"`Score.{name}` must be a string, got {getattr(self, name)!r}. Leave it out "
                    "where there is none."
                )
        if self.spread is not None:
            object.__setattr__(self, "spread", _finite("spread", self.spread))
        details = {name: _finite(f"details[{name!r}]", it) for name, it in self.details.items()}
        object.__setattr__(self, "details", details)
        if not self.valid and not self.reason:
            raise ScorerError(
                "A Score with neither progress, success_prob nor complete needs a `reason`."
            )

    @property
    def valid(self) -> bool:
        """Whether the model gave any usable answer."""
        return not (self.progress is None and self.success_prob is None and self.complete is None)


def _unit_or_none(name: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise ScorerError(
            f"`Score.{name}` must be a number in [0, 1] or None, got {value!r}. Clamp or reject "
            "the model's number before building the Score; convert arrays with `float()`."
        )
    return float(value)


def _finite(name: str, value: object) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ScorerError(
            f"`Score.{name}` must be a finite number, got {value!r}. Results are written as JSON, "
            "which has no other; leave it out, or convert arrays with `float()`."
        )
    return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known about a running subtask after the latest query.

    Attributes:
        complete: Whether the subtask counts as done (thresholds, votes and hysteresis applied).
        progress: Latest valid progress in [0, 1], or None before the first.
        stalled: Whether progress has not moved for as long as configured.
        regressed: Whether progress fell from its best by as much as configured.
        step: Step of the episode the verdict speaks of.
        valid: Whether the latest query was answered.
        text: Raw output of the latest query.
    """

    complete: bool
    progress: float | None
    stalled: bool
    regressed: bool
    step: int
    valid: bool
    text: str = ""


@runtime_checkable
class Scorer(Protocol):
    """A reward model: queries in, scores out, in the same order.

    Implementations hold no state about episodes; whatever they cache is keyed by
    ``Query.stream``. Building one may load weights, so builders run at the first query only.

    A scorer that caches may have one more method, ``release(streams: Iterable[str]) -> None``. It
    is called with the names of episodes that have ended (at the next reset, or when the environment
    is closed), after their last query, also for names that it was never asked about. It is no part
    of the protocol: a scorer without it is left alone, and one with it must bound its caches
    nonetheless, since an interrupted process releases nothing.
    """

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Answer every query, one :class:`Score` each, in order.

        A model that cannot answer returns a Score with ``reason``; it raises only for a defect
        (out of memory, broken weights). The caller holds the last potential in either case.
        """
        ...

    def describe(self) -> Mapping[str, object]:
        """Return a JSON-able account of what answers: name, model, revision, dtype, prompt hash."""
        ...
