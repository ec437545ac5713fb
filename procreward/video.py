"""``score_video``: the progress of a video file, frame by frame."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from procreward.config import RewardConfig, ScorerSpec
from procreward.errors import ConfigError, FrameError
from procreward.runner import DueQuery
from procreward.session import EpisodeStream, Outcome, StreamPlan
from procreward.types import Frame

__all__ = ["VideoRecord", "read_video", "score_video"]

VIEW = "video"

_ANSWER_SENTENCE = re.compile(r"[^.\n]*<progress>.*", re.IGNORECASE | re.DOTALL)


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
            **dataclasses.asdict(self),
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
    config = RewardConfig(
        scorer=scorer,
        every_k_steps=every_k_frames,
        window_frames=window_frames,
        frame_stride_steps=frame_stride_frames,
        pad=pad,
        frame_size=frame_size,
        max_consecutive_failures=max_consecutive_failures,
    )
    plan = StreamPlan.from_config(config)
    fps, frames = read_video(path, frame_size=frame_size)
    stream, runner = EpisodeStream(plan, fps=fps), plan.runner()
    records: list[VideoRecord] = []
    for index, (frame, last) in enumerate(_with_last(frames)):
        if index == 0:
            dues = stream.begin({VIEW: frame}, instruction)
        else:
            dues = stream.advance({VIEW: frame}, index, truncated=last)
        outcome = stream.apply(runner.run(dues))
        if dues:
            records.append(_record(path, stream, dues[0], outcome, len(records), fps))
    return records


def _record(
    path: str | Path,
    stream: EpisodeStream,
    due: DueQuery,
    outcome: Outcome,
    sample_index: int,
    fps: float,
) -> VideoRecord:
    score = outcome.score
    text = "" if score is None else score.text
    return VideoRecord(
        video_path=str(path),
        task=stream.instruction,
        sample_index=sample_index,
        frame_index=outcome.step,
        timestamp_sec=outcome.step / fps,
        window_frame_indices=due.query.frame_steps,
        progress=outcome.verdict.progress,
        parsed_progress=None if score is None else score.progress,
        progress_source="previous" if score is None or score.progress is None else "model",
        reasoning=_ANSWER_SENTENCE.sub("", text).strip(),
        model_output=text,
    )


def _with_last(frames: Iterator[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Pair each frame with whether it is the last, by reading one ahead."""
    ahead = next(frames, None)
    while ahead is not None:
        frame, ahead = ahead, next(frames, None)
        yield frame, ahead is None


def read_video(
    path: str | Path, *, frame_size: tuple[int, int] | None = None
) -> tuple[float, Iterator[Frame]]:
    """Open a video file.

    Args:
        path: A file that ffmpeg can read.
        frame_size: ``(width, height)`` in pixels that frames are resized to; None leaves them.

    Returns:
        Frames per second, and the frames in order, each ``(height, width, 3) uint8``, read as they
        are asked for.

    Raises:
        ConfigError: If there is no such file.
        FrameError: If it is not a video; for a file without a single whole frame, at the first one.
    """
    import imageio_ffmpeg  # type: ignore[import-untyped]

    if not Path(path).is_file():
        raise ConfigError(f"`path` must be a video file, got {str(path)!r}: there is no such file.")
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    try:
        meta = next(reader)
    except (OSError, RuntimeError, StopIteration) as error:
        reader.close()
        reason = str(error).strip().splitlines()
        raise FrameError(
            f"{str(path)!r} cannot be read as a video; it may be damaged or of another kind. "
            f"ffmpeg: {reason[-1] if reason else 'no output'}"
        ) from error
    if not meta["fps"] > 0:
        reader.close()
        raise FrameError(f"{str(path)!r} must state how many frames a second it has, got none.")
    return float(meta["fps"]), _decoded(reader, path, meta, frame_size)


def _decoded(
    reader: Any, path: str | Path, meta: Mapping[str, Any], size: tuple[int, int] | None
) -> Iterator[Frame]:
    width, height = meta["size"]
    count = 0
    try:
        for data in reader:
            frame = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            yield frame if size is None else _resized(frame, size)
            count += 1
    finally:
        reader.close()
    if count == 0:
        raise FrameError(f"{str(path)!r} has no frame that can be decoded; it may be cut off.")


def _resized(frame: Frame, size: tuple[int, int]) -> Frame:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
