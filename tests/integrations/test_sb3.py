"""Stable-Baselines3 is paid what a wrapper in every sub-environment would pay it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
)

from procreward.config import RewardConfig
from procreward.errors import (
    ConfigError,
    InstructionError,
    UnknownNameError,
    UnsupportedEnvError,
)
from procreward.instruction import InstructionSource
from procreward.integrations._sb3_base import SubEnvs, _Remote
from procreward.integrations.sb3 import (
    LearnerCheck,
    OnDemandReset,
    VecProgressReward,
    check_learner,
    make_progress_vec_env,
)
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder
from tests.vectors import ByTask, Maker, MeanGrey, assert_same, counters

TOY = "procreward.envs:procreward/Toy-v0"
SCRIPTS: dict[str, list[float | None]] = {
    "count 0": [0.0, 0.5, 0.25, 1.0, 1.0, 1.0, 0.5],
    "count 1": [0.1, None, 0.3, 0.4, 0.5, 0.6, 1.0],
    "count 2": [None, None, 0.9, 0.2, 1.0, 0.3, 1.0, 1.0],
}
ENDING: dict[str, Any] = {"confirm_queries": 1, "confirm_window": 1, "on_complete": "terminate"}
RISING: dict[str, Any] = {"name": "scripted", "options": {"progress": [0.0, 0.5, 0.75]}}


def toys(num_envs: int, **kwargs: Any) -> list[Maker]:
    return [lambda: gym.make(TOY, max_episode_steps=7, **kwargs)] * num_envs


def held(make: Maker) -> Maker:
    return lambda: OnDemandReset(make())


def batched(makers: Sequence[Maker], kind: Any = DummyVecEnv, **settings: Any) -> VecEnv:
    return VecProgressReward(kind([held(make) for make in makers]), **settings)


def stacked(makers: Sequence[Maker], **settings: Any) -> VecEnv:
    def wrapped(make: Maker) -> Maker:
        return lambda: ProgressReward(make(), **settings)

    return DummyVecEnv([wrapped(make) for make in makers])


def trace(venv: VecEnv, num_steps: int, seed: int = 3) -> list[tuple[Any, ...]]:
    """Everything that a reset and some random steps return; closes the environment."""
    actions = np.random.default_rng(5)
    try:
        venv.seed(seed)
        out: list[tuple[Any, ...]] = [(venv.reset(), list(venv.reset_infos))]
        for _ in range(num_steps):
            if isinstance(venv.action_space, gym.spaces.Discrete):
                action = actions.integers(0, 2, venv.num_envs)
            else:
                action = actions.uniform(-1, 1, (venv.num_envs, 2)).astype(np.float32)
            obs, rewards, dones, infos = venv.step(action)
            for info in infos:
                # Single wrappers have no such entry; it has tests of its own.
                info.pop("is_success", None)
            out.append((obs, rewards, dones, infos, list(venv.reset_infos)))
        return out
    finally:
        venv.close()


@pytest.mark.parametrize("on_complete", ["info", "terminate", "truncate"])
@pytest.mark.parametrize("every_k_steps", [1, 3, 8])
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_equals_stacked_single_wrappers(on_complete: str, every_k_steps: int, end: str) -> None:
    makers = counters([4, 9, 6], end)
    options: dict[str, Any] = {
        **ENDING,
        "on_complete": on_complete,
        "every_k_steps": every_k_steps,
        "gamma": 0.5,
        "success_bonus": 2.0,
        "env_reward_weight": 0.1,
    }
    one = trace(batched(makers, scorer=ByTask(SCRIPTS), **options), 24)
    assert_same(one, trace(stacked(makers, scorer=ByTask(SCRIPTS), **options), 24))
    assert any(step[2].any() for step in one[1:])


@pytest.mark.parametrize("views", [("front", "camera:side"), "pixels", ("pixels", "side")])
@pytest.mark.parametrize("every_k_steps", [1, 3, 8])
def test_equal_for_drawn_and_observed_frames(views: Any, every_k_steps: int) -> None:
    makers = toys(3, observe_pixels="pixels" in views, actions="box")
    options: dict[str, Any] = {
        "scorer": MeanGrey(),
        "views": views,
        "frame_size": (64, 64),
        "every_k_steps": every_k_steps,
        "window_frames": 4,
    }
    one = trace(batched(makers, **options), 20)
    assert_same(one, trace(stacked(makers, **options), 20))


answers = st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(
    scripts=st.lists(answers, min_size=3, max_size=3),
    judge=st.none() | st.lists(answers, min_size=3, max_size=3),
    lengths=st.lists(st.integers(1, 7), min_size=3, max_size=3),
    end=st.sampled_from(["terminated", "truncated"]),
    options=st.fixed_dictionaries(
        {
            "on_complete": st.sampled_from(["info", "terminate", "truncate"]),
            "every_k_steps": st.integers(1, 8),
            "shaping": st.sampled_from(["pbrs", "delta", "raw", "sparse"]),
            "success_bonus": st.sampled_from([0.0, 2.0]),
            "env_reward_weight": st.sampled_from([0.0, 0.3]),
            "skip_unchanged": st.sampled_from([None, 2.0]),
        }
    ),
    dict_obs=st.booleans(),
)
def test_equal_whatever_the_models_answer(
    scripts: Any, judge: Any, lengths: list[int], end: str, options: Any, dict_obs: bool
) -> None:
    def asked() -> dict[str, Any]:
        scorer, other = (
            None if lists is None else ByTask({f"count {i}": one for i, one in enumerate(lists)})
            for lists in (scripts, judge)
        )
        return {"scorer": scorer, "judge": other, "max_consecutive_failures": 1000, **ENDING}

    makers = counters(lengths, end, dict_obs=dict_obs)
    one = trace(batched(makers, **{**asked(), **options}), 15)
    assert_same(one, trace(stacked(makers, **{**asked(), **options}), 15))


def test_equal_with_rendered_frames_of_other_processes() -> None:
    options: dict[str, Any] = {
        **ENDING,
        "scorer": MeanGrey(),
        "complete_threshold": 7 / 255,
        "every_k_steps": 2,
    }
    makers = counters([3, 9])
    one = trace(batched(makers, SubprocVecEnv, **options), 20)
    other = trace(stacked(makers, **options), 20)
    assert_same(one, other)
    ends = [info["TimeLimit.truncated"] for step in one[1:] for info in step[3]]
    assert {True, False} == set(ends)


def test_one_call_a_step() -> None:
    # An answer that fails at the reset would be asked for again in the next step.
    scorer = ByTask({task: [0.5] for task in SCRIPTS})
    venv = batched(counters([9, 9, 9]), scorer=scorer, every_k_steps=2)
    venv.reset()
    for _ in range(4):
        venv.step(np.zeros(3, int))
    three = ["count 0", "count 1", "count 2"]
    assert [[name for name, _ in call] for call in scorer.calls] == [three] * 3
    venv.close()
    assert sorted(scorer.released) == sorted(scorer.streams[:3])


def test_a_declared_end_resets_and_keeps_the_last_observation() -> None:
    venv = VecMonitor(
        batched(
            counters([9]), scorer=Recorder([0.0, 0.5, 1.0]), every_k_steps=1, gamma=1.0, **ENDING
        )
    )
    venv.reset()
    venv.step(np.zeros(1, int))
    obs, rewards, dones, (info,) = venv.step(np.zeros(1, int))
    assert (obs.tolist(), rewards.tolist(), dones.tolist()) == ([[0.0]], [-0.5], [True])
    assert rewards.dtype == np.float32
    assert info["terminal_observation"].tolist() == [2.0]
    assert info["TimeLimit.truncated"] is False
    assert (info["episode"]["r"], info["episode"]["l"]) == (0.0, 2)
    assert info["procreward"]["progress"] == 1.0
    assert venv.venv.reset_infos[0]["procreward"]["progress"] == 0.0
    assert venv.step(np.zeros(1, int))[0].tolist() == [[1.0]]
    venv.close()


def test_a_declared_cut_off_is_bootstrapped_from() -> None:
    options = {**ENDING, "on_complete": "truncate"}
    venv = batched(counters([9]), scorer=Recorder([0.0, 1.0]), every_k_steps=1, **options)
    venv.reset()
    _, _, dones, (info,) = venv.step(np.zeros(1, int))
    assert (dones.tolist(), info["TimeLimit.truncated"]) == ([True], True)
    assert info["terminal_observation"].tolist() == [1.0]
    venv.close()


class Twice(CounterEnv):
    """Succeeds in passing, in its second step."""

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return *rest, {**info, "success": self.count == 2}


def test_success_at_any_step_is_told_at_the_end() -> None:
    options: dict[str, Any] = {"scorer": "constant", "every_k_steps": 1}
    venv = batched([lambda: Twice(4), lambda: Twice(1), lambda: CounterEnv(3)], **options)
    venv.reset()
    told = [[info.get("is_success") for info in venv.step(np.zeros(3, int))[3]] for _ in range(4)]
    last = [True, False, None]
    assert told == [[None, False, None], [None, False, None], [None, False, True], last]
    venv.close()


class Silent(CounterEnv):
    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return *rest, {"is_success": True} if self.count == 2 else {}


def test_success_that_is_told_already_or_never_is_left_alone() -> None:
    venv = batched([lambda: Silent(2), lambda: Silent(1)], scorer="constant")
    venv.reset()
    infos = [venv.step(np.zeros(2, int))[3] for _ in range(2)]
    assert ["is_success" in info for step in infos for info in step] == [False, False, True, False]
    venv.close()


class Counting(DummyVecEnv):
    """Counts what would be round trips."""

    def __init__(self, makers: Any) -> None:
        self.asked: list[tuple[str, Any]] = []
        super().__init__(makers)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        self.asked.append((method_name, indices))
        return super().env_method(method_name, *args, indices=indices, **kwargs)

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        self.asked.append((attr_name, indices))
        return super().get_attr(attr_name, indices)


def test_attributes_of_other_processes_are_read_in_one_round_trip() -> None:
    venv = Counting(counters([1, 9, 1]))
    envs = SubEnvs(venv)
    remotes: list[Any] = [_Remote(envs, index) for index in range(3)]
    source = InstructionSource(None)
    for together in ([0, 1, 2], [0, 2]):
        venv.asked.clear()
        envs.ask_together(together)
        assert [source.read(remotes[i], None, {}) for i in together] == [
            f"count {i}" for i in together
        ]
        assert venv.asked == [("has_wrapper_attr", together), ("instruction", together)]
    # One that is not among them is asked by itself.
    assert remotes[1].get_wrapper_attr("num_steps") == 9
    with pytest.raises(AttributeError, match="sub-environment 1 has no attribute 'nothing'"):
        remotes[1].get_wrapper_attr("nothing")
    venv.close()


def test_a_new_reset_forgets_what_had_begun() -> None:
    venv = batched(counters([2]), scorer=Recorder(), every_k_steps=1)
    for _ in range(2):
        assert venv.reset().tolist() == [[0.0]]
        assert [venv.step(np.zeros(1, int))[0].tolist() for _ in range(3)] == [
            [[1.0]],
            [[0.0]],
            [[1.0]],
        ]
    venv.close()


def test_instructions_in_reset_options() -> None:
    scorer = ByTask({"left": [0.5], "count 1": [0.25], "count 0": [0.0]})
    venv = batched(counters([9, 9]), scorer=scorer)
    venv.set_options([{"procreward": {"instruction": "left"}}, {"other": 1}])
    venv.reset()
    assert venv.instructions == ("left", "count 1")
    assert venv.get_attr("resets") == [[(None, None)], [(None, {"other": 1})]]
    venv.reset()
    assert venv.instructions == ("count 0", "count 1")
    with pytest.raises(UnknownNameError, match="reset option 'instuction'"):
        venv.set_options({"procreward": {"instuction": "left"}})
    venv.close()


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_ppo_learns_on(kind: Any, tmp_path: Path) -> None:
    venv = make_progress_vec_env(
        TOY,
        2,
        seed=0,
        env_kwargs={"max_episode_steps": 20},
        vec_env_cls=kind,
        scorer=RISING,
        every_k_steps=4,
        gamma=0.99,
        success_bonus=1.0,
        complete_threshold=1.0,
    )
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(256, callback=LearnerCheck())
    assert model.num_timesteps == 256
    assert model.ep_info_buffer is not None
    # 0.99 * 0.75 when it rises in step 4, and 0.99 * 0.75 - 0.75 in each of the 16 after it.
    lengths = {episode["l"] for episode in model.ep_info_buffer}
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert (lengths, len(returns)) == ({20}, 12)
    np.testing.assert_allclose(returns, 0.6225, atol=1e-5)
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=venv, device="cpu")
    obs = venv.reset()
    np.testing.assert_array_equal(
        again.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )
    again.learn(128)
    venv.close()


def test_sac_learns_from_declared_ends() -> None:
    venv = make_progress_vec_env(
        TOY,
        2,
        seed=0,
        env_kwargs={"max_episode_steps": 50},
        every_k_steps=1,
        gamma=0.99,
        scorer={"name": "scripted", "options": {"progress": [0.0, 0.5, 0.75, 1.0]}},
        **ENDING,
    )
    model = SAC("MlpPolicy", venv, learning_starts=50, seed=0, device="cpu", buffer_size=400)
    with pytest.warns(UserWarning, match="by shaping 'pbrs' alone all policies are equally good"):
        model.learn(200, callback=LearnerCheck())
    buffer: Any = model.replay_buffer
    assert model.ep_info_buffer is not None
    assert {episode["l"] for episode in model.ep_info_buffer} == {3}
    assert buffer.dones[:6, 0].tolist() == [0, 0, 1, 0, 0, 1]
    assert not buffer.timeouts.any()
    np.testing.assert_allclose(
        buffer.rewards[:3, 0], [0.99 * 0.5, 0.99 * 0.75 - 0.5, -0.75], atol=1e-6
    )
    # An action moves the point by at most 0.1; a reset would have taken it elsewhere.
    moved = np.abs(buffer.next_observations[:100] - buffer.observations[:100])
    assert moved.max() <= 0.1 + 1e-6
    venv.close()


def test_a_gamma_of_its_own_is_warned_of() -> None:
    venv = make_progress_vec_env(TOY, scorer=RISING, gamma=0.9, env_reward_weight=1.0)
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, gamma=0.95, device="cpu")
    with pytest.warns(UserWarning, match=r"learner's gamma is 0\.95 and the shaping's is 0\.9:"):
        model.learn(8, callback=LearnerCheck())
    model.gamma = 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_learner(model)
    venv.close()


def test_shapings_without_a_discount_go_with_any() -> None:
    venv = make_progress_vec_env(TOY, scorer=RISING, gamma=0.9, shaping="delta")
    check_learner(PPO("MlpPolicy", venv, gamma=0.95, device="cpu"))
    plain = PPO("MlpPolicy", DummyVecEnv(toys(1)), device="cpu")
    with pytest.raises(UnsupportedEnvError, match="with a VecProgressReward, got <"):
        check_learner(plain)
    venv.close()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: CounterEnv(), "must be a VecEnv of Stable-Baselines3, got CounterEnv"),
        (
            lambda: gym.vector.SyncVectorEnv(toys(1)),
            r"got SyncVectorEnv.*there is VectorProgressReward",
        ),
        (lambda: DummyVecEnv(toys(2)), "must have OnDemandReset in every sub-environment"),
        (
            lambda: DummyVecEnv([lambda: Monitor(OnDemandReset(CounterEnv()))]),
            "as the outermost wrapper",
        ),
        (
            lambda: VecNormalize(DummyVecEnv([held(CounterEnv)])),
            "without wrappers, got VecNormalize",
        ),
    ],
)
def test_a_base_that_cannot_be_wrapped(base: Any, message: str) -> None:
    with pytest.raises(UnsupportedEnvError, match=message):
        VecProgressReward(base(), scorer="constant")


def test_dictionary_actions_are_refused() -> None:
    env = CounterEnv()
    env.action_space = gym.spaces.Dict({"arm": gym.spaces.Discrete(2)})
    with pytest.raises(UnsupportedEnvError, match="flatten it in the sub-environments"):
        VecProgressReward(DummyVecEnv([lambda: OnDemandReset(env)]), scorer="constant")


def test_a_monitor_below_may_stay_where_the_model_ends_nothing() -> None:
    def base() -> VecEnv:
        return make_vec_env(
            TOY, 1, wrapper_class=OnDemandReset, env_kwargs={"max_episode_steps": 3}
        )

    with pytest.raises(ConfigError, match=r"`on_complete` must be 'info' above .* a Monitor"):
        VecProgressReward(base(), scorer="constant", on_complete="truncate")
    venv = VecProgressReward(base(), scorer="constant", shaping="raw")
    venv.reset()
    infos = [venv.step(np.zeros((1, 2), np.float32))[3][0] for _ in range(6)]
    assert [info["episode"]["l"] for info in infos if "episode" in info] == [3, 3]
    # It is below, so it records the environment's own reward.
    assert [info["episode"]["r"] for info in infos if "episode" in info] == [0.0, 0.0]
    venv.close()


def test_bad_settings_close_the_sub_environments() -> None:
    made: list[CounterEnv] = []

    def make() -> CounterEnv:
        made.append(CounterEnv(instruction=None))
        return made[-1]

    with pytest.raises(UnknownNameError, match="Unknown view 'wrist'"):
        make_progress_vec_env(make, scorer="constant", views="wrist")
    assert [env.closed for env in made] == [1]
    venv = make_progress_vec_env(make, scorer="constant", config=RewardConfig(gamma=0.5))
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        venv.step(np.zeros(1, int))
    with pytest.raises(InstructionError, match="No instruction"):
        venv.reset()
    assert venv.get_attr("resets")[0][0] == (None, None)
    venv.close()


def test_a_sub_environment_without_an_episode_says_so() -> None:
    env = OnDemandReset(CounterEnv(1))
    env.reset()
    env.step(0)
    assert env.reset() == (np.array([1.0]), {})
    with pytest.raises(gym.error.ResetNeeded, match="under VecProgressReward only"):
        env.step(0)


def test_without_stable_baselines_the_error_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "import procreward.integrations\n"
        "import procreward.integrations.sb3"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("procreward.errors.MissingDependencyError: procreward.integrations.sb3")
    assert last.endswith("Run `pip install 'procreward[sb3]'`.")
