from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from procreward.models.nano.policies import PolicyConfig, render_policies
from procreward.models.nano.shards import read_shard

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("reward", ["truth", "nano"])
def test_a_policy_is_rendered_while_it_learns(reward: str, tmp_path: Path) -> None:
    config = PolicyConfig(
        task="drawer_close",
        reward=reward,
        seed=3,
        steps=1_024,
        every_steps=512,
        episodes=2,
        out=tmp_path,
    )
    path = render_policies(config)
    assert path.name == "drawer_close-0503000-4.npz"
    shard = read_shard(path)
    assert shard.kinds == ("policy",) * 4
    assert shard.seeds.tolist() == [503_000, 503_001, 503_002, 503_003]
    # The reset, every fourth of 100 steps, and no other.
    assert shard.lengths.tolist() == [26] * 4
    assert shard.steps[:26].tolist() == list(range(0, 101, 4))
    assert np.all((shard.progress >= 0.0) & (shard.progress <= 1.0))
    assert len({frame.tobytes() for frame in shard.frames[:26]}) > 10
    written = path.stat().st_mtime_ns
    assert render_policies(config) == path
    assert path.stat().st_mtime_ns == written
