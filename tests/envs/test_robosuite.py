from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import procreward.envs
from procreward.envs.robosuite import RobosuiteEnv
from procreward.envs.robosuite_backend import load_robosuite
from procreward.errors import (
    ConfigError,
    FrameError,
    InstructionError,
    MissingDependencyError,
    UnknownNameError,
)

pytestmark = pytest.mark.sim

HORIZONS = {"Lift": 120, "Stack": 200, "Door": 250, "PickPlaceCan": 250}
VIEWS = {"Lift": "agentview", "Stack": "agentview", "Door": "doorview", "PickPlaceCan": "binsview"}


@pytest.fixture(scope="module", params=list(HORIZONS))
def env(request):
    env = RobosuiteEnv(request.param)
    yield env
    env.close()


@pytest.fixture(scope="module")
def lift():
    env = RobosuiteEnv("Lift")
    yield env
    env.close()


def play(env, seed, steps=6):
    """Everything that an episode of fixed actions shows: observations, progress, a frame."""
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(0)
    seen = [observation]
    for _ in range(steps):
        seen.append(env.step(rng.uniform(-1, 1, 7).astype(np.float32))[0])
    return np.array(seen), env.privileged_progress(), env.render()


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_all_ids_are_registered_with_their_horizon():
    assert {name: gym.spec(f"procreward/{name}-v0").max_episode_steps for name in HORIZONS} == (
        HORIZONS
    )
    assert set(procreward.envs.ENV_IDS) <= set(gym.registry)


def test_importing_the_package_imports_no_simulator():
    code = (
        "import sys, procreward.envs, procreward.envs.experts;"
        "print([name for name in ('mujoco', 'robosuite', 'metaworld') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(HORIZONS))
def test_gymnasium_has_nothing_to_complain_about(name):
    env = gym.make(f"procreward.envs:procreward/{name}-v0")
    check_env(env.unwrapped)
    assert gym.make(env.spec).spec == env.spec
    env.close()


def test_the_same_seed_is_the_same_episode(env):
    first = play(env, 5)
    play(env, 6)
    assert same(first, play(env, 5))
    assert not same(first, play(env, 6))


def test_the_same_seed_is_the_same_episode_in_a_fresh_instance_and_after_pickling(env):
    play(env, 1)
    first = play(env, 5)
    fresh = RobosuiteEnv(env.task.name)
    copy = pickle.loads(pickle.dumps(env))
    assert same(first, play(fresh, 5))
    assert same(first, play(copy, 5))
    fresh.close()
    copy.close()


def test_unseeded_resets_differ(lift):
    lift.reset(seed=3)
    first, _ = lift.reset()
    second, _ = lift.reset()
    assert not np.array_equal(first, second)


def test_observation_and_info(env):
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float64
    assert env.observation_space.contains(observation)
    assert info == {"success": False}
    observation, reward, terminated, truncated, info = env.step(np.zeros(7, np.float32))
    assert env.observation_space.contains(observation)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False})


def test_the_horizon_truncates_and_does_not_terminate():
    env = gym.make("procreward/Lift-v0", max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


def lifted(env):
    """Put the cube 10 cm up in the air, which robosuite counts as success."""
    env.reset(seed=0)
    sim = env._sim_env.sim
    joint = env._sim_env.cube.joints[0]
    pose = np.array(sim.data.get_joint_qpos(joint))
    pose[2] += 0.1
    sim.data.set_joint_qpos(joint, pose)
    sim.forward()


def test_success_is_reported_paid_and_ends_the_episode_only_on_request(lift):
    lifted(lift)
    assert lift.privileged_progress() == 1.0
    assert lift.privileged_state()["stage"] == 3
    _, reward, terminated, _, info = lift.step(np.zeros(7, np.float32))
    assert (reward, terminated, info) == (1.0, False, {"success": True})
    ending = RobosuiteEnv("Lift", terminate_on_success=True)
    lifted(ending)
    assert ending.step(np.zeros(7, np.float32))[2] is True
    ending.close()


def test_the_default_view_shows_the_scene_upright(env):
    env.reset(seed=0)
    assert env.default_views == (VIEWS[env.task.name],)
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((128, 128, 3), np.uint8)
    assert frame.flags.c_contiguous
    state = env.privileged_state()
    places = np.stack([state["object"], state["target"], state["gripper"]])
    column, row = env.project(env.default_views[0], places, 128, 128).T
    inside_crop = (column >= 16) & (column < 112) & (row >= 0) & (row < 96)
    # Lift's hand starts high over the cube, partly above the picture.
    assert inside_crop[:2].all()
    raised = places[:1] + np.array([0.0, 0.0, 0.1])
    assert env.project(env.default_views[0], raised, 128, 128)[0, 1] < row[0]


@pytest.mark.parametrize(("name", "view"), [("Lift", "agentview"), ("PickPlaceCan", "binsview")])
def test_the_red_object_is_where_the_projection_says(name, view):
    env = RobosuiteEnv(name)
    env.reset(seed=4)
    frame = env.render_camera(view, 256, 256).astype(int)
    red = (frame[..., 0] > 90) & (frame[..., 1] < 60) & (frame[..., 2] < 80)
    rows, columns = np.nonzero(red)
    place = env.project(view, env.privileged_state()["object"][None], 256, 256)[0]
    assert red.sum() > 40
    np.testing.assert_allclose([columns.mean(), rows.mean()], place, atol=5.0)
    env.close()


def test_a_frame_may_have_any_size_and_come_from_any_camera(lift):
    lift.reset(seed=0)
    for name in lift.camera_names:
        assert lift.render_camera(name, 48, 32).shape == (32, 48, 3)
    assert lift.render_camera("agentview", 800, 700).shape == (700, 800, 3)


def test_cheap_rendering_shows_nearly_the_same(lift):
    fine = RobosuiteEnv("Lift", cheap_render=False)
    fine.reset(seed=0)
    lift.reset(seed=0)
    difference = np.abs(fine.render().astype(int) - lift.render().astype(int))
    assert 0.0 < difference.mean() < 12.0
    fine.close()


def test_rendering_in_two_environments_in_turn(lift):
    other = RobosuiteEnv("Stack", width=64, height=96)
    other.reset(seed=0)
    lift.reset(seed=0)
    alone = lift.render()
    assert other.render().shape == (96, 64, 3)
    assert np.array_equal(lift.render(), alone)
    other.close()
    assert np.array_equal(lift.render(), alone)


def test_another_thread_is_refused_and_not_answered_with_black(lift):
    lift.reset(seed=0)
    lift.render()
    caught = []

    def work():
        try:
            lift.render()
        except FrameError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert "another thread" in caught[0]


def test_an_environment_can_be_closed_twice_and_rendered_again():
    env = RobosuiteEnv("Lift")
    env.reset(seed=0)
    before = env.render()
    env.close()
    env.close()
    assert np.array_equal(env.render(), before)
    env.close()


def test_privileged_state_has_the_same_keys_everywhere(env):
    env.reset(seed=0)
    state = env.privileged_state()
    assert set(state) == {
        "stage",
        "gripper",
        "object",
        "target",
        "grasped",
        "height",
        "distance",
        "width",
        "angles",
    }
    assert state["stage"] == 0
    assert state["grasped"] == 0.0
    assert abs(state["height"]) < 0.015
    assert state["distance"] == pytest.approx(np.linalg.norm(state["gripper"] - state["object"]))
    assert {np.shape(state[key]) for key in ("gripper", "object", "target")} == {(3,)}
    assert env.privileged_progress() < 0.2


def test_instructions(env):
    assert len(env.instruction) > 10
    assert len(set(env.stage_names)) == len(env.stage_names) >= 3


def test_an_instruction_of_ones_own():
    env = RobosuiteEnv("Lift", instruction="pick it up")
    assert env.instruction == "pick it up"
    env.close()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"task": "Lifft"}, UnknownNameError, r"Unknown robosuite task 'Lifft'.*'Lift'"),
        ({"camera": "agentvieu"}, UnknownNameError, r"Unknown camera 'agentvieu'.*'agentview'"),
        ({"width": 0}, ConfigError, "`width` must be an integer of at least 1, got 0"),
        ({"width": 2.5}, ConfigError, "`width` must be an integer of at least 1, got 2.5"),
        ({"height": -3}, ConfigError, "`height` must be an integer of at least 1, got -3"),
        ({"control_freq": 0}, ConfigError, "`control_freq` must be an integer of at least 1"),
        ({"instruction": "  "}, InstructionError, "`instruction` must be a sentence"),
        ({"instruction": 5}, InstructionError, "`instruction` must be a sentence .* got 5"),
        ({"render_mode": "human"}, ConfigError, "`render_mode` must be one of 'rgb_array', None"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        RobosuiteEnv(**settings)


def test_bad_camera_and_actions(lift):
    lift.reset(seed=0)
    with pytest.raises(UnknownNameError, match="Unknown camera 'topview'"):
        lift.render_camera("topview", 32, 32)
    with pytest.raises(ConfigError, match="`width` must be an integer of at least 1, got 0"):
        lift.render_camera("agentview", 0, 5)
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(ConfigError, match=r"`action` must be \(7,\) finite"):
            lift.step(action)


def test_without_rotations_the_hand_goes_where_it_would_go_with_them_at_zero():
    env, whole = RobosuiteEnv("Lift", rotate=False), RobosuiteEnv("Lift")
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
    for one in (env, whole):
        one.reset(seed=5)
    for move in np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32):
        turned = np.array([*move[:3], 0.0, 0.0, 0.0, move[3]], np.float32)
        assert np.array_equal(env.step(move)[0], whole.step(turned)[0])
    with pytest.raises(ConfigError, match=r"`action` must be \(4,\) finite"):
        env.step(np.zeros(7))
    env.close()
    whole.close()


def fake_version(folder, name, version):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("version", ["3.2.7", "3.10.0", "4.0.0"])
def test_a_mujoco_that_robosuite_cannot_use_is_named(monkeypatch, tmp_path, version):
    fake_version(tmp_path, "mujoco", version)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=rf"mujoco>=3.3,<3.10, got mujoco {version}"):
        load_robosuite()


def test_a_missing_robosuite_is_named_with_the_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingDependencyError, match=r'pip install "procreward\[robosuite\]"'):
        load_robosuite()


def test_without_opengl_the_packages_to_install_are_named():
    # A device that does not exist is how a machine without a driver answers.
    code = (
        "import os; os.environ.update(MUJOCO_GL='egl', MUJOCO_EGL_DEVICE_ID='99')\n"
        "from procreward.envs.robosuite import RobosuiteEnv\n"
        "from procreward.errors import MissingDependencyError\n"
        "env = RobosuiteEnv('Lift')\n"
        "env.reset(seed=0)\n"
        "env.step(env.action_space.sample())\n"
        "try:\n"
        "    env.render()\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "libegl1 libegl-mesa0 libgl1-mesa-dri" in done.stdout
    assert "libosmesa6" in done.stdout
    assert "robosuite" not in done.stderr


@pytest.mark.slow
def test_in_worker_processes():
    vector = gym.make_vec(
        "procreward/Lift-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
    )
    observation, info = vector.reset(seed=[5, 6])
    assert observation.shape == (2, vector.single_observation_space.shape[0])
    assert info["success"].tolist() == [False, False]
    frames = vector.render()
    assert [frame.shape for frame in frames] == [(128, 128, 3)] * 2
    vector.close()
    alone = RobosuiteEnv("Lift")
    assert np.array_equal(observation[0], alone.reset(seed=5)[0])
    alone.close()


def _render_in_child(env, answers):
    copy = pickle.loads(pickle.dumps(env))
    copy.reset(seed=0)
    try:
        copy.render()
    except FrameError as error:
        answers.send(str(error))
    answers.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_of_a_process_that_rendered_is_refused_and_does_not_hang(lift):
    lift.reset(seed=0)
    lift.render()
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_render_in_child, args=(lift, sender))
    child.start()
    answered = receiver.poll(120)
    if not answered:
        child.kill()
    child.join()
    assert answered
    assert 'context="spawn"' in receiver.recv()
