"""What the formats in HDF5 share: opening a file, reading pictures, placing labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from procreward.errors import DatasetError
from procreward.optional import H5PY, need
from procreward.relabel.episodes import EpisodeLabels
from procreward.types import Frame

__all__ = [
    "LANGUAGE_KEYS",
    "as_json",
    "done_after",
    "instruction_in",
    "last_value",
    "opened",
    "pictures",
    "replace_array",
    "same_values",
]

_BLOCK_ROWS: Final = 16
LANGUAGE_KEYS: Final = (
    "lang",
    "instruction",
    "language_instruction",
    "mission",
    "prompt",
)


@contextmanager
def opened(path: Path, mode: str = "r", **settings: Any) -> Iterator[Any]:
    """Open an HDF5 file as a context.

    Args:
        path: The file.
        mode: ``"r"`` or ``"r+"``.
        **settings: Further arguments of ``h5py.File``.

    Raises:
        DatasetError: If it is no HDF5 file, is cut short, or another process writes to it.
        MissingDependencyError: If h5py is not installed.
    """
    h5py = need(H5PY)
    try:
        file = h5py.File(path, mode, **settings)
    except OSError as error:
        raise DatasetError(
            f"{str(path)!r} must be a whole HDF5 file that nothing writes to: {error}. Copy or "
            "download it again if it was cut short."
        ) from error
    with file:
        yield file


def pictures(dataset: Any, count: int, where: str) -> Iterator[Frame]:
    """Yield the first pictures of an array in a file, read in blocks.

    Args:
        dataset: ``(n, height, width, 3) uint8`` in an open file.
        count: How many, at most n.
        where: Names the array in messages.

    Raises:
        DatasetError: If a block cannot be read.
    """
    # Whole chunks, which are decompressed as a whole anyway.
    rows = dataset.chunks[0] if dataset.chunks else 1
    rows *= -(-_BLOCK_ROWS // rows)
    for start in range(0, count, rows):
        try:
            block = dataset[start : min(start + rows, count)]
        except (OSError, RuntimeError) as error:
            raise DatasetError(f"{where} is damaged at picture {start}: {error}.") from error
        yield from block


def last_value(dataset: Any) -> float:
    """Return the last number of ``(n,)`` or ``(n, 1)``, read alone; n is at least 1."""
    return float(np.ravel(dataset[-1])[0])


def replace_array(group: Any, name: str, values: npt.NDArray[Any], **settings: Any) -> None:
    """Put an array into a group, in place of what has the name.

    Args:
        group: A group of a file that is open for writing.
        name: Name of the array.
        values: What it becomes.
        **settings: Further arguments of ``create_dataset``.
    """
    if name in group:
        del group[name]
    # No time of creation: the same labels must give the same bytes.
    group.create_dataset(name, data=values, track_times=False, **settings)


def same_values(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Say whether two arrays are equal; where numbers are NaN in both, they are."""
    numbers = one.dtype.kind in "fc" and other.dtype.kind in "fc"
    return np.array_equal(one, other, equal_nan=numbers)


def as_json(value: Mapping[str, Any]) -> str:
    """Return a mapping as JSON that is the same for equal mappings."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def instruction_in(described: object) -> str:
    """Return the task in words from a mapping that may name it, else the empty text."""
    if not isinstance(described, Mapping):
        return ""
    for key in LANGUAGE_KEYS:
        value = described.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def done_after(labels: EpisodeLabels) -> npt.NDArray[np.bool_]:
    """Return for each action whether the task counts as done after it, ``(T,) bool``."""
    length = labels.episode.length
    after = labels.complete[1 : length + 1]
    done: npt.NDArray[np.bool_] = np.concatenate([after, labels.complete[-1:]])[:length]
    done[-1] |= labels.terminated
    return done
