"""A dataset that was written, compared with the one it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from procreward.errors import DatasetError
from procreward.optional import ARROW, need
from procreward.relabel.lerobot.files import read_json
from procreward.relabel.lerobot.layout import EpisodeFiles
from procreward.relabel.lerobot.plan import ENV_REWARD, NOTE, REWARD
from procreward.relabel.lerobot.source import LeRobotSource
from procreward.relabel.lerobot.tables import open_rows

__all__ = ["validate_dataset"]

_TYPES = {REWARD: "float", "progress": "float", "success_prob": "float", "complete": "bool"}


def validate_dataset(source: LeRobotSource, staged: Path) -> None:
    """Reopen a dataset and compare it with its source.

    Raises:
        DatasetError: If anything is not as it must be.
    """
    new = LeRobotSource(staged)
    note = read_json(staged / NOTE)
    indices, columns = note["source_episodes"], note["columns"]
    if len(indices) != len(new.episodes):
        raise DatasetError(
            f"{str(staged)!r} must have {len(indices)} episodes, got {len(new.episodes)}."
        )
    for index, written in zip(indices, new.layout.episodes, strict=True):
        old = source.layout.episodes[index]
        _compare_rows(source, old, new, written, columns)
        _compare_videos(old, written)
    if new.info.version == "v3.0":
        _check_groups(new.layout.episodes)
    if (staged / "meta" / "stats.json").is_file():
        stats = read_json(staged / "meta" / "stats.json")
        if missing := [name for name in (REWARD, "complete") if name not in stats]:
            raise DatasetError(f"{str(staged)!r} must have statistics of {missing}.")


def _compare_rows(
    source: LeRobotSource,
    old: EpisodeFiles,
    new: LeRobotSource,
    written: EpisodeFiles,
    columns: Sequence[str],
) -> None:
    where = f"Episode {written.index} in {str(written.data)!r}"
    kept = {
        name: name
        for name in new.info.columns
        if name not in columns and name not in new.info.images
    }
    if ENV_REWARD in kept and ENV_REWARD not in source.info.features:
        kept[ENV_REWARD] = REWARD
    if written.index != old.index:  # numbered anew, which reopening has checked
        kept = {key: name for key, name in kept.items() if key not in ("episode_index", "index")}
    before = _rows(old, list(kept.values()))
    after = _rows(written, [*kept, *columns])
    for name, old_name in kept.items():
        if not _same(after[name], before[old_name]):
            raise DatasetError(f"{where}: `{name}` must be as it was.")
    for name in columns:
        _check_column(where, name, after[name])


def _same(one: Any, other: Any) -> bool:
    """Compare two columns, in which NaN equals NaN."""
    import pyarrow as pa

    if one.equals(other):
        return True
    while one.type == other.type and pa.types.is_nested(one.type):
        one, other = one.combine_chunks().flatten(), other.combine_chunks().flatten()
        if isinstance(one, list):  # of a structure
            return all(_same(*pair) for pair in zip(one, other, strict=True))
    if one.type != other.type or not pa.types.is_floating(one.type):
        return False
    return np.array_equal(one.to_numpy(), other.to_numpy(), equal_nan=True)


def _rows(files: EpisodeFiles, columns: list[str]) -> Mapping[str, Any]:
    with open_rows(files.data, columns) as reader:
        rows = reader.rows(files.row, files.length).combine_chunks()
    return dict(zip(rows.column_names, rows.columns, strict=True))


def _check_column(where: str, name: str, column: Any) -> None:
    if column.null_count or str(column.type) != {"float": "float", "bool": "bool"}[_TYPES[name]]:
        raise DatasetError(f"{where}: `{name}` must be {_TYPES[name]}, got {column.type}.")
    values = column.to_numpy()
    if name == REWARD and not np.isfinite(values).all():
        raise DatasetError(f"{where}: `{name}` must be finite.")
    if name in ("progress", "success_prob") and not np.all(
        np.isnan(values) | ((values >= 0) & (values <= 1))
    ):
        raise DatasetError(f"{where}: `{name}` must be in [0, 1].")


def _compare_videos(old: EpisodeFiles, written: EpisodeFiles) -> None:
    for key, part in written.videos.items():
        before = old.videos[key]
        if part.problem:
            raise DatasetError(part.problem)
        if part.start != before.start or part.path.stat().st_size != before.path.stat().st_size:
            raise DatasetError(f"{str(part.path)!r} must be {str(before.path)!r}, got another.")


def _check_groups(episodes: Sequence[EpisodeFiles]) -> None:
    lengths: dict[Path, list[int]] = {}
    for episode in episodes:
        lengths.setdefault(episode.data, []).append(episode.length)
    for path, wanted in lengths.items():
        with need(ARROW).ParquetFile(path) as file:
            got = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        if got != wanted:
            raise DatasetError(
                f"{str(path)!r} must have a row group for each episode, {wanted}, got {got}."
            )
