"""One batched wrapper pays what a wrapper in every sub-environment would."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from hypothesis import given, settings

from procreward.types import Score
from tests.helpers import Recorder
from tests.vectors import (
    KINDS,
    NEXT_STEP,
    SAME_STEP,
    WAYS,
    BlocksEnv,
    ByTask,
    MeanGrey,
    assert_same,
    batched,
    counters,
    stacked,
    trace,
)

TOY = "procreward.envs:procreward/Toy-v0"

SCRIPTS: dict[str, list[float | None]] = {
    "count 0": [0.0, 0.5, 0.25, 1.0, 1.0, 1.0, 0.5],
    "count 1": [0.1, None, 0.3, 0.4, 0.5, 0.6, 1.0],
    "count 2": [None, None, 0.9, 0.2, 1.0, 0.3, 1.0, 1.0],
}
ENDING = {"confirm_queries": 1, "confirm_window": 1, "on_complete": "terminate"}


def toys(num_envs: int, **kwargs: Any) -> list[Any]:
    return [lambda: gym.make(TOY, max_episode_steps=7, **kwargs)] * num_envs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on_complete", ["info", "terminate", "truncate"])
@pytest.mark.parametrize("every_k_steps", [1, 3])
def test_equals_stacked_single_wrappers(
    kind: Any, way: str, on_complete: str, every_k_steps: int
) -> None:
    # With a query at every step one is ended by the model a step before it would end itself.
    makers = counters([4, 9, 6])
    options: dict[str, Any] = {
        **ENDING,
        "on_complete": on_complete,
        "every_k_steps": every_k_steps,
        "gamma": 0.5,
        "success_bonus": 2.0,
        "env_reward_weight": 0.25,
    }
    one, other = (
        trace(build(makers, WAYS[way], kind, scorer=ByTask(SCRIPTS), **options), 24)
        for build in (batched, stacked)
    )
    assert_same(one, other)
    assert any(step[2].any() or step[3].any() for step in one if len(step) == 5)


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
@pytest.mark.parametrize("kind", KINDS)
def test_any_base_will_do_when_completion_is_only_reported(mode: Any, kind: Any) -> None:
    makers = counters([3, 5, 4], dict_obs=True)
    options: dict[str, Any] = {"scorer": Recorder(), "views": "image", "every_k_steps": 2}
    one = trace(batched(makers, (mode, mode), kind, **options), 14)
    assert_same(one, trace(stacked(makers, (mode, mode), kind, **options), 14))


@pytest.mark.parametrize("shaping", ["pbrs", "delta", "raw", "sparse"])
@pytest.mark.parametrize("every_k_steps", [1, 3, 8])
@pytest.mark.parametrize("window_frames", [1, 4])
def test_equal_for_all_shapings_and_schedules(
    shaping: str, every_k_steps: int, window_frames: int
) -> None:
    options: dict[str, Any] = {
        "scorer": MeanGrey(),
        "views": ("front", "camera:side"),
        "frame_size": (24, 16),
        "shaping": shaping,
        "every_k_steps": every_k_steps,
        "window_frames": window_frames,
        "frame_stride_steps": 2,
    }
    for way in WAYS.values():
        one = trace(batched(toys(3), way, **options), 20, seed=3)
        assert_same(one, trace(stacked(toys(3), way, **options), 20, seed=[3, 4, 5]))


@pytest.mark.parametrize("views", [None, "pixels", "side"])
def test_frames_of_workers(views: str | None) -> None:
    makers = toys(2, observe_pixels=views == "pixels")
    options: dict[str, Any] = {"scorer": MeanGrey(), "views": views, "every_k_steps": 3}
    one = trace(batched(makers, kind=AsyncVectorEnv, **options), 12)
    assert_same(one, trace(stacked(makers, kind=AsyncVectorEnv, **options), 12))


def test_render_of_workers() -> None:
    # Their observation is a count, so what is looked at is `render()`.
    options: dict[str, Any] = {"scorer": Recorder(), "every_k_steps": 2}
    one = trace(batched(counters([3, 5]), kind=AsyncVectorEnv, **options), 9)
    assert_same(one, trace(stacked(counters([3, 5]), **options), 9))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_with_nano_and_its_judge(kind: Any) -> None:
    options: dict[str, Any] = {
        "scorer": "nano",
        "judge": "nano-judge",
        "every_k_steps": 2,
        "confirm_queries": 3,
        "on_complete": "terminate",
    }
    makers = [lambda length=length: BlocksEnv(length) for length in (3, 7, 9)]
    one = trace(batched(makers, kind=kind, **options), 10)
    assert_same(one, trace(stacked(makers, **options), 10))
    progress = [step[-1]["procreward"]["progress"] for step in one]
    assert len(np.unique(progress)) > 3
    assert any(step[2].any() for step in one[1:])
    assert any(step[3].any() for step in one[1:])


answers = st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(answers, min_size=2, max_size=4),
    lengths=st.lists(st.integers(1, 7), min_size=4, max_size=4),
    judge=st.none() | st.lists(answers, min_size=4, max_size=4),
    way=st.sampled_from(sorted(WAYS)),
    options=st.fixed_dictionaries(
        {
            "shaping": st.sampled_from(["pbrs", "delta", "raw"]),
            "every_k_steps": st.integers(1, 8),
            "window_frames": st.integers(1, 3),
            "on_complete": st.sampled_from(["info", "terminate", "truncate"]),
            "confirm_queries": st.integers(1, 2),
            "ratchet": st.booleans(),
            "offset": st.booleans(),
            "skip_unchanged": st.sampled_from([None, 2.0]),
            "success_bonus": st.sampled_from([0.0, 1.0]),
        }
    ),
)
def test_equal_for_any_script(
    scripts: Any, lengths: Any, judge: Any, way: str, options: dict[str, Any]
) -> None:
    def named(lists: Any) -> Any:
        return ByTask({f"count {index}": script for index, script in enumerate(lists)})

    makers = counters(lengths[: len(scripts)])
    options |= {"gamma": 0.9, "max_consecutive_failures": 10_000}
    one, other = (
        trace(
            build(
                makers,
                WAYS[way],
                scorer=named(scripts),
                judge=None if judge is None else named(judge),
                **options,
            ),
            15,
        )
        for build in (batched, stacked)
    )
    assert_same(one, other)


def test_step_by_step() -> None:
    scorer = ByTask({"count 0": [0.0, 0.5, 1.0], "count 1": [0.25, 0.5, 0.75, 0.5]})
    envs = batched(counters([9, 3]), scorer=scorer, every_k_steps=1, gamma=1.0, **ENDING)
    envs.reset(seed=0)
    steps = [envs.step(np.zeros(2, int)) for _ in range(4)]
    assert [step[0][:, 0].tolist() for step in steps] == [[1, 1], [0, 2], [1, 0], [0, 1]]
    rewards = [[0.5, 0.25], [-0.5, 0.25], [0.5, -0.25], [-0.5, 0.25]]
    assert [step[1].tolist() for step in steps] == rewards
    assert [step[1].dtype for step in steps] == [np.float64] * 4
    ended = [[False, False], [True, False], [False, False], [True, False]]
    assert [step[2].tolist() for step in steps] == ended
    assert [step[3].tolist() for step in steps] == [[False] * 2] * 2 + [[False, True]] + [
        [False] * 2
    ]
    second = steps[1][4]
    assert [None if obs is None else obs.tolist() for obs in second["final_obs"]] == [[2.0], None]
    assert second["_final_obs"].tolist() == [True, False]
    final = second["final_info"]["procreward"]
    assert (final["progress"][0], final["potential"][0], final["env_reward"][0]) == (1.0, 0.0, 2.0)
    assert final["_progress"].tolist() == [True, False]
    ours = second["procreward"]
    assert ours["progress"].tolist() == [0.0, 0.75]
    assert ours["age_steps"].tolist() == [0, 0]
    assert ours["env_reward"].tolist() == [0.0, 2.0]


def test_types_and_masks_of_the_entry() -> None:
    envs = batched(counters([3, 3]), scorer="constant")
    _, infos = envs.reset(seed=0)
    entry = infos["procreward"]
    assert infos["_procreward"].tolist() == [True, True]
    dtypes = {key: array.dtype for key, array in entry.items() if not key.startswith("_")}
    floats = dict.fromkeys(["progress", "potential", "shaping", "env_reward"], np.float64)
    flags = dict.fromkeys(["queried", "complete", "valid"], np.bool_)
    assert dtypes == {**floats, **flags, "age_steps": np.int64}
    assert all(entry[f"_{key}"].tolist() == [True, True] for key in dtypes)


@pytest.mark.parametrize("way", WAYS)
def test_one_call_a_step_and_two_only_where_the_model_ends_an_episode(way: str) -> None:
    scorer = ByTask(SCRIPTS)
    envs = batched(counters([4, 9, 6]), WAYS[way], scorer=scorer, every_k_steps=1, **ENDING)
    envs.reset(seed=0)
    over = np.zeros(3, bool)
    for _ in range(30):
        if way == "disabled" and over.any():
            envs.reset(options={"reset_mask": over})
        scorer.calls.clear()
        _, _, terminated, truncated, _ = envs.step(np.zeros(3, int))
        # These episodes are cut off by themselves, and terminated by the model only.
        assert len(scorer.calls) == (2 if way == "same step" and terminated.any() else 1)
        over = terminated | truncated
    envs.close()


def test_ends_and_beginnings_share_a_call() -> None:
    scorer = ByTask({"count 0": [0.1], "count 1": [0.2]})
    envs = batched(counters([2, 5]), scorer=scorer, every_k_steps=4)
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.zeros(2, int))
    # Off schedule: only the episode that ended is asked about, with the next one's first frame.
    expected = [[("count 0", 0), ("count 1", 0)], [("count 0", 2), ("count 0", 0)]]
    assert scorer.calls == expected


def test_judge_and_scorer_are_called_once_each() -> None:
    scorer, judge = Recorder([0.5]), Recorder([Score(complete=False)])
    envs = batched(counters([5, 5, 5]), scorer=scorer, judge=judge, every_k_steps=2)
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(np.zeros(3, int))
    assert (scorer.calls, judge.calls) == (3, 3)
    assert envs.stats.queries == 18


def test_a_failed_query_holds_one_potential_only() -> None:
    scorer = ByTask({"count 0": [0.5, None, 0.75], "count 1": [0.25, 0.5, 1.0]})
    envs = batched(counters([8, 8]), scorer=scorer, every_k_steps=1, gamma=1.0)
    envs.reset(seed=0)
    steps = [envs.step(np.zeros(2, int)) for _ in range(2)]
    assert [step[1].tolist() for step in steps] == [[0.0, 0.25], [0.25, 0.5]]
    assert steps[0][4]["procreward"]["valid"].tolist() == [False, True]
    assert steps[0][4]["procreward"]["age_steps"].tolist() == [1, 0]
    assert (envs.stats.failures, envs.stats.consecutive_failures) == (1, 0)


def test_the_final_frame_belongs_to_the_old_episode() -> None:
    scorer = Recorder()
    envs = batched(counters([3]), scorer=scorer, every_k_steps=8, window_frames=2)
    trace(envs, 3)
    assert [query.frame_steps for query in scorer.queries] == [(0, 0), (0, 3), (0, 0)]
    greys = [query.frames["render"][:, 0, 0, 0].tolist() for query in scorer.queries]
    assert greys == [[1, 1], [1, 4], [1, 1]]
    first, last, again = (query.stream for query in scorer.queries)
    assert first == last != again


@pytest.mark.parametrize("way", WAYS)
def test_models_forget_ended_episodes(way: str) -> None:
    scorer = ByTask(SCRIPTS)
    envs = batched(counters([4, 9, 6]), WAYS[way], scorer=scorer, every_k_steps=1, **ENDING)
    trace(envs, 20)
    # Everything was released once, and nothing was asked about after that.
    assert sorted(scorer.released) == sorted(set(scorer.streams))


def test_only_frames_that_a_query_shows_are_rendered() -> None:
    envs = batched(counters([9, 5]), scorer=Recorder(), every_k_steps=4, window_frames=1)
    envs.reset(seed=0)
    for _ in range(6):
        envs.step(np.zeros(2, int))
    inner = envs.unwrapped
    assert isinstance(inner, SyncVectorEnv)
    assert [env.renders for env in inner.envs] == [[0, 4], [0, 4, 5, 0]]
