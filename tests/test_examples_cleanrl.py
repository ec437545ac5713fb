"""The single-file PPO: its advantages, what it learns from at the ends of episodes, and a run."""

from __future__ import annotations

import csv
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from procreward import VectorProgressReward
from procreward.types import Query, Score
from tests.helpers import CounterEnv

EXAMPLE = Path(__file__).parents[1] / "examples" / "cleanrl_ppo.py"
TOY = "procreward.envs:procreward/Toy-v0"


@pytest.fixture(scope="module")
def ppo() -> SimpleNamespace:
    """The example's names."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE), run_name="cleanrl_ppo"))


def rows(*numbers: list[float]) -> Any:
    return np.array(numbers, np.float32)


def test_advantages_at_the_end_of_an_episode(ppo: SimpleNamespace) -> None:
    """One sub-environment runs on, one is cut off at the second step, one terminates there."""
    ended = np.array([[False] * 3, [False, True, True], [False] * 3])
    terminated = np.array([[False] * 3, [False, False, True], [False] * 3])
    got = ppo.advantages(
        rows([1, 1, 1], [1, 1, 1], [3, 3, 3]),
        rows([1, 1, 1], [1, 1, 1], [2, 2, 2]),
        rows([1, 1, 1], [2, 4, 4], [2, 2, 2]),
        terminated,
        ended,
        gamma=0.5,
        gae_lambda=0.5,
    )
    # Errors: 0.5; then 1 + 0.5 * 2 - 1, 1 + 0.5 * 4 - 1 and 1 - 1; then 2. Weight of the next: 1/4.
    assert got.tolist() == [[0.875, 1.0, 0.5], [1.5, 2.0, 0.0], [2.0, 2.0, 2.0]]


class Untouched:
    """Normalises nothing."""

    def see(self, obs: Any) -> None:
        pass

    def __call__(self, obs: Any) -> Any:
        return obs.astype(np.float32)


def counter(num_steps: int, end: str) -> CounterEnv:
    env = CounterEnv(num_steps, end)
    env.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    return env


def counters(mode: AutoresetMode = AutoresetMode.DISABLED, **settings: Any) -> VectorProgressReward:
    """One that is cut off after 2 steps, and one that terminates after 3."""
    makers = [lambda: counter(2, "truncated"), lambda: counter(3, "terminated")]
    scorer = {"name": "scripted", "options": {"progress": [0.0, 0.25, 0.5, 1.0]}}
    return VectorProgressReward(
        SyncVectorEnv(makers, autoreset_mode=mode),
        scorer=scorer,
        every_k_steps=1,
        shaping="delta",
        gamma=1.0,
        **settings,
    )


def test_a_rollout_has_the_last_states_of_its_episodes(ppo: SimpleNamespace) -> None:
    envs, args = counters(), ppo.Args(num_envs=2)
    torch.manual_seed(0)
    collector = ppo.Collector(envs, Untouched(), args)
    agent = ppo.Agent(1, 1)
    rollout, episodes = collector.collect(agent, 4)
    assert rollout.obs[..., 0].T.tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert rollout.next_obs[..., 0].T.tolist() == [[1, 2, 1, 2], [1, 2, 3, 1]]
    assert rollout.ended.T.tolist() == [[False, True] * 2, [False, False, True, False]]
    assert rollout.terminated.T.tolist() == [[False] * 4, [False, False, True, False]]
    assert rollout.rewards.T.tolist() == [[0.25] * 4, [0.25, 0.25, 0.5, 0.25]]
    assert episodes == [(0.5, True), (1.0, True), (0.5, True)]
    # The next rollout goes on where this one stopped.
    rollout, episodes = collector.collect(agent, 2)
    assert rollout.obs[..., 0].T.tolist() == [[0, 1], [1, 2]]
    assert episodes == [(0.5, True), (1.0, True)]
    envs.close()


def test_success_at_an_end_is_not_that_of_the_next_episode(ppo: SimpleNamespace) -> None:
    ended = np.array([True, False, True])
    infos = {
        "success": np.array([False, True, True]),
        "final_info": {"success": np.array([True, False, False])},
    }
    assert ppo.successes(infos, ended).tolist() == [True, True, False]
    assert ppo.successes({}, ended).tolist() == [False, False, False]


def test_next_step_autoreset_is_refused(ppo: SimpleNamespace) -> None:
    envs = counters(AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="no transitions"):
        ppo.Collector(envs, Untouched(), ppo.Args(num_envs=2))
    envs.close()


def test_spaces_that_are_not_flat_are_refused(ppo: SimpleNamespace) -> None:
    envs = gym.make_vec(TOY, num_envs=1, vectorization_mode="sync", actions="discrete")
    with pytest.raises(ValueError, match="actions must be flat boxes, got Discrete"):
        ppo.sizes(envs)
    envs.close()


def test_observations_are_scaled_by_all_that_were_seen(ppo: SimpleNamespace) -> None:
    normaliser = ppo.Normaliser(2)
    normaliser.see(np.array([[0.0, 5.0]]))
    normaliser.see(np.array([[2.0, 5.0], [4.0, 5.0]]))
    std = (8 / 3 + 1e-8) ** 0.5
    np.testing.assert_allclose(normaliser(np.array([4.0, 5.0])), [2 / std, 0.0], rtol=1e-6)
    assert normaliser(np.array([1e9, -1e9])).tolist() == [10.0, -10.0]
    saved = normaliser.state_dict()
    assert int(saved["count"]) == 3
    assert saved["mean"].tolist() == [2.0, 5.0]


class Watcher:
    """Tells from the toy's picture how near the red point is to the green disc."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        return [self._look(clip[-1]) for query in queries for clip in query.frames.values()]

    def _look(self, frame: Any) -> Score:
        red, green = frame[..., 0].astype(int), frame[..., 1].astype(int)
        point, disc = np.argwhere(red - green > 100), np.argwhere(green - red > 100)
        if not len(disc):
            return Score(progress=1.0)
        apart = np.linalg.norm(point.mean(0) - disc.mean(0)) / np.hypot(*frame.shape[:2])
        return Score(progress=float(1.0 - apart))

    def describe(self) -> Mapping[str, object]:
        return {"name": "watcher"}


def run(ppo: SimpleNamespace, out: Path, **settings: Any) -> dict[str, Any]:
    """Train a few hundred steps on the toy and return what was saved."""
    args = {"steps": 240, "rollout_steps": 30, "episode_steps": 12, "eval_episodes": 2}
    ppo.main(ppo.Args(env=TOY, out=out, **{"scorer": Watcher(), **args, **settings}))
    saved: dict[str, Any] = torch.load(out / "policy.pt", weights_only=True)
    return saved


def test_equal_seeds_give_equal_policies(ppo: SimpleNamespace, tmp_path: Path) -> None:
    one, same = run(ppo, tmp_path / "one"), run(ppo, tmp_path / "same")
    other = run(ppo, tmp_path / "other", seed=1)
    weights = "actor.0.weight"
    assert torch.equal(one["agent"][weights], same["agent"][weights])
    assert not torch.equal(one["agent"][weights], other["agent"][weights])
    assert int(one["normaliser"]["count"]) == 244
    assert {key: value.shape for key, value in one["normaliser"].items()} == {
        "count": (),
        "mean": (4,),
        "squares": (4,),
    }


def test_deferred_rewards_give_the_same_policy(ppo: SimpleNamespace, tmp_path: Path) -> None:
    blocking = run(ppo, tmp_path / "blocking")
    deferred = run(ppo, tmp_path / "deferred", latency="deferred")
    for part in ("agent", "normaliser"):
        assert blocking[part].keys() == deferred[part].keys()
        for name, value in blocking[part].items():
            assert torch.equal(value, deferred[part][name]), name
    curves = [(tmp_path / name / "curve.csv").read_text() for name in ("blocking", "deferred")]
    one, other = ([row.split(",")[:-1] for row in curve.splitlines()] for curve in curves)
    assert one == other


def test_a_missing_reward_stops_the_run(ppo: SimpleNamespace) -> None:
    envs = counters(latency="deferred")
    collector = ppo.Collector(envs, Untouched(), ppo.Args(num_envs=2))

    class Thief(ppo.Agent):  # type: ignore[misc]  # the example is no module
        """Collects what was not meant for it."""

        def policy(self, obs: Any) -> Any:
            envs.collect(wait=True)
            return super().policy(obs)

    with pytest.raises(ValueError, match="a reward is missing"):
        collector.collect(Thief(1, 1), 2)
    envs.close()


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--env", TOY, "--scorer", "constant", "--steps", "64", "--episode-steps", "10"]
    monkeypatch.setattr(sys, "argv", ["cleanrl_ppo", *options, "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert (tmp_path / "policy.pt").stat().st_size > 0
    with (tmp_path / "curve.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    # 16 steps of 4 sub-environments that are cut off after 10.
    assert (row["steps"], row["episodes"]) == ("64", "4")
    # A constant's potential never moves.
    assert row["mean_return"] == "0.0"
