"""The files of a dataset that stay as they are: videos linked, the rest copied."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from procreward.errors import DatasetError
from procreward.relabel.lerobot.plan import NOTE, RewritePlan

__all__ = ["LINKS", "Link", "carry_files", "place_video"]

Link = Literal["hardlink", "symlink", "copy"]
"""How a video comes into the new dataset."""

LINKS: tuple[Link, ...] = ("hardlink", "symlink", "copy")
"""All of them, the least costly first."""

_log = logging.getLogger(__name__)

_WRITTEN = {
    NOTE,
    "meta/info.json",
    "meta/episodes.jsonl",
    "meta/episodes_stats.jsonl",
    "meta/stats.json",
}
# Progress per frame, ours and that of LeRobot's reward models, by the old numbers of frames.
_SIDECAR, _SIDECARS = "procreward_progress.parquet", "_progress.parquet"
_EPISODE = re.compile(r"episode_(\d{6})(?!\d)")


def carry_files(plan: RewritePlan, staged: Path, link: Link) -> Link:
    """Bring everything that does not change into the new dataset.

    Folders whose names begin with a dot stay behind, and our sidecar of the old dataset does. So
    do files of an episode that is left out and all sidecars that count frames with it; the files
    of others get their episode's new number.

    Args:
        plan: What is written.
        staged: The new dataset.
        link: How videos are to come there.

    Returns:
        How they did: a link that the file system refuses becomes a symbolic one, and that a copy.
    """
    videos = _video_places(plan)
    used = link
    for path in _files(plan.source.root):
        relative = path.relative_to(plan.source.root)
        if path in videos:
            for target in videos[path]:
                used = max(used, place_video(path, staged / target, used), key=LINKS.index)
        elif (moved := _moved(plan, relative)) is not None:
            (staged / moved).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged / moved)
    return used


def place_video(source: Path, target: Path, link: Link) -> Link:
    """Link or copy a video.

    Args:
        source: The video; where it is a symbolic link, what that leads to.
        target: A path where there is nothing yet.
        link: The way to try first.

    Returns:
        The way that was taken.

    Raises:
        DatasetError: If not even a copy can be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(source)
    for way in LINKS[LINKS.index(link) :]:
        try:
            if way == "hardlink":
                os.link(real, target)
            elif way == "symlink":
                os.symlink(real, target)
            else:
                shutil.copyfile(real, target)
        except OSError as error:
            if way == "copy":
                raise DatasetError(f"{str(source)!r} cannot be copied: {error}.") from error
            _log.info("no %s of %s: %s", way, source, error)
        else:
            return way
    raise AssertionError("a copy is made or fails")


def _video_places(plan: RewritePlan) -> dict[Path, list[Path]]:
    """Return each video of the old dataset with its paths in the new one."""
    info = plan.source.info
    places: dict[Path, list[Path]] = {}
    for episode in plan.episodes:
        for key, part in episode.files.videos.items():
            target = part.path
            if info.version == "v2.1":
                chunk = episode.index // info.chunks_size()
                target = info.video_path(key, episode_chunk=chunk, episode_index=episode.index)
            relative = target.relative_to(info.root)
            if relative not in places.setdefault(part.path, []):
                places[part.path].append(relative)
    return places


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names))


def _moved(plan: RewritePlan, relative: Path) -> Path | None:
    """Return where a file goes that is no video of an episode, or None if it stays behind."""
    text = relative.as_posix()
    table = relative.suffix == ".parquet"
    if text in _WRITTEN or (table and text.startswith(("data/", "meta/episodes/"))):
        return None
    if text.startswith("videos/") and relative.suffix == ".mp4" and not plan.complete:
        return None  # of an episode that is left out
    if text == _SIDECAR or (text.endswith(_SIDECARS) and "/" not in text and not plan.complete):
        return None
    for found in {int(number) for number in _EPISODE.findall(text)}:
        if found not in plan.numbers:
            return None
    return Path(_EPISODE.sub(lambda match: f"episode_{plan.numbers[int(match[1])]:06d}", text))
