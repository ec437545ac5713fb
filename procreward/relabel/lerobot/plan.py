"""What changes in a dataset: its columns, its features and, when episodes go, their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.errors import DatasetError
from procreward.relabel.episodes import EpisodeLabels
from procreward.relabel.lerobot.layout import EpisodeFiles
from procreward.relabel.lerobot.source import LeRobotSource
from procreward.relabel.lerobot.stats import Stats, describe

__all__ = ["ENV_REWARD", "NOTE", "REWARD", "RewritePlan", "WrittenEpisode", "make_plan"]

REWARD = "next.reward"
"""LeRobot's name of the reward of ``(s_t, a_t, s_{t+1})``."""

ENV_REWARD = "next.reward_env"
"""Where the reward that was there before is kept."""

NOTE = "meta/procreward.json"
"""The file that says where the rewards come from."""

_OURS = {"progress": "float32", "success_prob": "float32", "complete": "bool"}

Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenEpisode:
    """An episode of the new dataset.

    Attributes:
        files: Where it is in the old dataset.
        index: Its new ``episode_index``.
        first_index: The new ``index`` of its first frame.
        columns: Name to ``(T,)``, the new columns.
    """

    files: EpisodeFiles
    index: int
    first_index: int
    columns: Columns

    def stats(self, names: Iterable[str]) -> dict[str, Stats]:
        """Describe the new columns; those without a finite value are left out."""
        wanted = tuple(names)
        described = {key: describe(values, wanted) for key, values in self.columns.items()}
        return {key: stats for key, stats in described.items() if stats is not None}


@dataclass(frozen=True, kw_only=True)
class RewritePlan:
    """What the new dataset is to be.

    Attributes:
        source: The old one.
        episodes: The episodes that are written, in order.
        dropped: Columns of the old one that are left out.
        renamed: Old name to new name of columns that are kept under another.
        features: The new features, by name, in order.
    """

    source: LeRobotSource
    episodes: tuple[WrittenEpisode, ...]
    dropped: tuple[str, ...]
    renamed: Mapping[str, str]
    features: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether every episode of the old dataset is written."""
        return len(self.episodes) == len(self.source.episodes)

    @property
    def total_frames(self) -> int:
        """Frames of the new dataset."""
        return sum(episode.files.length for episode in self.episodes)

    @cached_property
    def numbers(self) -> Mapping[int, int]:
        """Old ``episode_index`` to the new one."""
        return {episode.files.index: episode.index for episode in self.episodes}

    def columns(self) -> tuple[str, ...]:
        """Return the new columns' names."""
        return tuple(self.episodes[0].columns)

    def stats(self, names: Iterable[str]) -> dict[str, Stats]:
        """Describe the new columns over all episodes."""
        wanted = tuple(names)
        stats = {}
        for key in self.columns():
            values = np.concatenate([episode.columns[key] for episode in self.episodes])
            if (described := describe(values, wanted)) is not None:
                stats[key] = described
        return stats

    def kept(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said of the old features, under the new names."""
        return {
            self.renamed.get(key, key): value
            for key, value in entries.items()
            if key not in self.dropped
        }


def make_plan(source: LeRobotSource, labels: Iterable[EpisodeLabels]) -> RewritePlan:
    """Decide what changes.

    Args:
        source: The old dataset.
        labels: Of the episodes to write, in order.

    Raises:
        DatasetError: If labels are not those of its episodes, or a feature is in the way.
    """
    columns = [(label.episode.index, _columns(source, label)) for label in labels]
    indices = [index for index, _ in columns]
    if not indices or indices != sorted(set(indices)):
        raise DatasetError(f"`labels` must be of episodes in order, each once, got {indices}.")
    # A column of nothing but NaN would only break statistics.
    has_success = any(np.isfinite(values["success_prob"]).any() for _, values in columns)
    episodes, first = [], 0
    for number, (index, values) in enumerate(columns):
        files = source.layout.episodes[index]
        kept = {key: array for key, array in values.items() if key != "success_prob" or has_success}
        episodes.append(WrittenEpisode(files=files, index=number, first_index=first, columns=kept))
        first += files.length
    dropped, renamed = _old_columns(source)
    return RewritePlan(
        source=source,
        episodes=tuple(episodes),
        dropped=dropped,
        renamed=renamed,
        features=_features(source, dropped, renamed, tuple(episodes[0].columns)),
    )


def _columns(source: LeRobotSource, labels: EpisodeLabels) -> Columns:
    index, length = labels.episode.index, labels.episode.length
    if index >= len(source.episodes) or source.episodes[index] != labels.episode:
        raise DatasetError(
            f"`labels` must be of episodes of {str(source.root)!r}, got {labels.episode}."
        )
    columns = {
        REWARD: labels.reward.astype(np.float32),
        "progress": labels.progress.astype(np.float32),
        "success_prob": labels.success_prob.astype(np.float32),
        "complete": labels.complete.astype(np.bool_),
    }
    for name, values in columns.items():
        if values.shape != (length,):
            raise DatasetError(
                f"`{name}` of {labels.episode.name} must have {length} values, got {values.shape}."
            )
    if not np.isfinite(columns[REWARD]).all():
        raise DatasetError(f"The rewards of {labels.episode.name} must be finite.")
    return columns


def _old_columns(source: LeRobotSource) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return which columns go and which change their names."""
    declared = source.info.features
    ours = [name for name in _OURS if name in declared]
    if ours and not (source.root / NOTE).is_file():
        raise DatasetError(
            f"{str(source.root)!r} has a feature {ours[0]!r} of its own, which ours would replace; "
            "rename it first (LeRobot's dataset tools do), or use procreward_progress.parquet."
        )
    if ENV_REWARD in declared:  # rewritten before: the environment's own reward stays
        return (*ours, REWARD), {}
    return tuple(ours), {REWARD: ENV_REWARD} if REWARD in declared else {}


def _features(
    source: LeRobotSource,
    dropped: tuple[str, ...],
    renamed: Mapping[str, str],
    columns: tuple[str, ...],
) -> dict[str, Any]:
    old = source.info.features
    # v3.0 datasets that were converted state the rate with each column.
    extra = {key: old["index"][key] for key in ("fps",) if key in old["index"]}
    new = {
        name: {"dtype": _OURS.get(name, "float32"), "shape": [1], "names": None, **extra}
        for name in columns
    }
    if isinstance(old.get(REWARD, {}).get("names"), list):
        new[REWARD]["names"] = old[REWARD]["names"]
    features: dict[str, Any] = {}
    for key, feature in old.items():
        if key == REWARD:
            features[REWARD] = new[REWARD]
        if key not in dropped:
            features[renamed.get(key, key)] = dict(feature)
    return features | new
