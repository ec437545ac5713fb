from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.engine.answers.tree import TokenTree, label_tree
from procreward.errors import ConfigError


def tree(tokens: list[int], parents: list[int]) -> TokenTree:
    return TokenTree(tokens=np.array(tokens, np.int64), parents=np.array(parents, np.int64))


def test_depths_ancestors_and_paths() -> None:
    branching = tree([5, 6, 7, 8, 9], [-1, 0, -1, 1, 0])
    assert branching.depths.tolist() == [0, 1, 0, 2, 1]
    assert branching.ancestors.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    assert branching.path(3) == (5, 6, 8)
    assert branching.path(-1) == ()


def test_an_empty_tree_has_only_its_root() -> None:
    empty = TokenTree.empty()
    assert len(empty) == 0
    assert empty.depths.shape == (0,)
    assert empty.ancestors.shape == (0, 0)


@pytest.mark.parametrize("parents", [[-1, 1], [-2, 0], [1, -1], [-1]])
def test_a_parent_must_come_before_its_child(parents: list[int]) -> None:
    with pytest.raises(ConfigError, match="index of an earlier node"):
        tree([1, 2], parents)


def test_labels_share_their_beginning_and_leaves_are_not_read() -> None:
    labels = label_tree([(1, 2, 3), (1, 2, 4), (5, 2)])
    assert labels.tree.tokens.tolist() == [1, 2, 5]
    assert labels.tree.parents.tolist() == [-1, 0, -1]
    assert labels.paths == (
        ((-1, 1), (0, 2), (1, 3)),
        ((-1, 1), (0, 2), (1, 4)),
        ((-1, 5), (2, 2)),
    )
    # (root, 1), (node 0, 2), (node 1, 3), (node 1, 4), (root, 5), (node 2, 2)
    assert labels.nodes.tolist() == [0, 1, 2, 2, 0, 3]
    assert labels.targets.tolist() == [1, 2, 3, 4, 5, 2]
    sums = labels.sum_paths(np.array([[1, 10, 100, 1000, 2, 20]], np.float32))
    assert sums.dtype == np.float64
    assert sums.tolist() == [[111, 1011, 22]]


def test_one_token_labels_need_no_nodes() -> None:
    labels = label_tree([(3,), (4,)])
    assert len(labels.tree) == 0
    assert labels.nodes.tolist() == [0, 0]


def test_a_label_may_begin_another_or_be_empty() -> None:
    labels = label_tree([(1,), (1, 2), (1, 2), ()])
    assert labels.tree.tokens.tolist() == [1]
    assert labels.sum_paths(np.array([[3.0, 4.0]])).tolist() == [[3, 7, 7, 0]]
    assert label_tree([]).sum_paths(np.empty((2, 0))).shape == (2, 0)


def test_an_impossible_label_does_not_spoil_the_others() -> None:
    labels = label_tree([(0,), (1,)])
    log_probs = np.array([[[-np.inf, -0.5]]])
    assert labels.nll(log_probs).tolist() == [[np.inf, 0.5]]


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=5).map(tuple), max_size=6),
    st.integers(0, 2**31),
)
def test_the_likelihoods_are_those_of_the_labels_one_by_one(
    tokens: list[tuple[int, ...]], seed: int
) -> None:
    labels = label_tree(tokens)
    assert len(labels.tree) == len({label[:k] for label in tokens for k in range(1, len(label))})
    log_probs = np.random.default_rng(seed).normal(size=(2, 1 + len(labels.tree), 4))
    rows = {labels.tree.path(node): node + 1 for node in range(-1, len(labels.tree))}
    expected = [
        [-sum(row[rows[label[:k]], label[k]] for k in range(len(label))) for label in tokens]
        for row in log_probs
    ]
    np.testing.assert_allclose(
        labels.nll(log_probs), np.array(expected, np.float64).reshape(2, len(tokens)), atol=1e-12
    )
