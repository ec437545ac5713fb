from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from procreward.bench.frames import Episode, moving_frames, sliding


def episode(name: str, steps: int) -> Episode:
    frames = (
        np.zeros((steps, 2, 3, 3), np.uint8) + np.arange(steps, dtype=np.uint8)[:, None, None, None]
    )
    return Episode(name=name, frames={"front": frames}, instruction="go", fps=10.0)


def test_a_question_is_a_window_that_shares_the_frames() -> None:
    one = episode("a", 10)
    query = one.query(9, 3, 2)
    assert query.frame_steps == (5, 7, 9)
    assert query.frames["front"][:, 0, 0, 0].tolist() == [5, 7, 9]
    assert np.shares_memory(query.frames["front"], one.frames["front"])
    assert (query.stream, query.fps, query.instruction) == ("a", 10.0, "go")


def test_a_window_before_the_start_repeats_the_first_frame() -> None:
    query = episode("a", 10).query(1, 4)
    assert query.frame_steps == (0, 0, 0, 1)
    assert query.frames["front"][:, 0, 0, 0].tolist() == [0, 0, 0, 1]


def test_environments_slide_together_from_full_windows_on() -> None:
    clips = [[episode("a", 5), episode("b", 4)], [episode("c", 9)]]
    moments = list(sliding(clips, window=3, every=1))
    seen = [[(query.stream, query.frame_steps[-1]) for query in moment] for moment in moments]
    assert seen == [
        [("a", 2), ("c", 2)],
        [("a", 3), ("c", 3)],
        [("a", 4), ("c", 4)],
        [("b", 2), ("c", 5)],
        [("b", 3), ("c", 6)],
    ]
    ends = [moment[0].frame_steps for moment in sliding(clips[1:], window=2, stride=3, every=2)]
    assert ends == [(0, 3), (2, 5), (4, 7)]


@given(st.integers(2, 40), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 1000))
def test_moving_frames_never_repeat_and_depend_on_the_seed(
    count: int, size: tuple[int, int], seed: int
) -> None:
    frames = moving_frames(count, size, seed=seed)
    assert frames.shape == (count, size[1], size[0], 3)
    assert frames.dtype == np.uint8
    assert len({frame.tobytes() for frame in frames}) == count
    np.testing.assert_array_equal(frames, moving_frames(count, size, seed=seed))
    later = moving_frames(1, size, seed=seed, start=count - 1)
    np.testing.assert_array_equal(later[0], frames[-1])


def test_scenes_differ_and_move_a_little() -> None:
    one, other = (moving_frames(9, (64, 48), seed=seed).astype(int) for seed in (1, 2))
    assert np.abs(one - other).mean() > 5
    assert 0 < np.abs(np.diff(one, axis=0)).mean() < 10
