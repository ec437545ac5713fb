from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from procreward.errors import ConfigError, UnsupportedEnvError
from procreward.training.evaluation import EvalResult, Evaluator, evaluate, succeeded
from procreward.training.learner import build_learner
from tests.training.conftest import config
from tests.training.envs import Corridor


class Steady:
    """Stands in for a learner: pushes with what the first number it observes says."""

    def __init__(self, push: float = 1.0) -> None:
        self.push, self.batches = push, list[int]()
        self.seen: list[Any] = []

    def predict(self, obs: Any, deterministic: bool = False) -> tuple[Any, None]:
        assert deterministic
        self.batches.append(len(obs))
        self.seen.append(obs)
        return np.full((len(obs), 1), self.push, np.float32), None


def run(push: float = 1.0, **kwargs: Any) -> EvalResult:
    return evaluate(Steady(push), kwargs.pop("make", Corridor), **kwargs)  # type: ignore[arg-type]  # on purpose


def test_success_is_at_any_step_and_progress_is_the_highest() -> None:
    assert run(episodes=2, seed=7) == EvalResult(
        success_rate=1.0,
        mean_length=8.0,
        mean_return=0.0,
        mean_progress=1.0,
        seeds=(7, 8),
        successes=(True, True),
        lengths=(8, 8),
        returns=(0.0, 0.0),
    )
    back = run(-1.0, make=lambda: Corridor(pay=2.0), episodes=1)
    assert (back.success_rate, back.mean_progress, back.mean_return) == (0.0, 0.0, 16.0)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 9])
def test_episodes_side_by_side_are_the_same_episodes(num_envs: int) -> None:
    def make() -> gym.Env[Any, Any]:
        return gym.make("procreward.envs:procreward/Toy-v0", max_episode_steps=9)

    class Still(Steady):
        def predict(self, obs: Any, deterministic: bool = False) -> tuple[Any, None]:
            super().predict(obs, deterministic)
            return np.sign(obs[:, 2:] - obs[:, :2]), None

    alone = evaluate(Still(), make, episodes=5, seed=3, num_envs=1)  # type: ignore[arg-type]  # on purpose
    model = Still()
    beside = evaluate(model, make, episodes=5, seed=3, num_envs=num_envs)  # type: ignore[arg-type]  # on purpose
    assert beside == alone
    assert max(model.batches) == min(num_envs, 5)
    assert sum(model.batches) == 45


def test_evaluations_see_the_same_starts_in_environments_that_are_kept() -> None:
    made = []

    def make() -> gym.Env[Any, Any]:
        made.append(gym.make("procreward.envs:procreward/Toy-v0", max_episode_steps=3))
        return made[-1]

    model = Steady(0.0)
    evaluator = Evaluator(make, episodes=4, seed=1, num_envs=2)
    model.push = 0.0

    def predict(obs: Any, deterministic: bool = False) -> tuple[Any, None]:
        model.seen.append(np.array(obs))
        return np.zeros((len(obs), 2), np.float32), None

    model.predict = predict  # type: ignore[method-assign]  # a spy
    evaluator(model)  # type: ignore[arg-type]  # wrong on purpose, or from a mapping
    first, model.seen = model.seen, []
    evaluator(model)  # type: ignore[arg-type]  # wrong on purpose, or from a mapping
    assert len(made) == 2
    assert all(np.array_equal(a, b) for a, b in zip(first, model.seen, strict=True))
    evaluator.close()


def learner(tmp_path: Path) -> tuple[BaseAlgorithm, VecNormalize]:
    venv = VecNormalize(DummyVecEnv([Corridor] * 2), norm_reward=False)
    venv.reset()
    return build_learner(config(tmp_path), venv), venv


def test_an_evaluation_leaves_no_trace_in_the_learner(tmp_path: Path) -> None:
    model, venv = learner(tmp_path)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]  # not None
    mean, count = venv.obs_rms.mean.copy(), venv.obs_rms.count  # type: ignore[union-attr]  # not None
    result = evaluate(model, Corridor, episodes=3, normalise=venv)
    assert result == evaluate(model, Corridor, episodes=3, normalise=venv.normalize_obs)
    assert before[0] == random.getstate()
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]  # not None
    assert np.array_equal(mean, venv.obs_rms.mean)  # type: ignore[union-attr]  # not None here
    assert count == venv.obs_rms.count  # type: ignore[union-attr]  # not None here


def test_observations_are_normalised_for_the_policy() -> None:
    model = Steady()
    evaluate(model, Corridor, episodes=1, normalise=lambda obs: obs + 5.0)  # type: ignore[arg-type]  # on purpose
    assert model.seen[0].tolist() == [[5.0, 5.0]]


def test_an_episode_that_does_not_end_is_refused() -> None:
    with pytest.raises(UnsupportedEnvError, match=r"goes on after 20 steps.*max_episode_steps"):
        run(make=lambda: Corridor(num_steps=100), max_steps=20, episodes=1)
    # One that ends right there has ended.
    assert run(make=lambda: Corridor(num_steps=20), max_steps=20, episodes=1).lengths == (20,)


def test_success_may_be_unknown() -> None:
    assert (succeeded({}), succeeded({"is_success": np.True_}), succeeded({"success": 0.0})) == (
        None,
        True,
        False,
    )
    result = evaluate(
        Steady(0.0),  # type: ignore[arg-type]  # wrong on purpose, or from a mapping
        lambda: gym.make("MountainCarContinuous-v0", max_episode_steps=4),
        episodes=2,
    )
    assert (result.success_rate, result.mean_progress, result.successes) == (
        None,
        None,
        (None, None),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "`episodes` must be an integer of at least 1"),
        ({"num_envs": 0}, "`num_envs` must be an integer of at least 1"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
    ],
)
def test_arguments_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Evaluator(Corridor, **changes)
