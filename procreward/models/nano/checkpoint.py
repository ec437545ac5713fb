"""Everything a run needs to go on after it was stopped, in one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: "vision", "joint" or "done".
        step: Steps taken in the phase.
        seconds: Training seconds spent in the phase.
    """

    phase: str = "vision"
    step: int = 0
    seconds: float = 0.0

    def enter(self, phase: str) -> None:
        """Begin another phase."""
        self.phase, self.step, self.seconds = phase, 0, 0.0


def save_checkpoint(path: Path, modules: dict[str, Any], progress: Progress, rng: Any) -> None:
    """Write beside the target and rename, so that a kill leaves the older file whole."""
    state = {name: module.state_dict() for name, module in modules.items()}
    content = {
        "modules": state,
        "progress": [progress.phase, progress.step, progress.seconds],
        "rng": rng.bit_generator.state,
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path, modules: dict[str, Any], rng: Any) -> Progress:
    """Restore ``modules`` (those the file has) and the generator; returns how far the run was."""
    content = torch.load(path, weights_only=True)
    for name, module in modules.items():
        if name in content["modules"]:
            module.load_state_dict(content["modules"][name])
    rng.bit_generator.state = content["rng"]
    phase, step, seconds = content["progress"]
    return Progress(phase, int(step), float(seconds))
