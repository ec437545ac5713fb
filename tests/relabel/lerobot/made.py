"""Drawn datasets, labels for them, and their files as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from procreward.relabel.episodes import Episode, EpisodeLabels
from procreward.relabel.lerobot import LeRobotSource, LeRobotWriter
from scripts.sample_data.episodes import SampleEpisode, draw_episodes
from scripts.sample_data.lerobot import write_v21, write_v30

LENGTHS = (6, 9, 7)
VERSIONS = ("v2.1", "v3.0")
VIEW, HAND = "observation.images.agentview", "observation.images.robot0_eye_in_hand"
SIZE = 32


def drawn(lengths: tuple[int, ...] = LENGTHS) -> list[SampleEpisode]:
    return draw_episodes(lengths, size=SIZE)


def make(folder: Path, version: str, *, images: bool = True) -> Path:
    """A dataset of three episodes: in v2.1 two to a folder, in v3.0 two to a file."""
    root = folder / f"{version}-{'images' if images else 'videos'}"
    if version == "v2.1":
        write_v21(drawn(), root, images=images, chunks_size=2)
    else:
        write_v30(drawn(), root, images=images, episodes_per_file=2)
    return root


def label(episode: Episode, *, success: bool = True) -> EpisodeLabels:
    """Labels whose numbers tell the episode (hundreds) and the step."""
    length = episode.length
    steps = np.arange(length, dtype=np.float64)
    progress = steps / length
    return EpisodeLabels(
        episode=episode,
        reward=100.0 * episode.index + steps,
        potential=np.arange(length + 1) / length,
        progress=progress,
        success_prob=progress / 2 if success else np.full(length, np.nan),
        complete=progress > 0.5,
        queried=steps % 2 == 0,
        valid=np.ones(length, bool),
        text=("",) * length,
        terminated=episode.terminated,
    )


def rewrite(
    root: Path, staged: Path, *, only: Sequence[int] | None = None, success: bool = True
) -> LeRobotSource:
    """Write a dataset with labels, validate it and open it."""
    source = LeRobotSource(root)
    staged.mkdir(parents=True)
    chosen = source.episodes if only is None else [source.episodes[index] for index in only]
    writer = LeRobotWriter({})
    writer.write(source, (label(one, success=success) for one in chosen), staged, {"scorer": "x"})
    writer.validate(source, staged)
    return LeRobotSource(staged)


def column(source: LeRobotSource, index: int, name: str) -> list[Any]:
    """A column of an episode, as plain values."""
    files = source.layout.episodes[index]
    values: list[Any] = pq.read_table(files.data).column(name).to_pylist()
    return values[files.row : files.row + files.length]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**read_json(path), **entries}), encoding="utf-8")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
