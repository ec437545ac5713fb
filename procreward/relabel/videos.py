"""Plain videos and folders of pictures, as datasets of episodes.

* :class:`VideoSource` - a video, a folder of videos, or a folder per episode with a video per view.
* :class:`FrameFolderSource` - the same of folders of pictures.

They have pictures and no actions: an episode of F pictures has F - 1 steps, the first picture is
the reset, and it counts as cut off at its last one. What the task is, is said by a file
``instructions.json`` beside the episodes, which maps their names to sentences; the name ``"*"``
stands for all others. Episodes are in the order of their names, numbers by their value.

=============================================  ==========================================
path                                           episodes
=============================================  ==========================================
``lift.mp4``                                   one, view ``"video"``
``folder/lift.mp4``                            one per file, view ``"video"``
``folder/episode/front.mp4``                   one per folder, a view per file
``folder/000.png``                             one, view ``"frames"``
``folder/episode/000.png``                     one per folder, view ``"frames"``
``folder/episode/front/000.png``               one per folder, a view per folder in it
=============================================  ==========================================
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from procreward.errors import ConfigError, DatasetError, FrameError
from procreward.relabel._layout import (
    INSTRUCTIONS,
    check_instructions,
    check_unique,
    digest,
    files_in,
    folders_in,
    read_instructions,
    same_views,
)
from procreward.relabel.episodes import Episode
from procreward.relabel.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from procreward.types import Frame

if TYPE_CHECKING:
    from procreward.video import VideoSpan

__all__ = ["INSTRUCTIONS", "FrameFolderSource", "VideoSource"]

VIDEO_VIEW = "video"
FRAMES_VIEW = "frames"

_COUNT = re.compile(rb"frame=\s*(\d+)")
_RATE = re.compile(rb"Video:.*?(\d+(?:\.\d+)?) fps")
_SLOWEST_FPS = 1e-3
_PROBES = 4
"""Videos whose frames are counted at a time."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """What a video says about itself, or why it cannot be read."""

    frames: int
    fps: float | None
    problem: str = ""


def _probe(path: Path) -> _Probe:
    """Count the pictures of a video without decoding them."""
    import imageio_ffmpeg

    # A name such as 10:30.mp4 would be taken for an address.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-i", f"file:{path}"]
    command += ["-map", "0:v:0", "-c", "copy", "-f", "null", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    counts, rate = _COUNT.findall(done.stderr), _RATE.search(done.stderr)
    fps = float(rate[1]) if rate is not None and float(rate[1]) > 0 else None
    if done.returncode == 0 and counts and int(counts[-1]) > 0:
        return _Probe(int(counts[-1]), fps)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return _Probe(0, fps, lines[-1].strip() if lines else "ffmpeg found no pictures")


class VideoSource:
    """Videos as episodes; see the module for the layouts.

    A video that cannot be read at all is an episode of no frames, so that one of many can be
    skipped by name.
    """

    format = "video"

    def __init__(self, path: Path) -> None:
        """Find the videos and count their frames.

        Args:
            path: A video, or a folder.

        Raises:
            DatasetError: If there is no video, or views or names do not fit together.
        """
        self.root = path
        self._files = _video_files(path)
        names = list(self._files)
        self.views = same_views({name: list(v) for name, v in self._files.items()}, path)
        folder = path if path.is_dir() else path.parent
        instructions = read_instructions(folder) if path.is_dir() else {}
        check_instructions(instructions, names, folder)
        files = [file for views in self._files.values() for file in views.values()]
        with ThreadPoolExecutor(_PROBES) as pool:
            self._probes = dict(zip(files, pool.map(_probe, files), strict=True))
        self.episodes = tuple(
            self._episode(index, name, instructions.get(name, instructions.get("*", "")))
            for index, name in enumerate(names)
        )

    def _episode(self, index: int, name: str, instruction: str) -> Episode:
        probes = [self._probes[file] for file in self._files[name].values()]
        # Views of differing lengths are a fault of this episode only, which `check` reports.
        frames = min(probe.frames for probe in probes)
        return Episode(
            index=index,
            name=name,
            length=max(0, frames - 1),
            frames=frames,
            instruction=instruction,
            terminated=False,
            fps=probes[0].fps,
        )

    def fingerprint(self, episode: Episode) -> str:
        """Return names, sizes and times of change of the files, and the instruction."""
        files = list(self._files[episode.name].values())
        return f"{digest(files, self.root)}|{episode.instruction}"

    def picture_paths(self, episode: Episode) -> dict[str, str]:
        """Return the video of each view, relative to the dataset."""
        return {
            view: file.name if file == self.root else file.relative_to(self.root).as_posix()
            for view, file in self._files[episode.name].items()
        }

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        """Decode an episode; see :class:`~procreward.relabel.episodes.Source`."""
        from procreward.video import VideoReader

        self.check(episode, views)
        files = {view: self._files[episode.name][view] for view in views}
        with ExitStack() as stack:
            try:
                readers = [
                    stack.enter_context(VideoReader(file, span=_span(episode)))
                    for file in files.values()
                ]
                streams = [iter(reader) for reader in readers]
                for number in range(episode.frames + 1):
                    pictures = {
                        view: picture
                        for view, stream in zip(views, streams, strict=True)
                        if (picture := next(stream, None)) is not None
                    }
                    _check_count(episode, number, pictures, views)
                    if pictures:
                        yield pictures
            except (FrameError, ConfigError) as error:
                raise DatasetError(
                    f"Episode {episode.name!r} cannot be decoded; its video is damaged. "
                    f"ffmpeg: {error}"
                ) from error

    def check(self, episode: Episode, views: Sequence[str]) -> None:
        """Look whether the videos of an episode are any, and of one length.

        Raises:
            DatasetError: If not.
        """
        for file in (self._files[episode.name][view] for view in views):
            probe = self._probes[file]
            if probe.frames == 0:
                raise DatasetError(
                    f"Episode {episode.name!r} cannot be read: {str(file)!r} is damaged or no "
                    f"video. ffmpeg: {probe.problem}"
                )
            if probe.frames != episode.frames:
                raise DatasetError(
                    f"Episode {episode.name!r} must have the same number of frames in every view, "
                    f"got {probe.frames} in {str(file)!r} and {episode.frames} in another."
                )


def _span(episode: Episode) -> VideoSpan:
    from procreward.video import VideoSpan

    # One more than there should be, to see that there are not more; and whatever their times, which
    # may be uneven, so with a rate that puts the end far away.
    return VideoSpan(start=0, count=episode.frames + 1, fps=_SLOWEST_FPS)


def _check_count(
    episode: Episode, number: int, pictures: Mapping[str, Frame], views: Sequence[str]
) -> None:
    """Refuse a video that is shorter or longer than it says."""
    expected = len(views) if number < episode.frames else 0
    if len(pictures) == expected:
        return
    rule = f"{episode.frames} frames, as its file says"
    got = f"only {number}" if expected else "more"
    raise DatasetError(
        f"Episode {episode.name!r} must have {rule}, but {got} could be decoded; it is damaged, or "
        "must be encoded anew."
    )


def _video_files(path: Path) -> dict[str, dict[str, Path]]:
    """Name of an episode to its video per view."""
    if path.is_file():
        return {path.stem: {VIDEO_VIEW: path}}
    single = files_in(path, VIDEO_SUFFIXES)
    check_unique([file.stem for file in single], path)
    found = {file.stem: {VIDEO_VIEW: file} for file in single}
    for folder in folders_in(path):
        files = files_in(folder, VIDEO_SUFFIXES)
        check_unique([file.stem for file in files], folder)
        if files and single:
            raise _mixed(path, single[0], files[0])
        if files:
            found[folder.name] = {file.stem: file for file in files}
    if not found:
        raise DatasetError(
            f"`source` must hold videos ({', '.join(VIDEO_SUFFIXES)}), got {str(path)!r} without."
        )
    return found


def _mixed(path: Path, one: Path, other: Path) -> DatasetError:
    return DatasetError(
        f"`source` must have its episodes in one layout, got {str(path)!r} with "
        f"{one.relative_to(path).as_posix()!r} and {other.relative_to(path).as_posix()!r}; move "
        "one kind elsewhere."
    )


class FrameFolderSource:
    """Folders of pictures as episodes; see the module for the layouts."""

    format = "frames"

    def __init__(self, path: Path) -> None:
        """Find the pictures.

        Args:
            path: A folder.

        Raises:
            DatasetError: If there are no pictures, or views or names do not fit together.
        """
        self.root = path
        self._files = _picture_files(path)
        names = list(self._files)
        self.views = same_views({name: list(v) for name, v in self._files.items()}, path)
        instructions = read_instructions(path)
        check_instructions(instructions, names, path)
        self.episodes = tuple(
            self._episode(index, name, instructions.get(name, instructions.get("*", "")))
            for index, name in enumerate(names)
        )

    def _episode(self, index: int, name: str, instruction: str) -> Episode:
        # Views of differing lengths are a fault of this episode only, which `check` reports.
        frames = min(len(files) for files in self._files[name].values())
        return Episode(
            index=index,
            name=name,
            length=frames - 1,
            frames=frames,
            instruction=instruction,
            terminated=False,
            fps=None,
        )

    def fingerprint(self, episode: Episode) -> str:
        """Return names, sizes and times of change of the files, and the instruction."""
        files = [file for files in self._files[episode.name].values() for file in files]
        return f"{digest(files, self.root)}|{episode.instruction}"

    def check(self, episode: Episode, views: Sequence[str]) -> None:
        """Look whether an episode has a picture of every view for every step.

        Raises:
            DatasetError: If not.
        """
        counts = {view: len(self._files[episode.name][view]) for view in views}
        for view, count in counts.items():
            if count != episode.frames:
                raise DatasetError(
                    f"Episode {episode.name!r} must have the same number of pictures in every "
                    f"view, got {count} of {view!r} and {episode.frames} of another."
                )

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        """Read an episode; see :class:`~procreward.relabel.episodes.Source`."""
        self.check(episode, views)
        files = self._files[episode.name]
        for places in zip(*(files[view] for view in views), strict=True):
            yield {
                view: _read_picture(episode, file) for view, file in zip(views, places, strict=True)
            }


def _read_picture(episode: Episode, path: Path) -> Frame:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(
            f"Episode {episode.name!r} cannot be read: {str(path)!r} is damaged or no picture "
            f"({error})."
        ) from error


def _picture_files(path: Path) -> dict[str, dict[str, list[Path]]]:
    """Name of an episode to its pictures per view."""
    if not path.is_dir():
        raise DatasetError(f"`source` must be a folder of pictures, got the file {str(path)!r}.")
    single = files_in(path, IMAGE_SUFFIXES)
    found = {path.name: {FRAMES_VIEW: single}} if single else {}
    for folder in folders_in(path):
        views = _views_in(folder)
        if views and single:
            raise _mixed(path, single[0], next(iter(views.values()))[0])
        if views:
            found[folder.name] = views
    if not found:
        raise DatasetError(
            f"`source` must hold pictures ({', '.join(IMAGE_SUFFIXES)}), got {str(path)!r} without."
        )
    return found


def _views_in(folder: Path) -> dict[str, list[Path]]:
    files = files_in(folder, IMAGE_SUFFIXES)
    if files:
        return {FRAMES_VIEW: files}
    views = {view.name: files_in(view, IMAGE_SUFFIXES) for view in folders_in(folder)}
    return {name: found for name, found in views.items() if found}
