"""Learners that are told their rewards later learn what they would have learned at once."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
)
from stable_baselines3.her import HerReplayBuffer

from procreward.errors import ConfigError, ScorerError, UnsupportedEnvError
from procreward.integrations.sb3 import (
    DeferredDictReplayBuffer,
    DeferredReplayBuffer,
    DeferredRewards,
    OnDemandReset,
    VecProgressReward,
    make_progress_vec_env,
)
from procreward.types import Query, Score
from tests.helpers import CounterEnv
from tests.vectors import ByTask, Maker, MeanGrey, Slow, assert_same, counters

TOY = "procreward.envs:procreward/Toy-v0"
ENDING: dict[str, Any] = {"confirm_queries": 1, "confirm_window": 1, "on_complete": "terminate"}
RISING: dict[str, Any] = {"name": "scripted", "options": {"progress": [0.0, 0.5, 0.75]}}
DEFERRED: dict[str, Any] = {"latency": "deferred"}

pytestmark = pytest.mark.filterwarnings("error")


def bare(makers: Sequence[Maker], kind: Any = DummyVecEnv, **settings: Any) -> VecProgressReward:
    def held(make: Maker) -> Maker:
        return lambda: OnDemandReset(make())

    return VecProgressReward(kind([held(make) for make in makers]), **settings)


def actions(venv: VecEnv) -> Any:
    return np.zeros(venv.num_envs, int)


def run(venv: VecProgressReward, num_steps: int) -> tuple[list[Any], list[Any]]:
    """Everything that a reset and some steps return, and all late rewards; closes it."""
    try:
        venv.seed(3)
        steps: list[Any] = [venv.reset()]
        venv.attach()
        late = []
        for _ in range(num_steps):
            steps.append(venv.step(actions(venv)))
            late += venv.collect()
        return steps, late + venv.collect(wait=True)
    finally:
        venv.close()


answers = st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    scripts=st.lists(answers, min_size=3, max_size=3),
    lengths=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    end=st.sampled_from(["terminated", "truncated"]),
    delay_s=st.sampled_from([None, 0.0005]),
    max_lag_steps=st.none() | st.integers(1, 12),
    options=st.fixed_dictionaries(
        {
            "every_k_steps": st.integers(1, 8),
            "shaping": st.sampled_from(["pbrs", "delta", "raw"]),
            "success_bonus": st.sampled_from([0.0, 2.0]),
            "env_reward_weight": st.sampled_from([0.0, 0.3]),
        }
    ),
    dict_obs=st.booleans(),
)
def test_equals_blocking(
    scripts: Any,
    lengths: list[int],
    end: str,
    delay_s: float | None,
    max_lag_steps: int | None,
    options: dict[str, Any],
    dict_obs: bool,
) -> None:
    tasks = {f"count {index}": script for index, script in enumerate(scripts)}
    makers = counters(lengths, end, dict_obs=dict_obs)
    options |= {"max_consecutive_failures": 1000}
    lag = {"latency": "deferred", "max_lag_steps": max_lag_steps}
    steps, late = run(bare(makers, scorer=Slow(ByTask(tasks), delay_s), **lag, **options), 15)
    expected, nothing = run(bare(makers, scorer=ByTask(tasks), **options), 15)
    assert nothing == []
    for one, other in zip(steps[1:], expected[1:], strict=True):
        assert_same([one[0], one[2]], [other[0], other[2]])
        assert one[1].tolist() == [0.0] * 3
        assert_same(*[[{**info, "procreward": 0} for info in step[3]] for step in (one, other)])
    assert [(one.step, one.index) for one in late] == [(s, i) for s in range(15) for i in range(3)]
    assert [np.float32(one.reward) for one in late] == [r for step in expected[1:] for r in step[1]]
    entries = [info["procreward"] for step in expected[1:] for info in step[3]]
    assert [one.entry for one in late] == entries


@pytest.mark.parametrize("on_complete", ["terminate", "truncate"])
def test_completion_ends_the_episode_after_the_stated_lag(on_complete: str) -> None:
    script = [0.25, 0.5, 1.0, 0.75, 0.5, 0.875, 0.625]
    venv = bare(
        counters([20, 3]), scorer=Slow(ByTask({"count 0": script, "count 1": [0.0]})),
        every_k_steps=2, gamma=1.0, latency="deferred", max_lag_steps=3,
        **{**ENDING, "on_complete": on_complete},
    )  # fmt: skip
    steps, late = run(venv, 7)
    assert [step[2].tolist() for step in steps[1:]] == [
        [False, False], [False, False], [False, True], [False, False], [True, False],
        [False, True], [False, False],
    ]  # fmt: skip
    obs, _, _, infos = steps[5]
    assert (obs[0].tolist(), infos[0]["terminal_observation"].tolist()) == ([0.0], [5.0])
    assert infos[0]["TimeLimit.truncated"] is (on_complete == "truncate")
    assert infos[0]["procreward"]["queried"] is True
    # The other one ends by itself in its third step.
    assert steps[3][3][1]["terminal_observation"].tolist() == [3.0]
    final = 0.0 if on_complete == "terminate" else script[5]
    total = sum(one.reward for one in late if one.index == 0 and one.step < 5)
    assert total == pytest.approx(final - script[0], abs=1e-12)
    assert steps[6][0][0].tolist() == [1.0]


def toy(latency: str, *, kind: Any = DummyVecEnv, scorer: Any = None, **settings: Any) -> Any:
    env_kwargs = {"max_episode_steps": 9, **settings.pop("env_kwargs", {})}
    model = MeanGrey() if scorer is None else scorer
    return make_progress_vec_env(
        TOY, 2, seed=0, env_kwargs=env_kwargs, vec_env_cls=kind, latency=latency,
        **{
            "scorer": model if latency == "blocking" or scorer else Slow(model, 0.001),
            "every_k_steps": 3,
            "scale": 30.0,
            "gamma": 0.9,
            **settings,
        },
    )  # fmt: skip


def ppo(venv: Any, policy: str = "MlpPolicy") -> PPO:
    return PPO(policy, venv, n_steps=20, batch_size=10, n_epochs=2, seed=1, device="cpu", gamma=0.9)


def assert_same_policy(one: BaseAlgorithm, other: BaseAlgorithm) -> None:
    ours, theirs = one.policy.state_dict(), other.policy.state_dict()
    assert sorted(ours) == sorted(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("terminates", [False, True])
def test_ppo_learns_the_same(terminates: bool, tmp_path: Path) -> None:
    # One by truncation, whose value is bootstrapped into the same rewards; one by termination.
    options = {"env_kwargs": {"terminate_on_success": terminates}, "max_lag_steps": None}
    blocking = toy("blocking", monitor_file=str(tmp_path / "blocking"), **options)
    deferred = toy("deferred", **options)
    assert isinstance(blocking, VecMonitor)
    assert isinstance(deferred, VecProgressReward)
    expected = ppo(blocking).learn(120)
    callback = DeferredRewards(monitor_file=str(tmp_path / "deferred"))
    model = ppo(deferred).learn(120, callback=callback)
    assert_same_policy(model, expected)
    for name in ("rewards", "advantages", "returns"):
        ours, theirs = (getattr(one.rollout_buffer, name) for one in (model, expected))
        np.testing.assert_array_equal(ours, theirs)
    assert np.unique(model.rollout_buffer.rewards).size > 20
    ours, theirs = model.ep_info_buffer, expected.ep_info_buffer
    assert ours is not None
    assert theirs is not None
    assert [(one["r"], one["l"]) for one in ours] == [(one["r"], one["l"]) for one in theirs]
    assert list(model.ep_success_buffer or []) == list(expected.ep_success_buffer or [])
    blocking.close()
    deferred.close()
    tables = []
    for name in ("blocking", "deferred"):
        header, *lines = (tmp_path / f"{name}.monitor.csv").read_text().splitlines()
        assert header.startswith('#{"t_start": ')
        tables.append([(row["r"], row["l"]) for row in csv.DictReader(lines)])
    assert tables[0] == tables[1]
    assert len(tables[0]) >= 12


def test_ppo_learns_the_same_in_parts(tmp_path: Path) -> None:
    models, returns = [], []
    for latency in ("blocking", "deferred"):
        venv = toy(latency)
        file = str(tmp_path / "monitor.csv")
        callback = DeferredRewards(monitor_file=file) if latency == "deferred" else None
        model = ppo(venv)
        for new in (True, False, False, True):
            model.learn(40, reset_num_timesteps=new, callback=callback)
        models.append(model)
        returns.append([one["r"] for one in model.ep_info_buffer or []])
        if latency == "deferred":
            with pytest.raises(ConfigError, match=r"callback=DeferredRewards\(\)"):
                model.learn(40)
        venv.close()
    assert_same_policy(*models)
    assert returns[0] == returns[1] != []
    # The 60 steps before the last reset end 6 episodes of 9 steps for each; after it 2.
    assert len((tmp_path / "monitor.csv").read_text().splitlines()) == 2 + 12 + 4


def test_normalised_observations_are_no_obstacle() -> None:
    models = []
    for latency in ("blocking", "deferred"):
        venv = VecNormalize(toy(latency), norm_reward=False, gamma=0.9)
        callback = DeferredRewards() if latency == "deferred" else None
        models.append(ppo(venv).learn(80, callback=callback))
        venv.close()
    assert_same_policy(*models)


def sac(venv: Any, replay: Any = DeferredReplayBuffer, policy: str = "MlpPolicy", **kw: Any) -> SAC:
    options = {"learning_starts": 8, "batch_size": 8, "buffer_size": 400, **kw}
    return SAC(
        policy, venv, replay_buffer_class=replay, seed=1, device="cpu", gamma=0.9,
        policy_kwargs={"net_arch": [8]}, **options,
    )  # fmt: skip


CONTENT = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Peeking(BaseCallback):
    """Notes how many transitions the replay buffer holds, and that none is a placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def _on_step(self) -> bool:
        buffer: Any = self.model.replay_buffer
        self.sizes.append(buffer.size())
        # The scripted reward is never 0.
        assert (buffer.rewards[: buffer.size()] != 0.0).all()
        return True


def test_sac_never_holds_a_placeholder_and_ends_up_with_all() -> None:
    runs = []
    for latency, delay_s in (("blocking", None), ("deferred", 0.001), ("deferred", 0.0)):
        scorer = {"name": "scripted", "options": {"progress": [0.25, 0.5, 0.75, 1.0]}}
        settings: dict[str, Any] = {"shaping": "raw", "every_k_steps": 1, "max_lag_steps": None}
        if delay_s is not None:
            settings |= {"max_lag_steps": 4}
        venv = toy(latency, **settings, scorer=scorer if latency == "blocking" else Rising(delay_s))
        peek = Peeking()
        callbacks = [peek] if latency == "blocking" else [DeferredRewards(), peek]
        runs.append((sac(venv, learning_starts=100).learn(100, callback=callbacks), peek.sizes))
        venv.close()
    (expected, _), (slow, sizes), (fast, again) = runs
    # A transition comes in when it is 4 steps old, however fast the model was. The buffer's first
    # is waited for.
    assert sizes == again == [0, 1, 1, 1, 1, *range(2, 47)]
    for model in (slow, fast):
        for name in CONTENT:
            ours, theirs = (getattr(one.replay_buffer, name) for one in (model, expected))
            np.testing.assert_array_equal(ours, theirs)
        ours, theirs = model.ep_info_buffer or [], expected.ep_info_buffer or []
        assert [(one["r"], one["l"]) for one in ours] == [(one["r"], one["l"]) for one in theirs]
        assert model.replay_buffer is not None
        assert model.replay_buffer.size() == 50


class Rising:
    def __init__(self, delay_s: float | None) -> None:
        self.delay_s = delay_s

    def score(self, queries: Sequence[Query]) -> list[Score]:
        return [Score(progress=min(1.0, 0.25 + 0.25 * query.frame_steps[-1])) for query in queries]

    def describe(self) -> Any:
        return {"name": "rising"}


@pytest.mark.parametrize("pixels", [False, True])
def test_sac_learns_the_same_where_rollouts_are_flushed(pixels: bool) -> None:
    policy = "MultiInputPolicy" if pixels else "MlpPolicy"
    replay = DeferredDictReplayBuffer if pixels else DeferredReplayBuffer
    models = []
    for latency in ("blocking", "deferred"):
        env_kwargs = {"observe_pixels": pixels, "width": 36, "height": 36}
        venv = toy(latency, env_kwargs=env_kwargs if pixels else {})
        callback = DeferredRewards(flush_rollouts=True) if latency == "deferred" else None
        model = sac(venv, replay, policy, train_freq=12, gradient_steps=6)
        models.append(model.learn(72, callback=callback))
        venv.close()
    assert_same_policy(*models)


def test_sac_is_reproducible_without_flushing() -> None:
    models = []
    for delay_s in (0.0, 0.002):
        venv = toy("deferred", scorer=Slow(MeanGrey(), delay_s))
        models.append(sac(venv, learning_starts=2).learn(60, callback=DeferredRewards()))
        venv.close()
    assert_same_policy(*models)


@pytest.mark.slow  # starts two processes
def test_sac_learns_with_sub_environments_in_other_processes() -> None:
    venv = toy("deferred", kind=SubprocVecEnv, scorer="nano", every_k_steps=4)
    model = sac(venv, learning_starts=20).learn(100, callback=DeferredRewards())
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 50
    assert venv.stats.queries > 20
    venv.close()


def test_what_is_kept_aside_is_not_pickled(tmp_path: Path) -> None:
    class Saving(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 9:
                self.model.save_replay_buffer(tmp_path / "buffer.pkl")  # type: ignore[attr-defined]  # off-policy learners have it
                buffer: Any = self.model.replay_buffer
                sizes.append(pickle.loads(pickle.dumps(buffer)).size())
            return True

    sizes: list[int] = []
    venv = toy("deferred", max_lag_steps=3)
    model = sac(venv).learn(20, callback=[DeferredRewards(), Saving()])
    # Of the 8 steps before, the last 2 are too young.
    assert sizes == [6]
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 10
    again = sac(venv)
    again.load_replay_buffer(tmp_path / "buffer.pkl")
    assert isinstance(again.replay_buffer, DeferredReplayBuffer)
    assert again.replay_buffer.size() == 6
    again.learn(20, callback=DeferredRewards())
    assert again.replay_buffer.size() == 16
    venv.close()


def test_the_buffer_is_a_plain_one_for_blocking_rewards() -> None:
    models = []
    for replay in (None, DeferredReplayBuffer):
        venv = toy("blocking")
        models.append(sac(venv, replay).learn(40, callback=DeferredRewards()))
        venv.close()
    assert_same_policy(*models)


def test_a_reward_that_is_missing_is_not_made_up() -> None:
    space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    buffer = DeferredReplayBuffer(10, space, space, n_envs=1)
    buffer.hold()
    buffer.expect(0)
    one = np.zeros((1, 1), np.float32)
    buffer.add(one, one, one, np.zeros(1), np.zeros(1), [{}])
    with pytest.raises(ConfigError, match="1 of step 0 are missing"):
        buffer.admit(0)
    assert buffer.size() == 0
    with pytest.raises(ConfigError, match="hold"):
        DeferredReplayBuffer(10, space, space).expect(0)


def test_without_the_callback_stepping_is_refused() -> None:
    venv = toy("deferred")
    with pytest.raises(ConfigError, match=r"callback=DeferredRewards\(\)"):
        ppo(venv).learn(20)
    venv.close()


class Interrupting(BaseCallback):
    def _on_step(self) -> bool:
        raise KeyboardInterrupt


def test_nor_is_it_allowed_after_training_with_the_callback_was_interrupted() -> None:
    venv = toy("deferred")
    model = ppo(venv)
    with pytest.raises(KeyboardInterrupt):
        model.learn(20, callback=[DeferredRewards(), Interrupting()])
    with pytest.raises(ConfigError, match=r"callback=DeferredRewards\(\)"):
        model.learn(20)
    venv.close()


class GoalEnv(CounterEnv):
    """As HER wants it."""

    def __init__(self) -> None:
        super().__init__(5)
        number = self.observation_space
        self.observation_space = gym.spaces.Dict(
            {"observation": number, "achieved_goal": number, "desired_goal": number}
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _obs(self) -> Any:
        return dict.fromkeys(("observation", "achieved_goal", "desired_goal"), super()._obs())

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return np.zeros(len(achieved))


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (lambda: ppo(VecMonitor(toy("deferred"))), "no VecMonitor must be above"),
        (lambda: ppo(VecNormalize(toy("deferred"))), "`norm_reward` must be False"),
        (lambda: sac(toy("deferred"), None), "must be DeferredReplayBuffer .* got ReplayBuffer,"),
        (lambda: sac(toy("deferred"), ReplayBuffer), "got ReplayBuffer, from which placeholders"),
        (
            lambda: sac(
                bare([GoalEnv], scorer="constant", latency="deferred"),
                HerReplayBuffer,
                "MultiInputPolicy",
            ),
            "must not be HerReplayBuffer .*: it makes up rewards for other goals",
        ),
    ],
)
def test_learners_that_would_read_placeholders_are_refused(learner: Any, message: str) -> None:
    model = learner()
    with pytest.raises(ConfigError, match=message):
        model.learn(20, callback=DeferredRewards())
    model.get_env().close()


def test_who_writes_the_monitor_file(tmp_path: Path) -> None:
    file = str(tmp_path / "monitor.csv")
    with pytest.raises(ConfigError, match="give it to DeferredRewards"):
        toy("deferred", monitor_file=file)
    venv = toy("blocking")
    with pytest.raises(ConfigError, match="a VecMonitor above VecProgressReward writes it"):
        ppo(venv).learn(20, callback=DeferredRewards(monitor_file=file))
    venv.close()
    plain = PPO("MlpPolicy", DummyVecEnv([lambda: gym.make(TOY)]), device="cpu")
    with pytest.raises(UnsupportedEnvError, match="with a VecProgressReward"):
        plain.learn(20, callback=DeferredRewards())


class Breaking(MeanGrey):
    def score(self, queries: Sequence[Query]) -> list[Score]:
        if any(query.frame_steps[-1] == 6 for query in queries):
            raise ScorerError("wrong by contract")
        return super().score(queries)


def test_an_error_of_a_model_ends_training() -> None:
    venv = toy("deferred", scorer=Breaking())
    with pytest.raises(ScorerError, match="wrong by contract"):
        ppo(venv).learn(20, callback=DeferredRewards())
    assert venv.pending == 0
    venv.close()


class Stopping(BaseCallback):
    def _on_step(self) -> bool:
        return self.n_calls < 13


@pytest.mark.parametrize("off_policy", [False, True])
def test_training_that_is_stopped_half_way(off_policy: bool) -> None:
    venv = toy("deferred")
    model = sac(venv) if off_policy else ppo(venv)
    model.learn(100, callback=[DeferredRewards(), Stopping()])
    assert venv.pending == 0
    if off_policy:
        assert model.replay_buffer.size() == 12  # type: ignore[union-attr]  # it has one
    # And goes on.
    model.learn(40, callback=DeferredRewards(), reset_num_timesteps=False)
    venv.close()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
