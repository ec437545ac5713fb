"""Deferred rewards when something goes wrong: models that break, closing, wrong settings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import SyncVectorEnv

from procreward.deferred import LateReward
from procreward.errors import ConfigError, ModelNotFoundError, ScorerError, ScorerFailedError
from procreward.types import Query, Score
from procreward.vector import VectorProgressReward
from tests.helpers import Recorder
from tests.vectors import (
    DISABLED,
    ByTask,
    Gated,
    actions,
    batched,
    counters,
    no_thread_stays,  # noqa: F401  a fixture
)

pytestmark = pytest.mark.usefixtures("no_thread_stays")


class Breaking(Recorder):
    """Breaks its contract at one step, and tells."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = threading.Event()

    def score(self, queries: Sequence[Query]) -> list[Score]:
        answers = super().score(queries)
        if all(query.frame_steps[-1] != 3 for query in queries):
            return answers
        self.broken.set()
        return answers[:-1]


def step_until_it_fails(envs: VectorProgressReward, late: list[LateReward], wait: bool) -> None:
    for _ in range(9):
        envs.step(actions(envs))
        late += envs.collect(wait=wait)


@pytest.mark.parametrize("wait", [True, False])
def test_an_error_of_a_model_is_raised_once(wait: bool) -> None:
    late: list[LateReward] = []
    envs = batched(counters([9, 9]), scorer=Breaking(), every_k_steps=1, latency="deferred")
    envs.reset(seed=0)
    with pytest.raises(ScorerError, match="must return one Score per query, got 1 for 2"):
        step_until_it_fails(envs, late, wait)
    assert envs.pending == 0
    late += envs.collect(wait=True)
    assert [(one.step, one.index) for one in late] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(gym.error.ResetNeeded, match=r"in every sub-environment; call reset"):
        envs.step(actions(envs))
    envs.reset(seed=0)
    envs.step(actions(envs))
    assert len(envs.collect(wait=True)) == 2
    envs.close()


def test_what_was_paid_before_an_error_is_told() -> None:
    scorer = Recorder([0.5, RuntimeError("boom")])
    options: dict[str, Any] = {"every_k_steps": 1, "max_consecutive_failures": 3}
    for latency in ("blocking", "deferred"):
        envs = batched(counters([9]), scorer=scorer, latency=latency, max_lag_steps=None, **options)
        envs.reset(seed=0)
        late: list[LateReward] = []
        with pytest.raises(ScorerFailedError, match="3 queries in a row"):
            step_until_it_fails(envs, late, wait=False)
        # Failures are counted by step, also where several were asked about at once.
        assert envs.stats.queries == 4
        assert envs.stats.consecutive_failures == 3
        late += envs.collect()
        assert [one.step for one in late] == ([] if latency == "blocking" else [0, 1])
        envs.close()


def test_a_model_that_cannot_be_loaded() -> None:
    envs = batched(
        counters([9]), scorer={"name": "procvlm", "model": "./nowhere"}, latency="deferred"
    )
    envs.reset(seed=0)
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        envs.collect(wait=True)
    envs.close()


@pytest.mark.parametrize("answered_in_time", [True, False])
def test_close_with_outstanding_queries(
    answered_in_time: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Gated(ByTask({"count 0": [0.5], "count 1": [0.5]}), is_open=True)
    envs = batched(counters([9, 9]), scorer=scorer, every_k_steps=1, latency="deferred")
    envs.reset(seed=0)
    envs.step(actions(envs))
    envs.collect(wait=True)
    calls = len(scorer.inner.calls)
    scorer.gate.clear()
    scorer.asked.clear()
    envs.step(actions(envs))
    assert scorer.asked.wait(30.0)
    envs.step(actions(envs))
    if answered_in_time:
        threading.Timer(0.05, scorer.gate.set).start()
    else:
        monkeypatch.setattr("procreward._asking.CLOSE_TIMEOUT_S", 0.05)
    envs.close()
    assert envs.closed
    assert (envs.pending, envs.collect(wait=True)) == (0, [])
    if answered_in_time:
        # The call under way was waited for; the one after it was never made.
        assert len(scorer.inner.calls) == calls + 1
        assert sorted(scorer.inner.released) == sorted(set(scorer.inner.streams))
    else:
        assert "has not answered within 0.05 s of close()" in caplog.text
        scorer.gate.set()
    envs.close()


def test_an_error_that_nobody_was_told_of_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Breaking()
    envs = batched(counters([9]), scorer=scorer, every_k_steps=3, latency="deferred")
    envs.reset(seed=0)
    for _ in range(3):
        envs.step(actions(envs))
    assert scorer.broken.wait(30.0)
    envs.close()
    assert "too late to be raised: ScorerError" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": "later"}, "`latency` must be one of 'blocking', 'deferred', got 'later'"),
        ({"max_lag_steps": 4}, '`max_lag_steps` must be None with latency="blocking", got 4'),
        ({"latency": "deferred", "max_lag_steps": 0}, "an integer of at least 1, got 0"),
        ({"latency": "deferred", "max_lag_steps": 1.5}, "an integer of at least 1, got 1.5"),
        ({"latency": "deferred", "skip_unchanged": 2.0}, "depends on the answer to the one before"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], message: str) -> None:
    inner = SyncVectorEnv(counters([4]), autoreset_mode=DISABLED)
    with pytest.raises(ConfigError, match=message):
        VectorProgressReward(inner, scorer="constant", **options)


def test_blocking_has_nothing_to_collect() -> None:
    envs = batched(counters([4]), scorer="constant", every_k_steps=1)
    assert (envs.latency, envs.max_lag_steps) == ("blocking", None)
    envs.reset(seed=0)
    envs.step(actions(envs))
    assert (envs.pending, envs.collect(wait=True)) == (0, [])
    envs.close()
    assert "procreward-asking" not in {thread.name for thread in threading.enumerate()}
