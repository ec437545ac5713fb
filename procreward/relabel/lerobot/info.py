"""``meta/info.json``: the version of a dataset, its features and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procreward.checks import is_int, is_number
from procreward.errors import DatasetError
from procreward.relabel.lerobot.files import inside, read_json

__all__ = ["VERSIONS", "Info", "read_info"]

VERSIONS = ("v2.1", "v3.0")
"""Values of ``codebase_version`` that can be read."""

# Older version -> what brings it to one that can be read.
_CONVERTERS = {
    "v1": "lerobot.datasets.v2.convert_dataset_v1_to_v2 of lerobot 0.3.3",
    "v2.0": "lerobot.datasets.v21.convert_dataset_v20_to_v21 of lerobot 0.3.3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What ``meta/info.json`` says.

    Attributes:
        root: Folder of the dataset.
        version: One of :data:`VERSIONS`.
        fps: Frames per second.
        features: Name to ``dtype``, ``shape`` and ``names``, in their order.
        total_episodes: Number of episodes.
        total_frames: Number of frames of all episodes.
        raw: The whole file.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    total_episodes: int
    total_frames: int
    raw: Mapping[str, Any]

    @property
    def videos(self) -> tuple[str, ...]:
        """Features that are stored as videos."""
        return tuple(key for key, value in self.features.items() if value["dtype"] == "video")

    @property
    def images(self) -> tuple[str, ...]:
        """Features that are stored as pictures in the parquet files."""
        return tuple(key for key, value in self.features.items() if value["dtype"] == "image")

    @property
    def columns(self) -> tuple[str, ...]:
        """Features that are columns of the parquet files."""
        return tuple(key for key, value in self.features.items() if value["dtype"] != "video")

    def is_colour(self, key: str) -> bool:
        """Say whether the pictures of a feature are in colour, and no map of depth."""
        feature = self.features[key]
        about = [feature.get(name) for name in ("info", "video_info")]
        depth = any(isinstance(one, Mapping) and one.get("video.is_depth_map") for one in about)
        shape = feature.get("shape") or (3,)
        return not depth and 3 in (shape[0], shape[-1])

    def chunks_size(self) -> int:
        """Return how many episodes (v2.1) or files (v3.0) a folder has at most."""
        size = self.raw.get("chunks_size")
        if not is_int(size, least=1):
            raise self.wrong("chunks_size", "a whole number of at least 1", size)
        return int(size)  # type: ignore[arg-type]  # is_int saw to it

    def data_path(self, **numbers: int) -> Path:
        """Return a parquet file of the data."""
        return self._path("data_path", **numbers)

    def video_path(self, key: str, **numbers: int) -> Path:
        """Return a file of a video feature."""
        return self._path("video_path", video_key=key, **numbers)

    def _path(self, name: str, **values: int | str) -> Path:
        template = self.raw.get(name)
        try:
            relative = str(template).format(**values)
        except (LookupError, ValueError, AttributeError) as error:
            raise self.wrong(name, f"a path made of {', '.join(values)}", template) from error
        if not isinstance(template, str):
            raise self.wrong(name, "a path", template)
        return inside(self.root, relative)

    def wrong(self, name: str, rule: str, value: object) -> DatasetError:
        """Return the error to raise for an entry that cannot be right."""
        path = self.root / "meta" / "info.json"
        return DatasetError(f"`{name}` of {str(path)!r} must be {rule}, got {value!r}.")


def read_info(root: Path) -> Info:
    """Read ``meta/info.json``.

    Raises:
        DatasetError: If it is missing or damaged, or of a version that is not read.
    """
    path = root / "meta" / "info.json"
    raw = read_json(path)
    version = raw.get("codebase_version")
    if version not in VERSIONS:
        raise DatasetError(_version_message(path, version))
    info = Info(
        root=root,
        version=version,
        fps=raw.get("fps", 0),
        features=raw.get("features", {}),
        total_episodes=raw.get("total_episodes", 0),
        total_frames=raw.get("total_frames", 0),
        raw=raw,
    )
    if not is_number(info.fps) or info.fps <= 0:
        raise info.wrong("fps", "a number above 0", raw.get("fps"))
    for name in ("total_episodes", "total_frames"):
        if not is_int(raw.get(name), least=1):
            raise info.wrong(name, "a whole number of at least 1", raw.get(name))
    _check_features(info)
    return info


def _check_features(info: Info) -> None:
    if not isinstance(info.features, dict) or not info.features:
        raise info.wrong("features", "an object with the features", info.features)
    for key, value in info.features.items():
        if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
            raise info.wrong(f"features.{key}", "an object with dtype and shape", value)
        if "/" in key:
            raise info.wrong("features", "names without '/'", key)
    for key in ("episode_index", "frame_index", "index"):
        if key not in info.features:
            raise info.wrong("features", f"the features of every dataset, {key!r} too", None)


def _version_message(path: Path, version: object) -> str:
    known = " and ".join(VERSIONS)
    start = f"{str(path)!r} must be of `codebase_version` {known}, got {version!r}; "
    for old, converter in _CONVERTERS.items():
        if str(version).startswith(old):
            return start + f"convert it with {converter} first (python -m ... --repo-id ...)."
    return start + (
        "convert it with LeRobot's own scripts first, such as "
        "lerobot.datasets.v30.convert_dataset_v21_to_v30 of lerobot 0.4.4."
    )
