"""How Minari keeps episodes: one HDF5 file, or an Arrow or Parquet file per episode.

Minari keeps pictures that are at least 32 pixels wide and high as JPEG unless it is told not to;
which of the two a dataset has is seen by its data, as older versions do not say.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from procreward.errors import DatasetError
from procreward.optional import ARROW, need
from procreward.relabel._hdf5 import LANGUAGE_KEYS, instruction_in, last_value, opened, pictures
from procreward.types import Frame

__all__ = [
    "ArrowStorage",
    "Hdf5Storage",
    "Leaf",
    "Storage",
    "StoredEpisode",
    "data_file",
    "leaves_of",
    "open_storage",
    "read_metadata",
    "read_table",
]

HDF5_NAME: Final = "main_data.hdf5"
METADATA_NAME: Final = "metadata.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A space without subspaces, and where it is.

    Attributes:
        path: Keys of Dict spaces and places in Tuple spaces that lead to it.
        space: Minari's description of it.
    """

    path: tuple[str | int, ...]
    space: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The path in one word; ``"observation"`` for a space that is one leaf."""
        return "/".join(map(str, self.path)) or "observation"

    @property
    def is_picture(self) -> bool:
        """Whether its values are ``(height, width, 3) uint8``."""
        shape: Sequence[int] = self.space.get("shape") or ()
        kind = (self.space.get("type"), self.space.get("dtype"))
        return kind == ("Box", "uint8") and len(shape) == 3 and shape[-1] == 3

    @property
    def is_instruction(self) -> bool:
        """Whether its values are texts that say what the task is."""
        return self.space.get("type") == "Text" and self.path[-1:] in {(k,) for k in LANGUAGE_KEYS}


def leaves_of(space: Mapping[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Yield the leaves of a space, as Minari's ``metadata.json`` describes it."""
    inner = space.get("subspaces")
    if isinstance(inner, Mapping):
        for key, below in inner.items():
            yield from leaves_of(below, (*path, key))
    elif isinstance(inner, Sequence):
        for place, below in enumerate(inner):
            yield from leaves_of(below, (*path, place))
    else:
        yield Leaf(path=path, space=space)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEpisode:
    """What is known of an episode without its pictures.

    Attributes:
        length: Actions, T; there are T + 1 observations.
        terminated: Whether the last step terminated the episode.
        instruction: The task in words, where the episode says it.
    """

    length: int
    terminated: bool
    instruction: str


class Storage(Protocol):
    """The episodes of a dataset."""

    def describe(self, number: int, leaves: Sequence[Leaf]) -> StoredEpisode:
        """Read an episode's metadata and check the extent of its arrays."""
        ...

    def frames(self, number: int, leaves: Sequence[Leaf]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of an episode in order, by the names of their leaves."""
        ...


def read_metadata(root: Path) -> dict[str, Any]:
    """Return ``data/metadata.json`` of a dataset.

    Raises:
        DatasetError: If it is missing or says less than is needed.
    """
    path = root / "data" / METADATA_NAME
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} must be Minari's metadata: {error}.") from error
    for key, kind in {
        "dataset_id": str,
        "total_episodes": int,
        "data_format": str,
        "observation_space": str,
    }.items():
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key), kind):
            raise DatasetError(
                f"{str(path)!r} must state `{key}`. Load the dataset with a current Minari and "
                "write it anew if it is an old one."
            )
    return dict(metadata)


def open_storage(root: Path, metadata: Mapping[str, Any]) -> Storage:
    """Return what reads the episodes.

    Raises:
        DatasetError: If they are kept in a way that is not known.
    """
    kind = metadata["data_format"]
    if kind == "hdf5":
        return Hdf5Storage(root / "data" / HDF5_NAME)
    if kind in ("arrow", "parquet"):
        return ArrowStorage(root / "data", kind)
    raise DatasetError(
        f"{str(root)!r} must be kept as hdf5, arrow or parquet, got `data_format` {kind!r}."
    )


class Hdf5Storage:
    """One file with a group for each episode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self, number: int, leaves: Sequence[Leaf]) -> StoredEpisode:
        """Read an episode's metadata; see :class:`Storage`."""
        with opened(self._path) as file:
            episode = self._episode(file, number)
            length = len(episode["rewards"])
            extents = {
                key: len(episode[key]) for key in ("terminations", "truncations") if key in episode
            }
            extents["total_steps"] = int(episode.attrs.get("total_steps", length))
            for key, found in extents.items():
                self._check(found == length and length > 0, number, key, length, found)
            for leaf in leaves:
                found = len(self._array(episode, leaf, number))
                self._check(found == length + 1, number, leaf.name, length + 1, found)
            ended = "terminations" in episode and last_value(episode["terminations"]) != 0
            return StoredEpisode(
                length=length,
                terminated=ended,
                instruction=self._instruction(episode, leaves, number),
            )

    def frames(self, number: int, leaves: Sequence[Leaf]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of an episode; see :class:`Storage`."""
        names = [leaf.name for leaf in leaves]
        with opened(self._path) as file:
            episode = self._episode(file, number)
            runs = [self._run(episode, leaf, number) for leaf in leaves]
            for found in zip(*runs, strict=True):
                yield dict(zip(names, found, strict=True))

    def _run(self, episode: Any, leaf: Leaf, number: int) -> Iterator[Frame]:
        array, where = self._array(episode, leaf, number), self._where(number, leaf.name)
        for row in pictures(array, len(array), where):
            yield as_picture(row, leaf, where)

    def _episode(self, file: Any, number: int) -> Any:
        name = f"episode_{number}"
        if name not in file or not {"rewards", "observations"} <= set(file[name]):
            raise DatasetError(
                f"{str(self._path)!r} must have {name!r} with `observations` and `rewards`."
            )
        return file[name]

    def _array(self, episode: Any, leaf: Leaf, number: int) -> Any:
        place = episode["observations"]
        for part in leaf.path:
            key = f"_index_{part}" if isinstance(part, int) else part
            if not hasattr(place, "keys") or key not in place:
                raise DatasetError(f"{self._where(number, leaf.name)} is missing.")
            place = place[key]
        return place

    def _instruction(self, episode: Any, leaves: Sequence[Leaf], number: int) -> str:
        stated = {key.removeprefix("options/"): value for key, value in episode.attrs.items()}
        infos = episode.get("infos", {})
        told = {key: _first_text(infos[key]) for key in LANGUAGE_KEYS if key in infos}
        seen = {
            leaf.path[-1]: _first_text(self._array(episode, leaf, number))
            for leaf in leaves
            if leaf.is_instruction
        }
        return next(filter(None, map(instruction_in, (stated, seen, told))), "")

    def _where(self, number: int, inside: str) -> str:
        return f"{str(self._path)!r}, episode_{number}, {inside}"

    def _check(self, ok: bool, number: int, key: str, expected: int, found: int) -> None:
        if not ok:
            raise DatasetError(
                f"{self._where(number, key)} must have {max(expected, 1)} rows, got {found}."
            )


class ArrowStorage:
    """A folder with one file of T + 1 rows for each episode; the last row's action is padding."""

    def __init__(self, data: Path, kind: str) -> None:
        self._data, self._kind = data, kind

    def describe(self, number: int, leaves: Sequence[Leaf]) -> StoredEpisode:
        """Read an episode's metadata; see :class:`Storage`."""
        path = data_file(self._data, number)
        schema, rows = _extent(path, self._kind)
        missing = {"observations", "rewards", "terminations", "truncations"} - set(schema.names)
        stated = self._metadata(number)
        length = int(stated.get("total_steps", rows - 1))
        if missing or length < 1 or rows != length + 1:
            raise DatasetError(
                f"{str(path)!r} must have observations, rewards, terminations and truncations in "
                f"{length + 1} rows, one more than steps, got {rows} rows of {schema.names}."
            )
        for leaf in leaves:
            _check_field(schema.field("observations").type, leaf, path)
        told = [leaf for leaf in leaves if leaf.is_instruction]
        columns = [".".join(["observations", *map(str, leaf.path)]) for leaf in told]
        table = read_table(path, self._kind, ["terminations", *columns])
        seen = {leaf.path[-1]: _column(table, leaf, path)[0].as_py() for leaf in told}
        options = stated.get("options")
        return StoredEpisode(
            length=length,
            terminated=bool(table["terminations"][length - 1].as_py()),
            instruction=next(filter(None, map(instruction_in, (stated, options, seen))), ""),
        )

    def frames(self, number: int, leaves: Sequence[Leaf]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of an episode; see :class:`Storage`."""
        path = data_file(self._data, number)
        table = read_table(path, self._kind)
        columns = [_column(table, leaf, path) for leaf in leaves]
        for row in range(table.num_rows):
            found = {}
            for leaf, column in zip(leaves, columns, strict=True):
                where = f"{str(path)!r}, {leaf.name}, row {row}"
                found[leaf.name] = as_picture(_row(column, row, leaf), leaf, where)
            yield found

    def _metadata(self, number: int) -> dict[str, Any]:
        path = self._data / str(number) / METADATA_NAME
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{str(path)!r} must be JSON: {error}.") from error
        return value if isinstance(value, dict) else {}


def data_file(data: Path, number: int) -> Path:
    """Return the one file of an episode's rows.

    Raises:
        DatasetError: If there is none, or more than one.
    """
    folder = data / str(number)
    found = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name != METADATA_NAME and path.name[0] not in "._"
    )
    if len(found) != 1:
        raise DatasetError(f"{str(folder)!r} must hold one file of rows, got {len(found)}.")
    return found[0]


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DatasetError(f"{str(path)!r} must be a whole {kind} file: {error}.") from error


def read_table(path: Path, kind: str, columns: Sequence[str] | None = None) -> Any:
    """Return the rows of an episode as a ``pyarrow.Table``.

    Args:
        path: The file.
        kind: ``"arrow"`` or ``"parquet"``.
        columns: What is needed at least; None for everything. ``"a.b"`` is field b of column a.

    Raises:
        DatasetError: If it is damaged.
        MissingDependencyError: If pyarrow is not installed.
    """
    pq = need(ARROW)
    with _named(path, kind):
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                return file.read(columns)
        # Mapped into memory: what is not looked at is not read.
        import pyarrow as pa

        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _extent(path: Path, kind: str) -> tuple[Any, int]:
    """Return the schema and the number of rows."""
    pq = need(ARROW)
    if kind == "parquet":
        with _named(path, kind), pq.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    table = read_table(path, kind)
    return table.schema, table.num_rows


def _check_field(kind: Any, leaf: Leaf, path: Path) -> None:
    import pyarrow as pa

    for part in leaf.path:
        if not pa.types.is_struct(kind) or kind.get_field_index(str(part)) < 0:
            raise DatasetError(f"{str(path)!r}, {leaf.name} is missing.")
        kind = kind.field(str(part)).type


def _column(table: Any, leaf: Leaf, path: Path) -> Any:
    """Return the values of a leaf as one Arrow array."""
    import pyarrow as pa

    values = pa.concat_arrays(table["observations"].chunks)
    _check_field(values.type, leaf, path)
    for part in leaf.path:
        values = values.field(str(part))
    return values


def _row(column: Any, row: int, leaf: Leaf) -> Any:
    """Return a row as a picture's numbers, or as a file's bytes."""
    value = column[row]
    if hasattr(value, "values"):
        return value.values.to_numpy().reshape(leaf.space["shape"])
    return np.frombuffer(value.as_py() or b"", np.uint8)


def as_picture(stored: Any, leaf: Leaf, where: str) -> Frame:
    """Return a picture from its numbers, or from a JPEG file's bytes.

    Raises:
        DatasetError: If it is damaged or of another shape than its space.
    """
    shape = tuple(leaf.space["shape"])
    frame = np.asarray(stored, np.uint8)
    if frame.shape == shape:
        return frame
    from PIL import Image

    try:
        with Image.open(io.BytesIO(frame.tobytes())) as image:
            frame = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{where} must be a picture: {error}.") from error
    if frame.shape != shape:
        raise DatasetError(f"{where} must be a picture of shape {shape}, got {frame.shape}.")
    return frame


def _first_text(dataset: Any) -> str:
    value = dataset[()] if dataset.shape == () else dataset[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else ""
