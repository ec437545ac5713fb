"""The wrapper among Gymnasium's own parts."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import (
    FrameStackObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    RecordVideo,
    TimeLimit,
)

from procreward.config import RewardConfig, ScorerConfig
from procreward.testing import check_wrapper
from procreward.video import VideoReader
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder, make_counter, play

TOY = "procreward.envs:procreward/Toy-v0"
SCRIPTED = {"name": "scripted", "options": {"ramp_steps": 10}}


def toy(**kwargs: Any) -> ProgressReward[Any, Any]:
    env = gym.make(TOY, **kwargs)
    return ProgressReward(env, scorer=SCRIPTED, every_k_steps=4)


def remake(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    assert env.spec is not None
    return gym.make(EnvSpec.from_json(env.spec.to_json()))


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_gymnasium_check_env() -> None:
    check_env(toy(), skip_render_check=False)


def test_own_check_wrapper_on_toy() -> None:
    report = check_wrapper(toy())
    assert report.ok
    assert [check.name for check in report.checks if check.skipped] == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scorer": "constant"},
        {"scorer": SCRIPTED, "judge": {"preset": "constant", "options": {"progress": 0.1}}},
        {"scorer": ScorerConfig(name="constant", options={"progress": 0.25})},
        {"scorer": "constant", "views": ("front", "camera:side"), "frame_size": (32, 24)},
        {"scorer": "constant", "instruction": "go there", "shaping": "delta", "gamma": 0.9},
        {"config": RewardConfig(scorer="constant", every_k_steps=3), "scale": 2.0},
    ],
)
def test_spec_round_trip_through_json(settings: dict[str, Any]) -> None:
    env = ProgressReward(gym.make(TOY), **settings)
    spec = env.spec
    assert spec is not None
    json.loads(spec.to_json())
    made, again = gym.make(spec), remake(env)
    assert made.spec == again.spec == spec == copy.deepcopy(spec)
    assert isinstance(again, ProgressReward)
    assert again.config.every_k_steps == env.config.every_k_steps
    assert again.config.frame_size == env.config.frame_size


def test_live_scorer_round_trip_keeps_the_very_object() -> None:
    scorer = Recorder()
    env = ProgressReward(make_counter(num_steps=3), scorer=scorer, every_k_steps=2)
    trace = play(env)
    assert play(remake(env)) == trace
    assert scorer.steps == [0, 2, 3] * 2


def test_callable_instruction_makes_a_spec_that_is_no_json() -> None:
    env = ProgressReward(gym.make(TOY), scorer="constant", instruction=lambda env, obs, info: "go")
    assert env.spec is not None
    with pytest.raises(TypeError, match="function is not JSON serializable"):
        env.spec.to_json()
    made = gym.make(env.spec)
    made.reset(seed=0)
    assert made.get_wrapper_attr("instruction") == "go"


def test_models_are_neither_loaded_nor_copied_by_specs() -> None:
    class Heavy(Recorder):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a model was copied")

    env: gym.Env[Any, Any] = ProgressReward(make_counter(), scorer=Heavy())
    env = NormalizeReward(RecordEpisodeStatistics(env))
    assert copy.deepcopy(env.spec) == env.spec


def test_registered_with_the_wrapper() -> None:
    spec = EnvSpec(
        "procreward-tests/Shaped-v0",
        entry_point="tests.helpers:CounterEnv",
        max_episode_steps=4,
        additional_wrappers=(ProgressReward.wrapper_spec(scorer="constant", gamma=1.0),),
    )
    env = gym.make(spec)
    assert isinstance(env, ProgressReward)
    assert isinstance(env.env, TimeLimit)
    assert [entry["truncated"] for entry in play(env)] == [False] * 4 + [True]


def test_numpy_numbers_are_settings_like_any_other() -> None:
    base = gym.make(TOY, render_mode="rgb_array")
    env = ProgressReward(base, scorer="constant", every_k_steps=np.int64(4), gamma=np.float32(0.5))
    assert '"every_k_steps": 4' in env.spec.to_json()
    assert '"gamma": 0.5' in env.spec.to_json()


def test_every_constructor_argument_is_recorded() -> None:
    env = ProgressReward(CounterEnv(), scorer="constant")
    arguments = set(inspect.signature(ProgressReward.__init__).parameters) - {"self", "env"}
    assert set(env._saved_kwargs) == arguments
    tree = ast.parse(textwrap.dedent(inspect.getsource(ProgressReward.__init__)))
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    recorded = calls.index("RecordConstructorArgs.__init__")
    assert recorded < calls.index("gym.Wrapper.__init__")


def frames_of(folder: Path) -> list[Any]:
    """Read the one video that RecordVideo (by way of moviepy) wrote into a folder."""
    (path,) = folder.glob("*.mp4")
    with VideoReader(path) as video:
        return list(video)


def test_record_video_above(tmp_path: Path) -> None:
    # In a folder of its own: RecordVideo warns about one that exists.
    folder = tmp_path / "videos"
    env = RecordVideo(toy(), str(folder), episode_trigger=lambda _: True, disable_logger=True)
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()
    assert [frame.shape for frame in frames_of(folder)] == [(64, 64, 3)] * 4


def test_record_video_below(tmp_path: Path) -> None:
    recording = RecordVideo(
        gym.make(TOY, actions="discrete"),
        str(tmp_path / "videos"),
        episode_trigger=lambda _: True,
        disable_logger=True,
    )
    env = ProgressReward(recording, scorer="constant", every_k_steps=2)
    assert len(play(env, 3)) == 4
    env.close()
    assert [frame.shape for frame in frames_of(tmp_path / "videos")] == [(64, 64, 3)] * 4


def test_episode_statistics_above_counts_ours_and_below_theirs() -> None:
    def wrapped(env: gym.Env[Any, Any]) -> ProgressReward[Any, Any]:
        return ProgressReward(env, scorer="constant", gamma=1.0, every_k_steps=2)

    above = RecordEpisodeStatistics(wrapped(CounterEnv(4)))
    above.reset(seed=0)
    info = [above.step(0)[4] for _ in range(4)][-1]
    assert info["episode"]["r"] == -0.5
    below = wrapped(RecordEpisodeStatistics(CounterEnv(4)))
    below.reset(seed=0)
    info = [below.step(0)[4] for _ in range(4)][-1]
    assert info["episode"]["r"] == 1.0 + 2.0 + 3.0 + 4.0
    assert info["procreward"]["env_reward"] == 4.0


@pytest.mark.parametrize("above", [True, False])
def test_frame_stack(above: bool) -> None:
    def shape(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return ProgressReward(env, scorer=Recorder(), every_k_steps=2)

    def stack(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return FrameStackObservation(env, 3)

    env = stack(shape(CounterEnv(4))) if above else shape(stack(CounterEnv(4)))
    obs, _ = env.reset(seed=0)
    assert obs.shape == (3, 1)
    plain = play(shape(CounterEnv(4)))
    assert [entry["reward"] for entry in play(env)] == [entry["reward"] for entry in plain]


def test_normalize_reward_above() -> None:
    env = NormalizeReward(toy(), gamma=0.99)
    env.reset(seed=0)
    rewards = [env.step(env.action_space.sample())[1] for _ in range(8)]
    assert np.all(np.isfinite([float(reward) for reward in rewards]))


def test_attributes_are_forwarded() -> None:
    env = RecordEpisodeStatistics(toy())
    assert env.get_wrapper_attr("camera_names") == ("front", "side")
    assert env.get_wrapper_attr("config").every_k_steps == 4
    env.reset(seed=0)
    assert env.get_wrapper_attr("instruction") == "Move the red point onto the green disc."


def step_vector(venv: gym.vector.VectorEnv[Any, Any, Any], num_steps: int) -> list[Any]:
    _, info = venv.reset(seed=0)
    out = [(np.zeros(venv.num_envs), info["procreward"]["progress"])]
    for _ in range(num_steps):
        _, rewards, _, _, info = venv.step(np.zeros(venv.num_envs, np.int64))
        out.append((rewards, info["procreward"]["progress"]))
    return out


def make_shaped(num_steps: int) -> Any:
    def make() -> gym.Env[Any, Any]:
        return ProgressReward(
            CounterEnv(num_steps, "truncated"), scorer=SCRIPTED, every_k_steps=2, gamma=0.5
        )

    return make


@pytest.mark.parametrize("kind", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_vector_of_single_wrappers(kind: Any) -> None:
    venv = kind([make_shaped(3), make_shaped(5)])
    # Next-step autoreset: the step after the end is the reset, which pays nothing.
    try:
        trace = step_vector(venv, 7)
    finally:
        venv.close()
    single = {3: play(make_shaped(3)()), 5: play(make_shaped(5)())}
    for column, steps in enumerate((3, 5)):
        alone = single[steps]
        expected = [entry["reward"] for entry in alone + alone][:8]
        assert [float(rewards[column]) for rewards, _ in trace] == expected
        progress = [entry["progress"] for entry in alone + alone][:8]
        assert [float(values[column]) for _, values in trace] == progress


def test_make_vec_with_the_wrapper() -> None:
    venv = gym.make_vec(
        TOY,
        num_envs=2,
        vectorization_mode="sync",
        wrappers=[lambda env: ProgressReward(env, scorer=SCRIPTED, every_k_steps=1, gamma=1.0)],
    )
    venv.reset(seed=0)
    _, rewards, _, _, info = venv.step(venv.action_space.sample())
    assert rewards.tolist() == [0.1, 0.1]
    entry = info["procreward"]
    assert entry["progress"].dtype == np.float64
    assert entry["queried"].dtype == np.bool_
    assert entry["age_steps"].dtype == np.int64
    venv.close()
