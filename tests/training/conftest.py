from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procreward import registry
from procreward.training.config import TrainConfig, train_config
from tests.training.envs import CORRIDOR

SCORERS = {
    name.lower(): f"tests.training.envs:{name}" for name in ("Bright", "Interrupting", "Dying")
}
LEARNERS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}},
    "sac": {
        "buffer_size": 500,
        "learning_starts": 48,
        "batch_size": 16,
        "policy_kwargs": {"net_arch": [8]},
    },
}


@pytest.fixture(autouse=True)
def scorers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", SCORERS)


def settings(out: Path, /, algorithm: str = "ppo", **changes: Any) -> dict[str, Any]:
    """A run of a moment, as a YAML file would hold it."""
    return {
        "env": CORRIDOR,
        "algorithm": algorithm,
        "total_steps": 128,
        "num_envs": 2,
        "reward": {"scorer": "bright", "every_k_steps": 3, "shaping": "delta", "gamma": 0.9},
        "learner": LEARNERS.get(algorithm, {}),
        "checkpoint_every_steps": 64,
        "eval": {"every_steps": 64, "episodes": 2, "video": 0},
        "out": str(out),
        **changes,
    }


def config(out: Path, algorithm: str = "ppo", **changes: Any) -> TrainConfig:
    return train_config(settings(out, algorithm, **changes))
