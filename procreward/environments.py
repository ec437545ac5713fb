"""Environments made from their ids, and what they say of themselves.

* :func:`make_env` - a registered environment that renders to arrays.
* :func:`find_horizon` - after how many steps an episode is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from procreward.errors import (
    ConfigError,
    MissingDependencyError,
    ProcrewardError,
    UnknownNameError,
    UnsupportedEnvError,
)

__all__ = ["find_horizon", "make_env"]


def make_env(
    env_id: str, *, max_steps: int | None = None, env_kwargs: Mapping[str, Any] | None = None
) -> gym.Env[Any, Any]:
    """Make a registered environment that renders to arrays.

    Args:
        env_id: A Gymnasium id; those of :mod:`procreward.envs` need no module prefix.
        max_steps: Time limit in steps, or None for the registered one.
        env_kwargs: Further arguments of ``gym.make``; they override the two above.

    Raises:
        UnknownNameError: If there is no such id.
        MissingDependencyError: If the environment's package is not installed.
        ConfigError: If the environment does not take ``env_kwargs``.
        UnsupportedEnvError: If the environment cannot be made.
    """
    import procreward.envs  # noqa: F401  registers

    kwargs = {"render_mode": "rgb_array", "max_episode_steps": max_steps, **(env_kwargs or {})}
    try:
        return gym.make(env_id, **kwargs)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound) as error:
        known = [name for name in gym.registry if name.startswith("procreward/")]
        raise UnknownNameError("environment", env_id, known) from error
    except ImportError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise MissingDependencyError(
            f"{env_id} needs a package that is not installed ({error}); install it first."
        ) from error
    except gym.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"{env_id} needs more than is installed: {error}") from error
    except (gym.error.Error, TypeError) as error:
        if env_kwargs and isinstance(error, TypeError) and not isinstance(error, ProcrewardError):
            raise ConfigError(
                f"`env_kwargs` must be what {env_id} can be made with, got {dict(env_kwargs)}: "
                f"{error}."
            ) from error
        raise UnsupportedEnvError(f"{env_id} cannot be made: {error}") from error


def find_horizon(env: gym.Env[Any, Any]) -> int | None:
    """Return the steps after which an episode is cut off, or None if that is not known.

    Args:
        env: Its TimeLimit is asked, and the environment itself where it has a ``horizon``.
    """
    limit = None if env.spec is None else env.spec.max_episode_steps
    own = env.get_wrapper_attr("horizon") if env.has_wrapper_attr("horizon") else None
    return min((steps for steps in (limit, own) if steps is not None), default=None)
