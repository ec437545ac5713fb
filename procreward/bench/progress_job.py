"""The ProgressLM job: one picture against a demonstration of eight key frames."""

from __future__ import annotations

from pathlib import Path

from procreward.bench.episodes import lift_recordings
from procreward.bench.frames import Episode
from procreward.bench.progress_twin import TrainSettings, demonstration, train_progress_twin
from procreward.engine.loading import LoadedModel, load_model
from procreward.scorers.demonstration import Demonstration

__all__ = ["progress_material"]

_DEMO, _HELD_OUT = 4, 8
"""The recording that demonstrates, and how many are not trained on."""


def progress_material(
    episodes: int, steps: int, cache: Path, training: TrainSettings | None = None
) -> tuple[LoadedModel, Demonstration, list[Episode]]:
    """Train the twin if need be, and return what it is measured with.

    Args:
        episodes: Recordings of Lift, more than eight.
        steps: Most steps of each.
        cache: Folder for recordings and the trained model.
        training: How it is trained; None for the settings whose result is kept.

    Returns:
        The model, the demonstration, and episodes that were neither trained on nor demonstrate.
    """
    recordings = lift_recordings(episodes, steps, cache)
    demo = demonstration(recordings[_DEMO])
    folder = cache / f"progress-twin-{episodes}-{steps}"
    train_progress_twin(recordings[_HELD_OUT:], demo, folder, training)
    held_out = [one.episode for place, one in enumerate(recordings[:_HELD_OUT]) if place != _DEMO]
    return load_model(str(folder), device="cpu", dtype="float32", threads=1), demo, held_out
