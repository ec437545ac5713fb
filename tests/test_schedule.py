from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.errors import ConfigError
from procreward.schedule import ChangeDetector, QuerySchedule
from procreward.types import Frame


def due_steps(schedule: QuerySchedule, last: int) -> list[int]:
    return [step for step in range(last + 1) if schedule.due(step, ended=step == last)]


@pytest.mark.parametrize(
    ("k", "last", "steps"),
    [
        (1, 3, [0, 1, 2, 3]),
        (3, 7, [0, 3, 6, 7]),
        (3, 6, [0, 3, 6]),  # the end falls on a scheduled step: one query, not two
        (10, 4, [0, 4]),
        (10, 0, [0]),
    ],
)
def test_queries_at_reset_every_k_and_at_the_end(k: int, last: int, steps: list[int]) -> None:
    schedule = QuerySchedule(k, window_frames=1, frame_stride_steps=1)
    assert due_steps(schedule, last) == steps


def test_every_step_is_an_attempt_until_something_is_known() -> None:
    schedule = QuerySchedule(5, window_frames=1, frame_stride_steps=1)
    assert [schedule.due(step, ended=False, known=step > 3) for step in range(7)] == [
        True,
        True,
        True,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("k", "window", "stride", "steps"),
    [
        (8, 4, 4, [0, 4, 8, 12, 16, 20, 24]),
        (8, 4, 8, [0, 8, 16, 24]),
        (8, 1, 3, [0, 8, 16, 24]),
        (8, 3, 1, [0, 6, 7, 8, 14, 15, 16, 22, 23, 24]),
        (5, 2, 7, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),
    ],
)
def test_wanted_frames_are_those_of_scheduled_windows(
    k: int, window: int, stride: int, steps: list[int]
) -> None:
    schedule = QuerySchedule(k, window_frames=window, frame_stride_steps=stride)
    assert [step for step in range(25) if schedule.wants_frame(step)] == steps


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 12), st.integers(0, 60))
def test_a_frame_is_wanted_exactly_if_a_scheduled_query_shows_it(
    k: int, window: int, stride: int, step: int
) -> None:
    schedule = QuerySchedule(k, window_frames=window, frame_stride_steps=stride)
    shown = any(
        schedule.due(query, ended=False) and (query - step) % stride == 0
        for query in range(step, step + (window - 1) * stride + 1)
    )
    assert schedule.wants_frame(step) == shown


@pytest.mark.parametrize("setting", ["every_k_steps", "window_frames", "frame_stride_steps"])
def test_settings_below_one(setting: str) -> None:
    settings = {"every_k_steps": 1, "window_frames": 1, "frame_stride_steps": 1, setting: 0}
    with pytest.raises(ConfigError, match=f"`{setting}` must be an integer of at least 1, got 0"):
        QuerySchedule(
            settings["every_k_steps"],
            window_frames=settings["window_frames"],
            frame_stride_steps=settings["frame_stride_steps"],
        )


def picture(value: int) -> Frame:
    return np.full((2, 5, 3), value, np.uint8)


def test_change_is_measured_from_the_last_query_not_the_last_frame() -> None:
    detector = ChangeDetector(2.0)
    assert detector.changed({"front": picture(10)})
    detector.queried({"front": picture(10)})
    assert [detector.changed({"front": picture(v)}) for v in (10, 11, 12, 9, 8)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    detector.queried({"front": picture(12)})
    assert not detector.changed({"front": picture(11)})


def test_change_does_not_wrap_around_in_uint8() -> None:
    detector = ChangeDetector(200.0)
    detector.queried({"front": picture(255)})
    assert detector.changed({"front": picture(1)})
    assert not detector.changed({"front": picture(60)})


def test_change_in_part_of_a_picture_counts_by_its_mean() -> None:
    detector = ChangeDetector(1.0)
    detector.queried({"front": picture(10)})
    moved = picture(10)
    moved[0, 0] = 19  # 1 of 10 pixels, 9 grey levels: mean 0.9
    assert not detector.changed({"front": moved})
    moved[0, 0] = 20
    assert detector.changed({"front": moved})


def test_one_changed_view_is_enough_and_other_views_count_as_changed() -> None:
    detector = ChangeDetector(5.0)
    detector.queried({"front": picture(10), "wrist": picture(10)})
    assert not detector.changed({"front": picture(10), "wrist": picture(10)})
    assert detector.changed({"front": picture(10), "wrist": picture(20)})
    assert detector.changed({"front": picture(10)})


def test_queried_frames_are_copied_and_forgotten_at_reset() -> None:
    detector, frame = ChangeDetector(5.0), picture(10)
    detector.queried({"front": frame})
    frame[:] = 200
    assert detector.changed({"front": frame})
    assert not detector.changed({"front": picture(10)})
    detector.reset()
    assert detector.changed({"front": picture(10)})


def test_threshold_zero_never_skips() -> None:
    detector = ChangeDetector(0.0)
    detector.queried({"front": picture(10)})
    assert detector.changed({"front": picture(10)})


@pytest.mark.parametrize("threshold", [-1.0, 256.0, math.nan])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"`min_mean_difference` must be in \[0, 255\]"):
        ChangeDetector(threshold)
