"""Small videos for the page, which any browser plays and seeks in."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from procreward.errors import DatasetError
from procreward.optional import FFMPEG, need
from procreward.types import Frame

__all__ = ["Clip", "encode_clip", "in_order"]

# Browsers decode from the last key frame before the place that is asked for.
_KEY_FRAME_EVERY = 12
_MOST_AT_A_TIME = 8  # videos
_QUALITY = 26  # x264's constant rate factor: smaller is better and larger


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video of an episode.

    Attributes:
        path: The file.
        frames: How many pictures it has.
        fps: How many a second.
        width: Of a picture in pixels, even.
        height: Likewise.
    """

    path: Path
    frames: int
    fps: float
    width: int
    height: int

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size


def encode_clip(frames: Iterator[Frame], path: Path, *, fps: float, max_height: int) -> Clip:
    """Write pictures as an H.264 ``.mp4``, the same bytes for the same pictures.

    Args:
        frames: The pictures, each ``(height, width, 3) uint8``, all of one size.
        path: The file.
        fps: Pictures per second.
        max_height: Higher pictures are made smaller.

    Raises:
        DatasetError: If there is no picture, or they differ in size.
        MissingDependencyError: If imageio's ffmpeg is not installed.
    """
    first = next(frames, None)
    if first is None:
        raise DatasetError("There are no pictures.")
    height, width = first.shape[:2]
    scale = min(1.0, max_height / height)
    small = (_even(width * scale), _even(height * scale))
    # One thread: with more, what is written depends on how many there are.
    options = ["-vf", f"scale={small[0]}:{small[1]}:flags=area", "-crf", str(_QUALITY)]
    options += ["-preset", "fast", "-g", str(_KEY_FRAME_EVERY), "-threads", "1"]
    options += ["-movflags", "+faststart", "-map_metadata", "-1", "-fflags", "+bitexact"]
    sink = need(FFMPEG).write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=1,
        output_params=options,
    )
    sink.send(None)
    count = 0
    try:
        for frame in _with_first(first, frames):
            if frame.shape != first.shape:
                raise DatasetError(
                    f"Pictures must be of one size, got {first.shape} and {frame.shape}."
                )
            sink.send(np.ascontiguousarray(frame))
            count += 1
    finally:
        sink.close()
    return Clip(path=path, frames=count, fps=fps, width=small[0], height=small[1])


def _with_first(first: Frame, frames: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from frames


def _even(pixels: float) -> int:
    return max(2, 2 * round(pixels / 2))


def in_order(
    work: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Iterator[tuple[_Item, _Result]]:
    """Do some work on several items at a time, as many as there are processors.

    The work is left to other processes mostly, such as ffmpeg; so threads do.

    Args:
        work: What is done; called on other threads.
        items: With what.

    Yields:
        Item and result in the order of the items. Little is done that nobody asks for.
    """
    at_a_time = min(_MOST_AT_A_TIME, len(os.sched_getaffinity(0)))
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    pool = ThreadPoolExecutor(at_a_time)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > at_a_time:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
