"""``LeRobotSource``: the episodes of a LeRobotDataset v2.1 or v3.0."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from procreward.checks import check_names
from procreward.errors import DatasetError
from procreward.relabel.episodes import Episode
from procreward.relabel.lerobot.facts import read_facts
from procreward.relabel.lerobot.info import Info, read_info
from procreward.relabel.lerobot.layout import EpisodeFiles, Layout, read_layout
from procreward.relabel.lerobot.pictures import column_pictures, video_pictures
from procreward.types import Frame

__all__ = ["LeRobotSource"]


class LeRobotSource:
    """A LeRobotDataset in a folder; a :class:`~procreward.relabel.episodes.Source`.

    A frame of LeRobot's is a state and the action taken in it: T rows and T pictures, none of the
    state after the last action. Views are the video and image features, by their full names
    (``"observation.images.top"``), those of depth and other maps after those in colour.

    Attributes:
        format: ``"lerobot-v2.1"`` or ``"lerobot-v3.0"``.
        root: The folder.
        views: Names of the features with pictures.
        episodes: All episodes, in order of ``episode_index``.
        info: What ``meta/info.json`` says.
        layout: Where each episode is.
    """

    format: str
    root: Path
    views: tuple[str, ...]
    episodes: tuple[Episode, ...]
    info: Info
    layout: Layout

    def __init__(self, path: Path) -> None:
        """Open a dataset: read its lists of episodes and the small columns of its data.

        Args:
            path: The folder with ``meta/info.json``.

        Raises:
            DatasetError: If it is of another version, or files are missing, damaged or contradict
                each other.
            MissingDependencyError: If pyarrow is not installed.
        """
        self.root = Path(path)
        self.info = read_info(self.root)
        self.format = f"lerobot-{self.info.version}"
        self.layout = read_layout(self.info)
        pictures = (*self.info.videos, *self.info.images)
        if not pictures:
            rule = "features with pictures, of the dtype 'video' or 'image'"
            raise self.info.wrong("features", rule, list(self.info.features))
        views = (key for key in self.info.features if key in pictures)
        # The first one is what models are shown unless somebody chooses.
        self.views = tuple(sorted(views, key=lambda key: not self.info.is_colour(key)))
        self.episodes = tuple(
            Episode(
                index=files.index,
                name=f"episode_{files.index:06d}",
                length=files.length,
                frames=files.length,
                instruction=facts.instruction,
                terminated=facts.terminated,
                fps=float(self.info.fps),
            )
            for files, facts in zip(
                self.layout.episodes, read_facts(self.info, self.layout), strict=True
            )
        )

    def fingerprint(self, episode: Episode) -> str:
        """Return a hash of the instruction and of the episode's files and places in them."""
        files = self.layout.episodes[episode.index]
        places = [(key, part.path, part.start) for key, part in sorted(files.videos.items())]
        if self.info.images:
            places.append(("data", files.data, files.row))
        described = [
            (key, str(path.relative_to(self.root)), start, *_stamp(path))
            for key, path, start in places
        ]
        text = json.dumps([self.format, episode.instruction, episode.length, described])
        return hashlib.sha256(text.encode()).hexdigest()

    def first_index(self, episode: Episode) -> int:
        """Return the ``index`` of an episode's first frame, counted over the whole dataset."""
        return self.layout.episodes[episode.index].first_index

    def picture_paths(self, episode: Episode) -> dict[str, str]:
        """Return the video of each view, relative to the dataset, where it is the episode's own.

        Videos of v3.0 hold other episodes too, and pictures in parquet files have none.
        """
        if self.info.version != "v2.1":
            return {}
        videos = self.layout.episodes[episode.index].videos
        return {view: part.path.relative_to(self.root).as_posix() for view, part in videos.items()}

    def check(self, episode: Episode, views: Sequence[str]) -> None:
        """Look whether the videos of an episode are there, as long as the list of episodes says.

        Raises:
            DatasetError: If one is not.
        """
        videos = self.layout.episodes[episode.index].videos
        for view in views:
            if view in videos and videos[view].problem:
                raise DatasetError(videos[view].problem)

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of an episode in order.

        Args:
            episode: One of :attr:`episodes`.
            views: Which of :attr:`views`.

        Yields:
            View name to upright RGB picture, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no such view.
            DatasetError: If pictures are missing or damaged; it names the episode and the file.
        """
        check_names("view", views, self.views)
        files = self.layout.episodes[episode.index]
        with ExitStack() as stack:
            streams = [stack.enter_context(closing(self._stream(files, view))) for view in views]
            for pictures in zip(*streams, strict=True):
                yield dict(zip(views, pictures, strict=True))

    def _stream(self, files: EpisodeFiles, view: str) -> Generator[Frame, None, None]:
        if view in self.info.videos:
            return video_pictures(files, view, self.info.fps)
        return column_pictures(files, view)


def _stamp(path: Path) -> tuple[int, int]:
    """Return the size of a file and when it changed; zeros where there is none."""
    if not path.is_file():
        return 0, 0
    status = path.stat()
    return status.st_size, status.st_mtime_ns
