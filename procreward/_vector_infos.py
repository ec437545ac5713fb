"""The ``info`` of vector environments: arrays over sub-environments, with a mask beside each.

Gymnasium's convention: beside every ``key`` there is ``_key``, ``(num_envs,) bool``, which tells
which sub-environments the values belong to. Nested dictionaries have masks on every level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.wrapping import INFO_KEY, InfoEntry

__all__ = ["Mask", "Turn", "add_entries", "merge_infos", "select_infos", "single_info"]

Infos = dict[str, Any]
Mask = npt.NDArray[np.bool_]

DTYPES: dict[type, type] = {bool: np.bool_, int: np.int64, float: np.float64}


class Turn:
    """What a step of a vector environment returns, while it is being put together.

    Attributes:
        obs: The batch of observations.
        infos: What the environment says; arrays and masks.
        final_obs: Last observations of episodes that have ended, ``(num_envs,) object``.
        final_infos: What the environment says of these ends.
        rewards: ``(num_envs,) float64``.
        terminated: ``(num_envs,) bool``.
        truncated: ``(num_envs,) bool``.
        entries: Our entries of the steps, by sub-environment.
        first: Our entries of episodes that begin in the same step.
    """

    def __init__(self, num_envs: int, obs: Any, infos: Infos) -> None:
        """Begin with what the environment returned."""
        self.obs, self.infos = obs, infos
        self.final_obs = np.full(num_envs, None, object)
        self.final_infos: Infos = {}
        self.rewards = np.zeros(num_envs)
        self.terminated, self.truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self.entries: dict[int, InfoEntry] = {}
        self.first: dict[int, InfoEntry] = {}

    def shown_infos(self) -> Infos:
        """Return the infos with our entries, those of ended episodes in ``final_info``."""
        num_envs = len(self.rewards)
        infos = add_entries(self.infos, self.entries | self.first, num_envs)
        if self.first:
            over = self.terminated | self.truncated
            finals = {index: self.entries[index] for index in sorted(self.first)}
            infos["final_obs"], infos["_final_obs"] = self.final_obs, over
            infos["final_info"] = add_entries(self.final_infos, finals, num_envs)
            infos["_final_info"] = over.copy()
        return infos


def _values(infos: Mapping[str, Any]) -> list[str]:
    """The keys that are no masks."""
    return [key for key in infos if not (key.startswith("_") and key[1:] in infos)]


def _mask(infos: Mapping[str, Any], key: str, outer: Mask) -> Mask:
    # Some wrappers write no masks inside their dictionaries.
    found = infos.get(f"_{key}")
    return outer if found is None else np.asarray(found, bool) & outer


def select_infos(infos: Mapping[str, Any], mask: Mask) -> Infos:
    """Keep what belongs to some sub-environments.

    Args:
        infos: Arrays and masks.
        mask: Which sub-environments, ``(num_envs,) bool``.

    Returns:
        New arrays; a key that belongs to none of them is left out.
    """
    out: Infos = {}
    for key in _values(infos):
        kept = _mask(infos, key, mask)
        if not kept.any():
            continue
        value = infos[key]
        if not _by_sub_env(value, len(mask)):
            out[key] = value
            continue
        if isinstance(value, Mapping):
            out[key] = select_infos(value, kept)
        else:
            array = np.asarray(value)
            out[key] = _empty(array)
            out[key][kept] = array[kept]
        out[f"_{key}"] = kept
    return out


def merge_infos(first: Mapping[str, Any], second: Mapping[str, Any]) -> Infos:
    """Join the infos of different sub-environments.

    Args:
        first: Arrays and masks.
        second: Likewise; wins where both speak of one sub-environment.

    Returns:
        New dictionaries; arrays are new where both had the key.
    """
    out: Infos = dict(first)
    for key in _values(second):
        theirs = second[key]
        if key not in first:
            out |= {name: second[name] for name in (key, f"_{key}") if name in second}
            continue
        ours = first[key]
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            out[key] = merge_infos(ours, theirs)
        elif f"_{key}" not in second and not _by_sub_env(theirs, np.size(ours)):
            out[key] = theirs
        else:
            taken = np.asarray(second.get(f"_{key}", np.ones(len(theirs), bool)))
            out[key] = _overwritten(np.asarray(ours), np.asarray(theirs), taken)
        if f"_{key}" in first and f"_{key}" in second:
            out[f"_{key}"] = first[f"_{key}"] | second[f"_{key}"]
    return out


def single_info(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the info of one sub-environment, as it gave it.

    Args:
        infos: Arrays and masks.
        index: Which sub-environment.
    """
    out: dict[str, Any] = {}
    for key in _values(infos):
        mask = infos.get(f"_{key}")
        if mask is not None and not mask[index]:
            continue
        value = infos[key]
        if isinstance(value, Mapping):
            out[key] = single_info(value, index)
        else:
            out[key] = value if mask is None and not np.ndim(value) else value[index]
    return out


def add_entries(
    infos: Mapping[str, Any], entries: Mapping[int, Mapping[str, float | int | bool]], num_envs: int
) -> Infos:
    """Put our entry beside those of the environment.

    Args:
        infos: Arrays and masks; not changed.
        entries: Index of a sub-environment to its entry; all have the same keys.
        num_envs: Number of sub-environments.
    """
    if not entries:
        return dict(infos)
    mask = np.zeros(num_envs, bool)
    mask[list(entries)] = True
    ours: Infos = {}
    for key, example in next(iter(entries.values())).items():
        ours[key] = np.zeros(num_envs, DTYPES[type(example)])
        for index, entry in entries.items():
            ours[key][index] = entry[key]
        ours[f"_{key}"] = mask.copy()
    return {**infos, INFO_KEY: ours, f"_{INFO_KEY}": mask}


def _by_sub_env(value: Any, num_envs: int) -> bool:
    """Whether a value has an entry per sub-environment; some environments add others."""
    return isinstance(value, Mapping) or (np.ndim(value) > 0 and len(value) == num_envs)


def _empty(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype == object:
        return np.full(array.shape, None, object)
    return np.zeros_like(array)


def _overwritten(ours: npt.NDArray[Any], theirs: npt.NDArray[Any], taken: Mask) -> npt.NDArray[Any]:
    alike = ours.dtype != object and theirs.dtype != object and ours.shape == theirs.shape
    if alike:
        out = ours.astype(np.result_type(ours, theirs))
        out[taken] = theirs[taken]
        return out
    out = np.full(len(ours), None, object)
    for index in range(len(ours)):
        out[index] = (theirs if taken[index] else ours)[index]
    return out
