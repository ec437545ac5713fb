"""The parquet files with the rows of episodes, rewritten with other columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from procreward.errors import DatasetError
from procreward.optional import ARROW, need
from procreward.relabel.lerobot.files import unreadable
from procreward.relabel.lerobot.plan import RewritePlan, WrittenEpisode

__all__ = ["RowReader", "open_rows", "rewrite_file"]

_COMPRESSIONS = {"snappy", "gzip", "zstd", "brotli"}


class RowReader:
    """Rows of a parquet file by their numbers; the latest row group is kept.

    Args:
        file: An open ``pyarrow.parquet.ParquetFile``.
        columns: Which columns; None for all.

    Attributes:
        compression: How the file is compressed.
    """

    def __init__(self, file: Any, columns: list[str] | None = None) -> None:
        self._file, self._columns = file, columns
        name = str(file.metadata.row_group(0).column(0).compression).lower()
        self.compression = name if name in _COMPRESSIONS else "snappy"
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._bounds = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self._latest: tuple[int, Any] = (-1, None)

    def rows(self, begin: int, count: int) -> Any:
        """Return rows as a ``pyarrow.Table``."""
        import pyarrow as pa

        parts = []
        for group, (low, high) in enumerate(zip(self._bounds[:-1], self._bounds[1:], strict=True)):
            first, last = max(begin, low), min(begin + count, high)
            if first < last:
                parts.append(self._group(group).slice(first - low, last - first))
        return pa.concat_tables(parts)

    def _group(self, number: int) -> Any:
        if self._latest[0] != number:
            self._latest = (number, self._file.read_row_group(number, self._columns))
        return self._latest[1]


@contextmanager
def open_rows(path: Path, columns: Iterable[str] | None = None) -> Iterator[RowReader]:
    """Open a parquet file for reading rows.

    Raises:
        DatasetError: If it is missing or damaged, now or while it is read.
    """
    try:
        with need(ARROW).ParquetFile(path) as file:
            known = file.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in known]
            yield RowReader(file, wanted)
    except DatasetError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def rewrite_file(
    plan: RewritePlan, source: Path, target: Path, episodes: Iterable[WrittenEpisode]
) -> None:
    """Write the rows of episodes with the new columns, one row group an episode.

    Args:
        plan: What changes.
        source: A parquet file of the old dataset.
        target: The new file.
        episodes: Episodes that are in the old file, in order.

    Raises:
        DatasetError: If the old file is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = None
    try:
        with open_rows(source) as reader:
            for episode in episodes:
                rows = reader.rows(episode.files.row, episode.files.length)
                table = _changed(plan, rows, episode)
                if writer is None:
                    writer = need(ARROW).ParquetWriter(
                        target, table.schema, compression=reader.compression
                    )
                writer.write_table(table, row_group_size=table.num_rows)
    finally:
        if writer is not None:
            writer.close()


def _changed(plan: RewritePlan, rows: Any, episode: WrittenEpisode) -> Any:
    import pyarrow as pa

    columns = plan.kept(dict(zip(rows.column_names, rows.columns, strict=True)))
    columns |= {name: pa.array(values) for name, values in episode.columns.items()}
    for name, values in _numbers(episode).items():
        kind = columns[name].type
        columns[name] = pa.array(values).cast(kind) if pa.types.is_integer(kind) else columns[name]
    order = [name for name in plan.features if name in columns]
    order += [name for name in columns if name not in order]
    fields = {field.name: field for field in rows.schema}
    schema = pa.schema(
        [
            fields[name]
            if name in fields and name not in episode.columns
            else pa.field(name, columns[name].type)
            for name in order
        ],
        metadata=_metadata(plan, rows.schema.metadata or {}),
    )
    return pa.table([columns[name] for name in order], schema=schema)


def _numbers(episode: WrittenEpisode) -> dict[str, Any]:
    """Return the columns that change when episodes before this one are left out."""
    if episode.index == episode.files.index:
        return {}
    return {
        "episode_index": np.full(episode.files.length, episode.index),
        "index": np.arange(episode.first_index, episode.first_index + episode.files.length),
    }


def _metadata(plan: RewritePlan, old: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the schema's notes: those of pandas go, those of `datasets` get the new columns."""
    notes = {key: value for key, value in old.items() if key not in (b"pandas", b"huggingface")}
    try:
        described = json.loads(old[b"huggingface"])
        features = plan.kept(described["info"]["features"])
        for name in plan.columns():
            features[name] = {"dtype": plan.features[name]["dtype"], "_type": "Value"}
        described["info"]["features"] = features
    except (LookupError, ValueError, TypeError, AttributeError):
        return notes  # none, or not of the form that would be read
    return {**notes, b"huggingface": json.dumps(described).encode()}
