"""Rewards that are told later than the step they belong to.

With ``latency="deferred"`` a vector wrapper asks its models on a thread of its own and goes on;
what a step pays is told by its ``collect()``.

* :class:`LateReward` - what one step of one sub-environment paid.
* :data:`Latency`, :func:`lag_steps` - the two settings, checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from procreward.checks import check_choice, check_int
from procreward.config import RewardConfig
from procreward.errors import ConfigError
from procreward.wrapping import InfoEntry

__all__ = ["LateReward", "Latency", "lag_steps"]

Latency: TypeAlias = Literal["blocking", "deferred"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LateReward:
    """What one step of one sub-environment paid.

    Attributes:
        step: Which call of the vector environment's ``step()``, counted from 0 since its
            construction.
        index: Which sub-environment.
        reward: What ``latency="blocking"`` would have returned in that call.
        entry: Our entry in ``infos`` as ``latency="blocking"`` would have returned it.
    """

    step: int
    index: int
    reward: float
    entry: InfoEntry


def lag_steps(latency: object, max_lag_steps: object, config: RewardConfig) -> int | None:
    """Check when rewards are told.

    Args:
        latency: ``"blocking"`` or ``"deferred"``.
        max_lag_steps: Steps after which a query must have been answered, at least 1; None for
            twice ``every_k_steps``.
        config: The settings.

    Returns:
        The steps, or None for ``"blocking"``.

    Raises:
        ConfigError: If one of them is wrong, or does not go with another.
    """
    check_choice("latency", latency, get_args(Latency))
    if latency == "blocking":
        if max_lag_steps is not None:
            raise ConfigError(
                '`max_lag_steps` must be None with latency="blocking", got '
                f'{max_lag_steps!r}; use latency="deferred".'
            )
        return None
    if config.skip_unchanged is not None:
        raise ConfigError(
            '`skip_unchanged` must be None with latency="deferred", got '
            f"{config.skip_unchanged!r}: whether a query is left out depends on the answer to the "
            "one before, which may be outstanding. Leave one of the two out."
        )
    if max_lag_steps is None:
        return 2 * config.every_k_steps
    fix = "Steps after which a query must have been answered."
    check_int("max_lag_steps", max_lag_steps, least=1, fix=fix)
    return int(str(max_lag_steps))
