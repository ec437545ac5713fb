"""What is kept of a run of ``benchmarks/learning.py``, beside how often its policy succeeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_wrapper

from procreward.integrations.sb3 import VecProgressReward
from procreward.models.nano.metrics import spearman

Floats = npt.NDArray[np.float64]
Rows: TypeAlias = Sequence[tuple[Any, ...]]

FALSE_HIGH: Final = 0.2
TRUTH_BINS: Final = (0.0, 0.1, 0.3, 0.5, 0.7, 0.95, 1.01)


def reading_errors(read: Floats, truth: Floats) -> dict[str, Any]:
    """Return how readings differ from the truth, overall and by bins of the truth."""
    error = read - truth
    bins = []
    for low, high in pairwise(TRUTH_BINS):
        chosen = error[(truth >= low) & (truth < high)]
        if len(chosen):
            bins.append(
                {
                    "truth_from": low,
                    "n": len(chosen),
                    "bias": float(chosen.mean()),
                    "mae": float(np.abs(chosen).mean()),
                    "sd": float(chosen.std()),
                    "false_high": float((chosen > FALSE_HIGH).mean()),
                }
            )
    return {
        "n": len(error),
        "bias": float(error.mean()),
        "mae": float(np.abs(error).mean()),
        "sd": float(error.std()),
        "spearman": spearman(read, truth),
        "false_high": float((error > FALSE_HIGH).mean()),
        "bins": bins,
    }


def training_record(
    episodes: Rows, readings: Rows, steps: Sequence[int], every: int
) -> dict[str, Any]:
    """Return what happened in the training episodes, by stretches of ``every`` steps.

    Args:
        episodes: Step of the end, success, best reading and best true progress of each.
        readings: Step, reading, true progress and sub-environment of each query.
        steps: Where the stretches end.
        every: Their length.
    """
    out: dict[str, Any] = {}
    ended = np.array(episodes, np.float64).reshape(-1, 4)
    asked_all = np.array(readings, np.float64).reshape(-1, 4)
    stretches = []
    for end in steps:
        ours = ended[(ended[:, 0] > end - every) & (ended[:, 0] <= end)]
        stretch: dict[str, Any] = {"until": end, "episodes": len(ours)}
        if len(ours):
            stretch["success"] = float(ours[:, 1].mean())
            stretch["best_truth"] = float(ours[:, 3].mean())
            # The model saw the task done, and it was not.
            stretch["fooled"] = float(((ours[:, 1] == 0.0) & (ours[:, 2] >= 0.85)).mean())
        asked = asked_all[(asked_all[:, 0] > end - every) & (asked_all[:, 0] <= end)]
        if len(asked):
            stretch["reading"] = reading_errors(asked[:, 1], asked[:, 2])
            del stretch["reading"]["bins"]
        stretches.append(stretch)
    out["training"] = stretches
    if len(asked_all):
        out["reading"] = reading_errors(asked_all[:, 1], asked_all[:, 2])
    return out


def query_record(venv: VecEnv) -> dict[str, Any]:
    """Return how many queries there were, and how many of them failed."""
    rewarded = unwrap_vec_wrapper(venv, VecProgressReward)
    if not isinstance(rewarded, VecProgressReward):
        return {}
    stats = rewarded.stats
    return {
        "queries": stats.queries,
        "failures": stats.failures,
        "invalid_reasons": dict(stats.invalid_reasons),
        "waiting_s": round(stats.waiting_s, 1),
    }


def fingerprint(model: BaseAlgorithm) -> str:
    """Return a digest of the policy's parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(model.policy.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    names = ("procreward", "gymnasium", "metaworld", "mujoco", "numpy", "stable-baselines3")
    return {name: version(name) for name in (*names, "torch", "transformers")}


def rounded(value: Any) -> Any:
    """Round every float in nested lists and dictionaries to four places."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(item) for item in value]
    return value
