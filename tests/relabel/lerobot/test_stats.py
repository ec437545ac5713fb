from __future__ import annotations

import math

import numpy as np
import pytest

from procreward.relabel.lerobot.stats import ALL_NAMES, PLAIN_NAMES, describe, merge, shift


def test_numbers() -> None:
    stats = describe(np.array([0.0, 4.0, 2.0, math.nan, 2.0], np.float32), ALL_NAMES)
    assert stats == {
        "min": [0.0],
        "max": [4.0],
        "mean": [2.0],
        "std": [pytest.approx(math.sqrt(2))],
        "count": [4],
        "q01": [pytest.approx(0.06)],
        "q10": [pytest.approx(0.6)],
        "q50": [2.0],
        "q90": [pytest.approx(3.4)],
        "q99": [pytest.approx(3.94)],
    }


def test_bools() -> None:
    """LeRobot keeps their minimum and maximum as bools."""
    stats = describe(np.array([True, False, True, True]), PLAIN_NAMES)
    assert stats == {
        "min": [False],
        "max": [True],
        "mean": [0.75],
        "std": [pytest.approx(math.sqrt(3) / 4)],
        "count": [4],
    }
    assert stats["min"][0] is False


def test_nothing_known() -> None:
    assert describe(np.full(3, np.nan), ALL_NAMES) is None


def test_merge_is_exact_but_for_quantiles() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=count) for count in (3, 8, 1)]
    described = [describe(part, ALL_NAMES) for part in parts]
    merged = merge([one for one in described if one is not None])
    whole = describe(np.concatenate(parts), ALL_NAMES)
    assert whole is not None
    for name in PLAIN_NAMES:
        assert merged[name] == pytest.approx(whole[name])
    medians = [float(np.median(part)) for part in parts]
    weighted = (3 * medians[0] + 8 * medians[1] + medians[2]) / 12
    assert merged["q50"] == [pytest.approx(weighted)]


def test_merge_of_pictures() -> None:
    """Statistics per channel, and only those that all parts have."""
    one = {"mean": [[[0.25]], [[0.5]]], "std": [[[0.0]], [[0.5]]], "count": [1], "q50": [[[1.0]]]}
    other = {"mean": [[[0.75]], [[0.5]]], "std": [[[0.0]], [[0.5]]], "count": [3]}
    assert merge([one, other]) == {
        "mean": [[[0.625]], [[0.5]]],
        "std": [[[pytest.approx(0.21650635)]], [[0.5]]],
        "count": [4],
    }


def test_shift() -> None:
    stats = {"min": [3], "max": [5], "mean": [4.0], "std": [1.0], "count": [3], "q50": [4.0]}
    assert shift(stats, -3) == {
        "min": [0],
        "max": [2],
        "mean": [1.0],
        "std": [1.0],
        "count": [3],
        "q50": [1.0],
    }
