from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.errors import ConfigError, FrameError
from procreward.frames import FrameBuffer, check_frame
from procreward.schedule import QuerySchedule
from procreward.types import Frame


def picture(value: int, height: int = 4, width: int = 6) -> Frame:
    return np.full((height, width, 3), value, np.uint8)


def steps_after(buffer: FrameBuffer, steps: list[int]) -> tuple[int, ...]:
    for step in steps:
        buffer.push({"front": picture(step + 1)}, step)
    frames, shown = buffer.window()
    # Every picture says which step it was taken at, so steps and pixels cannot disagree.
    assert [int(value) - 1 for value in frames["front"][:, 0, 0, 0]] == list(shown)
    return shown


# --- windows ----------------------------------------------------------------------------------


def test_window_is_filled_with_the_first_frame_at_the_start() -> None:
    buffer = FrameBuffer(3)
    assert steps_after(buffer, [0]) == (0, 0, 0)
    assert steps_after(buffer, [1]) == (0, 0, 1)
    assert steps_after(buffer, [2]) == (0, 1, 2)
    assert steps_after(buffer, [3]) == (1, 2, 3)


def test_window_is_short_at_the_start_without_padding() -> None:
    buffer = FrameBuffer(3, pad=False)
    assert steps_after(buffer, [0]) == (0,)
    assert steps_after(buffer, [1]) == (0, 1)
    assert steps_after(buffer, [2, 3]) == (1, 2, 3)


def test_stride_counts_backwards_from_the_newest_frame() -> None:
    buffer = FrameBuffer(3, frame_stride_steps=4)
    assert steps_after(buffer, [0, 1, 2, 3]) == (0, 0, 3)
    assert steps_after(buffer, [4, 5, 6]) == (0, 2, 6)
    assert steps_after(buffer, [7, 8, 9, 10]) == (2, 6, 10)


def test_stride_without_padding_leaves_out_steps_before_the_first() -> None:
    buffer = FrameBuffer(3, frame_stride_steps=4, pad=False)
    assert steps_after(buffer, [0, 1, 2, 3]) == (3,)
    assert steps_after(buffer, [4, 5, 6]) == (2, 6)


@pytest.mark.parametrize(
    ("stride", "stored", "shown"),
    [
        (4, [0, 4, 8, 12, 13], (0, 4, 8, 13)),  # each at least one stride older than the next
        (4, [0, 4, 8, 11], (0, 0, 4, 11)),
        (1, [0, 5, 6, 7, 8, 11], (6, 7, 8, 11)),
        (8, [0, 8, 16, 17], (0, 0, 8, 17)),
        (8, [0, 3], (0, 0, 0, 3)),
    ],
)
def test_final_frame_off_schedule_is_shown_with_the_latest_stored_ones(
    stride: int, stored: list[int], shown: tuple[int, ...]
) -> None:
    assert steps_after(FrameBuffer(4, frame_stride_steps=stride), stored) == shown


@given(
    k=st.integers(1, 9),
    window=st.integers(1, 6),
    stride=st.integers(1, 9),
    last=st.integers(0, 50),
    pad=st.booleans(),
)
def test_scheduled_windows_are_exact_though_only_wanted_frames_are_stored(
    k: int, window: int, stride: int, last: int, pad: bool
) -> None:
    schedule = QuerySchedule(k, window_frames=window, frame_stride_steps=stride)
    sparse = FrameBuffer(window, frame_stride_steps=stride, pad=pad)
    dense = FrameBuffer(window, frame_stride_steps=stride, pad=pad)
    for step in range(last + 1):
        dense.push({"front": picture(step + 1)}, step)
        if not schedule.wants_frame(step):
            continue
        sparse.push({"front": picture(step + 1)}, step)
        if not schedule.due(step, ended=False):
            continue
        wanted = [step - i * stride for i in reversed(range(window))]
        exact = [max(s, 0) for s in wanted] if pad else [s for s in wanted if s >= 0]
        for buffer in (sparse, dense):
            frames, steps = buffer.window()
            assert list(steps) == exact
            assert frames["front"][:, 0, 0, 0].tolist() == [s + 1 for s in exact]


@given(
    gaps=st.lists(st.integers(1, 7), min_size=1, max_size=40),
    window=st.integers(1, 5),
    stride=st.integers(1, 5),
)
def test_dropping_old_frames_never_changes_a_window(
    gaps: list[int], window: int, stride: int
) -> None:
    buffer = FrameBuffer(window, frame_stride_steps=stride)
    stored: list[int] = []
    for step in np.cumsum(gaps).tolist():
        stored.append(step)
        buffer.push({"front": picture(step % 255 + 1)}, step)
        expected = [step]
        while len(expected) < window:
            older = [s for s in stored if s <= expected[0] - stride]
            expected.insert(0, max(older) if older else stored[0])
        assert buffer.window()[1] == tuple(expected)
        assert len(buffer) <= (window - 1) * stride + 1


def test_each_view_has_its_own_clip_and_shape() -> None:
    buffer = FrameBuffer(2)
    buffer.push({"front": picture(1), "wrist": picture(2, 8, 8)}, 0)
    buffer.push({"wrist": picture(4, 8, 8), "front": picture(3)}, 1)
    frames, steps = buffer.window()
    assert steps == (0, 1)
    assert buffer.views == tuple(frames) == ("front", "wrist")
    assert frames["front"].shape == (2, 4, 6, 3)
    assert frames["wrist"].shape == (2, 8, 8, 3)
    assert frames["front"][:, 0, 0, 0].tolist() == [1, 3]
    assert frames["wrist"][:, 0, 0, 0].tolist() == [2, 4]


# --- copies and episodes ----------------------------------------------------------------------


def test_frames_are_copied_when_pushed_and_windows_are_the_callers() -> None:
    buffer, frame = FrameBuffer(2), picture(7)
    buffer.push({"front": frame}, 0)
    frame[:] = 9
    frames, _ = buffer.window()
    assert frames["front"].min() == frames["front"].max() == 7
    frames["front"][:] = 5
    assert buffer.window()[0]["front"].max() == 7


def test_latest_frame_is_read_only() -> None:
    buffer = FrameBuffer(1)
    assert (buffer.latest(), buffer.latest_step) == ({}, None)
    buffer.push({"front": picture(7)}, 3)
    assert (list(buffer.latest()), buffer.latest_step) == (["front"], 3)
    with pytest.raises(ValueError, match="read-only"):
        buffer.latest()["front"][:] = 0


def test_flipped_and_read_only_frames_are_taken_as_they_look() -> None:
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    frame.flags.writeable = False
    buffer = FrameBuffer(1)
    buffer.push({"front": frame[::-1]}, 0)
    np.testing.assert_array_equal(buffer.window()[0]["front"][0], frame[::-1])


def test_nothing_of_the_last_episode_is_left_after_clear() -> None:
    buffer = FrameBuffer(3)
    steps_after(buffer, [0, 1, 2, 3])
    buffer.clear()
    assert len(buffer) == 0
    assert buffer.views == ()
    buffer.push({"wrist": picture(200, 2, 2)}, 0)  # other views and shapes are fine now
    frames, steps = buffer.window()
    assert steps == (0, 0, 0)
    assert list(frames) == ["wrist"]
    assert frames["wrist"].min() == 200


def test_window_without_frames() -> None:
    buffer = FrameBuffer(3)
    with pytest.raises(FrameError, match="push the reset frame first"):
        buffer.window()


@pytest.mark.parametrize("step", [3, 2, 0])
def test_steps_must_grow(step: int) -> None:
    buffer = FrameBuffer(2)
    buffer.push({"front": picture(1)}, 3)
    with pytest.raises(FrameError, match=rf"larger than that of the last frame, 3, got {step}"):
        buffer.push({"front": picture(1)}, step)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({}, "must have at least one view, got none"),
        ({"wrist": picture(1)}, r"must have the episode's views \['front'\], got \['wrist'\]"),
        ({"front": picture(1), "wrist": picture(1)}, r"got \['front', 'wrist'\]"),
        ({"front": picture(1, 5, 6)}, r"keep its shape \(4, 6, 3\).*got \(5, 6, 3\) at step 1"),
        ({"front": picture(0)}, "`view 'front' at step 1` must show something"),
    ],
)
def test_a_refused_push_leaves_the_buffer_as_it_was(frames: dict[str, Frame], message: str) -> None:
    buffer = FrameBuffer(2)
    buffer.push({"front": picture(1)}, 0)
    with pytest.raises(FrameError, match=message):
        buffer.push(frames, 1)
    assert buffer.latest_step == 0
    buffer.push({"front": picture(2)}, 1)
    assert buffer.window()[1] == (0, 1)


@pytest.mark.parametrize("setting", ["window_frames", "frame_stride_steps"])
def test_settings_below_one(setting: str) -> None:
    settings = {"window_frames": 1, "frame_stride_steps": 1, setting: 0}
    with pytest.raises(ConfigError, match=f"`{setting}` must be an integer of at least 1, got 0"):
        FrameBuffer(settings["window_frames"], frame_stride_steps=settings["frame_stride_steps"])


# --- check_frame ------------------------------------------------------------------------------


def test_a_picture_passes_uncopied() -> None:
    frame = picture(1)
    assert check_frame(frame, "view 'front'") is frame


def test_one_lit_pixel_is_content() -> None:
    frame = picture(0)
    frame[1, 2, 0] = 1
    assert check_frame(frame, "view 'front'") is frame


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "got NoneType; convert it to a NumPy array"),
        ([[[1, 2, 3]]], "got list; convert it"),
        (np.full((4, 6, 3), 0.5, np.float32), r"values in \[0, 1\], which is a float picture"),
        (np.full((4, 6, 3), 99.0), r"got float64 of shape \(4, 6, 3\); convert it to uint8"),
        (np.full((4, 6, 3), -0.5), r"got float64 of shape \(4, 6, 3\); convert it to uint8"),
        (np.full((4, 6, 3), 9, np.int64), "got int64 of shape"),
        (np.full((4, 6, 3), True), "got bool of shape"),
        (np.full((3, 64, 48), 9, np.uint8), "channels first; transpose it"),
        (np.full((3, 64, 48), 0.5), "channels first; transpose it"),
        (np.full((4, 6), 9, np.uint8), "grey picture"),
        (np.full((4, 6, 4), 9, np.uint8), "alpha channel"),
        (np.full((4, 6, 1), 9, np.uint8), "1 channels instead of 3"),
        (np.full((2, 4, 6, 3), 9, np.uint8), "several pictures"),
        (np.full((3,), 9, np.uint8), "which is no picture"),
        (np.zeros((0, 6, 3), np.uint8), "no pixels"),
        (np.zeros((4, 6, 3), np.uint8), "black all over.*another thread.*rendering disabled"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(frame: Any, message: str) -> None:
    with pytest.raises(FrameError, match=message) as caught:
        check_frame(frame, "view 'front' at step 3")
    assert str(caught.value).startswith("`view 'front' at step 3` must ")
