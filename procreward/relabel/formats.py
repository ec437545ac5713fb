"""The formats of datasets: their names, how they are told apart, and what reads and writes them.

* :data:`FORMATS` - every format; its reader and writer are imported when they are first used.
* :func:`detect` - which format a path is of.
* :func:`open_source`, :func:`open_writer` - the reader and the writer.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procreward.errors import DatasetError, UnknownNameError
from procreward.relabel.episodes import Source, Writer

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "FormatEntry",
    "detect",
    "open_source",
    "open_writer",
]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".gif")
"""Endings, in lower case, by which videos are known."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Endings, in lower case, by which pictures are known."""

_MISSING = "`source` must be a dataset, got '{}': no such file or folder."
_SHOWN = 5
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatEntry:
    """What belongs to a format.

    Attributes:
        summary: One line for messages.
        source: ``"module:Class"`` of its :class:`~procreward.relabel.episodes.Source`; built from
            the path alone.
        writer: ``"module:Class"`` of its :class:`~procreward.relabel.episodes.Writer`, built from a
            mapping of options; None for a format that has no place for rewards.
    """

    summary: str
    source: str
    writer: str | None = None


_LEROBOT = "procreward.relabel.lerobot"

FORMATS: Mapping[str, FormatEntry] = {
    "lerobot-v2.1": FormatEntry(
        summary="LeRobotDataset v2.1: a folder with meta/info.json",
        source=f"{_LEROBOT}:LeRobotSource",
        writer=f"{_LEROBOT}:LeRobotWriter",
    ),
    "lerobot-v3.0": FormatEntry(
        summary="LeRobotDataset v3.0: a folder with meta/info.json",
        source=f"{_LEROBOT}:LeRobotSource",
        writer=f"{_LEROBOT}:LeRobotWriter",
    ),
    "robomimic": FormatEntry(
        summary="robomimic: an HDF5 file with data/demo_N",
        source="procreward.relabel.robomimic:RobomimicSource",
        writer="procreward.relabel.robomimic:RobomimicWriter",
    ),
    "minari": FormatEntry(
        summary="Minari: a folder with data/metadata.json",
        source="procreward.relabel.minari:MinariSource",
        writer="procreward.relabel.minari:MinariWriter",
    ),
    "video": FormatEntry(
        summary="a video, or a folder of videos",
        source="procreward.relabel.videos:VideoSource",
    ),
    "frames": FormatEntry(
        summary="a folder of pictures, or a folder of such folders",
        source="procreward.relabel.videos:FrameFolderSource",
    ),
}
"""Name to entry."""


def detect(path: Path) -> str:
    """Say which format a dataset is of, by its files; decodes nothing.

    Args:
        path: A file or a folder.

    Returns:
        A name of :data:`FORMATS`.

    Raises:
        DatasetError: If there is nothing at the path, or it is of no known format.
    """
    if path.is_file():
        found = _format_of_file(path)
    elif path.is_dir():
        found = _format_of_folder(path)
    else:
        raise DatasetError(
            f"`source` must be a dataset, got {str(path)!r}: no such file or folder."
        )
    if found is None:
        known = "; ".join(f"{name} ({entry.summary})" for name, entry in FORMATS.items())
        raise DatasetError(
            f"`source` must be of a known format, got {str(path)!r}, which looks like none of: "
            f"{known}. {_advice(path)}"
        )
    return found


def _advice(path: Path) -> str:
    """What to do about a path of no known format: often it is a folder of datasets."""
    marks = ("*/meta/info.json", "*/data/metadata.json", "*/*/data/metadata.json")
    below = [found.parent.parent for mark in marks for found in sorted(path.glob(mark))]
    below += [*sorted(path.glob("*.hdf5")), *sorted(path.glob("*.h5"))]
    if not below:
        return "Name the format with `format` if it is one of them."
    names = ", ".join(str(one) for one in below[:_SHOWN])
    more = f" and {len(below) - _SHOWN} more" if len(below) > _SHOWN else ""
    return f"Give one of the datasets in it: {names}{more}."


def _format_of_file(path: Path) -> str | None:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "video"
    with path.open("rb") as handle:
        if handle.read(len(_HDF5_SIGNATURE)) != _HDF5_SIGNATURE:
            return None
    return "robomimic"


def _format_of_folder(path: Path) -> str | None:
    if (path / "meta" / "info.json").is_file():
        return _lerobot_version(path / "meta" / "info.json")
    if (path / "data" / "metadata.json").is_file():
        return "minari"
    # One level down as well: a folder per episode.
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    for suffixes, name in ((VIDEO_SUFFIXES, "video"), (IMAGE_SUFFIXES, "frames")):
        if any(_has_suffix(folder, suffixes) for folder in folders):
            return name
    # Two levels down: a folder per episode with a folder per view.
    if any(_has_suffix(deep, IMAGE_SUFFIXES) for deep in path.glob("*/*/")):
        return "frames"
    return None


def _has_suffix(folder: Path, suffixes: tuple[str, ...]) -> bool:
    return folder.is_dir() and any(
        child.suffix.lower() in suffixes and not child.name.startswith(".")
        for child in folder.iterdir()
    )


def _lerobot_version(path: Path) -> str:
    try:
        version = json.loads(path.read_text(encoding="utf-8"))["codebase_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{str(path)!r} must state `codebase_version`: {error!r}.") from error
    name = f"lerobot-{version}"
    if name not in FORMATS:
        known = [item.removeprefix("lerobot-") for item in FORMATS if item.startswith("lerobot-")]
        raise DatasetError(
            f"{str(path)!r} must be a LeRobotDataset {' or '.join(known)}, got {version!r}. "
            "Convert it with LeRobot's own scripts first."
        )
    return name


def open_source(path: str | Path, format: str = "auto") -> Source:
    """Open a dataset for reading; reads its metadata only.

    Args:
        path: A file or a folder.
        format: A name of :data:`FORMATS`, or ``"auto"`` to look.

    Raises:
        UnknownNameError: If there is no such format.
        DatasetError: If there is no such dataset, or it is inconsistent.
        MissingDependencyError: If what reads the format is not installed.
    """
    path = Path(path)
    name = detect(path) if format == "auto" else format
    entry = _entry(name)
    if not path.exists():
        raise DatasetError(
            f"`source` must be a dataset, got {str(path)!r}: no such file or folder."
        )
    source: Source = _load(entry.source)(path)
    return source


def open_writer(format: str, options: Mapping[str, Any] | None = None) -> Writer:
    """Return what writes rewards into a copy of a dataset.

    Args:
        format: A name of :data:`FORMATS`, such as ``source.format``.
        options: What the format's writer can be told.

    Raises:
        UnknownNameError: If there is no such format.
        DatasetError: If the format has no place for rewards.
        MissingDependencyError: If what writes the format is not installed.
    """
    entry = _entry(format)
    if entry.writer is None:
        raise DatasetError(
            f"A dataset of format {format!r} has no place for rewards; leave out `rewrite` and use "
            "procreward_progress.parquet."
        )
    writer: Writer = _load(entry.writer)(dict(options or {}))
    return writer


def _entry(name: str) -> FormatEntry:
    if name not in FORMATS:
        raise UnknownNameError("format", name, [*FORMATS, "auto"])
    return FORMATS[name]


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
