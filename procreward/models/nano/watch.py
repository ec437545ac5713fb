"""Measures a model on held-out episodes while it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.models.nano.corpus import Corpus
from procreward.models.nano.metrics import auc, spearman
from procreward.models.nano.prompts import PromptBank
from procreward.models.nano.readout import centre_crop, episode_windows, read_percent

__all__ = ["FALSE_PEAK", "MOVING", "measure"]

MOVING = 0.15
"""Range of true progress from which an episode counts as moving."""

FALSE_PEAK = 40.0
"""Points above the truth from which a prediction is a false peak."""


def measure(
    model: Any, bank: PromptBank, corpus: Corpus, *, per_task: int | None = None
) -> dict[str, float]:
    """Return flat figures, such as ``mae_lift``, from the direct readout.

    Args:
        model: The model, in evaluation mode.
        bank: Prompts.
        corpus: Held-out episodes.
        per_task: Episodes per task at most.
    """
    results: dict[str, float] = {}
    for number, name in enumerate(corpus.names):
        spans = [(a, b) for a, b in corpus.episodes() if corpus.task[a] == number][:per_task]
        outcomes = [_episode(model, bank, corpus, a, b) for a, b in spans]
        results |= {f"{key}_{name}": value for key, value in _summary(outcomes).items()}
    keys = {key.removesuffix(f"_{corpus.names[0]}") for key in results if
            key.endswith(f"_{corpus.names[0]}")}  # fmt: skip
    for key in keys:
        results[key] = _mean([results[f"{key}_{name}"] for name in corpus.names])
    return {key: round(value, 4) for key, value in sorted(results.items())}


def _episode(
    model: Any, bank: PromptBank, corpus: Corpus, first: int, last: int
) -> tuple[str, bool, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rows = slice(first, last + 1)
    instruction = corpus.instructions[int(corpus.task[first])]
    images = centre_crop(corpus.images[rows])
    windows = episode_windows(len(images))
    predicted = read_percent(model, bank, images, windows, instruction)
    kind = corpus.kinds[int(corpus.episode[first])]
    truth = 100.0 * corpus.progress[rows].astype(np.float64)
    return kind, bool(corpus.success[last]), predicted, truth


def _summary(
    outcomes: list[tuple[str, bool, npt.NDArray[np.float64], npt.NDArray[np.float64]]],
) -> dict[str, float]:
    def rho(kinds: tuple[str, ...], failing: bool) -> float:
        return _mean(
            [
                spearman(np.nan_to_num(p), t)
                for kind, _, p, t in outcomes
                if (kind not in ("expert", "retry") if failing else kind in kinds)
                and (not failing or np.ptp(t) >= 100 * MOVING)
            ]
        )

    errors = np.concatenate([p - t for _, _, p, t in outcomes])
    failed = [p - t for _, done, p, t in outcomes if not done]
    return {
        "expert": rho(("expert",), False),
        "retry": rho(("retry",), False),
        "failing": rho((), True),
        "mae": _mean(np.abs(errors)),
        "bias": _mean(errors),
        "invalid": float(np.isnan(errors).mean()),
        "peaks": _mean([float(np.any(e > FALSE_PEAK)) for e in failed]),
        "auc": auc([float(p[-1]) for _, _, p, _ in outcomes], [done for _, done, _, _ in outcomes]),
    }


def _mean(values: npt.ArrayLike) -> float:
    """Return the mean of the numbers among ``values``; NaN when there are none."""
    array = np.asarray(values, dtype=np.float64)
    numbers = array[~np.isnan(array)]
    return float(numbers.mean()) if len(numbers) else float("nan")
