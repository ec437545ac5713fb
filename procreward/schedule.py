"""When a scorer is asked, and which frames that needs.

* :class:`QuerySchedule` - at reset, every ``every_k_steps`` steps, and when an episode ends.
* :class:`ChangeDetector` - lets a query be left out while the picture stands still.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from procreward.checks import check, check_int
from procreward.types import Frame

__all__ = ["ChangeDetector", "QuerySchedule"]


class QuerySchedule:
    """Decides at which steps of an episode the scorer is asked.

    Queries fall on step 0 (the reset), on every multiple of ``every_k_steps``, and on the last
    step wherever it lies: without that last query a truncated episode would be bootstrapped from a
    stale potential. The answers depend on the arguments alone, so one question a step means at
    most one query a step, also when an episode ends on a scheduled one.

    Args:
        every_k_steps: Environment steps between queries, at least 1.
        window_frames: Frames in a query's window, at least 1.
        frame_stride_steps: Environment steps between neighbouring frames, at least 1.

    Raises:
        ConfigError: If a number is below 1 or no integer.

    Example:
        >>> schedule = QuerySchedule(8, window_frames=4, frame_stride_steps=4)
        >>> [step for step in range(20) if schedule.due(step, ended=step == 19)]
        [0, 8, 16, 19]
        >>> [step for step in range(20) if schedule.wants_frame(step)]
        [0, 4, 8, 12, 16]
    """

    def __init__(self, every_k_steps: int, *, window_frames: int, frame_stride_steps: int = 1):
        check_int("every_k_steps", every_k_steps, least=1)
        check_int("window_frames", window_frames, least=1)
        check_int("frame_stride_steps", frame_stride_steps, least=1)
        self.every_k_steps = every_k_steps
        self.window_frames = window_frames
        self.frame_stride_steps = frame_stride_steps
        self._phases = frozenset(
            -index * frame_stride_steps % every_k_steps for index in range(window_frames)
        )

    def due(self, step: int, *, ended: bool, known: bool = True) -> bool:
        """Tell whether the scorer is asked at this step.

        Args:
            step: Step of the episode, 0 at reset.
            ended: Whether the episode ends with this step (terminated or truncated).
            known: Whether a potential is known already. While it is not (the queries so far
                failed), every step is a further attempt.
        """
        return ended or not known or step % self.every_k_steps == 0

    def wants_frame(self, step: int) -> bool:
        """Tell whether some scheduled query shows the frame of this step.

        A camera need not be rendered for any other step, except where :meth:`due` says True. The
        frame of the reset is always wanted: windows at the start are filled with it.

        Args:
            step: Step of the episode, 0 at reset.
        """
        return step % self.every_k_steps in self._phases


class ChangeDetector:
    """Compares frames with those of the last query, so that a still picture is not asked about.

    A robot that waits would pay for the same answer again and again. Where :meth:`changed` is
    False the caller may hold the last potential instead of asking; never do so at the end of an
    episode.

    Args:
        min_mean_difference: Least mean absolute difference of any view, in grey levels (0 to 255),
            that counts as a change. 0 means that every frame counts as changed.

    Raises:
        ConfigError: If it is negative, above 255 or not finite.
    """

    def __init__(self, min_mean_difference: float):
        ok = 0.0 <= min_mean_difference <= 255.0
        check(ok, "min_mean_difference", "in [0, 255] grey levels", min_mean_difference)
        self.min_mean_difference = min_mean_difference
        self._queried: dict[str, Frame] = {}

    def reset(self) -> None:
        """Forget the last query: a new episode begins."""
        self._queried = {}

    def changed(self, frames: Mapping[str, Frame]) -> bool:
        """Tell whether any view differs enough from the last query.

        Args:
            frames: View name to the newest picture, ``(height, width, 3) uint8``.

        Returns:
            True before the first query, for other views than that of the last query, and when a
            view's mean absolute difference reaches ``min_mean_difference``.
        """
        if set(frames) != set(self._queried):
            return True
        return any(
            _mean_difference(frame, self._queried[view]) >= self.min_mean_difference
            for view, frame in frames.items()
        )

    def queried(self, frames: Mapping[str, Frame]) -> None:
        """Note the frames of a query that was made, copied.

        Args:
            frames: View name to the newest picture, ``(height, width, 3) uint8``.
        """
        self._queried = {view: frame.copy() for view, frame in frames.items()}


def _mean_difference(one: Frame, other: Frame) -> float:
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())
