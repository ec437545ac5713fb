"""Rewards that are told later are those that would have been told at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from procreward.deferred import LateReward
from procreward.types import Query, Score
from procreward.vector import VectorProgressReward
from tests.helpers import Recorder, discounted
from tests.vectors import (
    DISABLED,
    KINDS,
    WAYS,
    ByTask,
    Gated,
    MeanGrey,
    Slow,
    actions,
    assert_same,
    batched,
    counters,
    no_thread_stays,  # noqa: F401  a fixture
)

pytestmark = pytest.mark.usefixtures("no_thread_stays")

ENDING: dict[str, Any] = {"confirm_queries": 1, "confirm_window": 1, "on_complete": "terminate"}
FALLS_OVER = -1.0
"""Stands in a script for an answer at which the whole call raises."""


class Falling(ByTask):
    """Raises where its script says so, whatever it is asked beside that."""

    def _answer(self, query: Query) -> Score:
        script = self.answers[query.instruction]
        if script[min(query.frame_steps[-1], len(script) - 1)] == FALLS_OVER:
            raise RuntimeError("down")
        return super()._answer(query)


def run(
    envs: VectorProgressReward, num_steps: int, collect_every: int = 1
) -> tuple[list[Any], list[LateReward]]:
    """What a reset and some steps return, and all late rewards; closes the environment."""
    late = []
    try:
        steps: list[Any] = [envs.reset(seed=0)]
        over = np.zeros(envs.num_envs, bool)
        for number in range(num_steps):
            if over.any() and envs.metadata["autoreset_mode"] is DISABLED:
                envs.reset(options={"reset_mask": over})
            steps.append(envs.step(actions(envs)))
            over = steps[-1][2] | steps[-1][3]
            if number % collect_every == 0:
                late += envs.collect()
        return steps, late + envs.collect(wait=True)
    finally:
        envs.close()


def entry(infos: dict[str, Any], index: int) -> dict[str, Any]:
    """Our entry of a step, wherever the mode puts it."""
    if "_final_info" in infos and infos["_final_info"][index]:
        infos = infos["final_info"]
    ours = infos["procreward"]
    return {key: ours[key][index].item() for key in ours if not key.startswith("_")}


def told_at_once(steps: Sequence[Any]) -> list[LateReward]:
    """The rewards of a blocking run as a deferred one tells them."""
    return [
        LateReward(step=number, index=index, reward=float(reward), entry=entry(step[4], index))
        for number, step in enumerate(steps[1:])
        for index, reward in enumerate(step[1])
    ]


def without_ours(infos: Any) -> Any:
    if not isinstance(infos, dict):
        return infos
    return {key: without_ours(value) for key, value in infos.items() if "procreward" not in key}


def assert_told_late(deferred: VectorProgressReward, blocking: VectorProgressReward, n: int) -> Any:
    """Same steps, same rewards, same entries; the rewards told later."""
    steps, late = run(deferred, n)
    expected, nothing = run(blocking, n)
    assert nothing == []
    assert all(np.isnan(step[1]).all() for step in steps[1:])
    for one, other in zip(steps[1:], expected[1:], strict=True):
        assert_same([one[0], *one[2:4]], [other[0], *other[2:4]])
        assert_same(without_ours(one[4]), without_ours(other[4]))
    assert late == told_at_once(expected)
    return late


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_equals_blocking(kind: Any, way: str, end: str) -> None:
    options: dict[str, Any] = {
        "every_k_steps": 3,
        "window_frames": 4,
        "gamma": 0.5,
        "success_bonus": 2.0,
        "env_reward_weight": 0.25,
        "complete_threshold": 4 / 255,
    }
    slow = Slow(MeanGrey())
    deferred, blocking = (
        batched(counters([4, 9, 6], end), WAYS[way], kind, **options, **how)
        for how in ({"scorer": slow, "latency": "deferred"}, {"scorer": MeanGrey()})
    )
    late = assert_told_late(deferred, blocking, 24)
    assert any(one.entry["complete"] for one in late)
    assert slow.threads == {"procreward-asking"}


answers = st.lists(
    st.sampled_from([None, FALLS_OVER, 0.0, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(answers, min_size=2, max_size=4),
    lengths=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    judge=st.none() | st.lists(answers, min_size=4, max_size=4),
    way=st.sampled_from(sorted(WAYS)),
    end=st.sampled_from(["terminated", "truncated"]),
    slow=st.sampled_from([None, 0.0005]),
    max_lag_steps=st.none() | st.integers(1, 20),
    collect_every=st.integers(1, 20),
    options=st.fixed_dictionaries(
        {
            "shaping": st.sampled_from(["pbrs", "delta", "raw", "sparse"]),
            "every_k_steps": st.integers(1, 8),
            "window_frames": st.integers(1, 3),
            "frame_stride_steps": st.integers(1, 3),
            "pad": st.booleans(),
            "confirm_queries": st.integers(1, 2),
            "min_progress": st.sampled_from([None, 0.3]),
            "release_threshold": st.sampled_from([None, 0.4]),
            "ratchet": st.booleans(),
            "smooth_alpha": st.sampled_from([None, 0.5]),
            "offset": st.booleans(),
            "success_bonus": st.sampled_from([0.0, 1.0]),
            "env_reward_weight": st.sampled_from([0.0, 0.3]),
        }
    ),
)
def test_equals_blocking_whatever_the_models_answer(
    scripts: Any,
    lengths: Any,
    judge: Any,
    way: str,
    end: str,
    slow: float | None,
    max_lag_steps: int | None,
    collect_every: int,
    options: dict[str, Any],
) -> None:
    def models(delay_s: float | None) -> dict[str, Any]:
        scorer, decider = (
            None
            if lists is None
            else Slow(Falling({f"count {i}": one for i, one in enumerate(lists)}), delay_s)
            for lists in (scripts, judge)
        )
        return {"scorer": scorer, "judge": decider}

    makers = counters(lengths[: len(scripts)], end)
    options |= {"gamma": 0.9, "max_consecutive_failures": 10_000}
    lag = {"latency": "deferred", "max_lag_steps": max_lag_steps}
    deferred = batched(makers, WAYS[way], **models(slow), **lag, **options)
    blocking = batched(makers, WAYS[way], **models(None), **options)
    steps, late = run(deferred, 15, collect_every)
    expected, _ = run(blocking, 15)
    assert late == told_at_once(expected)
    assert_same([step[:1] for step in steps], [step[:1] for step in expected])
    counted = [envs.stats for envs in (deferred, blocking)]
    assert counted[0].queries == counted[1].queries
    assert counted[0].invalid_reasons == counted[1].invalid_reasons
    assert deferred.pending == 0


def test_queries_wait_for_each_other_in_one_call() -> None:
    scorer = Gated(ByTask({"count 0": [0.5]}), is_open=True)
    envs = batched(
        counters([9]), scorer=scorer, every_k_steps=1, latency="deferred", max_lag_steps=9
    )
    envs.reset(seed=0)
    envs.step(actions(envs))
    envs.collect(wait=True)
    scorer.inner.calls.clear()
    scorer.asked.clear()
    scorer.gate.clear()
    envs.step(actions(envs))
    assert scorer.asked.wait(30.0)
    for _ in range(3):
        envs.step(actions(envs))
    assert (envs.pending, envs.collect()) == (4, [])
    scorer.gate.set()
    assert [late.step for late in envs.collect(wait=True)] == [1, 2, 3, 4]
    assert [[step for _, step in call] for call in scorer.inner.calls] == [[2], [3, 4, 5]]
    assert (envs.pending, envs.collect(wait=True)) == (0, [])
    assert envs.stats.queries == 6
    envs.close()


def test_infos_of_a_step_that_is_not_paid_yet() -> None:
    scorer = Gated(ByTask({"count 0": [0.25, 0.5, 0.75]}), is_open=True)
    envs = batched(counters([9]), scorer=scorer, every_k_steps=2, latency="deferred")
    _, infos = envs.reset(seed=0)
    first = entry(infos, 0)
    assert (first["queried"], first["shaping"], first["age_steps"]) == (True, 0.0, 0)
    envs.step(actions(envs))
    envs.collect(wait=True)
    scorer.gate.clear()
    _, rewards, _, _, infos = envs.step(actions(envs))
    assert np.isnan(rewards).all()
    assert rewards.dtype == np.float64
    assert entry(infos, 0) == {
        "progress": 0.25,
        "potential": 0.25,
        "shaping": 0.0,
        "env_reward": 2.0,
        "queried": True,
        "complete": False,
        "age_steps": 2,
        "valid": True,
    }
    assert envs.outcomes[0] is not None
    assert envs.outcomes[0].progress == 0.25
    scorer.gate.set()
    (late,) = envs.collect(wait=True)
    assert (late.step, late.index, late.entry["progress"]) == (1, 0, 0.75)
    assert late.entry["shaping"] == late.reward == 0.99 * 0.75 - 0.25
    envs.close()


@pytest.mark.parametrize("max_lag_steps", [1, 2, 5, 12, None])
def test_no_step_gets_further_ahead_than_allowed(max_lag_steps: int | None) -> None:
    scorer = Gated(Recorder([0.5]), is_open=True)
    envs = batched(
        counters([99]),
        scorer=scorer,
        every_k_steps=10,
        latency="deferred",
        max_lag_steps=max_lag_steps,
    )
    lag = 20 if max_lag_steps is None else max_lag_steps
    assert envs.max_lag_steps == lag
    envs.reset(seed=0)
    for _ in range(9):
        envs.step(actions(envs))
    envs.collect(wait=True)
    scorer.gate.clear()
    for _ in range(lag):
        envs.step(actions(envs))
    assert 10 not in scorer.inner.steps
    timer = threading.Timer(0.05, scorer.gate.set)
    timer.start()
    # Without the bound this step would return before the gate opens.
    envs.step(actions(envs))
    assert 10 in scorer.inner.steps
    timer.join()
    assert envs.stats.blocked_s > 0.0
    envs.close()


def test_the_first_potential_is_waited_for() -> None:
    scorer = Gated(Recorder([None, None, 0.5]))
    envs = batched(counters([9]), scorer=scorer, every_k_steps=8, latency="deferred")
    timer = threading.Timer(0.05, scorer.gate.set)
    envs.reset(seed=0)
    timer.start()
    # Whether step 1 is asked about depends on the answer about step 0.
    for _ in range(4):
        envs.step(actions(envs))
    envs.collect(wait=True)
    timer.join()
    assert scorer.inner.steps == [0, 1, 2]
    envs.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on_complete", ["terminate", "truncate"])
@pytest.mark.parametrize("max_lag_steps", [1, 3, 4])
@pytest.mark.parametrize("delay_s", [None, 0.003])
def test_completion_ends_the_episode_after_the_stated_lag(
    way: str, on_complete: str, max_lag_steps: int, delay_s: float | None
) -> None:
    script = [0.25, 0.5, 0.375, 0.5, 1.0, 0.75, 0.5, 0.25, 0.875, 1.0]
    scorer = ByTask({"count 0": script, "count 1": [0.125]})
    envs = batched(
        counters([50, 50]),
        WAYS[way],
        scorer=Slow(scorer, delay_s),
        every_k_steps=2,
        gamma=0.9,
        latency="deferred",
        max_lag_steps=max_lag_steps,
        **{**ENDING, "on_complete": on_complete},
    )
    steps, late = run(envs, 14)
    # Asked at 0, 2, 4: complete at 4.
    end = 4 + max_lag_steps
    ended = {"terminate": 2, "truncate": 3}[on_complete]
    over = [step[ended].tolist() for step in steps[1:]]
    assert over[:end] == [[False, False]] * (end - 1) + [[True, False]]
    assert not any(step[5 - ended].any() for step in steps[1:])
    episode = [one for one in late if one.index == 0 and one.step < end]
    assert episode[-1].entry["queried"] is True
    final = 0.0 if on_complete == "terminate" else script[end]
    assert episode[-1].entry["potential"] == final
    total = discounted([one.reward for one in episode], 0.9)
    assert total == pytest.approx(0.9**end * final - 0.25, abs=1e-12)
    # The next episode begins as the first one did, and is ended as that was.
    asked = [step for call in scorer.calls for name, step in call if name == "count 0"]
    again = asked.index(0, 1)
    assert asked[:again] == sorted({0, 2, 4, *range(4, end, 2), end})
    assert asked[again : again + 3] == [0, 2, 4]
    assert scorer.released.count(scorer.streams[0]) == 1


def test_an_environment_that_ends_first_decides_how() -> None:
    scorer = ByTask({"count 0": [0.0, 1.0]})
    envs = batched(
        counters([3]), scorer=scorer, every_k_steps=1, latency="deferred", success_bonus=5.0,
        max_lag_steps=3, gamma=1.0, **ENDING,
    )  # fmt: skip
    steps, late = run(envs, 3)
    assert [(step[2][0], step[3][0]) for step in steps[1:]] == [
        (False, False),
        (False, False),
        (False, True),
    ]
    assert [one.reward for one in late] == [6.0, 0.0, 0.0]


def test_a_reset_drops_no_reward() -> None:
    scorer = Gated(ByTask({"count 0": [0.0, 0.5], "count 1": [0.0, 0.25]}), is_open=True)
    options = {"every_k_steps": 1, "gamma": 1.0, "latency": "deferred"}
    envs = batched(counters([9, 9]), WAYS["disabled"], scorer=scorer, **options)
    envs.reset(seed=0)
    envs.step(actions(envs))
    envs.collect(wait=True)
    scorer.gate.clear()
    envs.step(actions(envs))
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.pending == 2
    envs.reset(seed=0)
    assert envs.pending == 2
    scorer.gate.set()
    late = [(one.step, one.index, one.reward) for one in envs.collect(wait=True)]
    assert late == [(1, 0, 0.0), (1, 1, 0.0)]
    envs.step(actions(envs))
    late = [(one.step, one.index, one.reward) for one in envs.collect(wait=True)]
    assert late == [(2, 0, 0.5), (2, 1, 0.25)]
    envs.close()
    assert sorted(scorer.inner.released) == sorted(set(scorer.inner.streams))
