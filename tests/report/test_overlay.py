from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from procreward.errors import ConfigError
from procreward.report import chart
from procreward.report.chart import draw_chart
from procreward.report.overlay import draw_overlay, write_overlay_video
from procreward.types import Frame
from tests.report.helpers import episode, step_trace

RED, BLUE = (200, 30, 30), (30, 30, 200)


def plain(colour: tuple[int, int, int], height: int = 8, width: int = 8) -> Frame:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def decode(path: Path) -> Frame:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, 480, 832, 3)


def count(picture: Frame, colour: tuple[int, int, int]) -> int:
    return int((picture == np.array(colour, dtype=np.uint8)).all(axis=-1).sum())


def test_the_camera_picture_fills_its_square() -> None:
    picture = draw_overlay(episode(), plain(RED), 0)
    assert picture.shape == (480, 832, 3)
    assert picture.dtype == np.uint8
    assert count(picture, RED) == 384 * 384
    assert count(picture[48:432, 16:400], RED) == 384 * 384


@pytest.mark.parametrize(("height", "width"), [(10, 20), (20, 10), (600, 300)])
def test_other_proportions_are_kept(height: int, width: int) -> None:
    assert count(draw_overlay(episode(), plain(RED, height, width), 0), RED) == 384 * 192


def test_badges_appear_with_their_moment() -> None:
    header = [draw_overlay(episode(), plain(RED), step)[8:40] for step in range(5)]
    assert [count(part, chart.DECLARED) > 500 for part in header] == [False] * 3 + [True] * 2
    assert [count(part, chart.GOOD) > 500 for part in header] == [False] * 4 + [True]


def test_a_badge_turns_grey_when_success_is_lost() -> None:
    trace = (step_trace(0, success=True), step_trace(1))
    header = [draw_overlay(episode(trace=trace), plain(RED), step)[8:40] for step in (0, 1)]
    assert [count(part, chart.GOOD) > 500 for part in header] == [True, False]
    assert [count(part, chart.FAINT) > 500 for part in header] == [False, True]


def test_nothing_of_the_future_is_shown() -> None:
    early = (step_trace(0), step_trace(1), step_trace(2, reward=0.1))
    ends = [
        (*early, step_trace(3, reward=last, progress=level, success=True, text="later"))
        for last, level in ((0.1, 0.1), (-0.1, 0.9))
    ]
    one, two = (draw_overlay(episode(steps=3, trace=trace), plain(RED), 2) for trace in ends)
    np.testing.assert_array_equal(one, two)


def test_the_curve_grows_with_the_steps() -> None:
    inked = [
        count(np.asarray(draw_chart(episode().trace, n, (400, 260))), chart.READING)
        for n in range(5)
    ]
    assert inked == sorted(set(inked))


def test_an_invalid_answer_is_marked_red() -> None:
    good = episode(trace=(step_trace(0), step_trace(1)))
    bad = episode(trace=(step_trace(0), step_trace(1, valid=False, progress=0.0)))
    marks = [count(draw_overlay(one, plain(BLUE), 1), chart.BAD) for one in (good, bad)]
    assert marks[0] == 0
    assert marks[1] > 20


def test_a_long_answer_stays_inside_the_picture() -> None:
    text = "unbroken" * 40 + "\n" + "many short words " * 60 + "<progress>40%</progress>"
    picture = draw_overlay(episode(trace=(step_trace(0, text=text),)), plain(RED), 0)
    assert (picture[:, -12:] == 255).all()
    assert (picture[-6:] == 255).all()


def test_the_video_has_every_frame_at_its_size_and_holds_the_last(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "expert-0.mp4"
    write_overlay_video(episode(), [plain(RED)] * 4 + [plain(BLUE)], path, fps=10.0)
    pictures = decode(path)
    assert len(pictures) == 5 + 15
    centres = [picture[240, 208].astype(int) for picture in pictures]
    for centre, wanted in zip(centres, [RED] * 4 + [BLUE] * 16, strict=True):
        np.testing.assert_allclose(centre, wanted, atol=14)
    assert list(path.parent.iterdir()) == [path]


def test_frames_may_be_of_some_steps_only(tmp_path: Path) -> None:
    path = tmp_path / "sparse.mp4"
    write_overlay_video(episode(), [plain(RED)] * 2, path, frame_steps=(0, 4), fps=2.0)
    assert len(decode(path)) == 2 + 3


@pytest.mark.parametrize(("frames", "steps"), [(0, None), (6, None), (2, (0,)), (1, (5,))], ids=str)
def test_frames_that_do_not_match_the_episode_are_refused(
    tmp_path: Path, frames: int, steps: tuple[int, ...] | None
) -> None:
    with pytest.raises(ConfigError, match="a step below 5"):
        write_overlay_video(episode(), [plain(RED)] * frames, tmp_path / "v.mp4", frame_steps=steps)
    assert list(tmp_path.iterdir()) == []
