"""Where the episodes of a dataset are: rows of parquet files, and spans of videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from procreward.checks import is_int
from procreward.errors import DatasetError
from procreward.optional import ARROW, need
from procreward.relabel.lerobot.files import read_lines, row_count, unreadable
from procreward.relabel.lerobot.info import Info

__all__ = ["EpisodeFiles", "Layout", "VideoPart", "read_layout"]

# How far from a whole frame, in frames, an episode may begin in a video that it shares.
_MOST_FRACTION = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPart:
    """Where the pictures of an episode begin in a video.

    Attributes:
        path: The video.
        start: Its first frame, from 0.
        problem: Why the pictures cannot be read, as far as that is known without decoding them;
            else empty. It keeps nobody from other episodes, nor from other views of this one.
    """

    path: Path
    start: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFiles:
    """Where an episode is.

    Attributes:
        index: ``episode_index``.
        length: Rows and pictures.
        tasks: Its tasks in words, as the list of episodes has them.
        data: Its parquet file.
        row: Its first row in that file.
        first_index: ``index`` of its first frame, counted over the whole dataset.
        videos: Feature to its place.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    row: int
    first_index: int
    videos: Mapping[str, VideoPart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All episodes, in order, and the tasks.

    Attributes:
        episodes: Where each episode is.
        tasks: ``task_index`` to the task in words.
    """

    episodes: tuple[EpisodeFiles, ...]
    tasks: Mapping[int, str]


def read_layout(info: Info) -> Layout:
    """Read where everything is, and check that it is there; of videos it is noted if not.

    Raises:
        DatasetError: If files are missing or damaged, or counts contradict each other.
    """
    layout = _read_v21(info) if info.version == "v2.1" else _read_v30(info)
    _check_counts(info, layout.episodes)
    _check_data(info, layout.episodes)
    return layout


def _read_v21(info: Info) -> Layout:
    path = info.root / "meta" / "episodes.jsonl"
    size = info.chunks_size()
    episodes: list[EpisodeFiles] = []
    first = 0
    for row in read_lines(path):
        index, length = _number(row, "episode_index", path), _number(row, "length", path)
        place = {"episode_chunk": index // size, "episode_index": index}
        episodes.append(
            EpisodeFiles(
                index=index,
                length=length,
                tasks=_texts(row.get("tasks", [])),
                data=info.data_path(**place),
                row=0,
                first_index=first,
                videos={
                    key: _video_file(info.video_path(key, **place), 0, index) for key in info.videos
                },
            )
        )
        first += length
    tasks_path = info.root / "meta" / "tasks.jsonl"
    tasks = {
        _number(row, "task_index", tasks_path): str(row.get("task", ""))
        for row in read_lines(tasks_path)
    }
    return Layout(episodes=tuple(episodes), tasks=tasks)


def _read_v30(info: Info) -> Layout:
    folder = info.root / "meta" / "episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise DatasetError(f"{str(folder)!r} must have the list of episodes, got no parquet file.")
    episodes: list[EpisodeFiles] = []
    rows: dict[Path, int] = {}
    for path in paths:
        for row in _episode_rows(path):
            episode = _episode_v30(info, path, row, rows)
            rows[episode.data] = rows.get(episode.data, 0) + episode.length
            episodes.append(episode)
    return Layout(episodes=tuple(episodes), tasks=_tasks_v30(info))


def _episode_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with need(ARROW).ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            rows: list[dict[str, Any]] = file.read(columns=names).to_pylist()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return rows


def _episode_v30(
    info: Info, path: Path, row: Mapping[str, Any], rows: Mapping[Path, int]
) -> EpisodeFiles:
    index, length = _number(row, "episode_index", path), _number(row, "length", path)
    first = _number(row, "dataset_from_index", path)
    if _number(row, "dataset_to_index", path) - first != length:
        raise DatasetError(
            f"Episode {index} in {str(path)!r} must have as many frames as its `length`, {length}, "
            f"got indices {first} to {row['dataset_to_index']}."
        )
    data = info.data_path(
        chunk_index=_number(row, "data/chunk_index", path),
        file_index=_number(row, "data/file_index", path),
    )
    return EpisodeFiles(
        index=index,
        length=length,
        tasks=_texts(row.get("tasks") or []),
        data=data,
        row=rows.get(data, 0),
        first_index=first,
        videos={key: _video_part(info, path, row, key) for key in info.videos},
    )


def _video_file(path: Path, start: int, index: int) -> VideoPart:
    problem = ""
    if not path.is_file():
        problem = f"The video {str(path)!r} of episode {index} is missing; copy the dataset again."
    return VideoPart(path=path, start=start, problem=problem)


def _video_part(info: Info, path: Path, row: Mapping[str, Any], key: str) -> VideoPart:
    video = info.video_path(
        key,
        chunk_index=_number(row, f"videos/{key}/chunk_index", path),
        file_index=_number(row, f"videos/{key}/file_index", path),
    )
    begin, end = (row.get(f"videos/{key}/{name}_timestamp") for name in ("from", "to"))
    if not isinstance(begin, float | int) or not isinstance(end, float | int):
        raise DatasetError(f"{str(path)!r} must state from when to when episodes are in {key!r}.")
    start, frames = begin * info.fps, (end - begin) * info.fps
    part = _video_file(video, round(start), row["episode_index"])
    named = f"Episode {row['episode_index']} in {str(path)!r}"
    if start < 0 or abs(start - round(start)) > _MOST_FRACTION:
        problem = (
            f"{named} must begin at a frame of {str(video)!r}, got {begin} s at {info.fps} fps."
        )
        return replace(part, problem=problem)
    if round(frames) < row["length"]:
        problem = (
            f"{named} must have {row['length']} frames in {str(video)!r}, got {begin} to {end} s "
            f"at {info.fps} fps."
        )
        return replace(part, problem=problem)
    return part


def _tasks_v30(info: Info) -> dict[int, str]:
    path = info.root / "meta" / "tasks.parquet"
    try:
        with need(ARROW).ParquetFile(path) as file:
            rows = file.read().to_pylist()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    tasks = {}
    for row in rows:
        # The words are pandas' index, whatever its name.
        words = [value for name, value in row.items() if name != "task_index"]
        tasks[_number(row, "task_index", path)] = str(words[0]) if words else ""
    return tasks


def _check_counts(info: Info, episodes: Sequence[EpisodeFiles]) -> None:
    indices = [episode.index for episode in episodes]
    if indices != list(range(info.total_episodes)):
        raise DatasetError(
            f"{str(info.root)!r} must list the episodes 0 to {info.total_episodes - 1}, as "
            f"meta/info.json says, got {len(indices)}"
            + (f", from {indices[0]} to {indices[-1]}." if indices else ".")
        )
    frames = sum(episode.length for episode in episodes)
    if frames != info.total_frames:
        raise DatasetError(
            f"The episodes of {str(info.root)!r} must have {info.total_frames} frames, as "
            f"meta/info.json says, got {frames}."
        )
    first = 0
    for episode in episodes:
        if episode.length < 1 or episode.first_index != first:
            raise DatasetError(
                f"Episode {episode.index} of {str(info.root)!r} must have frames, from index "
                f"{first}, got {episode.length} from {episode.first_index}."
            )
        first += episode.length


def _check_data(info: Info, episodes: Sequence[EpisodeFiles]) -> None:
    """Compare the parquet files with the list of episodes and the features."""
    wanted: dict[Path, int] = {}
    for episode in episodes:
        wanted[episode.data] = wanted.get(episode.data, 0) + episode.length
    for path, rows in wanted.items():
        got, columns = row_count(path)
        if got != rows:
            raise DatasetError(
                f"{str(path)!r} must have {rows} rows, as the list of episodes says, got {got}."
            )
        missing = [name for name in info.columns if name not in columns]
        extra = [name for name in columns if name not in info.features]
        # LeRobot reads v3.0 by the features, and would fail or invent None; v2.1 by the files.
        if missing or (extra and info.version == "v3.0"):
            raise DatasetError(
                f"The columns of {str(path)!r} must be the features of meta/info.json: "
                + (f"{missing} are missing." if missing else f"{extra} are not declared.")
            )
    found = {path for path in (info.root / "data").glob("*/*.parquet") if path.is_file()}
    if strays := sorted(str(path) for path in found - set(wanted)):
        raise DatasetError(
            f"Every parquet file under data/ must belong to an episode, got {strays[0]!r}; LeRobot "
            "would read it as well. Move it away."
        )


def _number(row: Mapping[str, Any], name: str, path: Path) -> int:
    value = row.get(name)
    if not is_int(value, least=0):
        raise DatasetError(
            f"`{name}` in {str(path)!r} must be a whole number of at least 0, got {value!r}."
        )
    return int(value)  # type: ignore[arg-type]  # is_int saw to it


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
