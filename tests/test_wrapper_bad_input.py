"""What ``ProgressReward`` refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from procreward.errors import (
    ConfigError,
    FrameError,
    InstructionError,
    ScorerError,
    UnknownNameError,
    UnsupportedEnvError,
)
from procreward.types import Score
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder, picture


class Broken(Recorder):
    def __init__(self, result: Any):
        super().__init__()
        self.result = result

    def score(self, queries: Any) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([], "must return one Score per query, got 0 for 1 queries"),
        ([Score(progress=0.5)] * 2, "must return one Score per query, got 2 for 1 queries"),
        ([0.5], "must return Score objects, got float"),
        (None, "must return a list of Score, got NoneType"),
        (iter([Score(progress=0.5)]), "must return a list of Score, got list_iterator"),
    ],
)
def test_broken_contract_raises_at_once(result: Any, message: str) -> None:
    env = ProgressReward(CounterEnv(), scorer=Broken(result))
    with pytest.raises(ScorerError, match=message):
        env.reset(seed=0)


def test_out_of_range_value_raises_at_once() -> None:
    env = ProgressReward(CounterEnv(), scorer=Recorder([1.5]))
    with pytest.raises(ScorerError, match=r"`Score.progress` must be a number in \[0, 1\]"):
        env.reset(seed=0)


def test_an_interrupt_passes_through() -> None:
    env = ProgressReward(CounterEnv(), scorer=Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        env.reset(seed=0)
    assert env.stats.failures == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"instruction": " "}, InstructionError, "reset option 'instruction' must be a sentence"),
        ({"instruction": None}, InstructionError, "got None"),
        ("count twice", ConfigError, r"`options\['procreward'\]` must be a mapping"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    env = ProgressReward(CounterEnv(), scorer="constant")
    with pytest.raises(error, match=message):
        env.reset(options={"procreward": options})


def test_unknown_option() -> None:
    env = ProgressReward(CounterEnv(), scorer="constant")
    with pytest.raises(UnknownNameError, match=r"reset option 'instuction'. Did you mean"):
        env.reset(options={"procreward": {"instuction": "x"}})


def test_missing_instruction() -> None:
    env = ProgressReward(CounterEnv(instruction=None), scorer="constant")
    with pytest.raises(InstructionError, match="Pass the task in words as `instruction`"):
        env.reset(seed=0)
    with pytest.raises(InstructionError, match="got ''"):
        ProgressReward(CounterEnv(), scorer="constant", instruction="")


def test_step_needs_a_reset() -> None:
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        ProgressReward(CounterEnv(), scorer="constant").step(0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_k_steps": 0}, ConfigError, "`every_k_steps` must be"),
        ({"gamma": 1.5}, ConfigError, r"`gamma` must be a number in \(0, 1\], got 1.5"),
        ({"config": {"gamma": 0.9}}, ConfigError, "`config` must be a RewardConfig, got dict"),
        ({"scorer": "constnt"}, UnknownNameError, "Did you mean 'constant'"),
        ({"judge": "constnt"}, UnknownNameError, "Did you mean 'constant'"),
        ({"views": "imge"}, UnknownNameError, "Did you mean 'image'"),
        ({"views": [3]}, ConfigError, "`views` must be a string, a sequence of strings or None"),
        ({"views": ["obs:imge"]}, UnknownNameError, "observation key 'imge'. Did you mean 'image'"),
        ({"views": "obs:count"}, FrameError, r"must be a \(height, width, 3\) uint8 RGB picture"),
        ({"views": "camera:front"}, UnsupportedEnvError, "with a method render_camera"),
        ({"instruction": "attr:nothing"}, UnknownNameError, "environment attribute 'nothing'"),
        ({"release_threshold": 0.99}, ConfigError, r"`release_threshold` must be in"),
    ],
)
def test_bad_arguments_at_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ProgressReward(CounterEnv(dict_obs=True), **{"scorer": "constant", **arguments})


def test_environment_without_a_picture() -> None:
    with pytest.raises(UnsupportedEnvError, match='render_mode="rgb_array"'):
        ProgressReward(CounterEnv(render_mode=None), scorer="constant")


def test_vector_environment_is_refused() -> None:
    venv = gym.vector.SyncVectorEnv([CounterEnv])
    with pytest.raises(UnsupportedEnvError, match=r"sub-environments.*wrappers=\[Progress"):
        ProgressReward(venv, scorer="constant")  # type: ignore[arg-type]  # on purpose
    venv.close()


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(UnsupportedEnvError, match=r"`env` must be a gymnasium.Env, got int"):
        ProgressReward(3, scorer="constant")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (picture(9).astype(np.float64) / 255.0, "float64 .* values in .0, 1."),
        (np.zeros((8, 8, 3), np.uint8), "black all over"),
        (picture(9)[..., 0], "grey picture"),
        (None, "got None"),
    ],
)
def test_bad_frames_of_an_environment(frame: Any, message: str) -> None:
    class BadFrames(CounterEnv):
        def render(self) -> Any:
            return frame

    env = ProgressReward(BadFrames(), scorer="constant")
    with pytest.raises(FrameError, match=message):
        env.reset(seed=0)


def test_a_reset_that_failed_leaves_no_episode_to_step() -> None:
    env = ProgressReward(CounterEnv(), scorer=Recorder([0.5]), every_k_steps=1)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(InstructionError):
        env.reset(options={"procreward": {"instruction": ""}})
    assert env.outcome is None
    # The environment did begin anew: its first step is none of the last episode's.
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert env.step(0)[4]["procreward"]["age_steps"] == 0
