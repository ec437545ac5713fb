from __future__ import annotations

import random
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from procreward.errors import ConfigError
from procreward.training.checkpoints import (
    Checkpoint,
    clear_partial,
    newest_checkpoint,
    publish_folder,
    restore_learner,
    save_best,
    save_checkpoint,
)
from procreward.training.learner import build_learner
from tests.training.conftest import config
from tests.training.envs import Corridor


def learner(tmp_path: Path, algorithm: str = "ppo", seed: int = 0) -> BaseAlgorithm:
    venv = VecNormalize(DummyVecEnv([Corridor, Corridor]), norm_reward=False)
    venv.reset()
    return build_learner(config(tmp_path, algorithm, seed=seed), venv)


def draws(model: BaseAlgorithm) -> list[float]:
    """What the next draw of every generator gives."""
    return [
        random.random(),
        float(np.random.rand()),
        float(torch.rand(1)),
        float(model.action_space.sample()[0]),
    ]


def same(one: BaseAlgorithm, two: BaseAlgorithm) -> bool:
    before, after = one.policy.state_dict(), two.policy.state_dict()
    return all(torch.equal(before[name], after[name]) for name in before)


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with publish_folder(tmp_path / "made") as staged:
        (staged / "file").write_text("1")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "file").read_text() == "1"

    def fail() -> None:
        with publish_folder(tmp_path / "made") as staged:
            (staged / "file").write_text("2")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "1"


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    model = learner(tmp_path)
    for steps in (8, 100, 16):
        model.num_timesteps = steps
        made = save_checkpoint(tmp_path, model)
        assert made.steps == steps
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000016", "step-000000100"]
    assert newest_checkpoint(tmp_path) == Checkpoint(
        steps=100, folder=tmp_path / "checkpoints" / "step-000000100"
    )


def test_what_a_killed_run_left_half_written_is_passed_over(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    model = learner(tmp_path)
    model.num_timesteps = 8
    whole = save_checkpoint(tmp_path, model)
    half = tmp_path / "checkpoints" / ".step-000000016.999.partial"
    half.mkdir()
    (half / "policy.zip").write_bytes(b"PK")
    (tmp_path / "checkpoints" / "step-notes").mkdir()
    other = tmp_path / "policies" / ".step-000000016.999.partial"
    other.mkdir(parents=True)
    (tmp_path / ".best.999").symlink_to("policies")
    # To look is no writing: a run may be about to finish that folder.
    assert newest_checkpoint(tmp_path) == whole
    assert half.exists()
    clear_partial(tmp_path)
    assert newest_checkpoint(tmp_path) == whole
    assert [path.name for path in tmp_path.rglob(".*")] == []


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_learner_comes_back_as_it_was(tmp_path: Path, algorithm: str) -> None:
    model = learner(tmp_path, algorithm)
    model.learn(80)
    made = save_checkpoint(tmp_path, model, queries=7, failures=2)
    expected = draws(model)
    venv = VecNormalize(DummyVecEnv([Corridor, Corridor]), norm_reward=False)
    again, state = restore_learner(made, algorithm, venv)
    assert (again.num_timesteps, state.queries, state.failures) == (model.num_timesteps, 7, 2)
    assert same(model, again)
    assert draws(again) != expected
    state.restore_random(again)
    assert draws(again) == expected
    assert made.normalisation == made.folder / "normalisation.pkl"
    stored = VecNormalize.load(str(made.normalisation), DummyVecEnv([Corridor]))
    assert np.array_equal(stored.obs_rms.mean, model.get_env().obs_rms.mean)  # type: ignore[union-attr]  # not None
    if algorithm == "sac":
        one, two = model.replay_buffer, again.replay_buffer  # type: ignore[attr-defined]  # known
        assert one.pos == two.pos == 40
        assert np.array_equal(one.rewards, two.rewards)


def test_no_statistics_where_nothing_is_normalised(tmp_path: Path) -> None:
    model = build_learner(config(tmp_path), DummyVecEnv([Corridor, Corridor]))
    made = save_checkpoint(tmp_path, model)
    assert made.normalisation is None
    assert sorted(path.name for path in made.folder.iterdir()) == ["policy.zip", "state.json"]


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    model = learner(tmp_path)
    made = save_checkpoint(tmp_path, model)
    (made.folder / "state.json").write_text("{")
    with pytest.raises(ConfigError, match=r"'.*step-000000000' cannot be used .* remove that"):
        restore_learner(made, "ppo", model.get_env())  # type: ignore[arg-type]  # on purpose
    (made.folder / "policy.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="cannot be used"):
        restore_learner(made, "ppo", model.get_env())  # type: ignore[arg-type]  # on purpose


def test_a_checkpoint_for_other_spaces_is_refused(tmp_path: Path) -> None:
    made = save_checkpoint(tmp_path, learner(tmp_path))
    toys = DummyVecEnv([lambda: gym.make("procreward.envs:procreward/Toy-v0")] * 2)
    with pytest.raises(ConfigError, match="Observation spaces do not match"):
        restore_learner(made, "ppo", toys)


def test_best_leads_to_one_complete_folder(tmp_path: Path) -> None:
    model = learner(tmp_path)
    for steps in (8, 16):
        model.num_timesteps = steps
        link = save_best(tmp_path, model, {"step": steps})
    assert link == tmp_path / "best"
    assert sorted(path.name for path in link.iterdir()) == [
        "best.json",
        "normalisation.pkl",
        "policy.zip",
    ]
    assert '"step": 16' in (link / "best.json").read_text()
    assert [path.name for path in (tmp_path / "policies").iterdir()] == ["step-000000016"]
    # A run folder can be moved.
    assert not link.readlink().is_absolute()
