"""Recordings without a simulator, in the file that benchmarks look for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from procreward.bench import episodes
from procreward.bench.episodes import FIRST_SEED, Recording
from procreward.bench.frames import Episode, moving_frames


def recordings(count: int, steps: int) -> list[Recording]:
    """Episodes whose progress rises from 0 to 1."""
    return [
        Recording(
            episode=Episode(
                name=f"lift-{FIRST_SEED + index}",
                frames={"front": moving_frames(steps, (128, 128), seed=index)},
                instruction="lift the cube",
                fps=20.0,
            ),
            kind=episodes.KINDS[index % len(episodes.KINDS)],
            progress=np.linspace(0.0, 1.0, steps, dtype=np.float32),
            stage=np.arange(steps) * 3 // steps,
            stage_names=("reach", "grasp", "lift"),
        )
        for index in range(count)
    ]


def keep(count: int, steps: int, cache: Path) -> None:
    """Write recordings where ``lift_recordings`` finds them."""
    path = cache / f"lift-{FIRST_SEED}-{count}-{steps}.npz"
    episodes._write(path, recordings(count, steps))
