"""Write datasets and relabel them: ``python -m scripts.verify_lerobot FOLDER [MORE ...]``.

Rewards are drawn, not scored: what is verified is where they end up. More datasets may be
named, such as ``data/sample/lerobot-v3.0``; they are relabelled and read back likewise.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from procreward.relabel.episodes import Episode, EpisodeLabels
from procreward.relabel.lerobot import LeRobotSource, LeRobotWriter
from procreward.relabel.sidecar import SidecarWriter
from scripts.sample_data.episodes import draw_episodes
from scripts.sample_data.lerobot import write_v21, write_v30

LENGTHS = (6, 9, 7, 12, 5)
# Episodes of which labels are given; the rest is left out.
SOME = (1, 3, 4)
SAMPLES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "v2.1-video": (write_v21, {}),
    "v2.1-image": (write_v21, {"images": True, "chunks_size": 2}),
    "v3.0-video": (write_v30, {"episodes_per_file": 3}),
    "v3.0-av1": (write_v30, {"codec": "libsvtav1"}),
    "v3.0-image": (write_v30, {"images": True, "episodes_per_file": 2}),
}


def main() -> None:
    """Write ``sample-*``, ``all-*`` and ``some-*``, each with an npz of what is to be read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", type=Path, nargs="*")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    for name, (write, options) in SAMPLES.items():
        write(draw_episodes(LENGTHS), folder / f"sample-{name}", **options)
    for path in arguments.more:
        shutil.copytree(path, folder / f"sample-{path.name.removeprefix('lerobot-')}")
    for path in sorted(folder.glob("sample-*")):
        source = LeRobotSource(path)
        name = path.name.removeprefix("sample-")
        _note(source, source.episodes, None, path)
        for part, chosen in (
            ("all", source.episodes),
            ("some", [source.episodes[i] for i in SOME]),
        ):
            staged = folder / f"{part}-{name}"
            staged.mkdir()
            labels = [_draw(episode, success=part == "all") for episode in chosen]
            writer = LeRobotWriter({})
            writer.write(source, labels, staged, {"scorer": "drawn"})
            writer.validate(source, staged)
            _note(source, chosen, labels, staged)
            _write_sidecar(labels, folder / f"{staged.name}.parquet")


def _draw(episode: Episode, *, success: bool) -> EpisodeLabels:
    length = episode.length
    rng = np.random.default_rng(episode.index)
    progress = np.sort(rng.random(length))
    if episode.index == 1:
        progress[:2] = np.nan  # nothing is known before the first answer
    return EpisodeLabels(
        episode=episode,
        reward=rng.normal(size=length),
        potential=np.linspace(0, 1, length + 1),
        progress=progress,
        success_prob=rng.random(length) if success else np.full(length, np.nan),
        complete=progress > 0.8,
        queried=np.ones(length, bool),
        valid=np.ones(length, bool),
        text=("",) * length,
        terminated=episode.terminated,
    )


def _note(
    source: LeRobotSource,
    episodes: Sequence[Episode],
    labels: Sequence[EpisodeLabels] | None,
    target: Path,
) -> None:
    """Keep what is to be read of a dataset, frames after frames."""
    facts: dict[str, Any] = {
        "version": source.info.version,
        "lengths": [episode.length for episode in episodes],
        "tasks": [episode.instruction for episode in episodes],
    }
    for view in source.views:
        facts[f"picture.{view}"] = np.stack(
            [frame[view] for episode in episodes for frame in source.frames(episode, [view])]
        )
    rewards = "next.reward" if labels is None else "next.reward_env"
    facts[f"column.{rewards}"] = np.concatenate([_old(source, one) for one in episodes])
    if labels is not None:
        columns = {"next.reward": "reward", "progress": "progress", "complete": "complete"}
        if np.isfinite(np.concatenate([one.success_prob for one in labels])).any():
            columns["success_prob"] = "success_prob"
        for name, attribute in columns.items():
            values = np.concatenate([getattr(one, attribute) for one in labels])
            facts[f"column.{name}"] = values if name == "complete" else values.astype(np.float32)
    np.savez(target.parent / f"{target.name}.npz", **facts)


def _old(source: LeRobotSource, episode: Episode) -> Any:
    files = source.layout.episodes[episode.index]
    column = pq.read_table(files.data).column("next.reward").to_numpy()
    return column[files.row : files.row + files.length]


def _write_sidecar(labels: Sequence[EpisodeLabels], path: Path) -> None:
    first = 0
    with SidecarWriter(path, {"reward_model_path": "drawn"}) as writer:
        for number, one in enumerate(labels):
            # The episodes of the new dataset are numbered anew.
            writer.add(replace(one, episode=replace(one.episode, index=number)), first)
            first += one.episode.length


if __name__ == "__main__":
    main()
