"""Rewards in a copy of a robomimic file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from procreward.checks import check_choice, check_names
from procreward.errors import DatasetError
from procreward.relabel._hdf5 import as_json, done_after, opened, replace_array, same_values
from procreward.relabel._hdf5_times import clear_times
from procreward.relabel.episodes import EpisodeLabels, Source

if TYPE_CHECKING:
    from procreward.relabel.episodes import Episode

__all__ = ["RobomimicWriter"]

_KEPT: Final = ("actions", "states", "rewards_env", "dones_env", "dones")


class RobomimicWriter:
    """Copies a robomimic file and puts rewards into the copy.

    Every demo gets, with T actions:

    * ``rewards``, ``(T,) float64`` whatever the type before, so that they equal those paid online;
      the ones before are kept as ``rewards_env``.
    * ``progress`` and ``success_prob``, ``(T,) float32`` of the pictures in ``obs``, NaN where
      nothing is known, and ``complete``, ``(T,) bool``.
    * ``dones`` only if asked; the ones before are kept as ``dones_env``.

    ``data`` gets an attribute ``procreward``, JSON. Names of demos, actions, states, pictures,
    filter keys, ``num_samples`` and ``total`` stay. Where labels are given for some demos only, the
    others are left out, and with them their names in filter keys and their share of ``total``
    and of LIBERO's ``num_demos``.

    Args:
        options: ``dones``: ``"keep"`` (the default), or ``"complete"`` to set ``dones`` after each
            action after which the task counts as done.

    Raises:
        UnknownNameError: If there is no such option.
        ConfigError: If an option has another value.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_names("option", options, ("dones",))
        self._dones = options.get("dones", "keep")
        check_choice("dones", self._dones, ("keep", "complete"))

    def write(
        self,
        source: Source,
        labels: Iterable[EpisodeLabels],
        staged: Path,
        provenance: Mapping[str, Any],
    ) -> None:
        """Write a file of the same name into ``staged``.

        Args:
            source: The file as it is.
            labels: Of every demo that is written.
            staged: An empty folder.
            provenance: Becomes the attribute ``procreward`` of ``data``.

        Raises:
            DatasetError: If there are no labels, or they are not those of the demos.
        """
        target = staged / source.root.name
        shutil.copyfile(source.root, target)
        with opened(target, "r+") as file:
            data = file["data"]
            written = set()
            for one in labels:
                self._label(data, one)
                written.add(one.episode.name)
            if not written:
                raise DatasetError(f"No demo of {str(source.root)!r} has labels to write.")
            _leave_out(file, [name for name in data if name not in written])
            if "procreward" in data.attrs:
                # Overwriting goes through an attribute with a random name.
                del data.attrs["procreward"]
            data.attrs["procreward"] = as_json(provenance)
        clear_times(target)

    def _label(self, data: Any, labels: EpisodeLabels) -> None:
        name, length = labels.episode.name, labels.episode.length
        demo = data.get(name)
        if demo is None or len(demo["actions"]) != length or labels.reward.shape != (length,):
            raise DatasetError(f"The labels of {name!r} must be of a demo of {length} actions.")
        _keep(demo, "rewards")
        replace_array(demo, "rewards", labels.reward.astype(np.float64))
        replace_array(demo, "progress", labels.progress[:length].astype(np.float32))
        replace_array(demo, "success_prob", labels.success_prob[:length].astype(np.float32))
        replace_array(demo, "complete", labels.complete[:length].astype(np.bool_))
        if self._dones == "complete":
            dtype = demo["dones"].dtype if "dones" in demo else np.dtype(np.int64)
            _keep(demo, "dones")
            replace_array(demo, "dones", done_after(labels).astype(dtype))

    def validate(self, source: Source, staged: Path) -> None:
        """Reopen the copy as robomimic does and compare it with the source.

        Raises:
            DatasetError: If arrays are missing, of another shape or not finite, or if what was to
                be kept has changed.
        """
        target = staged / source.root.name
        with (
            opened(source.root) as before,
            opened(target, swmr=True, libver="latest") as after,
        ):
            episodes = {episode.name: episode for episode in source.episodes}
            unknown = set(after["data"]) - set(episodes)
            _check(not unknown and len(after["data"]) > 0, target, "must have the source's demos")
            for name in after["data"]:
                self._compare(before["data"][name], after["data"][name], episodes[name], target)
            total = sum(episodes[name].length for name in after["data"])
            if "total" in before["data"].attrs:
                _check(after["data"].attrs["total"] == total, target, f"`total` must be {total}")
            for key in before.get("mask", {}):
                kept = [name for name in before["mask"][key][()] if name.decode() in after["data"]]
                listed = after.get(f"mask/{key}", ())
                _check(list(listed) == kept, target, f"`mask/{key}` must be kept")

    def _compare(self, before: Any, after: Any, episode: Episode, target: Path) -> None:
        shape, where = (episode.length,), f"{episode.name}: "
        types = {"rewards": "f8", "progress": "f4", "success_prob": "f4", "complete": "?"}
        for key, dtype in types.items():
            ok = key in after and after[key].shape == shape and after[key].dtype == dtype
            _check(ok, target, f"{where}`{key}` must be {shape} {np.dtype(dtype)}")
        _check(bool(np.isfinite(after["rewards"][()]).all()), target, f"{where}finite `rewards`")
        if "rewards" in before and "rewards_env" not in before:
            same = _equal(before["rewards"], after.get("rewards_env"))
            _check(same, target, f"{where}`rewards_env` must be the rewards before")
        for key in _KEPT:
            if key in before and not (key == "dones" and self._dones == "complete"):
                same = _equal(before[key], after.get(key))
                _check(same, target, f"{where}`{key}` must be as before")
        for group in ("obs", "next_obs"):
            for key in before.get(group, {}):
                same = _extent(before[group][key]) == _extent(after.get(f"{group}/{key}"))
                _check(same, target, f"{where}`{group}/{key}` must be as before")
        stated = before.attrs.get("num_samples", episode.length)
        found = after.attrs.get("num_samples", episode.length)
        _check(stated == found, target, f"{where}`num_samples` must be {stated}")


def _extent(member: Any) -> tuple[Any, ...]:
    """Shape and type of an array, the names in a group, or that nothing is there."""
    if hasattr(member, "shape"):
        return member.shape, member.dtype
    return () if member is None else ("group", *member)


def _equal(before: Any, after: Any) -> bool:
    return after is not None and same_values(before[()], after[()])


def _keep(demo: Any, key: str) -> None:
    """Rename what the environment gave; what an earlier relabelling gave is dropped."""
    if key not in demo:
        return
    if f"{key}_env" in demo:
        del demo[key]
    else:
        demo.move(key, f"{key}_env")


def _leave_out(file: Any, names: list[str]) -> None:
    if not names:
        return
    data = file["data"]
    for name in names:
        del data[name]
    for key in file.get("mask", {}):
        listed = file["mask"][key]
        kept = listed[()][~np.isin(listed[()].astype("S"), np.array(names, "S"))]
        replace_array(file["mask"], key, kept, dtype=listed.dtype)
    if "total" in data.attrs:
        data.attrs.modify("total", sum(len(data[name]["actions"]) for name in data))
    if "num_demos" in data.attrs:  # LIBERO's
        data.attrs.modify("num_demos", len(data))


def _check(ok: bool, path: Path, rule: str) -> None:
    if not ok:
        raise DatasetError(f"{str(path)!r} was not written as it must be: {rule}.")
