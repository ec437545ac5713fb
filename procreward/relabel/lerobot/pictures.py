"""The pictures of an episode, from videos and from columns of pictures."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np

from procreward.errors import DatasetError, FrameError
from procreward.optional import ARROW, need
from procreward.relabel.lerobot.files import unreadable
from procreward.relabel.lerobot.layout import EpisodeFiles
from procreward.types import Frame
from procreward.video import VideoReader, VideoSpan

__all__ = ["column_pictures", "video_pictures"]

# Pictures of a column that are held as bytes at a time.
_BATCH_ROWS = 32
# Between a rate of 29.97 and one that is written as 30.
_RATE_TOLERANCE = 0.01


def video_pictures(episode: EpisodeFiles, key: str, fps: float) -> Generator[Frame, None, None]:
    """Yield the pictures of an episode in a video.

    Raises:
        DatasetError: If the video is damaged, too short or of another rate; it names the episode
            and the file.
    """
    part = episode.videos[key]
    if part.problem:
        raise DatasetError(part.problem)
    where = f"Episode {episode.index} in {str(part.path)!r}"
    span = VideoSpan(start=part.start, count=episode.length, fps=fps)
    count = 0
    try:
        with VideoReader(part.path, span=span) as reader:
            if abs(reader.fps - fps) > _RATE_TOLERANCE * fps:
                raise DatasetError(
                    f"{where} must have {fps:g} frames a second, as meta/info.json says, got "
                    f"{reader.fps:g}."
                )
            for frame in reader:
                yield frame
                count += 1
    except FrameError as error:
        raise DatasetError(f"{where} cannot be decoded: {error}") from error
    if count != episode.length:
        raise DatasetError(
            f"{where} must have {episode.length} pictures from frame {part.start}, got {count}."
        )


def column_pictures(episode: EpisodeFiles, key: str) -> Generator[Frame, None, None]:
    """Yield the pictures of an episode in a column of its parquet file.

    Raises:
        DatasetError: If a picture is missing or damaged; it names the episode and the file.
    """
    with closing(_cells(episode, key)) as cells:
        for number, cell in enumerate(cells):
            yield _decoded(cell, episode, key, number)


def _cells(episode: EpisodeFiles, key: str) -> Generator[Any, None, None]:
    """Yield the cells of the episode's rows, a row group at a time."""
    begin, end = episode.row, episode.row + episode.length
    position = 0
    try:
        with need(ARROW).ParquetFile(episode.data) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if position < end and begin < position + rows:
                    at = position
                    for batch in file.iter_batches(_BATCH_ROWS, [group], [key]):
                        low, high = max(begin - at, 0), min(end - at, batch.num_rows)
                        if low < high:
                            cells = batch.column(batch.schema.get_field_index(key))
                            yield from cells.slice(low, high - low).to_pylist()
                        at += batch.num_rows
                position += rows
    except (OSError, ValueError) as error:
        raise unreadable(episode.data, error) from error


def _decoded(cell: Any, episode: EpisodeFiles, key: str, number: int) -> Frame:
    from PIL import Image

    data = cell.get("bytes") if isinstance(cell, dict) else cell
    where = f"Picture {number} of {key!r} in episode {episode.index} of {str(episode.data)!r}"
    if not isinstance(data, bytes):
        raise DatasetError(f"{where} must be stored in the file, got {type(data).__name__}.")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's for a broken PNG
        raise DatasetError(f"{where} cannot be decoded: {error}") from error
