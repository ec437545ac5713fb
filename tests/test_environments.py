from __future__ import annotations

import gymnasium as gym
import pytest

from procreward.environments import find_horizon, make_env
from procreward.errors import ConfigError, UnknownNameError

TOY = "procreward/Toy-v0"


def test_an_argument_that_an_environment_does_not_take() -> None:
    with pytest.raises(
        ConfigError, match=r"`env_kwargs` must be what .*keyword argument 'breadth'"
    ):
        make_env(TOY, env_kwargs={"breadth": 64})


def test_an_id_with_its_module_is_accepted() -> None:
    env = make_env(f"procreward.envs:{TOY}")
    env.close()
    assert env.spec is not None
    assert env.spec.id == TOY


def test_an_unknown_id_is_told_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"procreward/Toyy-v0.*procreward/Toy-v0"):
        make_env("procreward/Toyy-v0")


def test_the_horizon_is_the_time_limit_unless_the_environment_ends_before() -> None:
    env = make_env(TOY, max_steps=12)
    assert find_horizon(env) == 12
    env.unwrapped.horizon = 7  # type: ignore[attr-defined]  # as RoboCasa's has one
    assert find_horizon(env) == 7
    assert find_horizon(gym.Env()) is None
    env.close()
