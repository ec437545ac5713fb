from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from procreward.envs.experts import KINDS, make_expert
from procreward.envs.experts import metaworld as scripts
from procreward.errors import UnknownNameError, UnsupportedEnvError

pytestmark = pytest.mark.sim

IDS = [
    "procreward/WindowOpen-v0",
    "procreward/DrawerClose-v0",
    "procreward/ButtonPressTopdown-v0",
]


@pytest.fixture(scope="module", params=IDS)
def env(request):
    env = gym.make(f"procreward.envs:{request.param}")
    yield env
    env.close()


def play(env, kind, seed):
    """Return success, progress and moved fraction of every step, and the actions."""
    expert = make_expert(env.spec.id, kind, seed)
    env.reset(seed=seed + 500)
    expert.reset(env)
    success, progress, fraction, actions = [], [], [], []
    truncated = False
    while not truncated:
        action = expert.act(env)
        assert action.dtype == np.float32
        assert env.action_space.contains(action)
        *_, truncated, info = env.step(action)
        success.append(info["success"])
        progress.append(env.unwrapped.privileged_progress())
        fraction.append(env.unwrapped.privileged_state()["fraction"])
        actions.append(action)
    return success, progress, fraction, np.array(actions)


def test_expert_succeeds_within_the_horizon(env):
    assert [any(play(env, "expert", seed)[0]) for seed in range(8)] == [True] * 8


def test_retry_mostly_succeeds_and_later_than_the_expert(env):
    retries = [play(env, "retry", seed)[0] for seed in range(8)]
    experts = [play(env, "expert", seed)[0] for seed in range(8)]
    reached = [success.index(True) for success in retries if any(success)]
    assert len(reached) >= 5
    assert np.mean(reached) > np.mean([success.index(True) for success in experts])


def test_drop_and_fail_move_the_part_but_do_not_finish(env):
    for kind in ("drop", "fail"):
        episodes = [play(env, kind, seed) for seed in range(4)]
        assert not any(any(success) for success, *_ in episodes)
        assert np.mean([max(fraction) for _, _, fraction, _ in episodes]) > 0.15


def test_miss_does_not_move_the_part(env):
    moved = [max(play(env, "miss", seed)[2]) for seed in range(4)]
    assert np.median(moved) < 0.05


def test_backtrack_ends_below_its_best(env):
    falls = [max(p) - p[-1] for _, p, _, _ in (play(env, "backtrack", seed) for seed in range(8))]
    assert max(falls) > 0.15


def test_stall_ends_at_rest_short_of_success(env):
    for seed in range(3):
        success, _, fraction, _ = play(env, "stall", seed)
        assert not success[-1]
        assert abs(fraction[-1] - fraction[-10]) < 0.05


def test_idle_stays_near_its_start_and_random_wanders(env):
    idle, random = play(env, "idle", 0), play(env, "random", 0)
    assert np.abs(idle[3][:, :3]).max() < 0.2
    assert np.abs(random[3]).max() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_actions_and_episodes_differ(kind):
    env = gym.make("procreward.envs:procreward/ButtonPressTopdown-v0")
    first, again, other = (play(env, kind, seed)[3] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    env.close()


def test_every_kind_has_a_plan():
    assert tuple(scripts._PLANS) == KINDS


def test_unknown_kind_and_environment_are_refused():
    with pytest.raises(UnknownNameError, match="Unknown kind of expert 'exprt'"):
        make_expert("procreward/WindowOpen-v0", "exprt", 0)
    with pytest.raises(UnknownNameError, match="Unknown environment with experts"):
        make_expert("procreward/Reach-v0", "expert", 0)


def test_an_environment_of_another_family_is_refused():
    expert = make_expert("procreward/WindowOpen-v0", "expert", 0)
    with pytest.raises(UnsupportedEnvError, match="must be a procreward Meta-World environment"):
        expert.reset(gym.make("CartPole-v1"))
