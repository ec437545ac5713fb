"""The environment around RoboCasa's own, in the tiny kitchen (not a benchmark scene)."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from procreward.cli import main
from procreward.envs.robocasa import STATE_PARTS, RoboCasaEnv, make_robocasa
from procreward.errors import ConfigError, FrameError, MissingDependencyError, UnknownNameError
from tests.robocasa.conftest import HORIZON, Kitchens

TASKS = ("OpenDrawer", "CloseDrawer", "OpenCabinet", "PickPlaceCounterToCabinet")
LEFT, RIGHT = "robot0_agentview_left", "robot0_agentview_right"
SENTENCES = {
    "OpenDrawer": {"Open the left drawer.", "Open the right drawer."},
    "CloseDrawer": {"Close the left drawer.", "Close the right drawer."},
    "OpenCabinet": {"Open the cabinet doors."},
    "PickPlaceCounterToCabinet": {"Pick the apple from the counter and place it in the cabinet."},
}
STILL = np.zeros(12, np.float32)


@pytest.fixture(params=TASKS)
def env(request: pytest.FixtureRequest, kitchens: Kitchens) -> Any:
    """Each of the four tasks; reset it before use."""
    return kitchens(request.param)


@pytest.fixture(scope="module")
def stock(tiny_assets: Path) -> Iterator[gym.Env[Any, Any]]:
    """RoboCasa's own environment, with nothing of ours around it."""
    import robocasa  # noqa: F401 - registers

    env = gym.make("robocasa/OpenDrawer", split="pretrain", disable_env_checker=True)
    yield env
    env.close()


def theirs(env: gym.Env[Any, Any]) -> Any:
    """RoboCasa's task object."""
    return env.unwrapped._sim_env  # type: ignore[attr-defined] # ours


def flat(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate([observation[key] for key, _ in STATE_PARTS])


def enabled_pictures(env: gym.Env[Any, Any]) -> list[str]:
    observables = theirs(env)._observables
    return [name for name in observables if "image" in name and observables[name].is_enabled()]


def test_observation_action_info_and_instruction(env) -> None:
    observation, info = env.reset(seed=0)
    assert env.observation_space == gym.spaces.Box(-100.0, 100.0, (16,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (12,), np.float32)
    assert env.observation_space.contains(observation)
    assert info == {"success": False}
    assert env.unwrapped.instruction in SENTENCES[env.unwrapped.task]
    env.action_space.seed(0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"success": False})


def test_it_is_robocasas_own_episode_and_picture(
    kitchens: Kitchens, stock: gym.Env[Any, Any]
) -> None:
    from robocasa.utils.env_utils import convert_action

    env = kitchens("OpenDrawer")
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 12)).astype(np.float32)
    for seed in (3, 4):
        expected, _ = stock.reset(seed=seed)
        observation, _ = env.reset(seed=seed)
        assert env.unwrapped.instruction == expected["annotation.human.task_description"]
        for action in actions:
            np.testing.assert_array_equal(observation, flat(expected))
            for name in (LEFT, RIGHT):
                picture = env.unwrapped.render_camera(name, 256, 256)
                np.testing.assert_array_equal(picture, expected[f"video.{name}"])
            observation, reward, *_ = env.step(action)
            expected, sparse, *_ = stock.step(convert_action(action))
            assert reward == sparse == 0.0


def test_nothing_is_drawn_unasked_after_any_reset(kitchens: Kitchens) -> None:
    env = kitchens("OpenDrawer")
    for seed in (0, 1):
        env.reset(seed=seed)
        assert enabled_pictures(env) == []
        env.step(STILL)
        assert theirs(env).sim._render_context_offscreen is None
        assert env.render().mean() > 20.0
        assert theirs(env).sim._render_context_offscreen is not None


def test_views_are_upright_external_and_not_black(env) -> None:
    env.reset(seed=1)
    inner = env.unwrapped
    assert inner.default_views == (RIGHT,)
    assert {LEFT, RIGHT, "robot0_eye_in_hand"} <= set(inner.camera_names)
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    assert frame.flags.c_contiguous
    assert frame.std() > 10.0
    np.testing.assert_array_equal(frame, inner.render_camera(RIGHT, 256, 256))
    # Raised by 10 cm, the hand is higher up in the picture: a smaller row.
    hand = theirs(env).sim.data.get_site_xpos("gripper0_right_grip_site")
    places = np.stack([hand, np.add(hand, (0.0, 0.0, 0.1))])
    for name in (LEFT, RIGHT):
        low, high = inner._renderer.project(name, places, 64, 48)[:, 1]
        assert high < low
        assert inner.render_camera(name, 64, 48).shape == (48, 64, 3)
    with pytest.raises(UnknownNameError, match=f"Did you mean '{LEFT}'"):
        inner.render_camera("robot0_agentview_lefd", 64, 64)


@pytest.mark.parametrize("env", ["OpenDrawer", "PickPlaceCounterToCabinet"], indirect=True)
def test_the_same_seed_is_the_same_episode(env) -> None:
    def play(seed: int) -> tuple[list[np.ndarray], np.ndarray, str]:
        observation, _ = env.reset(seed=seed)
        rng = np.random.default_rng(0)
        seen = [observation] + [env.step(rng.uniform(-1, 1, 12))[0] for _ in range(3)]
        return seen, env.render(), env.unwrapped.instruction

    first, other, again = play(5), play(6), play(5)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2]
    assert not np.array_equal(first[0], other[0])


def test_a_seed_settles_later_episodes_whatever_is_done_in_this_one(kitchens: Kitchens) -> None:
    env = kitchens("OpenDrawer")
    nexts = []
    for num_steps in (0, 2):
        env.reset(seed=7)
        for _ in range(num_steps):
            env.step(STILL)
        nexts.append(env.reset()[0])
    np.testing.assert_array_equal(*nexts)
    assert not np.array_equal(nexts[0], env.reset()[0])


def test_the_horizon_truncates(kitchens: Kitchens, monkeypatch: pytest.MonkeyPatch) -> None:
    env = kitchens("OpenDrawer")
    monkeypatch.setattr(env.unwrapped, "horizon", 3)
    env.reset(seed=0)
    assert [env.step(STILL)[2:4] for _ in range(3)] == [
        (False, False),
        (False, False),
        (False, True),
    ]


def test_the_horizon_is_the_tasks_own_and_can_be_overridden(tiny_assets: Path) -> None:
    from procreward.envs.robocasa_backend import task_horizon

    assert {task: task_horizon(task) for task in TASKS} == {
        "OpenDrawer": 750,
        "CloseDrawer": 450,
        "OpenCabinet": 1050,
        "PickPlaceCounterToCabinet": 750,
    }
    assert task_horizon("Kitchen") is None


def open_or_shut(env: gym.Env[Any, Any]) -> None:
    """Put the drawer or the doors where the task wants them."""
    task = theirs(env)
    part = task.drawer if hasattr(task, "drawer") else task.fxtr
    share = 0.95 if task.behavior == "open" else 0.0
    part.set_joint_state(share, share, task, part.door_joint_names)
    task.sim.forward()


def put_away(env: gym.Env[Any, Any]) -> None:
    """Put the apple on the cabinet's floor."""
    task = theirs(env)
    regions = task.cab.get_reset_regions(task)
    place = np.array(next(iter(regions.values()))["offset"])
    joint = task.objects["obj"].joints[0]
    pose = np.array(task.sim.data.get_joint_qpos(joint))
    pose[:3] = task.cab.pos + place + [0.0, 0.0, 0.05]
    task.sim.data.set_joint_qpos(joint, pose)
    task.sim.forward()


def test_success_is_paid_once_on_its_rising_edge(env) -> None:
    _, info = env.reset(seed=2)
    assert info == {"success": False}
    assert env.step(STILL)[1] == 0.0
    {"PickPlaceCounterToCabinet": put_away}.get(env.unwrapped.task, open_or_shut)(env)
    steps = [env.step(STILL) for _ in range(8)]
    successes = [step[4]["success"] for step in steps]
    assert True in successes
    first = successes.index(True)
    assert [step[1] for step in steps] == [float(number == first) for number in range(8)]
    assert not any(step[2] for step in steps)


def test_success_ends_the_episode_on_request(
    kitchens: Kitchens, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = kitchens("CloseDrawer")
    monkeypatch.setattr(env.unwrapped, "_terminate_on_success", True)
    env.reset(seed=2)
    open_or_shut(env)
    assert env.step(STILL)[1:] == (1.0, True, False, {"success": True})


def test_another_thread_is_refused_and_not_answered_with_black(kitchens: Kitchens) -> None:
    env = kitchens("OpenDrawer")
    env.reset(seed=0)
    env.render()
    caught: list[str] = []

    def work() -> None:
        try:
            env.render()
        except FrameError as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert "another thread" in caught[0]


def test_two_kitchens_in_one_process_draw_their_own(kitchens: Kitchens) -> None:
    one, other = kitchens("OpenDrawer"), kitchens("OpenCabinet")
    one.reset(seed=0)
    alone = one.render()
    other.reset(seed=0)
    other.render()
    np.testing.assert_array_equal(one.render(), alone)
    other.reset(seed=1)  # frees the context that drew last
    np.testing.assert_array_equal(one.render(), alone)


def vary_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CloseDrawer word its task anew whenever it is asked.

    As ``use_novel_instructions`` does for tasks that need more than the tiny kitchen has.
    """
    from robocasa.environments.kitchen.atomic.kitchen_drawer import CloseDrawer

    real = CloseDrawer.get_ep_meta

    def varied(self: Any) -> dict[str, Any]:
        return {**real(self), "lang": self.rng.choice(["Shut it.", "Close it.", "Push it in."])}

    monkeypatch.setattr(CloseDrawer, "get_ep_meta", varied)


def test_the_sentence_is_kept_through_the_episode_and_pictures_can_be_observed(
    tiny_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary_the_sentence(monkeypatch)
    env = make_robocasa(
        "CloseDrawer",
        split="target",
        images=(LEFT, "robot0_eye_in_hand"),
        width=32,
        height=24,
        kitchen={"use_distractors": False},
        max_episode_steps=4,
    )
    space = env.observation_space
    assert set(space.spaces) == {"state", LEFT, "robot0_eye_in_hand"}
    sentences = set()
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        assert space.contains(observation)
        inner: Any = env.unwrapped
        np.testing.assert_array_equal(observation[LEFT], inner.render_camera(LEFT, 32, 24))
        latched = inner.instruction
        fresh = {theirs(env).get_ep_meta()["lang"] for _ in range(8)}
        assert len(fresh) > 1
        env.step(STILL)
        assert inner.instruction == latched
        sentences.add(latched)
    assert len(sentences) > 1
    assert [env.step(STILL)[3] for _ in range(3)] == [False, False, True]
    assert gym.make(env.spec).spec == env.spec
    env.close()
    env.close()


def test_gymnasium_has_nothing_to_complain_about(kitchens: Kitchens) -> None:
    check_env(kitchens("OpenCabinet").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"task": "OpenDraw"}, UnknownNameError, "Unknown RoboCasa task 'OpenDraw'. Did you mean"),
        ({"task": "Lift"}, UnknownNameError, "Unknown RoboCasa task 'Lift'"),
    ],
)
def test_unknown_tasks(tiny_assets: Path, settings, error, message) -> None:
    with pytest.raises(error, match=message):
        RoboCasaEnv(**settings)


def test_a_task_without_a_horizon_needs_one(
    tiny_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from procreward.envs import robocasa

    monkeypatch.setattr(robocasa, "task_horizon", lambda task: None)
    with pytest.raises(ConfigError, match="`horizon` must be given for the task 'CloseDrawer'"):
        RoboCasaEnv("CloseDrawer")


@pytest.mark.parametrize("part", ["scenes", "objects", "textures"])
def test_missing_assets_are_named_with_the_way_to_get_them(tiny_assets: Path, part: str) -> None:
    folder = tiny_assets / part
    aside = folder.rename(tiny_assets / f"{part}-aside")
    try:
        with pytest.raises(MissingDependencyError) as caught:
            RoboCasaEnv("OpenCabinet")
    finally:
        aside.rename(folder)
    message = str(caught.value)
    assert str(tiny_assets) in message
    assert "about 10 GB" in message
    assert "python -m robocasa.scripts.download_kitchen_assets" in message


def test_robosuite_of_pypi_is_named_as_too_old(tiny_assets: Path) -> None:
    # In another process, since this one has what robosuite lacks.
    code = (
        "from procreward.envs.robocasa import RoboCasaEnv\n"
        "from procreward.errors import MissingDependencyError\n"
        "try:\n"
        "    RoboCasaEnv('OpenDrawer')\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("RoboCasa needs robosuite's main branch; robosuite 1.5.2 lacks")
    assert "git -C robosuite checkout" in done.stdout


def test_the_commands(tiny_assets: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as verified:
        main(["verify", "env", "procreward/RoboCasa-OpenDrawer-v0"])
    printed = capsys.readouterr().out
    assert verified.value.code == 0, printed
    assert "FAILED" not in printed
    with pytest.raises(SystemExit) as shown:
        main(
            [
                "demo",
                "--env",
                "procreward/RoboCasa-CloseDrawer-v0",
                "--policy",
                "random",
                "--episodes",
                "1",
                "--max-steps",
                "6",
                "--out",
                str(tmp_path),
            ]
        )
    assert shown.value.code == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".mp4", ".png"]
    assert HORIZON > 6
