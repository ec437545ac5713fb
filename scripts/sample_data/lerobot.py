"""LeRobotDataset v2.1 (with RoboCasa's extra columns and files) and v3.0."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from scripts.sample_data.episodes import SampleEpisode

__all__ = ["write_v21", "write_v30"]

Array = npt.NDArray[Any]

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_V21_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V21_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_V30_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V30_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def write_v21(
    episodes: Sequence[SampleEpisode],
    root: Path,
    *,
    images: bool = False,
    chunks_size: int = 1000,
) -> None:
    """Write LeRobotDataset v2.1 as RoboCasa ships it.

    It has the rows and files that RoboCasa adds: names among the tasks, annotation columns, a
    GR00T ``stats.json`` and ``extras``; and, like it, no ``next.success``. Its ``next.reward`` is
    that of the state reached.

    Args:
        episodes: What to write.
        root: New folder.
        images: Whether pictures go into the parquet files and not into videos.
        chunks_size: Episodes in a folder.
    """
    tasks = _tasks(episodes, names=True)
    features = _features(episodes[0], images=images, robocasa=True)
    lines, stats = [], []
    first = 0
    for number, episode in enumerate(episodes):
        place = {"episode_chunk": number // chunks_size, "episode_index": number}
        columns = _columns(episode, number, first, tasks, robocasa=True)
        data = root / _V21_DATA.format(**place)
        _write_table(_table(columns, features, episode, huggingface=True), data)
        if not images:
            for view, frames in episode.frames.items():
                path = root / _V21_VIDEO.format(video_key=_key(view), **place)
                _write_video([frames[:-1]], path, episode.fps)
        text = [episode.instruction, episode.task]
        lines.append({"episode_index": number, "tasks": text, "length": episode.length})
        stats.append({"episode_index": number, "stats": _stats(columns, episode, ())})
        _write_json({"layout_id": number}, root / "extras" / f"episode_{number:06d}/ep_meta.json")
        first += episode.length
    _write_json({"env_args": json.loads(episodes[0].env_args)}, root / "extras/dataset_meta.json")
    _write_lines(lines, root / "meta/episodes.jsonl")
    _write_lines(stats, root / "meta/episodes_stats.jsonl")
    rows = [{"task_index": index, "task": task} for task, index in tasks.items()]
    _write_lines(rows, root / "meta/tasks.jsonl")
    _write_json(_groot_stats(episodes, tasks), root / "meta/stats.json")
    modality = {"state": {"joints": {"start": 0, "end": 2}}, "action": {}}
    _write_json(modality, root / "meta/modality.json")
    info = {
        "codebase_version": "v2.1",
        "robot_type": "panda",
        "total_episodes": len(episodes),
        "total_frames": first,
        "total_tasks": len(tasks),
        "total_videos": 0 if images else len(episodes) * len(episodes[0].frames),
        "total_chunks": -(-len(episodes) // chunks_size),
        "chunks_size": chunks_size,
        "fps": episodes[0].fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": _V21_DATA,
        "video_path": None if images else _V21_VIDEO,
        "features": features,
    }
    _write_json(info, root / "meta/info.json")


def write_v30(
    episodes: Sequence[SampleEpisode],
    root: Path,
    *,
    images: bool = False,
    episodes_per_file: int = 4,
    codec: str = "libx264",
) -> None:
    """Write LeRobotDataset v3.0: many episodes to a file, one row group each.

    Args:
        episodes: What to write.
        root: New folder.
        images: Whether pictures go into the parquet files and not into videos.
        episodes_per_file: Episodes in a file.
        codec: Name of ffmpeg's encoder; LeRobot itself uses ``"libsvtav1"``.
    """
    tasks = _tasks(episodes, names=False)
    features = _features(episodes[0], images=images, robocasa=False)
    rows: list[dict[str, Any]] = []
    everything: list[Mapping[str, Array]] = []
    first = 0
    for file, begin in enumerate(range(0, len(episodes), episodes_per_file)):
        part = episodes[begin : begin + episodes_per_file]
        tables, seconds = [], 0.0
        for number, episode in enumerate(part, begin):
            columns = _columns(episode, number, first, tasks, robocasa=False)
            everything.append(columns)
            tables.append(_table(columns, features, episode, huggingface=False))
            row: dict[str, Any] = {
                "episode_index": number,
                "tasks": [episode.instruction],
                "length": episode.length,
                "data/chunk_index": 0,
                "data/file_index": file,
                "dataset_from_index": first,
                "dataset_to_index": first + episode.length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            end = seconds + episode.length / episode.fps
            for view in () if images else episode.frames:
                row |= {
                    f"videos/{_key(view)}/chunk_index": 0,
                    f"videos/{_key(view)}/file_index": file,
                    f"videos/{_key(view)}/from_timestamp": seconds,
                    f"videos/{_key(view)}/to_timestamp": end,
                }
            for key, values in _stats(columns, episode, QUANTILES).items():
                row |= {f"stats/{key}/{name}": value for name, value in values.items()}
            rows.append(row)
            first, seconds = first + episode.length, end
        place = {"chunk_index": 0, "file_index": file}
        _write_tables(tables, root / _V30_DATA.format(**place))
        for view in () if images else part[0].frames:
            path = root / _V30_VIDEO.format(video_key=_key(view), **place)
            _write_video([episode.frames[view][:-1] for episode in part], path, part[0].fps, codec)
    _write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    _write_table(_task_table(tasks), root / "meta/tasks.parquet")
    whole = {key: np.concatenate([part[key] for part in everything]) for key in everything[0]}
    _write_json(_stats(whole, _joined(episodes), QUANTILES), root / "meta/stats.json")
    info = {
        "codebase_version": "v3.0",
        "robot_type": "panda",
        "total_episodes": len(episodes),
        "total_frames": first,
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": episodes[0].fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": _V30_DATA,
        "video_path": None if images else _V30_VIDEO,
        "features": features,
    }
    _write_json(info, root / "meta/info.json")


def _key(view: str) -> str:
    return f"observation.images.{view}"


def _tasks(episodes: Sequence[SampleEpisode], *, names: bool) -> dict[str, int]:
    texts = [episode.instruction for episode in episodes]
    texts += [episode.task for episode in episodes] if names else []
    return {text: index for index, text in enumerate(dict.fromkeys(texts))}


def _features(episode: SampleEpisode, *, images: bool, robocasa: bool) -> dict[str, Any]:
    def scalar(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [1], "names": None}

    features: dict[str, Any] = {}
    for view, frames in episode.frames.items():
        described = {
            "dtype": "image" if images else "video",
            "shape": list(frames.shape[1:]),
            "names": ["height", "width", "channels"],
        }
        if not images:
            described["info"] = {
                "video.height": frames.shape[1],
                "video.width": frames.shape[2],
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": episode.fps,
                "video.channels": 3,
                "has_audio": False,
            }
        features[_key(view)] = described
    state, action = episode.observations.shape[1], episode.actions.shape[1]
    dtype = "float64" if robocasa else "float32"
    features["observation.state"] = {"dtype": dtype, "shape": [state], "names": None}
    features["action"] = {"dtype": dtype, "shape": [action], "names": None}
    features |= {"next.reward": scalar("float32"), "next.done": scalar("bool")}
    if robocasa:
        features["annotation.human.task_description"] = scalar("int64")
        features["annotation.human.task_name"] = scalar("int64")
    else:
        features["next.success"] = scalar("bool")
    features["timestamp"] = scalar("float32")
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = scalar("int64")
    return features


def _columns(
    episode: SampleEpisode, number: int, first: int, tasks: Mapping[str, int], *, robocasa: bool
) -> dict[str, Array]:
    length = episode.length
    steps = np.arange(length)
    dtype = np.float64 if robocasa else np.float32
    columns: dict[str, Array] = {
        "observation.state": episode.observations[:-1].astype(dtype),
        "action": episode.actions.astype(dtype),
        "next.reward": episode.rewards.astype(np.float32),
        "next.done": steps == length - 1,
    }
    described = np.full(length, tasks[episode.instruction])
    if robocasa:
        columns["annotation.human.task_description"] = described
        columns["annotation.human.task_name"] = np.full(length, tasks[episode.task])
    else:
        columns["next.success"] = episode.success[1:]
    return columns | {
        "timestamp": (steps / episode.fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, number),
        "index": steps + first,
        "task_index": described,
    }


def _table(
    columns: Mapping[str, Array],
    features: Mapping[str, Any],
    episode: SampleEpisode,
    *,
    huggingface: bool,
) -> pa.Table:
    """Return the rows of an episode, in the order of the features."""
    arrays: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for key, feature in features.items():
        if feature["dtype"] == "image":
            frames = episode.frames[key.rpartition(".")[2]][:-1]
            cells = [{"bytes": _png(frame), "path": None} for frame in frames]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            arrays[key], described[key] = pa.array(cells, kind), {"_type": "Image"}
        elif feature["dtype"] != "video":
            values = columns[key]
            element = {"dtype": feature["dtype"], "_type": "Value"}
            described[key] = element
            arrays[key] = pa.array(values.reshape(-1))
            if values.ndim == 2:
                width = values.shape[1]
                described[key] = {"feature": element, "length": width, "_type": "Sequence"}
                arrays[key] = pa.FixedSizeListArray.from_arrays(arrays[key], width)
    table = pa.table(arrays)
    if huggingface:
        text = json.dumps({"info": {"features": described}})
        table = table.replace_schema_metadata({"huggingface": text})
    return table


def _png(frame: Array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, format="PNG")
    return data.getvalue()


def _stats(
    columns: Mapping[str, Array], episode: SampleEpisode, quantiles: Mapping[str, float] | tuple[()]
) -> dict[str, dict[str, Any]]:
    """Return the statistics as LeRobot has them: lists, pictures per channel in [0, 1]."""
    stats = {}
    for view, frames in episode.frames.items():
        flat = frames[:-1].reshape(-1, 3) / 255.0
        values = _describe(flat, quantiles)
        stats[_key(view)] = {
            name: np.reshape(value, (3, 1, 1)).tolist() for name, value in values.items()
        }
        stats[_key(view)]["count"] = [len(frames) - 1]
    for key, column in columns.items():
        values = _describe(column.reshape(len(column), -1), quantiles)
        stats[key] = {name: value.tolist() for name, value in values.items()}
        stats[key]["count"] = [len(column)]
    return stats


def _describe(values: Array, quantiles: Mapping[str, float] | tuple[()]) -> dict[str, Array]:
    numbers = values.astype(np.float64)
    described = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": numbers.mean(0),
        "std": numbers.std(0),
    }
    for name, share in dict(quantiles).items():
        described[name] = np.quantile(numbers, share, axis=0)
    return described


def _groot_stats(episodes: Sequence[SampleEpisode], tasks: Mapping[str, int]) -> dict[str, Any]:
    """Return GR00T's statistics, which leave pictures out."""
    parts = [_columns(episode, 0, 0, tasks, robocasa=True) for episode in episodes]
    stats = {}
    for key in parts[0]:
        values = np.concatenate([part[key] for part in parts])
        described = _describe(
            values.reshape(len(values), -1), {name: QUANTILES[name] for name in ("q01", "q99")}
        )
        stats[key] = {name: value.tolist() for name, value in described.items()}
    return stats


def _joined(episodes: Sequence[SampleEpisode]) -> SampleEpisode:
    """Return something with the pictures of all episodes, thinned out, for their statistics."""
    from dataclasses import replace

    frames = {
        view: np.concatenate([episode.frames[view][:-1:4] for episode in episodes])
        for view in episodes[0].frames
    }
    return replace(
        episodes[0],
        frames={view: np.concatenate([all_, all_[-1:]]) for view, all_ in frames.items()},
    )


def _task_table(tasks: Mapping[str, int]) -> pa.Table:
    """Return the tasks as pandas stores a frame whose index are the words."""
    table = pa.table({"task_index": list(tasks.values()), "__index_level_0__": list(tasks)})
    described = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "columns": [
            _pandas_column("task_index", "task_index", "int64", "int64"),
            _pandas_column(None, "__index_level_0__", "unicode", "object"),
        ],
    }
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def _pandas_column(name: str | None, field: str, kind: str, numpy_type: str) -> dict[str, Any]:
    return {
        "name": name,
        "field_name": field,
        "pandas_type": kind,
        "numpy_type": numpy_type,
        "metadata": None,
    }


def _write_video(parts: Sequence[Array], path: Path, fps: int, codec: str = "libx264") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = parts[0].shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec=codec,
        macro_block_size=2,
        quality=None,
        ffmpeg_log_level="error",
        # LeRobot's: a key frame every second frame, so that any frame is found quickly.
        output_params=["-g", "2", "-crf", "23", "-bf", "0"],
    )
    writer.send(None)
    for frames in parts:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    writer.close()


def _write_table(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_tables(tables: Sequence[pa.Table], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4), encoding="utf-8")


def _write_lines(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
