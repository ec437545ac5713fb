from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from procreward.bench.episodes import lift_recordings
from tests.bench.recordings import keep, recordings


def test_recordings_are_read_as_they_were_written(cache: Path) -> None:
    keep(3, 7, cache)
    for ours, right in zip(lift_recordings(3, 7, cache), recordings(3, 7), strict=True):
        np.testing.assert_array_equal(ours.episode.frames["front"], right.episode.frames["front"])
        np.testing.assert_array_equal(ours.progress, right.progress)
        np.testing.assert_array_equal(ours.stage, right.stage)
        assert (ours.kind, ours.stage_names) == (right.kind, right.stage_names)
        assert ours.episode.name == right.episode.name
        assert ours.episode.instruction == "lift the cube"
        assert len(ours.episode) == 7


@pytest.mark.sim
@pytest.mark.slow
def test_lift_is_rendered_step_by_step(cache: Path) -> None:
    (one, other) = lift_recordings(2, 4, cache)
    assert one.episode.frames["front"].shape == (4, 128, 128, 3)
    assert (one.kind, other.kind) == ("expert", "retry")
    assert len({frame.tobytes() for frame in one.episode.frames["front"]}) == 4
    assert one.stage_names == ("reach the cube", "grasp the cube", "lift the cube")
    assert one.progress.max() < 0.5
