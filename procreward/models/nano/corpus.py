"""All rendered episodes in memory, with the labels that training needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.errors import ConfigError
from procreward.models.nano.shards import Shard, read_shard
from procreward.models.nano.tasks import TASKS

__all__ = ["AUX_NAMES", "MARGIN_BOX", "VALIDATION_SEEDS", "Corpus", "load_corpus"]

VALIDATION_SEEDS = range(900_000, 1_000_000)
"""Seeds kept out of training and used to watch it."""

MARGIN_BOX = (0, 0, 104, 128)
"""Top, left, height, width kept of each frame: nano's crop and room to shift it down, in pixels."""

AUX_NAMES = (
    *("gripper_x", "gripper_y", "gripper_z", "object_x", "object_y", "object_z"),
    *("target_x", "target_y", "target_z", "offset_x", "offset_y", "offset_z"),
    *("height", "distance", "progress", "grasped", "success"),
)
"""Order of the auxiliary targets; the last two are yes-or-no."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Frames and labels of many episodes; arrays are per frame unless said otherwise.

    Attributes:
        names: Task names; ``task`` indexes them.
        instructions: The environment's instruction, per task.
        stage_names: Stage names, per task.
        images: ``(frames, 104, 128, 3) uint8``.
        task: ``(frames,) int64``.
        episode: ``(frames,) int64`` number of the episode.
        first: ``(frames,) int64`` index of the episode's first frame.
        last: ``(frames,) int64`` index of the episode's last frame.
        progress: ``(frames,) float32`` in [0, 1].
        stage: ``(frames,) int64``.
        success: ``(frames,) bool``.
        aux: ``(frames, 17) float32`` targets, standardised per task except the last two.
        kinds: Behaviour, per episode.
        seeds: Seed, per episode.
    """

    names: tuple[str, ...]
    instructions: tuple[str, ...]
    stage_names: tuple[tuple[str, ...], ...]
    images: npt.NDArray[np.uint8]
    task: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    progress: npt.NDArray[np.float32]
    stage: npt.NDArray[np.int64]
    success: npt.NDArray[np.bool_]
    aux: npt.NDArray[np.float32]
    kinds: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.task)

    def episodes(self) -> list[tuple[int, int]]:
        """Return first and last frame of every episode, in order."""
        firsts = np.unique(self.first)
        return [(int(f), int(self.last[f])) for f in firsts]


def load_corpus(folder: Path, *, seeds: range, limit: int | None = None) -> Corpus:
    """Load every shard under ``folder`` whose episodes fall in a range of seeds.

    Args:
        folder: Where the shards are.
        seeds: Seeds to take.
        limit: Shards per task at most, for short trials.

    Raises:
        ConfigError: If there is no such shard.
    """
    names = [name for name in TASKS if _paths(folder, name, seeds)]
    if not names:
        raise ConfigError(
            f"`{folder}` must hold rendered shards with seeds {seeds.start} to {seeds.stop - 1}, "
            "but has none; run `python -m procreward.models.nano.render` first."
        )
    columns: dict[str, list[Any]] = {}
    kinds: list[str] = []
    all_seeds: list[int] = []
    meta: dict[str, tuple[str, tuple[str, ...]]] = {}
    total = 0
    for number, name in enumerate(names):
        for path in _paths(folder, name, seeds)[:limit]:
            shard = read_shard(path)
            meta[name] = (shard.instruction, shard.stage_names)
            for key, value in _columns(shard, number, total, len(kinds)).items():
                columns.setdefault(key, []).append(value)
            kinds += shard.kinds
            all_seeds += shard.seeds.tolist()
            total += len(shard.frames)
    arrays: dict[str, Any] = {key: np.concatenate(parts) for key, parts in columns.items()}
    arrays["aux"] = _standardise(arrays["aux"], arrays["task"])
    _log.info("%d frames of %d episodes, tasks %s", total, len(kinds), ", ".join(names))
    return Corpus(
        names=tuple(names),
        instructions=tuple(meta[name][0] for name in names),
        stage_names=tuple(meta[name][1] for name in names),
        kinds=tuple(kinds),
        seeds=tuple(all_seeds),
        **arrays,
    )


def stage_vocabulary(folder: Path) -> list[str]:
    """Return every stage name that occurs in the shards of a folder, sorted."""
    found: set[str] = set()
    for name in TASKS:
        paths = sorted(folder.glob(f"{name}-*.npz"))
        if paths:
            found.update(read_shard(paths[0]).stage_names)
    return sorted(found)


def _paths(folder: Path, name: str, seeds: range) -> list[Path]:
    paths = sorted(folder.glob(f"{name}-[0-9]*.npz"))
    return [path for path in paths if int(path.stem.split("-")[1]) in seeds]


def _columns(shard: Shard, task: int, offset: int, episodes: int) -> Mapping[str, Any]:
    top, left, height, width = MARGIN_BOX
    starts, count = shard.starts(), len(shard.frames)
    owner = np.repeat(np.arange(len(shard.lengths)), shard.lengths)
    gripper, thing = shard.state[:, 0:3], shard.state[:, 3:6]
    aux = np.concatenate(
        (
            shard.state[:, :9],
            thing - gripper,
            np.clip(shard.state[:, 10:11], -0.05, 0.2),
            np.clip(shard.state[:, 11:12], 0.0, 0.4),
            shard.progress[:, None],
            shard.state[:, 9:10],
            shard.success[:, None],
        ),
        axis=1,
    ).astype(np.float32)
    return {
        "images": shard.frames[:, top : top + height, left : left + width].copy(),
        "task": np.full(count, task, dtype=np.int64),
        "episode": owner.astype(np.int64) + episodes,
        "first": starts[owner] + offset,
        "last": (starts + shard.lengths - 1)[owner] + offset,
        "progress": shard.progress,
        "stage": shard.stage.astype(np.int64),
        "success": shard.success,
        "aux": aux,
    }


def _standardise(
    aux: npt.NDArray[np.float32], task: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    out = aux.copy()
    for number in np.unique(task):
        rows = task == number
        values = aux[rows, :-2]
        spread = values.std(axis=0)
        # What never changes in a task carries no signal: its target becomes exactly zero.
        scaled = (values - values.mean(axis=0)) / np.where(spread > 1e-3, spread, np.inf)
        out[rows, :-2] = np.clip(scaled, -4.0, 4.0)
    return out


def phrasings(corpus: Corpus, task: int) -> Sequence[str]:
    """Return every wording of a task that training uses, the environment's own first."""
    texts = [corpus.instructions[task]]
    for text in TASKS[corpus.names[task]].phrasings:
        capital = text[0].upper() + text[1:]
        texts += [text, f"{text}.", capital, f"{capital}."]
    return list(dict.fromkeys(texts))
