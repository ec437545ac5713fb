from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.models.nano.metrics import auc, balanced_accuracy, ranks, spearman

scipy_stats = pytest.importorskip("scipy.stats")
numbers = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@settings(deadline=None)
@given(numbers, st.randoms())
def test_spearman_agrees_with_scipy(values, random):
    other = [random.randint(-3, 3) for _ in values]
    if len(set(values)) < 2 or len(set(other)) < 2:
        assert spearman(values, other) == 0.0
        return
    expected = scipy_stats.spearmanr(values, other).statistic
    assert spearman(values, other) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(numbers)
def test_ranks_keep_their_sum(values):
    assert ranks(values).sum() == pytest.approx(len(values) * (len(values) + 1) / 2)


def test_spearman_of_a_reversed_order_is_minus_one():
    assert spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1.0)


def test_auc_counts_ties_half():
    assert auc([0.5, 0.5, 0.9, 0.1], [True, False, True, False]) == pytest.approx(0.875)


def test_auc_without_one_class_is_nan():
    assert math.isnan(auc([0.1, 0.2], [True, True]))


def test_balanced_accuracy_ignores_class_sizes():
    truth = np.array([True] * 2 + [False] * 8)
    assert balanced_accuracy([False] * 10, truth) == 0.5
    assert math.isnan(balanced_accuracy([True], [True]))
