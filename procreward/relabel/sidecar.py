"""The files that every format gets: the parquet of LeRobot's RA-BC, and JSON lines.

* :class:`SidecarWriter` - ``procreward_progress.parquet``, a row per picture.
* :func:`episode_record` - an entry of ``episodes.jsonl``, for ``procreward report``.
* :func:`query_records` - entries of ``records.jsonl``, with ProcVLM's keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.errors import DatasetError
from procreward.optional import ARROW, need
from procreward.relabel.episodes import Episode, EpisodeLabels, Source
from procreward.relabel.readings import Reading
from procreward.report.records import EpisodeRecord, StepTrace
from procreward.scorers.procvlm_text import reasoning_of
from procreward.video import VideoRecord

__all__ = [
    "SIDECAR",
    "SidecarWriter",
    "check_sidecar",
    "episode_record",
    "first_indices",
    "query_records",
]

SIDECAR = "procreward_progress.parquet"
"""Name of the file."""


def _schema(metadata: Mapping[str, str]) -> Any:
    import pyarrow as arrow

    columns = {
        "index": arrow.int64(),
        "episode_index": arrow.int64(),
        "frame_index": arrow.int64(),
        "progress_sparse": arrow.float32(),
        "reward": arrow.float32(),
        "potential": arrow.float32(),
        "success_prob": arrow.float32(),
        "complete": arrow.bool_(),
        "queried": arrow.bool_(),
        "valid": arrow.bool_(),
    }
    fields = [arrow.field(name, kind, nullable=False) for name, kind in columns.items()]
    return arrow.schema(fields, metadata=dict(metadata))


def first_indices(source: Source) -> dict[int, int]:
    """Return the index, counted through the dataset, of every episode's first picture.

    A source that knows better has a method ``first_index(episode) -> int``.
    """
    known = getattr(source, "first_index", None)
    found, index = {}, 0
    for episode in source.episodes:
        found[episode.index] = index if known is None else int(known(episode))
        index += episode.frames
    return found


class SidecarWriter:
    """Writes the parquet file, a row group per episode; a context manager.

    Columns: ``index`` (counted through the dataset), ``episode_index`` and ``frame_index``, int64;
    ``progress_sparse``, ``reward``, ``potential`` and ``success_prob``, float32; ``complete``,
    ``queried`` and ``valid``, bool. ``progress_sparse`` is NaN where nothing is known, which
    LeRobot's RA-BC gives its fallback weight. ``reward`` of a row belongs to the action that
    follows the picture; it is NaN at a last picture that no action follows.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Open the file.

        Args:
            path: A new file; it is not flushed to disk.
            metadata: Goes into the schema, such as ``reward_model_path``.
        """
        self._schema = _schema(metadata)
        self._writer = need(ARROW).ParquetWriter(path, self._schema)

    def __enter__(self) -> SidecarWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the file."""
        self._writer.close()

    def add(self, labels: EpisodeLabels, first_index: int) -> None:
        """Write the rows of an episode.

        Args:
            labels: Its labels; episodes come in order of their index.
            first_index: Index of its first picture.
        """
        frames = labels.episode.frames
        place = np.arange(frames, dtype=np.int64)
        columns: dict[str, npt.NDArray[Any]] = {
            "index": first_index + place,
            "episode_index": np.full(frames, labels.episode.index, np.int64),
            "frame_index": place,
            "progress_sparse": labels.progress.astype(np.float32),
            "reward": _of_frames(labels.reward, frames),
            "potential": labels.potential[:frames].astype(np.float32),
            "success_prob": labels.success_prob.astype(np.float32),
            "complete": labels.complete,
            "queried": labels.queried,
            "valid": labels.valid,
        }
        import pyarrow as arrow

        self._writer.write_table(arrow.table(columns, schema=self._schema))


def _of_frames(reward: npt.NDArray[np.float64], frames: int) -> npt.NDArray[np.float32]:
    out = np.full(frames, np.nan, np.float32)
    out[: len(reward)] = reward
    return out


def check_sidecar(path: Path, rows: int) -> None:
    """Reopen the file and look whether it is what it must be.

    Args:
        path: The file.
        rows: How many it must have.

    Raises:
        DatasetError: If rows are missing, out of order or not finite.
    """
    table = need(ARROW).read_table(path)
    index = table["index"].to_numpy()
    potential = table["potential"].to_numpy()
    if len(table) != rows or table.schema.names != _schema({}).names:
        raise DatasetError(f"{str(path)!r} must have {rows} rows, got {len(table)}.")
    if np.any(np.diff(index) <= 0) or not np.all(np.isfinite(potential)):
        raise DatasetError(f"{str(path)!r} must be sorted by `index`, with finite potentials.")


def episode_record(
    labels: EpisodeLabels, readings: Sequence[Reading], *, dataset: str, scorer: str
) -> EpisodeRecord:
    """Describe an episode as one that was played, for ``procreward report``.

    Args:
        labels: Its labels.
        readings: What they were derived from.
        dataset: Name of the dataset.
        scorer: Name of the scorer.
    """
    episode = labels.episode
    known = [one for one in labels.progress if not np.isnan(one)]
    return EpisodeRecord(
        env_id=dataset,
        policy="recorded",
        episode=episode.index,
        seed=0,
        instruction=episode.instruction,
        scorer=scorer,
        steps=episode.length,
        episode_return=float(np.sum(labels.reward)),
        env_return=0.0,
        final_progress=float(known[-1]) if known else None,
        complete=bool(labels.complete.any()),
        env_success=episode.terminated,
        queries=len(readings),
        invalid_answers=sum(bool(one.reasons) for one in readings),
        terminated=labels.terminated,
        truncated=not labels.terminated,
        trace=tuple(_trace(labels)),
    )


def _trace(labels: EpisodeLabels) -> Iterator[StepTrace]:
    episode = labels.episode
    for step in range(episode.length + 1):
        frame = min(step, episode.frames - 1)
        progress = float(labels.progress[frame])
        pictured = step == frame
        yield StepTrace(
            step=step,
            reward=float(labels.reward[step - 1]) if step else 0.0,
            env_reward=0.0,
            progress=None if np.isnan(progress) else progress,
            potential=float(labels.potential[step]),
            queried=pictured and bool(labels.queried[frame]),
            valid=bool(labels.valid[frame]),
            complete=bool(labels.complete[frame]),
            success=episode.terminated and step == episode.length,
            text=labels.text[frame] if pictured else "",
        )


def query_records(
    source: Source, episode: Episode, readings: Sequence[Reading], view: str
) -> Iterator[str]:
    """Yield ProcVLM's record of every query about an episode, as lines of JSON.

    ``video_path`` is relative to the dataset where the format has a video per episode, else it is
    the episode's name; ``timestamp_sec`` counts pictures where their rate is not known.

    Args:
        source: The dataset.
        episode: The episode, with the instruction that was asked.
        readings: What the models said.
        view: The view whose file is named.
    """
    paths = getattr(source, "picture_paths", None)
    path = episode.name if paths is None else paths(episode).get(view, episode.name)
    latest: float | None = None
    for number, one in enumerate(readings):
        parsed = None if one.score is None else one.score.progress
        latest = latest if parsed is None else parsed
        text = "" if one.score is None else one.score.text
        record = VideoRecord(
            video_path=path,
            task=episode.instruction,
            sample_index=number,
            frame_index=one.frame,
            timestamp_sec=one.frame / (episode.fps or 1.0),
            window_frame_indices=one.window,
            progress=latest,
            parsed_progress=parsed,
            progress_source="previous" if parsed is None else "model",
            reasoning=reasoning_of(text),
            model_output=text,
        )
        entry = {"episode_index": episode.index, **record.as_procvlm()}
        yield json.dumps(entry, ensure_ascii=False, allow_nan=False)
