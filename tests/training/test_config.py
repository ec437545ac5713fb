from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from procreward.config import ScorerConfig
from procreward.errors import ConfigError, UnknownNameError
from procreward.scorers.constant import Constant
from procreward.training.config import (
    EvalConfig,
    TrainConfig,
    config_mapping,
    load_train_config,
    train_config,
    train_config_names,
)
from tests.training.conftest import settings

TOY = "procreward.envs:procreward/Toy-v0"


def test_the_shipped_configs_are_these() -> None:
    assert train_config_names() == (
        "button-press-ppo",
        "drawer-close-ppo",
        "lift-sac",
        "robocasa-open-drawer-ppo",
        "toy-ppo",
        "toy-sac",
        "window-open-ppo",
    )


@pytest.mark.parametrize("name", train_config_names())
def test_a_shipped_config_is_right_and_never_shows_the_simulators_reward(name: str) -> None:
    config = load_train_config(name)
    assert config.out == Path("runs") / name
    assert config.env.startswith("procreward.envs:procreward/")
    assert config.algorithm == name.rpartition("-")[2]
    assert config.reward.env_reward_weight == 0.0
    assert config.reward.on_complete == "info"


def test_the_meta_world_configs_are_those_of_the_experiments() -> None:
    every = {"drawer-close-ppo": 8, "window-open-ppo": 8, "button-press-ppo": 4}
    for name, k in every.items():
        config = load_train_config(name)
        assert (config.num_envs, config.reward.every_k_steps) == (4, k)
        assert (config.reward.shaping, config.reward.gamma, config.reward.scale) == (
            "delta",
            0.98,
            10.0,
        )
        assert config.normalise_obs
        assert config.learner == {
            "n_steps": 256,
            "batch_size": 256,
            "n_epochs": 10,
            "learning_rate": 3e-4,
            "gae_lambda": 0.95,
            "policy_kwargs": {"net_arch": [64, 64], "activation_fn": "tanh"},
        }


@pytest.mark.parametrize("name", train_config_names())
def test_a_config_survives_its_file(name: str) -> None:
    config = load_train_config(name)
    assert train_config(yaml.safe_load(yaml.safe_dump(config_mapping(config)))) == config


def test_names_paths_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_train_config("toy-ppo") == load_train_config("configs/train/toy-ppo.yaml")
    own = tmp_path / "mine.yaml"
    own.write_text("env: procreward/Toy-v0\nreward: {scorer: constant}\n")
    config = load_train_config(own, seed=5, num_envs=None, out="there")
    assert (config.env, config.seed, config.num_envs, config.out) == (TOY, 5, 4, Path("there"))
    assert load_train_config(own).out == Path("runs/mine")
    # A file that is there is meant, whatever is shipped under its name.
    Path("toy-ppo.yaml").write_text("env: procreward/Toy-v0\nseed: 77\n")
    assert load_train_config("toy-ppo.yaml").seed == 77


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: [", "is not valid YAML"),
        ("- env", "must be a mapping of settings"),
        ("seed: 1", "`env` must be given"),
        ("{env: procreward/Toy-v0, total_step: 9}", "Did you mean 'total_steps'"),
        ("{env: procreward/Toy-v0, reward: {every_k_step: 9}}", "Did you mean 'every_k_steps'"),
        ("{env: procreward/Toy-v0, eval: {episods: 9}}", "Did you mean 'episodes'"),
        ("{env: procreward/Toy-v0, learner: {n_step: 9}}", "Did you mean 'n_steps'"),
        ("{env: procreward/Toy-v0, reward: nano}", "`reward` must be a mapping"),
        ("{env: procreward/Toy-v0, eval: 3}", "`eval` must be a mapping"),
        ("{env: procreward/Toy-v0, eval: false}", "`eval` must be a mapping"),
        ("{env: procreward/Toy-v0, reward: []}", "`reward` must be a mapping"),
        ("{env: procreward/Toy-v0, learner: 0}", "`learner` must be a mapping"),
        ("{env: procreward/Toy-v0, env_kwargs: []}", "`env_kwargs` must be a mapping"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_train_config(path)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'toy-ppo'"):
        load_train_config("toy-pop")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_train_config(tmp_path / "none.yaml")
    with pytest.raises(UnknownNameError, match="Did you mean 'num_envs'"):
        load_train_config("toy-ppo", num_env=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": ""}, "`env` must be an id of Gymnasium, got ''"),
        ({"env_kwargs": [1]}, "`env_kwargs` must be a mapping"),
        ({"algorithm": "td3"}, "`algorithm` must be one of 'ppo', 'sac', got 'td3'"),
        ({"total_steps": 0}, "`total_steps` must be an integer of at least 1"),
        ({"num_envs": 2.0}, "`num_envs` must be an integer"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
        ({"workers": "yes"}, "`workers` must be true or false"),
        ({"normalise_obs": 1}, "`normalise_obs` must be true or false"),
        ({"checkpoint_every_steps": -1}, "`checkpoint_every_steps` must be an integer"),
        ({"latency": "late"}, "`latency` must be one of 'blocking', 'deferred'"),
        ({"max_lag_steps": 4}, "`max_lag_steps` must be left out, got 4"),
        ({"eval": {"episodes": 0}}, "`eval.episodes` must be an integer of at least 1"),
        ({"eval": {"episodes": 2, "video": 3}}, "`eval.video` must be at most `episodes`"),
        ({"reward": {"gamma": 1.5}}, r"`gamma` must be a number in \(0, 1\]"),
        ({"out": ""}, "`out` must be the path of a folder"),
    ],
    ids=str,
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(settings(tmp_path, **changes))


@pytest.mark.parametrize(
    ("algorithm", "learner", "message"),
    [
        ("ppo", {"gamma": 0.9}, "must not hold 'gamma', got 0.9: the one discount is `reward"),
        ("ppo", {"env": "x"}, "must not hold 'env'"),
        ("ppo", {"seed": 3}, "must not hold 'seed'"),
        ("ppo", {"verbose": 1}, "must not hold 'verbose'"),
        ("ppo", {"tensorboard_log": "x"}, "must not hold 'tensorboard_log'"),
        ("sac", {"replay_buffer_class": "x"}, "must not hold 'replay_buffer_class'"),
        ("sac", {"clip_range": 0.2}, "Unknown keyword of SAC in `learner` 'clip_range'"),
        ("ppo", {"buffer_size": 3}, "Unknown keyword of PPO in `learner` 'buffer_size'"),
        ("ppo", {"learning_rate": "3e-4"}, "YAML reads 3e-4 as text, so write 0.0003"),
        ("ppo", {"learning_rate": -1.0}, "`learner.learning_rate` must be above 0"),
        ("ppo", {"n_steps": 2.5}, "`learner.n_steps` must be an integer"),
        ("ppo", {"n_steps": 0}, "`learner.n_steps` must be an integer of at least 1"),
        ("ppo", {"batch_size": True}, "`learner.batch_size` must be an integer"),
        ("ppo", {"use_sde": 1}, "`learner.use_sde` must be true or false"),
        ("ppo", {"gae_lambda": 2.0}, r"`learner.gae_lambda` must be in \[0, 1\]"),
        ("sac", {"train_freq": "often"}, "`learner.train_freq` must be an integer or a list"),
        ("sac", {"train_freq": 0}, "`learner.train_freq` must be an integer of at least 1"),
        ("sac", {"train_freq": [1]}, "`learner.train_freq` must be an integer of at least 1"),
        ("sac", {"train_freq": [0, "step"]}, "`learner.train_freq` must be an integer of at"),
        ("sac", {"gradient_steps": 0}, "`learner.gradient_steps` must be an integer of at least 1"),
        ("ppo", {"policy_kwargs": 3}, "`learner.policy_kwargs` must be"),
        (
            "ppo",
            {"policy_kwargs": {"activation_fn": "softplus"}},
            "`activation_fn` must be one of 'tanh', 'relu'",
        ),
    ],
    ids=str,
)
def test_keywords_of_the_learner(
    tmp_path: Path, algorithm: str, learner: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(settings(tmp_path, algorithm, learner=learner))


def test_deferred_sac_takes_no_returns_of_several_steps(tmp_path: Path) -> None:
    late = settings(tmp_path, "sac", latency="deferred", learner={"n_steps": 3})
    with pytest.raises(ConfigError, match=r"`learner.n_steps` must be 1 with latency: deferred"):
        train_config(late)
    assert train_config({**late, "latency": "blocking"}).learner == {"n_steps": 3}


def test_a_key_with_nothing_behind_it_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("env: procreward/Toy-v0\neval:\nlearner:\n")
    assert load_train_config(path).eval == EvalConfig()


def test_keywords_that_are_right() -> None:
    learner = {"ent_coef": "auto_0.1", "train_freq": [2, "step"], "target_entropy": -1.0}
    assert TrainConfig(env="x", algorithm="sac", learner=learner).learner == learner
    assert TrainConfig(env="x", learner={"target_kl": None}).learner == {"target_kl": None}


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    live = train_config(settings(tmp_path, reward={"scorer": Constant(0.5)}))
    with pytest.raises(ConfigError, match=r"`reward.scorer` must be a name or a mapping"):
        config_mapping(live)
    told = train_config(settings(tmp_path, reward={"instruction": lambda *_: "go"}))
    with pytest.raises(ConfigError, match=r"`reward.instruction` must be a text"):
        config_mapping(told)


def test_a_scorer_config_becomes_a_mapping(tmp_path: Path) -> None:
    scorer = ScorerConfig(name="constant", options={"progress": 0.25})
    config = train_config(settings(tmp_path, reward={"scorer": scorer}))
    assert config_mapping(config)["reward"]["scorer"] == {
        "name": "constant",
        "options": {"progress": 0.25},
    }


def test_defaults_of_the_evaluation() -> None:
    assert EvalConfig() == EvalConfig(every_steps=10_000, episodes=20, seed=10_000, video=1)
