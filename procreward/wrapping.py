"""What the wrappers have in common: settings, reset options, the reward and the entry in ``info``.

* :data:`INFO_KEY` - our entry in ``info`` and in the ``options`` of a reset.
* :func:`merge_settings`, :func:`split_options` - what a user gave, sorted out.
* :func:`step_reward`, :func:`info_entry` - what a step pays and says.
* :func:`render_fps` - how fast an environment runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from procreward.checks import check_names
from procreward.config import RewardConfig
from procreward.errors import ConfigError
from procreward.session import Outcome

__all__ = [
    "INFO_KEY",
    "InfoEntry",
    "info_entry",
    "merge_settings",
    "render_fps",
    "split_options",
    "step_reward",
]

InfoEntry: TypeAlias = dict[str, float | int | bool]
"""Our entry of one step of one environment."""

INFO_KEY = "procreward"
"""Our entry in ``info``, and in the ``options`` of a reset."""

RESET_OPTIONS = ("instruction",)


def merge_settings(config: RewardConfig | None, given: Mapping[str, Any]) -> RewardConfig:
    """Put keywords over a config object.

    Args:
        config: The settings as one object, or None for the defaults.
        given: Settings by name, which override it.

    Raises:
        ConfigError: If ``config`` is no ``RewardConfig``, or a setting is out of range.
        UnknownNameError: On a name that is no setting.
    """
    if config is not None and not isinstance(config, RewardConfig):
        raise ConfigError(f"`config` must be a RewardConfig, got {type(config).__name__}.")
    return (config or RewardConfig()).replace(**given)


def split_options(
    options: dict[str, Any] | None,
) -> tuple[dict[str, Any] | None, Mapping[str, Any]]:
    """Take our entry out of a copy of a reset's options.

    Args:
        options: What ``reset`` was given.

    Returns:
        The options without our entry (the same object if it has none), and our entry.

    Raises:
        ConfigError: If our entry is no mapping.
        UnknownNameError: If it holds an unknown name.
    """
    if options is None or INFO_KEY not in options:
        return options, {}
    rest = dict(options)
    own = rest.pop(INFO_KEY)
    if not isinstance(own, Mapping):
        raise ConfigError(f"`options[{INFO_KEY!r}]` must be a mapping of settings, got {own!r}.")
    check_names("reset option", own, RESET_OPTIONS)
    return rest, own


def render_fps(metadata: Mapping[str, Any] | None) -> float | None:
    """Return an environment's steps per second, or None when it does not say.

    Args:
        metadata: The environment's ``metadata``, or None: robosuite's ``GymWrapper`` has none.
    """
    return (metadata or {}).get("render_fps")


def step_reward(outcome: Outcome, env_reward: float, weight: float) -> float:
    """Return what a step pays: shaping, bonus and the environment's own reward.

    Args:
        outcome: What the step came to.
        env_reward: The environment's own reward; not looked at when ``weight`` is 0.
        weight: Factor on it.
    """
    reward = outcome.shaping + outcome.bonus
    return reward + weight * env_reward if weight else reward


def info_entry(outcome: Outcome, *, env_reward: float) -> InfoEntry:
    """Return the entry of one step in ``info``; the same keys and types at every step.

    Args:
        outcome: What the step came to.
        env_reward: The environment's own reward; 0.0 at a reset.
    """
    return {
        "progress": float(outcome.progress),
        "potential": float(outcome.potential),
        "shaping": float(outcome.shaping),
        "env_reward": env_reward,
        "queried": outcome.queried,
        "complete": outcome.complete,
        "age_steps": outcome.age_steps,
        "valid": outcome.valid,
    }
