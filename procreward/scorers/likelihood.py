"""What the scorers that compare the likelihoods of answers share.

* :func:`fixed_length` - a query cut or padded to the number of frames that a model is asked with.
* :func:`padded_frames` - how many of a query's frames are repeats.
* :func:`sigmoid` - log-odds as a probability.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias, get_args

from procreward.types import Query

__all__ = ["SAMPLINGS", "Sampling", "fixed_length", "padded_frames", "sigmoid"]

Sampling: TypeAlias = Literal["last", "uniform"]
"""Which frames of a longer clip are kept: the newest, or evenly spread ones with both ends."""

SAMPLINGS: tuple[str, ...] = get_args(Sampling)
"""The names of :data:`Sampling`."""


def fixed_length(query: Query, num_frames: int, sampling: Sampling) -> Query:
    """Give every view of a query the same number of frames, whatever it came with.

    Nothing is interpolated: a shorter clip is filled up by repeating its first frame in front, as
    windows at an episode's start are; of a longer one some frames are kept. The newest frame, the
    moment that is judged, always stays last.

    Args:
        query: One that :func:`procreward.scorers.check_query` accepts.
        num_frames: Frames that every clip has afterwards, at least 1.
        sampling: Which frames of a longer clip are kept.

    Returns:
        The query itself if it has as many frames already, else a copy with other ``frames`` and
        ``frame_steps``.

    Example:
        >>> import numpy as np
        >>> clip = np.zeros((5, 8, 8, 3), np.uint8)
        >>> query = Query(frames={"front": clip}, instruction="go", frame_steps=(3, 4, 5, 6, 7))
        >>> [fixed_length(query, count, "uniform").frame_steps for count in (7, 3, 1)]
        [(3, 3, 3, 4, 5, 6, 7), (3, 5, 7), (7,)]
        >>> fixed_length(query, 3, "last").frame_steps
        (5, 6, 7)
    """
    count = len(query.frame_steps)
    if count == num_frames:
        return query
    rows = _rows(count, num_frames, sampling)
    return dataclasses.replace(
        query,
        frames={view: clip[rows] for view, clip in query.frames.items()},
        frame_steps=tuple(query.frame_steps[row] for row in rows),
    )


def _rows(count: int, num_frames: int, sampling: Sampling) -> list[int]:
    if count < num_frames:
        return [0] * (num_frames - count) + list(range(count))
    if sampling == "last" or num_frames == 1:
        return list(range(count - num_frames, count))
    gaps = num_frames - 1
    return [(place * (count - 1) + gaps // 2) // gaps for place in range(num_frames)]


def padded_frames(query: Query) -> int:
    """Count the frames of a query that repeat another: padding, whoever has put it there.

    Args:
        query: The query; equal ``frame_steps`` are one frame.
    """
    return len(query.frame_steps) - len(set(query.frame_steps))


def sigmoid(log_odds: float) -> float:
    """Turn log-odds in nats into a probability in [0, 1], without overflow.

    Args:
        log_odds: Any finite number.

    Example:
        >>> sigmoid(0.0), sigmoid(1000.0), sigmoid(-1000.0)
        (0.5, 1.0, 0.0)
    """
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1.0 + odds)
