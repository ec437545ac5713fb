from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from procreward.errors import ConfigError
from procreward.training.config import TrainConfig
from procreward.training.learner import build_learner
from tests.training.conftest import LEARNERS, config


def venv(**kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make("procreward.envs:procreward/Toy-v0", **kwargs)] * 2)


def test_the_learner_discounts_as_the_reward_does(tmp_path: Path) -> None:
    for algorithm, kind in (("ppo", PPO), ("sac", SAC)):
        model = build_learner(config(tmp_path, algorithm, seed=4), venv())
        assert type(model) is kind
        assert (model.gamma, model.seed) == (0.9, 4)  # type: ignore[attr-defined]  # known
        assert model.device == torch.device("cpu")


def test_keywords_reach_the_learner() -> None:
    learner = {
        **LEARNERS["ppo"],
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": [5], "activation_fn": "relu"},
    }
    model = build_learner(TrainConfig(env="x", learner=learner), venv())
    assert isinstance(model, PPO)
    assert (model.n_steps, model.n_epochs) == (16, 2)
    assert isinstance(model.policy.mlp_extractor.policy_net[1], torch.nn.ReLU)
    assert model.policy.mlp_extractor.policy_net[0].out_features == 5
    learner = {**LEARNERS["sac"], "train_freq": [2, "step"]}
    model = build_learner(TrainConfig(env="x", algorithm="sac", learner=learner), venv())
    assert model.train_freq.frequency == 2  # type: ignore[attr-defined]  # known


def test_dictionary_observations_have_a_policy_of_their_own() -> None:
    model = build_learner(TrainConfig(env="x"), venv(observe_pixels=True))
    assert type(model.policy).__name__ == "MultiInputActorCriticPolicy"


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"device": "gpu0"}, "`learner` must be what SAC can learn with"),
        ({"policy_kwargs": {"net_arch": [-1]}}, "`learner` must be what SAC can learn with"),
        ({"train_freq": [1, "episode"]}, "`learner.train_freq` must be in steps with several"),
    ],
    ids=str,
)
def test_what_only_the_algorithm_itself_refuses(learner: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_learner(TrainConfig(env="x", algorithm="sac", learner=learner), venv())


def test_spaces_that_the_algorithm_cannot_learn_in() -> None:
    with pytest.raises(ConfigError, match=r"`learner` must be what SAC can learn with .*Discrete"):
        build_learner(TrainConfig(env="x", algorithm="sac"), venv(actions="discrete"))
