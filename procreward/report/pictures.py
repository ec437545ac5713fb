"""The pictures of a run's episodes: from the dataset that was relabelled, or from its videos.

* :func:`find_pictures` - what gives them.
* :class:`DatasetPictures` - the dataset's own, several views side by side.
* :class:`FilmedPictures` - those in the overlay videos of ``demo`` and ``train``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from procreward.errors import ConfigError, DatasetError, FrameError, UnknownNameError
from procreward.relabel.episodes import Source
from procreward.relabel.formats import open_source
from procreward.relabel.showing import find_view, stored_views, upright
from procreward.report.overlay import camera_picture_box
from procreward.report.runs import Entry, Run
from procreward.types import Frame

__all__ = ["DEFAULT_FPS", "DatasetPictures", "FilmedPictures", "Pictures", "find_pictures"]

DEFAULT_FPS = 10.0
"""Pictures per second of a video where nobody says."""

SOURCE_TXT = "source.txt"


class Pictures(Protocol):
    """Gives the pictures of episodes.

    Attributes:
        root: Where they are; the page says nothing of it.
    """

    root: Path

    def fps(self, entry: Entry) -> float:
        """Return pictures per second."""
        ...

    def count(self, entry: Entry) -> int:
        """Return about how many pictures an episode has."""
        ...

    def frames(self, entry: Entry) -> Iterator[Frame]:
        """Yield the pictures of an episode; picture ``i`` is of step ``i``.

        Yields:
            ``(height, width, 3) uint8``, all of one size.

        Raises:
            DatasetError: If pictures are missing or damaged; it names the episode.
        """
        ...


class DatasetPictures:
    """The pictures of a relabelled dataset.

    Args:
        source: The dataset.
        views: Which of its cameras, side by side; as
            :func:`~procreward.relabel.showing.find_view` returns them.
        fps: Pictures per second; None for what the dataset says.
    """

    def __init__(self, source: Source, views: Sequence[str], fps: float | None = None) -> None:
        self._source, self.views, self._fps = source, tuple(views), fps
        self.root = source.root
        self._episodes = {episode.index: episode for episode in source.episodes}

    def check(self, entries: Sequence[Entry]) -> None:
        """See that the dataset is the one that was relabelled.

        Raises:
            DatasetError: If an episode is missing or of another length.
        """
        for entry in entries:
            episode = self._episodes.get(entry.number)
            found = "no such episode" if episode is None else f"{episode.length} steps"
            if episode is None or episode.length != entry.record.steps:
                raise DatasetError(
                    f"`source` must be the dataset that was relabelled, but in "
                    f"{str(self._source.root)!r} episode {entry.number} ({entry.name}) must have "
                    f"{entry.record.steps} steps, got {found}. Give another --source, or "
                    "--curves-only."
                )

    def fps(self, entry: Entry) -> float:
        """Return pictures per second; see :class:`Pictures`."""
        return self._fps or self._episodes[entry.number].fps or DEFAULT_FPS

    def count(self, entry: Entry) -> int:
        """Return how many pictures there are; see :class:`Pictures`."""
        return self._episodes[entry.number].frames

    def frames(self, entry: Entry) -> Iterator[Frame]:
        """Yield the pictures; see :class:`Pictures`."""
        episode = self._episodes[entry.number]
        for pictures in self._source.frames(episode, stored_views(self.views)):
            yield _side_by_side([upright(pictures, view) for view in self.views])


def _side_by_side(pictures: Sequence[Frame]) -> Frame:
    """Put pictures next to each other, as high as the first."""
    if len(pictures) == 1:
        return pictures[0]
    from PIL import Image

    height = pictures[0].shape[0]
    scaled = [
        one
        if one.shape[0] == height
        else np.asarray(
            Image.fromarray(one).resize(
                (max(1, round(one.shape[1] * height / one.shape[0])), height)
            )
        )
        for one in pictures
    ]
    return np.concatenate(scaled, axis=1)


class FilmedPictures:
    """The camera pictures in the overlay videos of a demo or a training run.

    Args:
        root: The folder.
        videos: Key of an episode to its video.
        fps: Pictures per second of the videos; None for their own rate.
    """

    def __init__(self, root: Path, videos: Mapping[str, Path], fps: float | None = None) -> None:
        self.root, self._videos, self._fps = root, videos, fps

    def fps(self, entry: Entry) -> float:
        """Return pictures per second; see :class:`Pictures`."""
        from procreward.video import VideoReader

        if self._fps is not None:
            return self._fps
        try:
            with VideoReader(self._path(entry)) as video:
                return video.fps
        except (FrameError, ConfigError) as error:
            raise DatasetError(f"Episode {entry.name!r} cannot be read: {error}") from error

    def count(self, entry: Entry) -> int:
        """Return how many pictures there are; see :class:`Pictures`."""
        return len(entry.record.trace)

    def frames(self, entry: Entry) -> Iterator[Frame]:
        """Yield the pictures; see :class:`Pictures`. The last one is held in the video."""
        from procreward.video import VideoReader

        wanted, number, box = len(entry.record.trace), 0, None
        try:
            with VideoReader(self._path(entry)) as video:
                for number, picture in enumerate(video, start=1):
                    box = box or camera_picture_box(picture)
                    yield picture[box]
                    if number == wanted:
                        return
        except (FrameError, ConfigError) as error:
            raise DatasetError(f"Episode {entry.name!r} cannot be read: {error}") from error
        raise DatasetError(
            f"Episode {entry.name!r} has {wanted} steps, but its video {number} pictures; it is "
            "of another run."
        )

    def _path(self, entry: Entry) -> Path:
        if entry.key not in self._videos:
            raise DatasetError(f"Episode {entry.name!r} has no video in the run's folder.")
        return self._videos[entry.key]


def find_pictures(
    run: Run, source: Path | None, views: Sequence[str], fps: float | None
) -> DatasetPictures | FilmedPictures | None:
    """Find what gives the pictures of a run.

    Args:
        run: The run.
        source: The relabelled dataset; None for where it was.
        views: Cameras, or ends of their names; empty for what the models saw.
        fps: Pictures per second, or None.

    Returns:
        It, or None if a demo's or training run's videos are all gone.

    Raises:
        ConfigError: If the dataset is not where it was, or settings do not belong to the run.
        DatasetError: If it is another dataset.
        UnknownNameError: If there is no such camera.
    """
    if run.kind == "relabel":
        return _of_dataset(run, source, views, fps)
    for name, given in (("source", source is not None), ("views", bool(views))):
        if given:
            raise ConfigError(
                f"`{name}` belongs to relabelled datasets, but {str(run.folder)!r} is of "
                f"procreward {run.kind}, whose pictures are in its videos."
            )
    folder = run.folder / "videos" if run.kind == "train" else run.folder
    videos = {entry.key: folder / f"{entry.record.name}.mp4" for entry in run.entries}
    found = {key: path for key, path in videos.items() if path.is_file()}
    return FilmedPictures(folder, found, fps) if found else None


def _of_dataset(
    run: Run, given: Path | None, views: Sequence[str], fps: float | None
) -> DatasetPictures:
    about: Mapping[str, Any] = run.account.get("source", {})
    path = given or _known_place(run.folder)
    if path is None or not path.exists():
        where = "nothing says where" if path is None else f"there is nothing at {str(path)!r}"
        raise ConfigError(
            f"The pictures of {str(run.folder)!r} are in the dataset {about.get('name')!r} "
            f"({about.get('format')}), but {where}. Give its path with --source, or leave the "
            "videos out with --curves-only."
        )
    source = open_source(path, str(about.get("format", "auto")))
    fps = fps or run.account.get("settings", {}).get("fps")
    pictures = DatasetPictures(source, _views(run, source.views, views), fps)
    pictures.check(run.entries)
    return pictures


def _known_place(folder: Path) -> Path | None:
    path = folder / SOURCE_TXT
    if not path.is_file():
        return None
    return Path(os.fsdecode(path.read_bytes().removesuffix(b"\n")))


def _views(run: Run, there: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    if wanted:
        return tuple(find_view(name, there) for name in wanted)
    shown = [str(one["view"]) for one in run.account.get("settings", {}).get("shown", [])]
    missing = next((view for view in stored_views(shown) if view not in there), None)
    if missing is not None:
        raise UnknownNameError("view", missing, there)
    return tuple(dict.fromkeys(shown)) or tuple(there[:1])
