"""The reward models, one module each, and what they all ask of a query.

Import a scorer from its own module (:mod:`procreward.scorers.constant`, ...), or name it and let
:mod:`procreward.registry` build it: this package itself imports none of them.
"""

from __future__ import annotations

import numpy as np

from procreward.errors import ConfigError, FrameError, UnknownNameError
from procreward.instruction import check_instruction
from procreward.types import Query

__all__ = ["check_query", "only_view"]


def check_query(query: Query) -> None:
    """Refuse a query that no scorer can answer.

    Raises:
        InstructionError: If the instruction is empty.
        FrameError: If there is no view, or a clip is not ``(num_frames, height, width, 3) uint8``
            with one frame per entry of ``frame_steps``.
    """
    check_instruction(query.instruction, "`Query.instruction`")
    if not query.frames:
        raise FrameError("`Query.frames` must hold at least one view, got none.")
    for view, clip in query.frames.items():
        if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8:
            kind = getattr(clip, "dtype", type(clip).__name__)
            raise FrameError(f"The clip of view {view!r} must be a uint8 array, got {kind}.")
        expected = len(query.frame_steps)
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.shape[0] != expected or expected == 0:
            raise FrameError(
                f"The clip of view {view!r} must be (num_frames, height, width, 3) with one frame "
                f"per entry of `frame_steps` ({expected}), got {clip.shape}."
            )


def only_view(query: Query, scorer: str, view: str | None) -> str:
    """Return the name of the view that a scorer of one view looks at.

    Args:
        query: The query.
        scorer: What the message calls the scorer.
        view: The view that is configured, or None to take the only one.

    Raises:
        UnknownNameError: If the configured view is not in the query.
        ConfigError: If none is configured and the query has several.
    """
    if view is not None:
        if view not in query.frames:
            raise UnknownNameError("view", view, query.frames)
        return view
    if len(query.frames) != 1:
        raise ConfigError(
            f"{scorer} looks at one view, got {len(query.frames)}: "
            f"{', '.join(sorted(query.frames))}. Give the environment one view or set the scorer's "
            "option `view`."
        )
    return next(iter(query.frames))
