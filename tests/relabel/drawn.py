"""What the tests of the HDF5 formats share: labels, and a scorer that sees the drawn square."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from procreward import registry
from procreward.config import RewardConfig
from procreward.plan import StreamPlan
from procreward.relabel.deriving import derive
from procreward.relabel.episodes import Episode, EpisodeLabels, Source
from procreward.relabel.scoring import EpisodeJob, GroupJob, score_group
from procreward.types import Query, Score

NAN = float("nan")


class Column:
    """Progress is how far the square of a drawn episode has come."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        return [Score(progress=self._share(query)) for query in queries]

    def _share(self, query: Query) -> float:
        picture = next(iter(query.frames.values()))[-1]
        columns = np.flatnonzero((picture[..., 0] > 200).any(axis=0))
        return float(columns[0]) / (picture.shape[1] - picture.shape[1] // 8)

    def describe(self) -> Mapping[str, object]:
        return {"name": "column"}


def seen_rewards(source: Source, view: str) -> list[list[float]]:
    """What the steps of each episode are worth: how far the square went with them."""
    config = RewardConfig(
        scorer=Column(), window_frames=1, every_k_steps=1, frame_stride_steps=1, shaping="delta"
    )
    job = GroupJob(
        source=str(source.root),
        format=source.format,
        config=config,
        views=(view,),
        episodes=tuple(
            EpisodeJob(index=one.index, instruction=one.instruction) for one in source.episodes
        ),
    )
    plan = StreamPlan.from_config(config)
    found = score_group(job, source).episodes
    registry.clear_scorers()
    labels = [
        derive(plan, episode, {one.frame: one for one in each.readings})
        for episode, each in zip(source.episodes, found, strict=True)
    ]
    return [one.reward.tolist() for one in labels]


def labels_of(episode: Episode, **changes: Any) -> EpisodeLabels:
    """Labels that count up, with the first picture unknown."""
    steps, seen = np.arange(episode.length), np.arange(episode.frames)
    fields: dict[str, Any] = {
        "reward": 0.1 * (steps + 1) + episode.index,
        "potential": np.zeros(episode.length + 1),
        "progress": np.where(seen > 0, seen / 16.0, NAN),
        "success_prob": np.full(episode.frames, NAN),
        "complete": seen >= 3,
        "queried": seen > 0,
        "valid": seen > 0,
        "text": ("",) * episode.frames,
        "terminated": episode.terminated,
    }
    return EpisodeLabels(episode=episode, **{**fields, **changes})


def digest(folder: Path) -> dict[str, str]:
    """The files of a folder, and what is in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
