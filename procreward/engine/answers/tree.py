"""Trees of tokens that a model reads behind a prompt in a single forward pass.

Several continuations of one prompt share their beginnings. As a tree, every shared token is read
once: each node attends to the prompt, to its ancestors and to itself, and stands at the position
it would have if its path were the only one. The log-probabilities of what may follow a node are
then those of a forward pass over that path alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.errors import ConfigError

__all__ = ["LabelTree", "TokenTree", "label_tree"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTree:
    """Continuations of a prompt, whose last token is the root and no node itself.

    Attributes:
        tokens: ``(S,) int64``, token id of each node.
        parents: ``(S,) int64``, index of each node's parent, which comes before it; -1 is the root.

    Raises:
        ConfigError: If the arrays do not fit each other or a parent does not come before its child.
    """

    tokens: Ints
    parents: Ints

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        ordered = bool(np.all((self.parents >= -1) & (self.parents < np.arange(len(self.parents)))))
        if len(shape) != 1 or self.parents.shape != shape or not ordered:
            raise ConfigError(
                "A token tree must have one parent per token, each -1 or the index of an earlier "
                f"node, got {self.tokens.tolist()} with parents {self.parents.tolist()}."
            )

    @classmethod
    def empty(cls) -> TokenTree:
        """Return a tree without nodes: only the root is read."""
        return cls(tokens=np.empty(0, dtype=np.int64), parents=np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> Ints:
        """``(S,) int64``: how many nodes lie above each; 0 for the root's children."""
        depths = np.zeros(len(self), dtype=np.int64)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                depths[node] = depths[parent] + 1
        depths.setflags(write=False)
        return depths

    @cached_property
    def ancestors(self) -> npt.NDArray[np.bool_]:
        """``(S, S) bool``: whether the column's node lies on the way to the row's, itself too."""
        ancestors = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        ancestors.setflags(write=False)
        return ancestors

    def path(self, node: int) -> tuple[int, ...]:
        """Return the tokens from the root to a node.

        Args:
            node: Index of the node; -1 is the root, whose path is empty.

        Returns:
            Token ids, that of the node last.
        """
        tokens: list[int] = []
        while node >= 0:
            tokens.append(int(self.tokens[node]))
            node = int(self.parents[node])
        return tuple(reversed(tokens))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelTree:
    """Candidate answers as a tree, and which log-probabilities make up each of them.

    Attributes:
        tree: The nodes that must be read. A token that no label continues is none of them: only
            its own probability counts, and that belongs to its parent.
        paths: For each label its tokens as pairs of the node before (-1 is the root) and the token.
        nodes: ``(n_pairs,) int64``, where to read: 0 is the root, ``1 + i`` is node ``i``. Each
            pair of node and target stands there once, whichever labels share it.
        targets: ``(n_pairs,) int64``, the token whose log-probability to read there.
        columns: For each label the indices of its pairs, in the order of its tokens.
    """

    tree: TokenTree
    paths: tuple[tuple[tuple[int, int], ...], ...]
    nodes: Ints
    targets: Ints
    columns: tuple[tuple[int, ...], ...]

    def sum_paths(self, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Add up what belongs to each label.

        Args:
            values: ``(batch, n_pairs)``, such as the log-probabilities of ``targets`` at ``nodes``.

        Returns:
            ``(batch, num_labels) float64``: the sums; of log-probabilities, the labels'
            log-likelihoods in nats.
        """
        wide = np.asarray(values, dtype=np.float64)
        sums = np.empty((len(wide), len(self.columns)), dtype=np.float64)
        for label, columns in enumerate(self.columns):
            sums[:, label] = wide[:, list(columns)].sum(axis=1)
        return sums

    def nll(self, log_probs: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Compute the labels' negative log-likelihoods from all log-probabilities.

        On a device gather ``nodes`` and ``targets`` first and use :meth:`sum_paths`: that moves a
        few numbers instead of whole vocabularies.

        Args:
            log_probs: ``(batch, 1 + S, vocabulary)`` natural logarithms, the root's first.

        Returns:
            ``(batch, num_labels) float64``, in nats.
        """
        return -self.sum_paths(log_probs[:, self.nodes, self.targets])


def label_tree(labels: Sequence[tuple[int, ...]]) -> LabelTree:
    """Merge the common beginnings of token sequences.

    Args:
        labels: Token ids of each label. A label may begin another, and may be empty.

    Returns:
        The tree.
    """
    inner: dict[tuple[int, ...], int] = {(): -1}
    tokens: list[int] = []
    parents: list[int] = []
    pairs: dict[tuple[int, int], int] = {}
    paths = []
    for label in labels:
        path = []
        for depth, token in enumerate(label):
            prefix = tuple(label[:depth])
            if prefix not in inner:
                inner[prefix] = len(tokens)
                tokens.append(prefix[-1])
                parents.append(inner[prefix[:-1]])
            path.append((inner[prefix], int(token)))
        for pair in path:
            pairs.setdefault(pair, len(pairs))
        paths.append(tuple(path))
    return LabelTree(
        tree=TokenTree(
            tokens=np.asarray(tokens, dtype=np.int64), parents=np.asarray(parents, dtype=np.int64)
        ),
        paths=tuple(paths),
        nodes=np.asarray([node + 1 for node, _ in pairs], dtype=np.int64),
        targets=np.asarray([token for _, token in pairs], dtype=np.int64),
        columns=tuple(tuple(pairs[pair] for pair in path) for path in paths),
    )
