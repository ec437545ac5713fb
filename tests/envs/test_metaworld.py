from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from procreward.envs.experts.metaworld import MetaWorldExpert
from procreward.envs.metaworld import MetaWorldEnv
from procreward.envs.metaworld_progress import ProgressMeter, find_task
from procreward.errors import (
    ConfigError,
    FrameError,
    InstructionError,
    UnknownNameError,
)

pytestmark = pytest.mark.sim

HORIZONS = {"WindowOpen": 120, "DrawerClose": 100, "ButtonPressTopdown": 100}
TASKS = ["window-open", "drawer-close", "button-press-topdown"]


@pytest.fixture(scope="module", params=TASKS)
def env(request):
    env = MetaWorldEnv(request.param)
    yield env
    env.close()


@pytest.fixture(scope="module")
def window():
    env = MetaWorldEnv("window-open")
    yield env
    env.close()


def rollout(env, seed, steps=30):
    rng = np.random.default_rng(0)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        trace.append(env.step(rng.uniform(-1, 1, 4).astype(np.float32))[0])
    return np.array(trace)


@pytest.mark.parametrize("name", list(HORIZONS))
def test_registered_env_passes_gymnasiums_checker(name):
    env = gym.make(f"procreward.envs:procreward/{name}-v0")
    check_env(env.unwrapped)
    assert gym.make(env.spec).spec == env.spec
    env.close()


@pytest.mark.parametrize(("name", "horizon"), HORIZONS.items())
def test_episode_is_truncated_at_the_horizon(name, horizon):
    env = gym.make(f"procreward.envs:procreward/{name}-v0")
    env.reset(seed=0)
    flags = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(horizon)]
    assert flags == [(False, False)] * (horizon - 1) + [(False, True)]
    env.close()


def test_steps_go_on_beyond_meta_worlds_own_limit(window):
    window.reset(seed=0)
    truncated = [window.step(np.zeros(4, np.float32))[3] for _ in range(510)]
    assert not any(truncated)


def test_reset_seed_decides_the_episode_whatever_went_before(env):
    fresh = rollout(env, seed=7)
    other = rollout(env, seed=8)
    np.testing.assert_array_equal(rollout(env, seed=7), fresh)
    np.testing.assert_array_equal(rollout(MetaWorldEnv(env.unwrapped._task.name), seed=7), fresh)
    assert not np.array_equal(fresh[0], other[0])


def test_unseeded_resets_move_the_object_and_repeat_after_a_seed(env):
    def objects():
        env.reset(seed=11)
        return [env.reset()[0][4:7] for _ in range(3)]

    first, second = objects(), objects()
    np.testing.assert_array_equal(first, second)
    assert len({tuple(place) for place in first}) == 3


def test_observation_holds_hand_object_and_goal_now_and_a_step_ago(env):
    obs, _ = env.reset(seed=2)
    np.testing.assert_array_equal(obs[:7], obs[7:14])
    np.testing.assert_array_equal(obs[14:], env.privileged_state()["target"])
    after = env.step(np.array([0, -1, 1, 0], np.float32))[0]
    np.testing.assert_array_equal(after[7:14], obs[:7])
    assert after.dtype == np.float64
    assert env.observation_space.contains(after)


def test_first_observation_shows_the_scene_of_this_episode(window):
    # Meta-World itself shows the window of the episode before.
    obs, _ = window.reset(seed=1)
    window.reset(seed=2)
    again, _ = window.reset(seed=1)
    np.testing.assert_array_equal(obs, again)
    still = window.step(np.zeros(4, np.float32))[0]
    np.testing.assert_allclose(still[4:7], obs[4:7], atol=1e-3)


def test_progress_agrees_with_the_simulators_own_success(env):
    name = env.unwrapped._task.name
    meter = ProgressMeter(find_task(name))
    for kind, seed in (("expert", 0), ("drop", 1), ("miss", 2)):
        expert = MetaWorldExpert(name, kind, seed)
        _, info = env.reset(seed=seed)
        expert.reset(env)
        meter.reset(env.simulator)
        assert info == {"success": False, "metaworld_reward": 0.0}
        assert env.privileged_progress() == 0.0
        succeeded = []
        for _ in range(110):
            _, reward, terminated, _, info = env.step(expert.act(env))
            reading = meter.read(env.simulator)
            assert type(info["success"]) is bool
            assert info["success"] == reading.success
            assert reward == float(info["success"])
            assert terminated is False
            assert env.privileged_progress() == reading.value
            assert reading.value == 1.0 if reading.success else 0.0 <= reading.value <= 0.94
            assert (env.privileged_state()["stage"] == 2.0) == reading.success
            succeeded.append(info["success"])
        assert any(succeeded) == (kind == "expert")


def test_progress_falls_when_the_button_comes_up_again():
    env = MetaWorldEnv("button-press-topdown")
    expert = MetaWorldExpert("button-press-topdown", "drop", 0)
    env.reset(seed=0)
    expert.reset(env)
    values, fractions = [], []
    for _ in range(100):
        env.step(expert.act(env))
        values.append(env.privileged_progress())
        fractions.append(env.privileged_state()["fraction"])
    assert max(values) > 0.5
    assert values[-1] < max(values) - 0.2
    assert fractions[-1] < 0.2


def test_reach_is_solved_by_moving_the_tips_to_the_goal():
    env = MetaWorldEnv("reach")
    env.reset(seed=0)
    for _ in range(80):
        state = env.privileged_state()
        way = np.clip(20 * (state["target"] - state["gripper"]), -1, 1)
        *_, info = env.step(np.array([*way, 0.0], np.float32))
    assert info["success"]
    assert env.privileged_progress() == 1.0
    assert env.privileged_state()["stage"] == 1.0


def test_dense_reward_is_meta_worlds_and_success_can_terminate():
    env = MetaWorldEnv("drawer-close", reward="dense", terminate_on_success=True)
    expert = MetaWorldExpert("drawer-close", "expert", 0)
    env.reset(seed=0)
    expert.reset(env)
    for _ in range(100):
        _, reward, terminated, _, info = env.step(expert.act(env))
        assert reward == info["metaworld_reward"]
        assert 0.0 <= reward <= 10.0
        if terminated:
            break
    assert terminated
    assert info["success"]
    assert reward == 10.0


def test_privileged_state_has_the_same_keys_for_every_task(env):
    env.reset(seed=0)
    state = env.privileged_state()
    assert sorted(state) == [
        "distance",
        "fraction",
        "grasped",
        "gripper",
        "height",
        "object",
        "stage",
        "target",
    ]
    for key in ("gripper", "object", "target"):
        assert state[key].shape == (3,)
        assert state[key].dtype == np.float64


def test_frame_is_picture_like_and_repeats(env):
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (128, 128, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 20
    np.testing.assert_array_equal(env.render(), frame)


def test_front_frames_are_upright_and_see_the_object(window):
    """The wall behind the scene is grey and above; the wooden table is brown and below."""
    window.reset(seed=0)
    frame = window.render().astype(int)
    top, bottom = frame[:10, 40:], frame[-10:, 40:]
    assert np.abs(top[..., 0] - top[..., 2]).mean() < 15
    assert (bottom[..., 0] - bottom[..., 2]).mean() > 20


def test_opening_the_window_changes_many_pixels_of_the_crop(window):
    expert = MetaWorldExpert("window-open", "expert", 3)
    window.reset(seed=3)
    before = window.render()[0:96, 16:112].astype(int)
    expert.reset(window)
    for _ in range(110):
        window.step(expert.act(window))
    after = window.render()[0:96, 16:112].astype(int)
    assert (np.abs(after - before).max(axis=-1) > 30).mean() > 0.1


def test_head_down_cameras_are_turned_upright(window):
    """Seen from every corner, the wooden table fills more of the lower half than of the upper."""
    window.reset(seed=0)
    for name in ("corner", "corner2", "corner3", "corner4"):
        frame = window.render_camera(name, 96, 96).astype(int)
        brown = (frame[..., 0] - frame[..., 2]) > 20
        red = (frame[..., 0] - frame[..., 1]) > 60
        wood = brown & ~red
        assert wood[48:].sum() > wood[:48].sum(), name


def test_sizes_can_change_from_frame_to_frame(window):
    window.reset(seed=0)
    small = window.render()
    assert window.render_camera("front", 320, 200).shape == (200, 320, 3)
    assert window.render_camera("topview", 40, 30).shape == (30, 40, 3)
    np.testing.assert_array_equal(window.render(), small)


def test_several_environments_render_in_one_process(window):
    other = MetaWorldEnv("drawer-close")
    window.reset(seed=0)
    other.reset(seed=0)
    first, second = window.render(), other.render()
    np.testing.assert_array_equal(window.render(), first)
    np.testing.assert_array_equal(other.render(), second)
    assert not np.array_equal(first, second)
    other.close()


def test_shadows_come_back_without_cheap_render(window):
    window.reset(seed=0)
    full = MetaWorldEnv("window-open", cheap_render=False)
    full.reset(seed=0)
    difference = np.abs(full.render().astype(int) - window.render().astype(int))
    assert 0.5 < difference.mean() < 40
    full.close()


def test_rendering_on_another_thread_is_refused_not_black(window):
    window.reset(seed=0)
    window.render()
    caught = []

    def render():
        try:
            window.render()
        except FrameError as error:
            caught.append(str(error))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert "another thread" in caught[0]


def test_close_can_be_repeated_and_rendering_resumes(window):
    window.reset(seed=0)
    frame = window.render()
    window.close()
    window.close()
    np.testing.assert_array_equal(window.render(), frame)


def test_interpreter_exit_is_quiet_and_mujoco_may_be_imported_first():
    code = (
        "import os; os.environ.pop('MUJOCO_GL', None)\n"
        "import mujoco, gymnasium as gym\n"
        "env = gym.make('procreward.envs:procreward/WindowOpen-v0')\n"
        "env.reset(seed=0)\n"
        "print(env.render().std() > 20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "True\n"
    assert "Error" not in done.stderr


def test_pickle_rebuilds_an_equal_environment(env):
    copy = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(rollout(copy, seed=4), rollout(env, seed=4))
    assert copy.instruction == env.instruction


def test_async_vector_env_equals_single_envs(window):
    vector = gym.make_vec(
        "procreward.envs:procreward/WindowOpen-v0", num_envs=2, vectorization_mode="async"
    )
    obs, _ = vector.reset(seed=[5, 6])
    action = np.array([[0.3, 1, 0, 1], [0, 1, 0.2, 1]], np.float32)
    stepped = vector.step(action)[0]
    vector.close()
    for index, seed in enumerate((5, 6)):
        np.testing.assert_array_equal(window.reset(seed=seed)[0], obs[index])
        np.testing.assert_array_equal(window.step(action[index])[0], stepped[index])


def test_names_of_views_and_instruction():
    env = MetaWorldEnv("button-press-topdown-v3", instruction="Push the red button.")
    assert env.instruction == "Push the red button."
    assert env.default_views == ("front",)
    assert env.camera_names[0] == "front"
    assert {"topview", "corner2", "gripperPOV"} < set(env.camera_names)
    assert MetaWorldEnv("window-open").instruction == "Slide the window open by its handle."


def test_unknown_names_are_refused_with_a_suggestion(window):
    with pytest.raises(UnknownNameError, match="Did you mean 'drawer-close'"):
        MetaWorldEnv("drawer-closed")
    with pytest.raises(UnknownNameError, match="Unknown camera 'forward'"):
        window.render_camera("forward", 64, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "`width` must be an integer of at least 1, got 0"),
        ({"reward": "shaped"}, "`reward` must be one of 'sparse', 'dense', got 'shaped'"),
        ({"render_mode": "human"}, "`render_mode` must be one of 'rgb_array', None, got 'human'"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MetaWorldEnv("window-open", **settings)


def test_empty_instruction_is_refused():
    with pytest.raises(InstructionError, match="`instruction` must be a sentence"):
        MetaWorldEnv("window-open", instruction="")


@pytest.mark.parametrize("action", [np.full(4, np.nan), np.full(4, np.inf), np.zeros(3), None])
def test_what_is_no_action_is_refused(window, action):
    # MuJoCo starts the scene over where it is given NaN, and the task may count as solved there.
    window.reset(seed=0)
    with pytest.raises(ConfigError, match=r"`action` must be \(4,\) finite numbers"):
        window.step(action)
    assert np.isfinite(window.step(np.zeros(4))[0]).all()
