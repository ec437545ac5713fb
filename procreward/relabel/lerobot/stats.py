"""Statistics of features, in LeRobot's form: lists, one entry a dimension, and a count."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ALL_NAMES", "PLAIN_NAMES", "Stats", "describe", "merge", "shift"]

Stats = dict[str, list[Any]]
"""Name of a statistic to its values."""

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

PLAIN_NAMES = ("min", "max", "mean", "std", "count")
"""What v2.1 has of every episode."""

ALL_NAMES = (*PLAIN_NAMES, *_QUANTILES)
"""What v3.0 has of every episode."""


def describe(values: npt.NDArray[Any], names: Collection[str]) -> Stats | None:
    """Describe a feature with one value a frame.

    The standard deviation is the population's, as LeRobot's is. Quantiles are exact, between
    neighbours linearly; LeRobot's come from a histogram of 5,000 bins.

    Args:
        values: ``(T,)``, numbers or bools; those that are not finite do not count.
        names: Which statistics, of :data:`ALL_NAMES`; others are left out.

    Returns:
        The statistics, each a list of one, or None if no value is finite.
    """
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return None
    values, numbers = values[finite], numbers[finite]
    stats: dict[str, Any] = {
        "min": values.min().item(),
        "max": values.max().item(),
        "mean": numbers.mean().item(),
        "std": numbers.std().item(),
        "count": len(numbers),
    }
    stats |= {name: float(np.quantile(numbers, share)) for name, share in _QUANTILES.items()}
    return {name: [value] for name, value in stats.items() if name in names}


def merge(parts: Sequence[Mapping[str, Any]]) -> Stats:
    """Describe several episodes by their statistics, as LeRobot does.

    Minimum, maximum, mean and deviation are exact; quantiles are the episodes' means, weighted by
    their counts.

    Args:
        parts: Statistics of each episode, with a count.

    Returns:
        The statistics that all parts have.
    """
    names = [name for name in parts[0] if all(name in part for part in parts)]
    counts = np.array([part["count"][0] for part in parts], np.float64)
    merged: Stats = {}
    for name in names:
        values = [np.asarray(part[name]) for part in parts]
        if name in ("min", "max"):
            merged[name] = getattr(np, name)(np.stack(values), axis=0).tolist()
        elif name == "count":
            merged[name] = [int(counts.sum())]
        elif name != "std":
            merged[name] = np.average(np.stack(values), axis=0, weights=counts).tolist()
    if "std" in names and "mean" in merged:
        deviations = np.stack([np.asarray(part["std"]) for part in parts])
        means = np.stack([np.asarray(part["mean"]) for part in parts])
        spread = deviations**2 + (means - np.asarray(merged["mean"])) ** 2
        merged["std"] = np.sqrt(np.average(spread, axis=0, weights=counts)).tolist()
    return {name: merged[name] for name in names if name in merged}


def shift(stats: Mapping[str, Any], by: int) -> dict[str, Any]:
    """Return the statistics of values that are all greater by a number."""
    return {
        name: value if name in ("std", "count") else (np.asarray(value) + by).tolist()
        for name, value in stats.items()
    }
