"""``score_video``: the progress of a video file, frame by frame."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from procreward.config import RewardConfig, ScorerSpec
from procreward.errors import ConfigError, FrameError
from procreward.runner import DueQuery
from procreward.scorers.procvlm_text import reasoning_of
from procreward.session import EpisodeStream, Outcome, StreamPlan
from procreward.types import Frame

__all__ = ["VideoReader", "VideoRecord", "VideoSpan", "score_video"]

VIEW = "video"

# More than a codec delays a frame by, to put it behind one that it is predicted from.
_EARLY_FRAMES = 16

_RATE = re.compile(r"Video:.*?(\d+(?:\.\d+)?) fps")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """One query about a video; the fields are those of ProcVLM's own records.

    Attributes:
        video_path: The file.
        task: The instruction.
        sample_index: Number of the query, from 0.
        frame_index: Frame of the video that is judged, from 0.
        timestamp_sec: Its time in seconds.
        window_frame_indices: Frames the model was shown, oldest first.
        progress: Progress in [0, 1]; the latest reading if this query failed, None before the
            first one. (ProcVLM's records have percent and start from 0; :meth:`as_procvlm` does.)
        parsed_progress: Progress in [0, 1] of this very query, or None if it failed.
        progress_source: ``"model"``, or ``"previous"`` if this query failed.
        reasoning: What the model said before the number.
        model_output: All that it said.
    """

    video_path: str
    task: str
    sample_index: int
    frame_index: int
    timestamp_sec: float
    window_frame_indices: tuple[int, ...]
    progress: float | None
    parsed_progress: float | None
    progress_source: Literal["model", "previous"]
    reasoning: str
    model_output: str

    def as_procvlm(self) -> dict[str, Any]:
        """Return the record as ProcVLM's tools read it: percent, and 0 where nothing is known."""
        parsed = self.parsed_progress
        return {
            **{one.name: getattr(self, one.name) for one in dataclasses.fields(self)},
            "window_frame_indices": list(self.window_frame_indices),
            "progress": 0.0 if self.progress is None else 100.0 * self.progress,
            "parsed_progress": None if parsed is None else 100.0 * parsed,
        }


def score_video(
    path: str | Path,
    instruction: str,
    scorer: ScorerSpec = "nano",
    *,
    every_k_frames: int = 1,
    window_frames: int | None = None,
    frame_stride_frames: int | None = None,
    pad: bool | None = None,
    frame_size: tuple[int, int] | None = None,
    max_consecutive_failures: int = 10,
) -> list[VideoRecord]:
    """Ask a reward model about a video.

    The frames go through the same buffer and schedule as those of an environment: the first frame
    is the reset, and the last one is asked about wherever it lies.

    Args:
        path: A file that ffmpeg can read.
        instruction: The task in words.
        scorer: The model, as :func:`procreward.registry.resolve` takes it.
        every_k_frames: Frames from one query to the next, at least 1.
        window_frames: Frames in a query; None for the preset's.
        frame_stride_frames: Video frames between neighbouring frames of a window; None for the
            preset's. ``every_k_frames`` gives windows of the frames that are asked about, as
            ProcVLM's own script has them.
        pad: Whether the first windows repeat the first frame; None for the preset's.
        frame_size: ``(width, height)`` in pixels that frames are resized to; None leaves them.
        max_consecutive_failures: Failed queries in a row after which an error is raised.

    Returns:
        One record per query, in order.

    Raises:
        ConfigError: If there is no such file, or a setting is out of range.
        FrameError: If the file is not a video, has no frames, or the scorer cannot take them.
        InstructionError: If the instruction is empty.
        ScorerError: If the scorer breaks its contract, or fails too often.
        ModelError: If the scorer cannot be loaded.
    """
    config = RewardConfig.for_frames(
        scorer,
        every_k_frames=every_k_frames,
        frame_stride_frames=frame_stride_frames,
        window_frames=window_frames,
        pad=pad,
        frame_size=frame_size,
        max_consecutive_failures=max_consecutive_failures,
    )
    plan = StreamPlan.from_config(config)
    with VideoReader(path, frame_size=frame_size) as video:
        return _score(video, str(path), instruction, plan)


def _score(video: VideoReader, path: str, instruction: str, plan: StreamPlan) -> list[VideoRecord]:
    stream, runner = EpisodeStream(plan, fps=video.fps), plan.runner()
    records: list[VideoRecord] = []
    try:
        for index, (frame, last) in enumerate(_with_last(iter(video))):
            if index == 0:
                dues = stream.begin({VIEW: frame}, instruction)
            else:
                dues = stream.advance({VIEW: frame}, index, truncated=last)
            outcome = stream.apply(runner.run(dues))
            if dues:
                records.append(_record(path, stream, dues[0], outcome, len(records), video.fps))
    finally:
        runner.release(stream.end())
    return records


def _record(
    path: str,
    stream: EpisodeStream,
    due: DueQuery,
    outcome: Outcome,
    sample_index: int,
    fps: float,
) -> VideoRecord:
    score = outcome.score
    text = "" if score is None else score.text
    return VideoRecord(
        video_path=path,
        task=stream.instruction,
        sample_index=sample_index,
        frame_index=outcome.step,
        timestamp_sec=outcome.step / fps,
        window_frame_indices=due.query.frame_steps,
        progress=outcome.verdict.progress,
        parsed_progress=None if score is None else score.progress,
        progress_source="previous" if score is None or score.progress is None else "model",
        reasoning=reasoning_of(text),
        model_output=text,
    )


def _with_last(frames: Iterator[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Pair each frame with whether it is the last, by reading one ahead."""
    ahead = next(frames, None)
    while ahead is not None:
        frame, ahead = ahead, next(frames, None)
        yield frame, ahead is None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpan:
    """Consecutive frames of a video whose frames are evenly spaced.

    Attributes:
        start: First frame, from 0.
        count: Number of frames, at least 1.
        fps: Frames per second of the file.
    """

    start: int
    count: int
    fps: float

    def ffmpeg_options(self) -> tuple[list[str], list[str]]:
        """Return ffmpeg's options before and after the input."""
        # ffmpeg may land behind the frames that a codec stores after the next key frame, so it
        # starts early, and what is early is dropped by its time. Half a frame either way, for
        # times are rounded. It reads no further than needed, lest it meet another's damage.
        early = min(self.start, _EARLY_FRAMES)
        seek = self.start - early - 0.5 if self.start > early else 0.0
        until = self.start + self.count - 0.5 - seek
        before = ["-nostats", "-err_detect", "explode", "-xerror", "-t", f"{until / self.fps:.6f}"]
        after = ["-frames:v", str(self.count), "-fps_mode", "passthrough"]
        if seek > 0:
            before += ["-ss", f"{seek / self.fps:.6f}"]
        if early > 0:
            after += ["-vf", f"trim=start={(self.start - 0.5 - seek) / self.fps:.6f}"]
        return before, after


class VideoReader:
    """The frames of a video file, decoded as they are asked for; a context manager.

    Attributes:
        fps: Frames per second.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frame_size: tuple[int, int] | None = None,
        span: VideoSpan | None = None,
    ) -> None:
        """Start decoding.

        Args:
            path: A file that ffmpeg can read.
            frame_size: ``(width, height)`` in pixels that frames are resized to; None leaves them.
            span: The frames to decode, exactly as they are stored; None for all of them, with
                frames repeated or left out where the file's times are uneven.

        Raises:
            ConfigError: If there is no such file.
            FrameError: If not a single frame of it can be decoded.
        """
        import imageio_ffmpeg

        self._path, self._size, self._span = str(path), frame_size, span
        if not Path(path).is_file():
            raise ConfigError(
                f"`path` must be a video file, got {self._path!r}: there is no such file."
            )
        before, after = ([], []) if span is None else span.ffmpeg_options()
        # A name such as 10:30.mp4 would be taken for an address.
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", *before, "-i", f"file:{self._path}"]
        # Pictures with a header each, so that their size need not be known beforehand.
        command += ["-map", "0:v:0", *after, "-f", "image2pipe", "-c:v", "ppm"]
        command += ["-pix_fmt", "rgb24", "-"]
        # A file, since a pipe that nobody reads would block ffmpeg.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._stderr)
        try:
            self._first = self._read()
            if self._first is None and span is not None:
                raise self._undecodable(span)
            if self._first is None:
                raise FrameError(
                    f"{self._path!r} cannot be read as a video; it may be damaged or of another "
                    f"kind. ffmpeg: {self._ffmpeg_error()}"
                )
            self.fps = self._rate()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop decoding."""
        self.close()

    def close(self) -> None:
        """Stop decoding; the frames so far stay valid."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order, each ``(height, width, 3) uint8``; works once.

        Raises:
            FrameError: If ffmpeg gives up before the end.
        """
        frame, self._first = self._first, None
        count = 0
        while frame is not None:
            yield frame if self._size is None else _resized(frame, self._size)
            count += 1
            frame = self._read()
        if self._process.wait() != 0:
            if self._span is not None:
                raise self._undecodable(self._span)
            raise FrameError(
                f"{self._path!r} is damaged after {count} frames. ffmpeg: {self._ffmpeg_error()}"
            )

    def _undecodable(self, span: VideoSpan) -> FrameError:
        """Return the error of a span, which leaves out how many frames timing let through."""
        return FrameError(
            f"{self._path!r} cannot be decoded from frame {span.start} to "
            f"{span.start + span.count - 1}; it may be damaged. ffmpeg: {self._ffmpeg_error()}"
        )

    def _read(self) -> Frame | None:
        stream = self._process.stdout
        assert stream is not None
        if stream.readline() != b"P6\n":
            return None
        width, height = map(int, stream.readline().split())
        stream.readline()
        data = stream.read(3 * width * height)
        if len(data) < 3 * width * height:
            return None
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _rate(self) -> float:
        found = _RATE.search(self._read_stderr())
        if found is None or float(found[1]) <= 0:
            raise FrameError(
                f"{self._path!r} must state how many frames a second it has, got none."
            )
        return float(found[1])

    def _ffmpeg_error(self) -> str:
        self._process.wait()
        lines = self._read_stderr().strip().splitlines()
        return lines[-1].strip() if lines else "no output"

    def _read_stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")


def _resized(frame: Frame, size: tuple[int, int]) -> Frame:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
