"""Episodes as a Minari dataset."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from scripts.sample_data.episodes import SampleEpisode

__all__ = ["write_minari"]

# The version whose layout this is.
_MINARI = "0.5.4"


def write_minari(
    episodes: Sequence[SampleEpisode],
    path: Path,
    *,
    kind: Literal["hdf5", "arrow", "parquet"] = "hdf5",
    jpeg: bool = True,
    dataset_id: str | None = None,
) -> None:
    """Write a dataset as Minari's ``DataCollector`` leaves it.

    Observations are a Dict of ``pictures`` (a Dict of the views) and ``proprio``; the instruction
    is an option of each episode's reset.

    Args:
        episodes: What to write, in order.
        path: A new folder. For Minari to find it, its path is ``MINARI_DATASETS_PATH`` and the id.
        kind: How Minari keeps the episodes.
        jpeg: Whether pictures are JPEG, as is Minari's default, or as they are.
        dataset_id: Minari's id; None for the folder's name.
    """
    data = path / "data"
    data.mkdir(parents=True)
    if kind == "hdf5":
        with h5py.File(data / "main_data.hdf5", "w", track_order=True) as file:
            for number, episode in enumerate(episodes):
                _write_group(file.create_group(f"episode_{number}"), number, episode, jpeg)
    else:
        for number, episode in enumerate(episodes):
            _write_table(data / str(number), number, episode, kind, jpeg)
    size = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    metadata = {
        "total_episodes": len(episodes),
        "total_steps": sum(episode.length for episode in episodes),
        "data_format": kind,
        "jpeg_encoding": jpeg,
        "observation_space": json.dumps(_observation_space(episodes[0])),
        "action_space": json.dumps(_box(-1.0, 1.0, episodes[0].actions[0])),
        "dataset_id": dataset_id or path.name,
        "minari_version": _MINARI,
        "author": ["procreward"],
        "dataset_size": round(size / 1e6, 1),
    }
    (data / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")


def _box(low: float, high: float, like: npt.NDArray[Any]) -> dict[str, Any]:
    """Describe a Box space as Minari does, with a bound for each number."""
    return {
        "type": "Box",
        "dtype": str(like.dtype),
        "shape": list(like.shape),
        "low": np.full(like.shape, low, like.dtype).tolist(),
        "high": np.full(like.shape, high, like.dtype).tolist(),
    }


def _observation_space(episode: SampleEpisode) -> dict[str, Any]:
    pictures = {view: _box(0, 255, frames[0]) for view, frames in episode.frames.items()}
    # Finite bounds, as JSON has no infinity.
    proprio = _box(-1e3, 1e3, episode.observations[0])
    inner = {"pictures": {"type": "Dict", "subspaces": pictures}, "proprio": proprio}
    return {"type": "Dict", "subspaces": inner}


def _jpeg(frame: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG")
    return buffer.getvalue()


def _flags(episode: SampleEpisode) -> dict[str, npt.NDArray[Any]]:
    terminations = np.zeros(episode.length, np.bool_)
    terminations[-1] = episode.terminated
    truncations = np.zeros(episode.length, np.bool_)
    truncations[-1] = not episode.terminated
    return {
        "rewards": episode.rewards,
        "terminations": terminations,
        "truncations": truncations,
    }


def _write_group(group: h5py.Group, number: int, episode: SampleEpisode, jpeg: bool) -> None:
    group.attrs["id"] = number
    group.attrs["seed"] = episode.seed
    group.attrs["total_steps"] = episode.length
    group.attrs["options/instruction"] = episode.instruction
    arrays = {"actions": episode.actions, **_flags(episode)}
    arrays |= {"observations/proprio": episode.observations, "infos/success": episode.success}
    for key, values in arrays.items():
        limits = (None, *values.shape[1:])
        group.create_dataset(key, data=values, chunks=True, maxshape=limits, track_times=False)
    for view, frames in episode.frames.items():
        key = f"observations/pictures/{view}"
        if not jpeg:
            limits = (None, *frames.shape[1:])
            group.create_dataset(key, data=frames, chunks=True, maxshape=limits, track_times=False)
            continue
        files = np.empty(len(frames), object)
        files[:] = [np.frombuffer(_jpeg(frame), np.uint8) for frame in frames]
        kind = h5py.vlen_dtype(np.uint8)
        group.create_dataset(key, data=files, dtype=kind, chunks=True, track_times=False)


def _write_table(folder: Path, number: int, episode: SampleEpisode, kind: str, jpeg: bool) -> None:
    folder.mkdir()
    pictures = {
        view: pa.array([_jpeg(frame) for frame in frames], pa.binary()) if jpeg else _rows(frames)
        for view, frames in episode.frames.items()
    }
    observations = {"pictures": _struct(pictures), "proprio": _rows(episode.observations)}
    actions = np.pad(episode.actions, ((0, 1), (0, 0)))
    columns = {"observations": _struct(observations), "actions": _rows(actions)}
    columns |= {key: pa.array(np.pad(values, (0, 1))) for key, values in _flags(episode).items()}
    columns["infos"] = _struct({"success": pa.array(episode.success)})
    batch = pa.RecordBatch.from_pydict(columns)
    if kind == "parquet":
        pq.write_table(pa.Table.from_batches([batch]), folder / "part-0.parquet")
    else:
        with (
            pa.OSFile(str(folder / "part-0.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as writer,
        ):
            writer.write_batch(batch)
    about = {
        "id": number,
        "total_steps": episode.length,
        "seed": episode.seed,
        "options": {"instruction": episode.instruction},
    }
    (folder / "metadata.json").write_text(json.dumps(about), encoding="utf-8")


def _struct(arrays: dict[str, Any]) -> Any:
    return pa.StructArray.from_arrays(list(arrays.values()), names=list(arrays))


def _rows(values: npt.NDArray[Any]) -> Any:
    flat = values.reshape(len(values), -1)
    kind = pa.list_(pa.from_numpy_dtype(values.dtype), flat.shape[1])
    return pa.FixedSizeListArray.from_arrays(flat.reshape(-1), type=kind)
