"""What every environment does with an action before a simulator sees it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from procreward.errors import ConfigError

__all__ = ["checked_action"]


def checked_action(action: object, size: int) -> npt.NDArray[np.float64]:
    """Return a flat action, clipped to [-1, 1].

    A simulator that is given NaN goes on with an arbitrary state, in which the task may well count
    as solved.

    Args:
        action: What should be ``(size,)`` finite numbers.
        size: How many.

    Raises:
        ConfigError: If it has another shape or is not finite.
    """
    flat = np.asarray(action, dtype=np.float64)
    if flat.shape != (size,) or not np.isfinite(flat).all():
        raise ConfigError(
            f"`action` must be ({size},) finite numbers in [-1, 1], got {action!r}; sample "
            "`action_space` for an example."
        )
    clipped: npt.NDArray[np.float64] = np.clip(flat, -1.0, 1.0)
    return clipped
