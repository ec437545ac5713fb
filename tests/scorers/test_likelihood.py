from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.errors import ConfigError, UnknownNameError
from procreward.scorers import only_view
from procreward.scorers.likelihood import fixed_length, padded_frames, sigmoid
from procreward.types import Query


def query(count: int, *views: str) -> Query:
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    steps = tuple(range(10, 10 + count))
    return Query(
        frames={view: frames for view in views or ("front",)}, instruction="go", frame_steps=steps
    )


@pytest.mark.parametrize(
    ("count", "num_frames", "sampling", "rows"),
    [
        (1, 3, "last", [0, 0, 0]),
        (2, 4, "uniform", [0, 0, 0, 1]),
        (4, 4, "uniform", [0, 1, 2, 3]),
        (6, 3, "last", [3, 4, 5]),
        (6, 3, "uniform", [0, 3, 5]),
        (9, 3, "uniform", [0, 4, 8]),
        (9, 1, "uniform", [8]),
        (64, 5, "uniform", [0, 16, 32, 47, 63]),
    ],
)
def test_which_frames_are_shown(
    count: int, num_frames: int, sampling: str, rows: list[int]
) -> None:
    fixed = fixed_length(query(count, "front", "side"), num_frames, sampling)  # type: ignore[arg-type]  # on purpose
    assert fixed.frame_steps == tuple(10 + row for row in rows)
    for view in ("front", "side"):
        assert fixed.frames[view][:, 0, 0, 0].tolist() == rows


def test_a_query_of_the_right_length_is_left_alone() -> None:
    asked = query(4)
    assert fixed_length(asked, 4, "uniform") is asked


@given(st.integers(1, 300), st.integers(1, 70), st.sampled_from(["last", "uniform"]))
def test_length_order_and_the_newest_frame(count: int, num_frames: int, sampling: str) -> None:
    asked = Query(
        frames={"front": np.zeros((count, 1, 1, 3), np.uint8)},
        instruction="go",
        frame_steps=tuple(range(count)),
    )
    fixed = fixed_length(asked, num_frames, sampling)  # type: ignore[arg-type]  # on purpose
    steps = fixed.frame_steps
    assert len(steps) == len(fixed.frames["front"]) == num_frames
    assert list(steps) == sorted(steps)
    assert steps[-1] == count - 1
    assert padded_frames(fixed) == max(0, num_frames - count)


def test_the_only_view() -> None:
    assert only_view(query(1, "side"), "It", None) == "side"
    assert only_view(query(1, "front", "side"), "It", "side") == "side"
    with pytest.raises(ConfigError, match="It looks at one view, got 2: front, side"):
        only_view(query(1, "front", "side"), "It", None)
    with pytest.raises(UnknownNameError, match="Unknown view 'back'"):
        only_view(query(1, "front"), "It", "back")


@given(st.floats(-1e6, 1e6))
def test_sigmoid_is_a_probability(log_odds: float) -> None:
    assert 0.0 <= sigmoid(log_odds) <= 1.0
    assert sigmoid(log_odds) + sigmoid(-log_odds) == pytest.approx(1.0)


def test_sigmoid_inverts_the_logit() -> None:
    assert sigmoid(math.log(0.8 / 0.2)) == pytest.approx(0.8)
