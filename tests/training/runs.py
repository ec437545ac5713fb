"""Runs, and what is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import VecNormalize

from procreward.training.checkpoints import newest_checkpoint
from procreward.training.learner import find_algorithm
from procreward.training.run import TrainReport, train
from tests.training.conftest import config


def run(out: Path, algorithm: str = "ppo", resume: bool = False, **changes: Any) -> TrainReport:
    return train(config(out, algorithm, **changes), lambda _: None, resume=resume)


def last(out: Path, algorithm: str = "ppo") -> BaseAlgorithm:
    newest = newest_checkpoint(out)
    assert newest is not None
    return find_algorithm(algorithm).load(newest.folder / "policy.zip")


def parameters(out: Path, algorithm: str = "ppo") -> list[Any]:
    """The policy, its optimisers and the statistics of the last checkpoint, as bytes."""
    model = last(out, algorithm)
    found: list[Any] = []
    for name, state in sorted(model.get_parameters().items()):
        for key, value in _leaves(state):
            held = value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
            found.append((name, key, held))
    return found


def _leaves(state: Any, path: str = "") -> Any:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _leaves(value, f"{path}.{key}")
    elif isinstance(state, list):
        for key, value in enumerate(state):
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, state


def statistics(out: Path) -> list[Any]:
    newest = newest_checkpoint(out)
    assert newest is not None
    stored = load_from_pkl(newest.folder / "normalisation.pkl")
    assert isinstance(stored, VecNormalize)
    rms: Any = stored.obs_rms
    return [rms.mean.tolist(), rms.var.tolist(), rms.count]


def episodes(out: Path) -> list[str]:
    """The episodes of all monitors, a line of CSV each."""
    files = sorted(out.glob("*monitor.csv"))
    return [line for path in files for line in path.read_text().splitlines()[2:]]
