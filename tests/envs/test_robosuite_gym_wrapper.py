"""robosuite's own ``GymWrapper``, with pictures in its observations, under our wrappers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.wrappers import TimeLimit

from procreward.envs.robosuite_backend import load_robosuite
from procreward.errors import UnsupportedEnvError
from procreward.integrations.sb3 import make_progress_vec_env
from procreward.wrapper import ProgressReward
from tests.helpers import Recorder

pytestmark = [
    pytest.mark.sim,
    # It gives Gymnasium float64 bounds for a float32 space.
    pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32:UserWarning"),
]

TASK = "Lift the red cube off the table."
STILL = np.zeros(7)


def make_lift() -> gym.Env[Any, Any]:
    robosuite = load_robosuite()
    from robosuite.wrappers import GymWrapper

    env = robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names="agentview",
        camera_widths=128,
        camera_heights=128,
        ignore_done=True,
    )
    keys = ["robot0_proprio-state", "object-state", "agentview_image"]
    return TimeLimit(GymWrapper(env, keys=keys, flatten_obs=False), max_episode_steps=4)


@pytest.fixture(scope="module")
def lift() -> Iterator[gym.Env[Any, Any]]:
    env = make_lift()
    yield env
    env.close()


def upright(env: gym.Env[Any, Any]) -> npt.NDArray[np.uint8]:
    """What the camera sees now; OpenGL's first row is the lowest one."""
    sim: Any = env.unwrapped.sim  # type: ignore[attr-defined]  # robosuite's
    picture: npt.NDArray[np.uint8] = sim.render(width=128, height=128, camera_name="agentview")
    return picture[::-1]


def test_nano_pays_for_pictures_of_the_observation(lift: gym.Env[Any, Any]) -> None:
    assert lift.metadata is None
    env = ProgressReward(
        lift,
        scorer="nano",
        views="flip:agentview_image",
        instruction=TASK,
        every_k_steps=2,
        shaping="delta",
    )
    for _ in range(2):
        _, info = env.reset()
        entries, rewards, ends = [info["procreward"]], [], []
        for _ in range(4):
            _, reward, terminated, truncated, info = env.step(STILL)
            entries.append(info["procreward"])
            rewards.append(reward)
            ends.append((terminated, truncated))
        assert [entry["queried"] for entry in entries] == [True, False, True, False, True]
        assert all(entry["valid"] for entry in entries)
        gained = entries[-1]["progress"] - entries[0]["progress"]
        assert sum(rewards) == pytest.approx(gained, abs=1e-12)
        assert ends == [(False, False)] * 3 + [(False, True)]


def test_the_model_is_shown_the_picture_upright(lift: gym.Env[Any, Any]) -> None:
    scorer = Recorder()
    env = ProgressReward(
        lift, scorer=scorer, views="flip:agentview_image", instruction=TASK, window_frames=1
    )
    obs, _ = env.reset()
    [query] = scorer.queries
    shown = query.frames["agentview_image"][0]
    assert np.array_equal(shown, upright(lift))
    assert np.array_equal(shown, obs["agentview_image"][::-1])


def test_a_picture_that_is_left_upside_down_is_warned_of(
    lift: gym.Env[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "procreward"):
        ProgressReward(lift, scorer="constant", views="flip:agentview_image", instruction=TASK)
        assert caplog.messages == []
        ProgressReward(lift, scorer="constant", views="agentview_image", instruction=TASK)
    [message] = caplog.messages
    assert 'use the view "flip:agentview_image"' in message


def test_its_lists_of_cameras_are_not_taken_for_cameras(lift: gym.Env[Any, Any]) -> None:
    with pytest.raises(UnsupportedEnvError, match=r"whose `render_camera` is \['frontview'\]"):
        ProgressReward(lift, scorer="constant", views="camera:agentview", instruction=TASK)
    with pytest.raises(UnsupportedEnvError, match=r"name `views` \(known: agentview_image\)"):
        ProgressReward(lift, scorer="constant", instruction=TASK)


def test_stable_baselines3_is_paid_for_them(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Recorder([0.25, 0.0, 0.5, 0.0, 0.75])
    venv = make_progress_vec_env(
        make_lift,
        scorer=scorer,
        views="flip:agentview_image",
        instruction=TASK,
        every_k_steps=2,
        window_frames=1,
        shaping="delta",
    )
    obs = venv.reset()
    assert isinstance(obs, dict)
    shown = scorer.queries[0].frames["agentview_image"][0]
    assert np.array_equal(shown, obs["agentview_image"][0][::-1])
    steps = [venv.step(STILL[None]) for _ in range(4)]
    venv.close()
    assert [float(rewards[0]) for _, rewards, _, _ in steps] == [0.0, 0.25, 0.0, 0.25]
    assert [bool(dones[0]) for _, _, dones, _ in steps] == [False, False, False, True]
    assert caplog.messages == []
