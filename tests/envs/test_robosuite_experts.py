from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from procreward.envs.experts import KINDS, make_expert
from procreward.errors import ConfigError, UnknownNameError

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.fixture(scope="module")
def envs():
    made = {}

    def get(name):
        if name not in made:
            made[name] = gym.make(f"procreward.envs:procreward/{name}-v0")
        return made[name]

    yield get
    for env in made.values():
        env.close()


def play(env, name, kind, seed):
    """Return progress, success and state of every step of one episode, and its actions."""
    expert = make_expert(f"procreward/{name}-v0", kind, seed)
    env.reset(seed=100 + seed)
    expert.reset(env)
    progress, success, states, actions = [], [], [], []
    done = False
    while not done:
        action = expert.act(env)
        assert env.action_space.contains(action)
        _, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        actions.append(action)
        progress.append(env.unwrapped.privileged_progress())
        success.append(info["success"])
        states.append(env.unwrapped.privileged_state())
    return np.array(progress), np.array(success), states, np.array(actions)


@pytest.mark.parametrize("name", ["Lift", "Stack", "PickPlaceCan", "Door"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_expert_does_the_task(envs, name, seed):
    progress, success, states, _ = play(envs(name), name, "expert", seed)
    assert progress[0] < 0.2
    assert success[-1]
    assert progress[-1] > 0.95
    assert states[-1]["stage"] == len(envs(name).unwrapped.stage_names)


def test_the_expert_lifts_without_turning_the_hand(envs):
    env = gym.make("procreward/Lift-v0", rotate=False)
    progress, success, _, actions = play(env, "Lift", "expert", 0)
    assert actions.shape[1] == 4
    assert success[-1]
    # No script for Lift turns the hand, so nothing is missing.
    assert np.array_equal(progress, play(envs("Lift"), "Lift", "expert", 0)[0])
    env.close()


def test_a_script_that_turns_the_hand_says_so_where_it_cannot():
    env = gym.make("procreward/Door-v0", rotate=False)
    with pytest.raises(ConfigError, match=r"turns the hand.*`rotate=True`"):
        play(env, "Door", "expert", 0)
    env.close()


@pytest.mark.parametrize("name", ["Lift", "Stack", "PickPlaceCan", "Door"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_failure_to_show_gets_half_way_and_loses_it(envs, name, seed):
    progress, success, _, _ = play(envs(name), name, "fail", seed)
    assert not success.any()
    assert 0.4 < progress.max() < 0.9
    assert progress[-1] < progress.max() - 0.1


def test_a_second_attempt_succeeds_after_a_setback(envs):
    progress, success, _, _ = play(envs("Stack"), "Stack", "retry", 0)
    assert success[-1]
    best = np.maximum.accumulate(progress)
    assert (best - progress).max() > 0.1


@pytest.mark.parametrize("name", ["Lift", "Stack"])
@pytest.mark.parametrize("seed", range(3))
def test_a_miss_lifts_an_empty_closed_hand(envs, name, seed):
    progress, success, states, _ = play(envs(name), name, "miss", seed)
    assert not success.any()
    assert max(state["height"] for state in states) < 0.01
    assert not any(state["grasped"] for state in states)
    closed = [state for state in states if state["width"] < 0.01]
    heights = [state["gripper"][2] for state in closed]
    assert max(heights) - min(heights) > 0.02
    assert progress[-1] < 0.56


@pytest.mark.parametrize("seed", range(3))
def test_a_drop_ends_with_an_object_that_lies_there(envs, seed):
    progress, success, states, _ = play(envs("Lift"), "Lift", "drop", seed)
    assert any(state["grasped"] for state in states)
    assert not states[-1]["grasped"]
    assert states[-1]["height"] < 0.005
    assert not success[-1]
    assert progress[-1] < 0.56


@pytest.mark.parametrize("seed", range(3))
def test_backtracking_ends_with_less_than_it_had(envs, seed):
    progress, success, states, _ = play(envs("Lift"), "Lift", "backtrack", seed)
    assert not success[-1]
    assert progress[-1] < progress.max() - 0.05
    assert states[-1]["height"] < 0.005
    assert states[-1]["distance"] > min(state["distance"] for state in states) + 0.02


@pytest.mark.parametrize("kind", ["stall", "idle", "random"])
@pytest.mark.parametrize("seed", range(2))
def test_kinds_that_never_get_there(envs, kind, seed):
    _, success, _, _ = play(envs("Stack"), "Stack", kind, seed)
    assert not success.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_episode(envs, kind):
    env = envs("Lift")
    first, second, other = (play(env, "Lift", kind, seed)[3] for seed in (7, 7, 8))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_consecutive_episodes_of_one_expert_differ(envs):
    env = envs("Lift")
    expert = make_expert("procreward.envs:procreward/Lift-v0", "expert", 0)
    episodes = []
    for _ in range(2):
        env.reset(seed=0)
        expert.reset(env)
        episodes.append([env.step(expert.act(env))[0] for _ in range(12)])
    assert not np.array_equal(*episodes)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"Unknown kind of expert 'exprt'.*'expert'"):
        make_expert("procreward/Lift-v0", "exprt", 0)
    with pytest.raises(UnknownNameError, match="Unknown environment with experts"):
        make_expert("CartPole-v1", "expert", 0)
