"""The one file format between rendering and training: episodes with labels in compressed shards.

A shard is a NumPy archive. Neighbouring frames differ little, so frames are stored as their
difference to the one before (modulo 256, hence lossless) and compressed: about a tenth of the size.
Training needs no simulator, only these files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.errors import ConfigError

__all__ = ["STATE_WIDTHS", "Shard", "read_shard", "write_shard"]

STATE_WIDTHS: Mapping[str, int] = {
    "gripper": 3,
    "object": 3,
    "target": 3,
    "grasped": 1,
    "height": 1,
    "distance": 1,
}
"""Privileged state stored per frame, and how many numbers each entry has."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shard:
    """Some episodes of one task.

    Attributes:
        task: Short task name.
        instruction: The environment's own instruction.
        stage_names: The task's stages.
        kinds: Behaviour of each episode.
        seeds: ``(episodes,) int64``.
        lengths: ``(episodes,) int64``: frames of each episode.
        frames: ``(total, 128, 128, 3) uint8``, episode after episode.
        steps: ``(total,) int32``: control step of each frame.
        progress: ``(total,) float32`` in [0, 1].
        stage: ``(total,) int8``.
        success: ``(total,) bool``.
        state: ``(total, 12) float32``: the entries of :data:`STATE_WIDTHS`, concatenated.
    """

    task: str
    instruction: str
    stage_names: tuple[str, ...]
    kinds: tuple[str, ...]
    seeds: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    frames: npt.NDArray[np.uint8]
    steps: npt.NDArray[np.int32]
    progress: npt.NDArray[np.float32]
    stage: npt.NDArray[np.int8]
    success: npt.NDArray[np.bool_]
    state: npt.NDArray[np.float32]

    def starts(self) -> npt.NDArray[np.int64]:
        """Return where each episode begins in the frame arrays, ``(episodes,) int64``."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)


_ARRAYS = ("seeds", "lengths", "steps", "progress", "stage", "success", "state")


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard beside its final name and move it there when it is whole."""
    meta = {
        "task": shard.task,
        "instruction": shard.instruction,
        "stage_names": list(shard.stage_names),
        "kinds": list(shard.kinds),
    }
    arrays: dict[str, Any] = {name: getattr(shard, name) for name in _ARRAYS}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, meta=json.dumps(meta), delta=_difference(shard.frames, shard.starts()), **arrays
        )
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_shard(path: Path) -> Shard:
    """Read a shard.

    Raises:
        ConfigError: If the file is not one.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            arrays: dict[str, Any] = {name: archive[name] for name in _ARRAYS}
            delta = archive["delta"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"`{path}` must be a shard of rendered episodes: {error}") from error
    lengths = arrays["lengths"]
    return Shard(
        task=meta["task"],
        instruction=meta["instruction"],
        stage_names=tuple(meta["stage_names"]),
        kinds=tuple(meta["kinds"]),
        frames=_restore(delta, lengths),
        **arrays,
    )


def _difference(
    frames: npt.NDArray[np.uint8], starts: Sequence[int] | npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    delta = frames.copy()
    delta[1:] -= frames[:-1]
    delta[starts] = frames[starts]
    return delta


def _restore(delta: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    frames = delta
    start = 0
    for length in lengths.tolist():
        for row in range(start + 1, start + length):
            frames[row] += frames[row - 1]
        start += length
    return frames
