"""Figures of merit for progress predictions; NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["auc", "balanced_accuracy", "ranks", "spearman"]

Floats = npt.NDArray[np.float64]


def ranks(values: npt.ArrayLike) -> Floats:
    """Return ranks from 1, ties sharing their mean rank.

    Example:
        >>> ranks([10, 30, 30, 20]).tolist()
        [1.0, 3.5, 3.5, 2.0]
    """
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2
    result: Floats = mean_rank[inverse]
    return result


def spearman(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return Spearman's rank correlation; 0.0 when either side never changes.

    Example:
        >>> spearman([1, 2, 3, 9], [0.1, 0.2, 0.5, 0.6])
        1.0
    """
    a, b = ranks(predicted), ranks(truth)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Return the area under the ROC curve; NaN when one class is absent.

    Example:
        >>> auc([0.1, 0.9, 0.8], [False, True, False])
        1.0
    """
    mask = np.asarray(positive, dtype=bool)
    up, down = int(mask.sum()), int((~mask).sum())
    if up == 0 or down == 0:
        return float("nan")
    return float((ranks(scores)[mask].sum() - up * (up + 1) / 2) / (up * down))


def balanced_accuracy(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the mean of the accuracies on the two classes; NaN when one is absent.

    Example:
        >>> balanced_accuracy([True, True, False], [True, False, False])
        0.75
    """
    guess, mask = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
    if mask.all() or not mask.any():
        return float("nan")
    return float((guess[mask].mean() + (~guess[~mask]).mean()) / 2)
