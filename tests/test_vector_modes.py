"""What can be shown above which base, and what a VectorProgressReward is among others."""

from __future__ import annotations

import inspect
import os
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics

from procreward.config import RewardConfig
from procreward.errors import (
    ConfigError,
    FrameError,
    InstructionError,
    ScorerFailedError,
    UnknownNameError,
    UnsupportedEnvError,
    WorkerError,
)
from procreward.vector import VectorProgressReward
from procreward.wrapper import ProgressReward
from tests.helpers import INSTRUCTION, CounterEnv, Recorder
from tests.vectors import (
    DISABLED,
    KINDS,
    NEXT_STEP,
    SAME_STEP,
    WAYS,
    ByTask,
    assert_same,
    batched,
    counters,
    trace,
)

ENDING = {"confirm_queries": 1, "confirm_window": 1, "on_complete": "terminate"}


def base(mode: AutoresetMode, kind: Any = SyncVectorEnv, **kwargs: Any) -> Any:
    return kind(counters([4, 4], dict_obs=True), autoreset_mode=mode, **kwargs)


@pytest.mark.parametrize(
    ("below", "asked", "shown"),
    [
        (DISABLED, None, SAME_STEP),
        (DISABLED, "Disabled", DISABLED),
        (DISABLED, SAME_STEP, SAME_STEP),
        (NEXT_STEP, None, NEXT_STEP),
        (NEXT_STEP, "NextStep", NEXT_STEP),
        (SAME_STEP, None, SAME_STEP),
    ],
)
def test_modes_that_are_shown(below: Any, asked: Any, shown: Any) -> None:
    inner = base(below)
    envs = VectorProgressReward(inner, autoreset_mode=asked, scorer="constant", views="image")
    assert envs.metadata == {**inner.metadata, "autoreset_mode": shown}
    assert inner.metadata["autoreset_mode"] is below


@pytest.mark.parametrize(
    ("below", "options", "message"),
    [
        (NEXT_STEP, {"autoreset_mode": SAME_STEP}, "`autoreset_mode` must be .*NEXT_STEP above"),
        (SAME_STEP, {"autoreset_mode": "Disabled"}, r"make the base with AutoresetMode.DISABLED"),
        (DISABLED, {"autoreset_mode": NEXT_STEP}, "Make the base with AutoresetMode.NEXT_STEP"),
        (DISABLED, {"autoreset_mode": "next"}, "'NextStep', 'SameStep', 'Disabled', or None, got"),
        (SAME_STEP, ENDING, "`on_complete` must be 'info' .* got 'terminate'.*vector_kwargs"),
        (SAME_STEP, {"on_complete": "truncate"}, "got 'truncate': it resets only what ended"),
        (SAME_STEP, {"views": "render"}, r"got \['render'\]: .* the last frame is gone"),
    ],
)
def test_refused(below: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VectorProgressReward(base(below), **{"scorer": "constant", "views": "image", **options})


def test_a_worker_that_would_reset_twice_is_refused() -> None:
    inner = base(NEXT_STEP, AsyncVectorEnv, shared_memory=False)
    try:
        with pytest.raises(ConfigError, match=r"shared_memory=False resets .* twice"):
            VectorProgressReward(inner, scorer="constant", **ENDING)
    finally:
        inner.close()


def test_workers_without_shared_memory_above_a_disabled_base() -> None:
    scorer = ByTask({"count 0": [0.0, 1.0], "count 1": [0.0, 0.5, 0.5, 1.0]})
    traces = []
    for shared in (True, False):
        inner = base(DISABLED, AsyncVectorEnv, shared_memory=shared)
        envs = VectorProgressReward(inner, scorer=scorer, every_k_steps=1, **ENDING)
        traces.append(trace(envs, 10))
    assert_same(traces[0], traces[1])


def test_a_base_without_a_mode_is_refused() -> None:
    inner = base(NEXT_STEP)
    del inner.metadata["autoreset_mode"]
    with pytest.raises(ConfigError, match="must be an AutoresetMode, got None from SyncVectorEnv"):
        VectorProgressReward(inner, scorer="constant")


def test_a_base_of_another_make_cannot_be_ended() -> None:
    envs = gym.make_vec(
        "CartPole-v1", 2, vectorization_mode="vector_entry_point", render_mode="rgb_array"
    )
    with pytest.raises(ConfigError, match="CartPoleVectorEnv is not known to reset single"):
        VectorProgressReward(
            envs, scorer="constant", instruction="balance", views="render", **ENDING
        )


def test_single_environments_are_refused() -> None:
    with pytest.raises(UnsupportedEnvError, match=r"got CounterEnv; .* there is ProgressReward"):
        VectorProgressReward(CounterEnv(), scorer="constant")  # type: ignore[arg-type]  # on purpose


def test_same_settings_as_the_single_wrapper() -> None:
    known = set(inspect.signature(ProgressReward.__init__).parameters) - {"self", "env", "config"}
    config = RewardConfig(scorer="constant", every_k_steps=3)
    for name in sorted(known):
        envs = VectorProgressReward(base(DISABLED), config=config, **{name: getattr(config, name)})
        assert envs.config == config
    with pytest.raises(UnknownNameError, match=r"'every_k_step'. Did you mean 'every_k_steps'"):
        VectorProgressReward(base(DISABLED), scorer="constant", every_k_step=3)
    with pytest.raises(UnknownNameError, match=r"Unknown view 'imag'. Did you mean 'image'"):
        VectorProgressReward(base(DISABLED), scorer="constant", views="imag")


def test_nothing_is_loaded_before_the_first_reset() -> None:
    envs = VectorProgressReward(base(DISABLED), scorer={"name": "procvlm", "model": "./nowhere"})
    assert envs.instructions == ("", "")
    assert envs.outcomes == (None, None)
    with pytest.raises(gym.error.ResetNeeded, match="in every sub-environment; call reset"):
        envs.step(np.zeros(2, int))
    envs.close()


def test_disabled_needs_a_reset_of_what_the_model_ended() -> None:
    scorer = ByTask({"count 0": [0.0, 1.0], "count 1": [0.0, 0.5]})
    envs = batched(counters([9, 9]), WAYS["disabled"], scorer=scorer, every_k_steps=1, **ENDING)
    envs.reset(seed=0)
    _, _, terminated, _, _ = envs.step(np.zeros(2, int))
    assert terminated.tolist() == [True, False]
    with pytest.raises(gym.error.ResetNeeded, match=r"sub-environments \[0\] are over"):
        envs.step(np.zeros(2, int))
    options = {"reset_mask": terminated}
    obs, infos = envs.reset(options=options)
    assert options == {"reset_mask": terminated}
    assert obs[:, 0].tolist() == [0.0, 1.0]
    assert infos["_procreward"].tolist() == [True, False]
    assert infos["procreward"]["_progress"].tolist() == [True, False]
    assert [None if one is None else one.step for one in envs.outcomes] == [0, 1]
    obs, *_ = envs.step(np.zeros(2, int))
    assert obs[:, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("mask", [[True, False], np.array([1, 0]), np.zeros(2, bool), None])
def test_wrong_masks(mask: Any) -> None:
    envs = batched(counters([4, 4]), scorer="constant")
    with pytest.raises(ConfigError, match=r"must be a bool array of shape \(2,\) with a True"):
        envs.reset(options={"reset_mask": mask})


def test_masks_above_another_base() -> None:
    envs = batched(counters([4, 4]), WAYS["next step"], scorer="constant")
    with pytest.raises(ConfigError, match=r"needs a base of AutoresetMode.DISABLED"):
        envs.reset(options={"reset_mask": np.ones(2, bool)})


def test_a_reset_in_the_middle_of_an_episode_after_an_end() -> None:
    # The sub-environment whose next-step reset was pending is in a running episode again.
    envs = batched(counters([2, 5]), WAYS["next step"], scorer=Recorder(), every_k_steps=1)
    first = trace(envs, 2)
    envs = batched(counters([2, 5]), WAYS["next step"], scorer=Recorder(), every_k_steps=1)
    for _ in range(2):
        again = [envs.reset(seed=0), *(envs.step(np.zeros(2, int)) for _ in range(2))]
        assert_same(again, first)


def test_seeds_and_options_are_passed_on() -> None:
    envs = batched(counters([4, 4]), scorer="constant")
    inner: Any = envs.unwrapped
    envs.reset(seed=[3, 8], options={"procreward": {"instruction": "go"}, "level": 2})
    assert [env.resets for env in inner.envs] == [[(3, {"level": 2})], [(8, {"level": 2})]]
    assert envs.instructions == ("go", "go")
    envs.reset(seed=5, options={"procreward": {"instruction": ["left", None]}})
    assert [env.resets[-1][0] for env in inner.envs] == [5, 6]
    assert envs.instructions == ("left", "count 1")
    with pytest.raises(ConfigError, match="for each of 2 sub-environments, got 1"):
        envs.reset(options={"procreward": {"instruction": ["left"]}})
    with pytest.raises(InstructionError, match="the reset option 'instruction'"):
        envs.reset(options={"procreward": {"instruction": " "}})


class TellingEnv(CounterEnv):
    """Writes a new sentence for every episode, into its observation and its info."""

    def __init__(self, name: str) -> None:
        super().__init__(3, "truncated", instruction=None)
        self.name = name
        self.observation_space = gym.spaces.Dict(
            {"count": self.observation_space, "task": gym.spaces.Text(40)}
        )

    def _obs(self) -> Any:
        return {"count": super()._obs(), "task": self.sentence()}

    def sentence(self) -> str:
        return f"{self.name} {len(self.resets)}"

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return obs, {**info, "told": {"task": self.sentence()}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["same step", "next step"])
@pytest.mark.parametrize(
    "instruction", ["obs:task", "info:told/task", lambda env, obs, info: obs["task"]]
)
def test_instructions_are_read_per_sub_environment_and_episode(
    kind: Any, way: str, instruction: Any
) -> None:
    makers = [lambda: TellingEnv("one"), lambda: TellingEnv("two")]
    extra = {"shared_memory": False} if kind is AsyncVectorEnv else {}
    inner = kind(makers, autoreset_mode=WAYS[way][0], **extra)
    envs = VectorProgressReward(inner, scorer="constant", instruction=instruction)
    try:
        envs.reset(seed=0)
        seen = [envs.instructions]
        for _ in range(5):
            envs.step(np.zeros(2, int))
            seen.append(envs.instructions)
    finally:
        envs.close()
    first, second = ("one 1", "two 1"), ("one 2", "two 2")
    last = [first, first, first] if way == "next step" else [first, first]
    assert seen == [first, *last, *[second] * (5 - len(last))]


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_of_attributes(kind: Any) -> None:
    def named(name: str) -> Any:
        return lambda: CounterEnv(3, instruction=name)

    for spec in (None, "attr:instruction"):
        inner = kind([named("one"), named("two")], autoreset_mode=DISABLED)
        envs = VectorProgressReward(inner, scorer="constant", instruction=spec)
        envs.reset(seed=0)
        assert envs.instructions == ("one", "two")
        with pytest.raises(UnknownNameError, match="environment attribute 'instructions'"):
            VectorProgressReward(inner, scorer="constant", instruction="attr:instructions")
        envs.close()


@pytest.mark.parametrize("kind", KINDS)
def test_no_instruction_and_no_picture(kind: Any) -> None:
    makers = [lambda: CounterEnv(3, instruction=None, render_mode=None)] * 2
    envs = kind(makers, autoreset_mode=DISABLED)
    with pytest.raises(UnsupportedEnvError, match="shows no picture by itself"):
        VectorProgressReward(envs, scorer="constant")
    envs.close()
    envs = VectorProgressReward(
        kind([lambda: CounterEnv(3, instruction=None)] * 2, autoreset_mode=DISABLED),
        scorer="constant",
    )
    with pytest.raises(InstructionError, match="No instruction at info"):
        envs.reset(seed=0)
    envs.close()


class DarkEnv(CounterEnv):
    def render(self) -> Any:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame(kind: Any) -> None:
    inner = kind([DarkEnv, CounterEnv], autoreset_mode=DISABLED)
    envs = VectorProgressReward(inner, scorer="constant")
    with pytest.raises(FrameError, match=r"env.render\(\)` must return .* got None"):
        envs.reset(seed=0)
    envs.close()


def test_too_many_failures() -> None:
    envs = batched(
        counters([9, 9]),
        scorer=Recorder([0.5, RuntimeError("boom")]),
        every_k_steps=1,
        max_consecutive_failures=2,
    )
    envs.reset(seed=0)
    _, rewards, _, _, infos = envs.step(np.zeros(2, int))
    assert infos["procreward"]["valid"].tolist() == [False, False]
    assert envs.stats.invalid_reasons == {"RuntimeError": 2}
    assert rewards.tolist() == pytest.approx([-0.005, -0.005])
    with pytest.raises(ScorerFailedError, match="2 queries in a row"):
        envs.step(np.zeros(2, int))
    # A reset begins anew.
    envs.reset(seed=0)
    assert envs.stats.consecutive_failures == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_bases_that_reuse_their_buffers(kind: Any, way: str) -> None:
    traces = []
    for copy in (True, False):
        below, shown = WAYS[way]
        inner = kind(counters([3, 5], dict_obs=True), copy=copy, autoreset_mode=below)
        envs = VectorProgressReward(
            inner, autoreset_mode=shown, scorer=Recorder(), views="image", every_k_steps=2
        )
        # Their observations change after they were returned; rewards and infos do not.
        traces.append([step[1:] for step in trace(envs, 12)])
    assert_same(traces[0], traces[1])


class DyingEnv(CounterEnv):
    """Its process is gone in the middle of a step, as if it had been killed."""

    def step(self, action: Any) -> Any:
        if self.count == 2:
            os._exit(3)
        return super().step(action)


def test_a_worker_that_dies() -> None:
    inner = AsyncVectorEnv([CounterEnv, DyingEnv, CounterEnv], autoreset_mode=DISABLED)
    envs = VectorProgressReward(inner, scorer="constant")
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(3, int))
    with pytest.raises(WorkerError, match=r"by index and exit code: \{1: 3\}"):
        envs.step(np.zeros(3, int))
    assert envs.closed
    assert not any(process.is_alive() for process in inner.processes)
    envs.close()


def test_closing_above_a_dead_worker_ends_the_others() -> None:
    inner = AsyncVectorEnv([CounterEnv] * 3, autoreset_mode=DISABLED)
    envs = VectorProgressReward(inner, scorer="constant")
    envs.reset(seed=0)
    inner.processes[1].kill()
    inner.processes[1].join()
    envs.close()
    assert not any(process.is_alive() for process in inner.processes)


class FailingEnv(CounterEnv):
    def step(self, action: Any) -> Any:
        raise ConnectionError("no robot")


@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")  # Gymnasium shows the traceback
@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_sub_environments_are_passed_on(kind: Any) -> None:
    envs = VectorProgressReward(
        kind([CounterEnv, FailingEnv], autoreset_mode=DISABLED), scorer="constant"
    )
    envs.reset(seed=0)
    with pytest.raises(ConnectionError, match="no robot"):
        envs.step(np.zeros(2, int))
    envs.close()


@pytest.mark.parametrize("way", ["same step", "next step"])
def test_episode_statistics_above(way: str) -> None:
    scorer = ByTask({"count 0": [0.0, 1.0, 1.0], "count 1": [0.0, 0.5, 0.75, 0.75, 1.0]})
    envs = RecordEpisodeStatistics(
        batched(
            counters([9, 9]),
            WAYS[way],
            scorer=scorer,
            every_k_steps=1,
            gamma=1.0,
            shaping="delta",
            **ENDING,
        )
    )
    envs.reset(seed=0)
    for _ in range(5):
        envs.step(np.zeros(2, int))
    lengths = {"same step": [1, 1, 1, 1, 4, 1], "next step": [1, 1, 4, 1]}[way]
    assert sorted(envs.length_queue) == sorted(lengths)
    assert list(envs.return_queue) == [1.0] * len(lengths)


def test_normalised_reward_above() -> None:
    envs = NormalizeReward(batched(counters([3, 5]), scorer=Recorder(), every_k_steps=1))
    envs.reset(seed=0)
    assert all(np.isfinite(envs.step(np.zeros(2, int))[1]).all() for _ in range(9))


def test_statistics_below_keep_their_infos() -> None:
    envs = VectorProgressReward(
        RecordEpisodeStatistics(SyncVectorEnv(counters([2, 3]), autoreset_mode=NEXT_STEP)),
        scorer="constant",
        every_k_steps=1,
    )
    envs.reset(seed=0)
    infos = [envs.step(np.zeros(2, int))[4] for _ in range(3)]
    assert infos[1]["episode"]["r"].tolist() == [3.0, 0.0]
    assert infos[1]["_episode"].tolist() == [True, False]


def test_pickled_in_the_middle_of_an_episode() -> None:
    scorer = {"name": "scripted", "options": {"ramp_steps": 8}}
    envs = batched(counters([4, 7]), scorer=scorer, every_k_steps=3, window_frames=2)
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(2, int))
    copy = cloudpickle.loads(cloudpickle.dumps(envs))
    for _ in range(8):
        assert_same(copy.step(np.zeros(2, int)), envs.step(np.zeros(2, int)))
    assert copy.stats.queries == envs.stats.queries


def test_close_is_idempotent_and_leaves_the_scorer() -> None:
    scorer = ByTask({"count 0": [0.5], "count 1": [0.5]})
    envs = batched(counters([4, 4]), scorer=scorer)
    envs.reset(seed=0)
    envs.close()
    envs.close()
    inner: Any = envs.unwrapped
    assert [env.closed for env in inner.envs] == [1, 1]
    assert sorted(scorer.released) == sorted(set(scorer.streams))
    assert envs.closed


def test_spec_is_that_of_the_base() -> None:
    inner = gym.make_vec(
        "procreward.envs:procreward/Toy-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"autoreset_mode": DISABLED},
    )
    envs = VectorProgressReward(inner, scorer="constant", **ENDING)
    try:
        assert envs.spec is inner.spec
        assert envs.spec is not None
        assert envs.spec.id == "procreward/Toy-v0"
        _, infos = envs.reset(seed=0)
        assert infos["procreward"]["progress"].tolist() == [0.5, 0.5]
        assert envs.instructions == ("Move the red point onto the green disc.",) * 2
    finally:
        envs.close()


def test_helpers_have_the_instruction_of_the_single_tests() -> None:
    envs = VectorProgressReward(
        SyncVectorEnv([CounterEnv], autoreset_mode=DISABLED), scorer="constant"
    )
    envs.reset(seed=0)
    assert envs.instructions == (INSTRUCTION,)
