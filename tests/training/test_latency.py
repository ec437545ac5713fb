"""Rewards that come later teach the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.errors import ConfigError
from procreward.integrations.sb3 import DeferredReplayBuffer
from procreward.training.checkpoints import newest_checkpoint
from tests.training.conftest import settings
from tests.training.runs import episodes, last, parameters, run

LATE: dict[str, Any] = {"latency": "deferred"}


def returns(out: Path) -> list[str]:
    """Return and length of every episode, as the monitor wrote them."""
    return sorted(line.rpartition(",")[0] for line in episodes(out))


def test_ppo_learns_bit_for_bit_what_it_does_when_it_waits(tmp_path: Path) -> None:
    blocking = run(tmp_path / "blocking")
    deferred = run(tmp_path / "deferred", **LATE)
    assert parameters(tmp_path / "blocking") == parameters(tmp_path / "deferred")
    assert returns(tmp_path / "blocking") == returns(tmp_path / "deferred")
    assert len(returns(tmp_path / "deferred")) == 16
    ranks = [[entry.rank for entry in report.evaluations] for report in (blocking, deferred)]
    assert ranks[0] == ranks[1]


def test_sac_learns_from_rewards_that_are_known(tmp_path: Path) -> None:
    run(tmp_path / "blocking", "sac")
    run(tmp_path / "deferred", "sac", **LATE)
    stored = []
    for name in ("blocking", "deferred"):
        newest = newest_checkpoint(tmp_path / name)
        assert newest is not None
        model: Any = last(tmp_path / name, "sac")
        model.load_replay_buffer(newest.folder / "replay_buffer.pkl")
        stored.append(model.replay_buffer)
    assert type(stored[1]) is DeferredReplayBuffer
    assert stored[0].pos == stored[1].pos == 64
    # Before the first update both act at random and alike: 48 steps of two sub-environments.
    assert np.array_equal(stored[0].rewards[:24], stored[1].rewards[:24])
    assert np.abs(stored[1].rewards[:64]).sum() > 0.0


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_deferred_run_goes_on(tmp_path: Path, algorithm: str) -> None:
    run(tmp_path, algorithm, total_steps=64, **LATE)
    report = run(tmp_path, algorithm, resume=True, **LATE)
    assert report.steps == 128
    assert len(episodes(tmp_path)) == 16
    if algorithm == "ppo":
        run(tmp_path / "whole", total_steps=128)
        assert parameters(tmp_path) == parameters(tmp_path / "whole")


def test_what_cannot_be_deferred_is_refused(tmp_path: Path) -> None:
    reward = {**settings(tmp_path)["reward"], "skip_unchanged": 1.0}
    with pytest.raises(ConfigError, match="skip_unchanged"):
        run(tmp_path, reward=reward, **LATE)
