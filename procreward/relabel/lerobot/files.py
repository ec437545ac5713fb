"""JSON and parquet files, with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from procreward.errors import DatasetError
from procreward.optional import ARROW, need

__all__ = [
    "inside",
    "read_columns",
    "read_json",
    "read_lines",
    "row_count",
    "write_json",
    "write_lines",
]


def inside(root: Path, relative: str) -> Path:
    """Return a file of the dataset.

    Raises:
        DatasetError: If the path leads out of the dataset.
    """
    path = Path(relative)
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(
            f"The files of {str(root)!r} must lie inside it, got {relative!r}; repair "
            "meta/info.json."
        )
    return root / path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DatasetError: If there is no such file, or it is no JSON object.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read as JSON: {error}.") from error
    if not isinstance(read, dict):
        raise DatasetError(f"{str(path)!r} must be a JSON object, got {type(read).__name__}.")
    return read


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with a JSON object a line; empty lines are skipped.

    Raises:
        DatasetError: If there is no such file, or a line is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error}.") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"Line {number} of {str(path)!r} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DatasetError(f"Line {number} of {str(path)!r} must be a JSON object.")
        rows.append(row)
    return rows


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as LeRobot does: indented by four, text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False)
    path.write_text(text, encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON objects, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def row_count(path: Path) -> tuple[int, tuple[str, ...]]:
    """Return the number of rows of a parquet file, and its columns.

    Raises:
        DatasetError: If there is no such file, or it is damaged.
    """
    try:
        with need(ARROW).ParquetFile(path) as file:
            return file.metadata.num_rows, tuple(file.schema_arrow.names)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        raise unreadable(path, error) from error


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read columns with one value a row, whether they are stored plainly or as lists of one.

    Args:
        path: A parquet file.
        columns: Names; those that the file lacks are left out.

    Raises:
        DatasetError: If there is no such file, it is damaged, or a column has more than one value
            a row, or none.
    """
    try:
        with need(ARROW).ParquetFile(path) as file:
            known = [name for name in columns if name in file.schema_arrow.names]
            # Threads take longer to start than small columns to read.
            table = file.read(columns=known, use_threads=False)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    # pyarrow takes "action" for the columns under "action." as well.
    return {name: _plain(table.column(name), path, name) for name in known}


def _plain(column: Any, path: Path, name: str) -> npt.NDArray[Any]:
    import pyarrow as pa

    rows, array = len(column), column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of a column without rows
        array = (
            pa.concat_arrays(array.chunks) if array.chunks else pa.array([], column.type.value_type)
        )
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if len(array) != rows or array.null_count:
        raise DatasetError(f"Column {name!r} of {str(path)!r} must have one value a row.")
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def unreadable(path: Path, error: Exception) -> DatasetError:
    """Return the error to raise for a parquet file that cannot be read."""
    if not path.is_file():
        return DatasetError(f"{str(path)!r} is missing; copy the dataset again.")
    return DatasetError(f"{str(path)!r} cannot be read as parquet: {error}")
