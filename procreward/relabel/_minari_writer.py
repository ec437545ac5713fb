"""Rewards in a copy of a Minari dataset."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from procreward.checks import check, check_choice, check_names
from procreward.errors import DatasetError
from procreward.relabel._hdf5 import done_after, opened, replace_array, same_values
from procreward.relabel._hdf5_times import clear_times
from procreward.relabel._minari_storage import (
    HDF5_NAME,
    METADATA_NAME,
    data_file,
    read_metadata,
    read_table,
)
from procreward.relabel.episodes import EpisodeLabels, Source

__all__ = ["MinariWriter", "relabelled_id"]

# Minari's own rule, with the version that its loader needs.
_ID: Final = re.compile(r"(?:[-\w]+/)*[-\w]+-v\d+")
_PARTS: Final = re.compile(r"(.+?)(-relabelled)?(?:-v(\d+))?")
_ENV: Final = "rewards_env"


def relabelled_id(dataset_id: str) -> str:
    """Return the id of a dataset with new rewards.

    Args:
        dataset_id: Minari's id of the dataset before.

    Raises:
        DatasetError: If it is no id of Minari's.

    Example:
        >>> relabelled_id("robosuite/lift-v0"), relabelled_id("lift-relabelled-v0")
        ('robosuite/lift-relabelled-v0', 'lift-relabelled-v1')
    """
    found = _PARTS.fullmatch(dataset_id)
    new = ""
    if found is not None:
        again = found[2] is not None
        new = f"{found[1]}-relabelled-v{int(found[3] or 0) + again}"
    if not _ID.fullmatch(new):
        raise DatasetError(
            f"`dataset_id` must be like 'namespace/name-v0', got {dataset_id!r}; state another "
            "one with the option `dataset_id`."
        )
    return new


class MinariWriter:
    """Copies a Minari dataset under a new id and puts rewards into the copy.

    The copy is ``<staged>/<new id>``, so that Minari loads it by that id where
    ``MINARI_DATASETS_PATH`` is the folder above. Every episode gets, with T actions:

    * ``rewards``, ``(T,) float64`` whatever the type before, so that they equal those paid online.
    * in ``infos``, which has T + 1 rows with the reset first: ``rewards_env`` (what the environment
      paid for reaching each row; 0 at the reset), and ``procreward_progress``,
      ``procreward_success_prob`` (both ``float32``, NaN where nothing is known) and
      ``procreward_complete`` (``bool``), each of the picture of the row.
    * ``terminations`` and ``truncations`` only if asked.

    ``metadata.json`` gets the new id and ``procreward``. Where labels are given for some episodes
    only, the others are left out and the rest is numbered anew, as Minari counts without gaps;
    ``procreward_episodes`` in ``metadata.json`` lists their ids in the source.

    Args:
        options: ``dones``: ``"keep"`` (the default), or ``"complete"`` to end an episode as
            terminated where the task counts as done after its last action, and as truncated
            elsewhere. ``dataset_id``: the new id; by default the old one with ``-relabelled``.

    Raises:
        UnknownNameError: If there is no such option.
        ConfigError: If an option has another value.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_names("option", options, ("dones", "dataset_id"))
        self._dones = options.get("dones", "keep")
        check_choice("dones", self._dones, ("keep", "complete"))
        self._id: str | None = options.get("dataset_id")
        ok = self._id is None or (isinstance(self._id, str) and bool(_ID.fullmatch(self._id)))
        check(ok, "dataset_id", "like 'namespace/name-v0'", self._id)

    def write(
        self,
        source: Source,
        labels: Iterable[EpisodeLabels],
        staged: Path,
        provenance: Mapping[str, Any],
    ) -> None:
        """Write the dataset into ``staged / <new id>``.

        Args:
            source: The dataset as it is.
            labels: Of every episode that is written.
            staged: An empty folder.
            provenance: Becomes ``procreward`` in ``metadata.json``.

        Raises:
            DatasetError: If there are no labels, or they are not those of the episodes.
        """
        metadata = read_metadata(source.root)
        target = staged / self._new_id(metadata)
        # Not copy2: neither the source's times nor its write protection belong to the copy.
        shutil.copytree(source.root, target, copy_function=shutil.copyfile)
        for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
            folder.chmod(folder.stat().st_mode | stat.S_IRWXU)
        data = target / "data"
        if metadata["data_format"] == "hdf5":
            written = self._write_hdf5(data / HDF5_NAME, labels)
        else:
            written = self._write_tables(data, metadata["data_format"], labels)
        if not written:
            raise DatasetError(f"No episode of {str(source.root)!r} has labels to write.")
        lengths = {episode.index: episode.length for episode in source.episodes}
        metadata |= {
            "dataset_id": self._new_id(metadata),
            "total_episodes": len(written),
            "total_steps": sum(lengths[index] for index in written),
            "dataset_size": _megabytes(data),
            "procreward": dict(provenance),
            "procreward_episodes": written,
        }
        (data / METADATA_NAME).write_text(json.dumps(metadata), encoding="utf-8")

    def _new_id(self, metadata: Mapping[str, Any]) -> str:
        return self._id or relabelled_id(metadata["dataset_id"])

    def _write_hdf5(self, path: Path, labels: Iterable[EpisodeLabels]) -> list[int]:
        written = []
        with opened(path, "r+") as file:
            for one in labels:
                self._label_group(file[f"episode_{one.episode.index}"], one)
                written.append(one.episode.index)
            for name in set(file) - {f"episode_{index}" for index in written}:
                del file[name]
            for number, index in enumerate(written):
                if number != index:
                    file.move(f"episode_{index}", f"episode_{number}")
                    file[f"episode_{number}"].attrs.modify("id", number)
        clear_times(path)
        return written

    def _label_group(self, group: Any, labels: EpisodeLabels) -> None:
        before = group["rewards"][()]
        _check_length(labels, len(before))
        infos = group.require_group("infos")
        for key, values in _new_infos(labels, None if _ENV in infos else before).items():
            _put(infos, key, values)
        _put(group, "rewards", labels.reward.astype(np.float64))
        if self._dones == "complete":
            for key, flags in _ends(labels).items():
                _put(group, key, flags)

    def _write_tables(self, data: Path, kind: str, labels: Iterable[EpisodeLabels]) -> list[int]:
        written: list[int] = []
        for one in labels:
            path = data_file(data, one.episode.index)
            _write_table(self._labelled(read_table(path, kind), one), path, kind)
            written.append(one.episode.index)
        folders = [folder for folder in data.iterdir() if folder.name.isdecimal()]
        for folder in folders:
            if int(folder.name) not in written:
                shutil.rmtree(folder)
        for number, index in enumerate(written):
            if number != index:
                (data / str(index)).rename(data / str(number))
                about = data / str(number) / METADATA_NAME
                stated = json.loads(about.read_text(encoding="utf-8"))
                about.write_text(json.dumps(stated | {"id": number}), encoding="utf-8")
        return written

    def _labelled(self, table: Any, labels: EpisodeLabels) -> Any:
        import pyarrow as pa

        before = table["rewards"].to_numpy()[:-1]
        _check_length(labels, len(before))
        columns = {name: pa.concat_arrays(table[name].chunks) for name in table.column_names}
        infos: Any = columns.get("infos")
        fields = [] if infos is None else list(infos.type)
        arrays = {field.name: infos.field(field.name) for field in fields}
        new = _new_infos(labels, None if _ENV in arrays else before)
        fields = [field for field in fields if field.name not in new]
        arrays |= {key: pa.array(values) for key, values in new.items()}
        fields += [pa.field(key, arrays[key].type) for key in new]
        columns["infos"] = pa.StructArray.from_arrays(
            [arrays[field.name] for field in fields], fields=fields
        )
        columns["rewards"] = pa.array(np.append(labels.reward.astype(np.float64), 0.0))
        if self._dones == "complete":
            for key, flags in _ends(labels).items():
                columns[key] = pa.array(np.append(flags, False))
        return pa.table(columns).replace_schema_metadata(table.schema.metadata)

    def validate(self, source: Source, staged: Path) -> None:
        """Reopen the copy and compare it with the source.

        Raises:
            DatasetError: If episodes are missing, arrays are of another shape or not finite, or
                what was to be kept has changed.
        """
        before = read_metadata(source.root)
        target = staged / self._new_id(before)
        after = read_metadata(target)
        numbers: Sequence[int] = after["procreward_episodes"]
        kind, episodes = before["data_format"], {one.index: one for one in source.episodes}
        if not numbers or not set(numbers) <= set(episodes) or after["data_format"] != kind:
            raise DatasetError(f"{str(target)!r} must have the source's episodes.")
        for number, index in enumerate(numbers):
            old = _read_arrays(source.root / "data", kind, index)
            new = _read_arrays(target / "data", kind, number)
            self._compare(old, new, episodes[index].length, f"{str(target)!r}, episode {number}")

    def _compare(
        self,
        old: Mapping[str, npt.NDArray[Any]],
        new: Mapping[str, npt.NDArray[Any]],
        length: int,
        where: str,
    ) -> None:
        rewards = new["rewards"]
        problems = {
            "rewards": rewards.shape != (length,)
            or rewards.dtype != np.float64
            or not np.isfinite(rewards).all(),
            f"infos/{_ENV}": not same_values(
                new[f"infos/{_ENV}"],
                old.get(f"infos/{_ENV}", np.append(0.0, old["rewards"])),
            ),
        }
        for key in ("terminations", "truncations"):
            kept = self._dones == "complete" or np.array_equal(old[key], new[key])
            problems[key] = not kept or new[key].shape != (length,)
        for key in ("progress", "success_prob", "complete"):
            problems[f"infos/procreward_{key}"] = new[f"infos/procreward_{key}"].shape != (
                length + 1,
            )
        wrong = [key for key, bad in problems.items() if bad]
        if wrong:
            raise DatasetError(f"{where}: {', '.join(wrong)} not written as it must be.")


def _new_infos(
    labels: EpisodeLabels, env_rewards: npt.NDArray[Any] | None
) -> dict[str, npt.NDArray[Any]]:
    """Return the infos to add, each of T + 1 rows."""
    rows: dict[str, npt.NDArray[Any]] = {
        "procreward_progress": labels.progress.astype(np.float32),
        "procreward_success_prob": labels.success_prob.astype(np.float32),
        "procreward_complete": labels.complete.astype(np.bool_),
    }
    if env_rewards is not None:
        rows[_ENV] = np.append(np.zeros(1, env_rewards.dtype), env_rewards)
    return rows


def _ends(labels: EpisodeLabels) -> dict[str, npt.NDArray[np.bool_]]:
    """Return Minari's flags of an episode that ends only once."""
    terminations = np.zeros(labels.episode.length, np.bool_)
    truncations = terminations.copy()
    terminations[-1] = done_after(labels)[-1]
    truncations[-1] = not terminations[-1]
    return {"terminations": terminations, "truncations": truncations}


def _put(group: Any, key: str, values: npt.NDArray[Any]) -> None:
    """Write an array that can grow, as Minari's are."""
    replace_array(group, key, values, chunks=True, maxshape=(None,))


def _check_length(labels: EpisodeLabels, length: int) -> None:
    if labels.reward.shape != (length,) or labels.progress.shape != (length + 1,):
        raise DatasetError(
            f"The labels of {labels.episode.name!r} must be of {length} actions, got "
            f"{len(labels.reward)}."
        )


def _write_table(table: Any, path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fresh = path.with_name(f".{path.name}")
    if kind == "parquet":
        codec = pq.ParquetFile(path).metadata.row_group(0).column(0).compression.lower()
        # Minari takes what it reads at once for an episode, so it must be one group of rows.
        pq.write_table(table, fresh, compression=codec, row_group_size=table.num_rows)
    else:
        with pa.OSFile(str(fresh), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    fresh.replace(path)


def _read_arrays(data: Path, kind: str, number: int) -> dict[str, npt.NDArray[Any]]:
    """Return the numbers that belong to an episode's steps, without padding."""
    flat = ("rewards", "terminations", "truncations")
    named = (_ENV, "procreward_progress", "procreward_success_prob", "procreward_complete")
    if kind == "hdf5":
        with opened(data / HDF5_NAME) as file:
            episode = file[f"episode_{number}"]
            infos = episode.get("infos", {})
            found = {key: episode[key][()] for key in flat}
            return found | {f"infos/{key}": infos[key][()] for key in named if key in infos}
    table = read_table(data_file(data, number), kind)
    found = {key: table[key].to_numpy()[:-1] for key in flat}
    if "infos" in table.column_names:
        import pyarrow as pa

        infos = pa.concat_arrays(table["infos"].chunks)
        for key in named:
            if infos.type.get_field_index(key) >= 0:
                values = infos.field(key).to_numpy(zero_copy_only=False)
                found[f"infos/{key}"] = values
    return found


def _megabytes(folder: Path) -> float:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return round(size / 1e6, 1)
