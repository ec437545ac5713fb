from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from procreward.checker import CompletionChecker
from procreward.errors import ConfigError, FrameError, InstructionError
from procreward.types import Frame, Score
from procreward.video import VideoReader, VideoRecord, VideoSpan, score_video
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder, play

SIZE = 32
FPS = 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven frames that grow brighter."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = imageio_ffmpeg.write_frames(
        str(path), (SIZE, SIZE), fps=FPS, macro_block_size=8, output_params=["-crf", "0"]
    )
    writer.send(None)
    for index in range(7):
        writer.send(np.full((SIZE, SIZE, 3), 20 + 30 * index, np.uint8))
    writer.close()
    return path


def test_reader(video: Path) -> None:
    with VideoReader(video) as reader:
        decoded = list(reader)
    assert reader.fps == FPS
    assert [frame.shape for frame in decoded] == [(SIZE, SIZE, 3)] * 7
    greys = [float(frame.mean()) for frame in decoded]
    assert greys == pytest.approx([20 + 30 * index for index in range(7)], abs=3)
    with VideoReader(video, frame_size=(16, 8)) as reader:
        assert next(iter(reader)).shape == (8, 16, 3)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_reader_span(codec: str, tmp_path: Path) -> None:
    """Frames across key frames (one in 250 here), where codecs store them out of order."""
    path = tmp_path / "long.mp4"
    writer = imageio_ffmpeg.write_frames(
        str(path), (64, 64), fps=FPS, codec=codec, quality=None, output_params=["-crf", "18"]
    )
    writer.send(None)
    for index in range(260):
        bits = [255 * (index >> bit & 1) for bit in range(16)]
        writer.send(np.tile(np.repeat(np.array(bits, np.uint8), 4)[None, :, None], (64, 1, 3)))
    writer.close()
    for start, count in ((0, 2), (3, 4), (40, 3), (248, 3), (249, 2), (250, 1), (259, 1)):
        with VideoReader(path, span=VideoSpan(start=start, count=count, fps=FPS)) as reader:
            numbers = [_number(frame) for frame in reader]
        assert numbers == list(range(start, start + count))
    with VideoReader(path, span=VideoSpan(start=258, count=9, fps=FPS)) as reader:
        assert len(list(reader)) == 2


def _number(frame: Frame) -> int:
    return sum(1 << bit for bit in range(16) if frame[32, 4 * bit + 1 : 4 * bit + 3].mean() > 128)


def test_a_damaged_span(video: Path, tmp_path: Path) -> None:
    data = bytearray(video.read_bytes())
    middle = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 40] = b"\x55" * 40
    (tmp_path / "damaged.mp4").write_bytes(data)
    span = VideoSpan(start=0, count=7, fps=FPS)
    with (
        pytest.raises(FrameError, match="cannot be decoded from frame 0 to 6; it may be damaged"),
        VideoReader(tmp_path / "damaged.mp4", span=span) as reader,
    ):
        list(reader)


def test_records(video: Path) -> None:
    text = "1. grasp the cube\nTherefore, the estimated progress is <progress>25.5%</progress>."
    answers: list[Any] = [Score(progress=0.255, text=text), 9, 9, None, 9, 9, RuntimeError("down")]
    records = score_video(
        video, "lift it", Recorder(answers), every_k_frames=3, window_frames=2, pad=False
    )
    first, second, third = records
    assert first == VideoRecord(
        video_path=str(video),
        task="lift it",
        sample_index=0,
        frame_index=0,
        timestamp_sec=0.0,
        window_frame_indices=(0,),
        progress=0.255,
        parsed_progress=0.255,
        progress_source="model",
        reasoning="1. grasp the cube",
        model_output=text,
    )
    assert (second.frame_index, second.timestamp_sec, second.sample_index) == (3, 0.3, 1)
    assert second.window_frame_indices == (2, 3)
    assert (second.progress, second.parsed_progress) == (0.255, None)
    assert (second.progress_source, second.model_output) == ("previous", "no number here")
    assert (third.frame_index, third.progress_source, third.model_output) == (6, "previous", "")


def test_record_as_procvlm_has_percent_and_starts_from_zero(video: Path) -> None:
    records = score_video(video, "go", Recorder([None, 0.5]), every_k_frames=6)
    plain = [record.as_procvlm() for record in records]
    assert [(item["progress"], item["parsed_progress"]) for item in plain[:2]] == [
        (0.0, None),
        (50.0, 50.0),
    ]
    assert list(plain[0]) == [
        "video_path",
        "task",
        "sample_index",
        "frame_index",
        "timestamp_sec",
        "window_frame_indices",
        "progress",
        "parsed_progress",
        "progress_source",
        "reasoning",
        "model_output",
    ]


def test_window_of_asked_frames_as_in_procvlm(video: Path) -> None:
    scorer = Recorder()
    score_video(
        video, "go", scorer, every_k_frames=2, frame_stride_frames=2, window_frames=3, pad=True
    )
    assert [query.frame_steps for query in scorer.queries] == [
        (0, 0, 0),
        (0, 0, 2),
        (0, 2, 4),
        (2, 4, 6),
    ]
    assert scorer.queries[0].fps == FPS


def test_one_middle_many_doors(video: Path) -> None:
    """The same frames give the same potentials through wrapper, checker and file."""
    with VideoReader(video) as reader:
        frames = list(reader)

    class VideoEnv(CounterEnv):
        def _picture(self) -> Any:
            return frames[self.count]

    settings: dict[str, Any] = {"window_frames": 3, "pad": True}
    trace = play(
        ProgressReward(VideoEnv(6, "truncated"), scorer=Recorder(), every_k_steps=2, **settings)
    )
    checker = CompletionChecker(Recorder(), "go", every_k_frames=2, **settings)
    watched = []
    for frame in frames:
        checker.push(frame)
        assert checker.outcome is not None
        watched.append(checker.outcome.potential)
    records = score_video(video, "go", Recorder(), every_k_frames=2, **settings)
    online = [entry["potential"] for entry in trace]
    assert online == watched
    assert [record.progress for record in records] == online[::2]
    assert len(set(online)) == 4


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"`path` must be a video file, got 'no\.mp4': there is"):
        score_video("no.mp4", "go", "constant")


@pytest.mark.parametrize("content", [b"", b"this is no video at all" * 50])
def test_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(FrameError, match=r"bad.mp4' cannot be read as a video; it may be damaged"):
        score_video(path, "go", "constant")


def test_file_that_is_cut_off(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[:200])
    with pytest.raises(FrameError, match=r"cut.mp4"):
        score_video(path, "go", "constant")


def test_bad_settings(video: Path) -> None:
    with pytest.raises(InstructionError, match="`instruction` must be a sentence"):
        score_video(video, "", "constant")
    with pytest.raises(ConfigError, match="`every_k_frames` must be an integer of at least 1"):
        score_video(video, "go", "constant", every_k_frames=0)
