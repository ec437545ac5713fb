from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.envs.toy import ToyEnv
from procreward.errors import ConfigError, InstructionError, UnknownNameError

RED = (200, 40, 40)
GREEN = (40, 160, 60)


@pytest.mark.parametrize(
    "settings", [{}, {"actions": "discrete"}, {"observe_pixels": True, "width": 32, "height": 24}]
)
def test_registered_env_passes_gymnasiums_checker(settings):
    env = gym.make("procreward.envs:procreward/Toy-v0", **settings)
    check_env(env.unwrapped)
    env.close()


def test_time_limit_truncates_and_never_terminates():
    env = gym.make("procreward.envs:procreward/Toy-v0")
    env.reset(seed=0)
    flags = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(50)]
    assert flags == [(False, False)] * 49 + [(False, True)]


@pytest.mark.parametrize("actions", ["box", "discrete"])
@pytest.mark.parametrize("seed", range(20))
def test_expert_action_reaches_the_disc_within_the_horizon(actions, seed):
    env = gym.make("procreward.envs:procreward/Toy-v0", actions=actions)
    _, info = env.reset(seed=seed)
    assert info == {"success": False}
    truncated = False
    while not info["success"] and not truncated:
        _, reward, _, truncated, info = env.step(env.unwrapped.expert_action())
    assert info == {"success": True}
    assert reward == 1.0
    assert env.unwrapped.privileged_progress() == 1.0
    assert env.unwrapped.privileged_state()["stage"] == 1.0


def test_terminate_on_success_ends_the_episode():
    env = ToyEnv(terminate_on_success=True)
    env.reset(seed=0)
    terminated = False
    for _ in range(50):
        *_, terminated, truncated, info = env.step(env.expert_action())
        assert terminated == info["success"]
        assert truncated is False
        if terminated:
            break
    assert terminated


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    moves=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), max_size=40),
)
def test_progress_agrees_with_success(seed, moves):
    env = ToyEnv()
    _, info = env.reset(seed=seed)
    assert env.privileged_progress() == 0.0
    for move in moves:
        obs, reward, _, _, info = env.step(np.array(move, np.float32))
        progress = env.privileged_progress()
        assert env.observation_space.contains(obs)
        assert reward == float(info["success"])
        assert progress == 1.0 if info["success"] else 0.0 <= progress <= 0.94


def test_progress_falls_when_the_point_goes_back():
    env = ToyEnv()
    env.reset(seed=1)
    towards = env.expert_action()
    for _ in range(4):
        env.step(towards)
    before = env.privileged_progress()
    env.step(-towards)
    assert env.privileged_progress() < before


def test_same_seed_same_episode_other_seed_another():
    env = ToyEnv()
    first, again, other = (env.reset(seed=seed)[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_discrete_actions_move_by_a_tenth():
    env = ToyEnv("discrete")
    start = env.reset(seed=0)[0][:2]
    moved = [env.step(action)[0][:2] - start for action in (0, 1, 2, 3, 4)]
    expected = [[0, 0], [0.1, 0], [0.1, 0.1], [0, 0.1], [0, 0]]
    np.testing.assert_allclose(moved, expected, atol=1e-12)


def test_picture_shows_point_and_disc_where_they_are():
    env = ToyEnv(width=110, height=110)
    point_x, point_y, goal_x, goal_y = env.reset(seed=5)[0]
    frame = env.render()
    for x, y, colour in ((point_x, point_y, RED), (goal_x, goal_y, GREEN)):
        row, column = round((1.1 - y) / 2.2 * 109), round((x + 1.1) / 2.2 * 109)
        assert tuple(frame[row, column]) == colour
    side = env.render_camera("side", 110, 110)
    row, column = round((1.1 - point_x) / 2.2 * 109), round((point_y + 1.1) / 2.2 * 109)
    assert tuple(side[row, column]) == RED


def test_pixels_observation_is_the_rendered_frame():
    env = ToyEnv(observe_pixels=True)
    obs, _ = env.reset(seed=0)
    assert obs["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(obs["pixels"], env.render())


def test_has_the_attributes_of_the_simulated_environments():
    env = ToyEnv(instruction="Go to the disc.")
    env.reset(seed=0)
    assert env.instruction == "Go to the disc."
    assert env.camera_names == ("front", "side")
    assert env.default_views == ("front",)
    assert env.stage_names == ("reach the green disc",)
    state = env.privileged_state()
    assert sorted(state) == [
        "distance",
        "grasped",
        "gripper",
        "height",
        "object",
        "stage",
        "target",
    ]
    assert np.shape(state["gripper"]) == (3,)


def test_unknown_camera_is_named_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"Unknown camera 'fornt'\. Did you mean 'front'"):
        ToyEnv().render_camera("fornt", 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"actions": "both"}, "`actions` must be one of 'box', 'discrete', got 'both'"),
        ({"width": 0}, "`width` must be an integer of at least 1, got 0"),
        ({"render_mode": "human"}, "`render_mode` must be one of 'rgb_array', None"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ToyEnv(**settings)


def test_empty_instruction_is_refused():
    with pytest.raises(InstructionError, match="`instruction` must be a sentence"):
        ToyEnv(instruction=" ")


@pytest.mark.parametrize("action", [np.full(2, np.nan), np.zeros(3), 0.5, None])
def test_what_is_no_action_is_refused(action):
    env = ToyEnv()
    before, _ = env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"`action` must be \(2,\) finite numbers"):
        env.step(action)
    assert np.array_equal(env.step(np.zeros(2))[0], before)
