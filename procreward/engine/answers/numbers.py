"""The number a model would write next, as an exact expectation over all ways of writing it.

A number is one to three digits, then perhaps a point and up to two digits; whatever is neither
digit nor point ends it. Two trees of tokens hold what has to be read. The first has a node for
every one and every two digits, leading zeros included (``"07"`` is 7). With the probabilities of
the ten digits and the point behind the root and behind every node, the distribution of the digits
before the point is complete: a third digit needs no node, since only its own probability counts.
The second tree holds the point and the first decimal digit of those whole numbers that a point
follows with any probability to speak of.

What counts as which number:

* Three digits are taken as they are, whatever follows; with ``largest`` at 100 only those with a
  leading zero are below it (``"084"`` is 84).
* A point that no digit follows ends the number: ``"84."`` is 84.
* A third decimal digit is ignored: ``"84.139"`` is 84.13.
* Numbers above ``largest`` count as ``largest``.
* Decimals that were not read count as equally likely from .00 to .99, which adds 0.495.

No number follows where the first token is no digit; ``mass`` is the probability that one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.checks import check, is_int, is_number
from procreward.engine import NOT_FINITE
from procreward.engine.answers.tree import TokenTree
from procreward.errors import ConfigError, ModelError

__all__ = ["Moments", "NumberReader"]

Floats = npt.NDArray[np.float64]

_WHOLE = 110
"""Whole numbers with a node: 0 to 9, then 00 to 99."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What is known about a number.

    Attributes:
        value: Its expected value, given that there is one; None when ``mass`` is 0.
        spread: Its standard deviation.
        mass: Probability in [0, 1] that a number follows.
    """

    value: float | None
    spread: float
    mass: float


class NumberReader:
    """Reads numbers off probabilities; see the module's text for what counts as which number.

    Args:
        digits: Token ids of ``"0"`` to ``"9"``, in this order.
        point: Token id of ``"."``.
        largest: Larger numbers count as this one; above 0. It is exact up to 100; above, decimals
            behind three digits are not read.
        tolerance: Decimals may stay unread for at most this share of the numbers, in [0, 1). Each
            shifts the value by less than half.

    Raises:
        ConfigError: If the ids are not eleven different ones or a setting is out of its range.
    """

    def __init__(
        self,
        digits: Sequence[int],
        point: int,
        largest: float = 100.0,
        *,
        tolerance: float = 1e-6,
    ) -> None:
        ids = [*digits, point]
        check(
            len(ids) == 11 and len(set(ids)) == 11 and all(is_int(i, least=0) for i in ids),
            "digits` and `point",
            "the ids of ten digits and of '.', all different",
            ids,
        )
        check(is_number(largest) and largest > 0, "largest", "a number above 0", largest)
        check(
            is_number(tolerance) and 0 <= tolerance < 1,
            "tolerance",
            "a number in [0, 1)",
            tolerance,
        )
        self._tolerance = float(tolerance)
        self._columns = np.asarray(ids, dtype=np.int64)
        self._columns.setflags(write=False)
        self._integers = _whole_tree(self._columns)
        whole = np.concatenate((np.arange(10.0), np.arange(100.0)))
        written = whole[:, None] + np.arange(100.0) / 100.0  # every number with two decimals
        clamped = np.minimum(written, largest)
        self._largest = float(largest)
        self._whole = np.minimum(whole, largest)
        self._three = np.minimum(np.arange(1000.0), largest)
        self._decimal = clamped
        self._unread, self._unread_variance = clamped.mean(axis=1), clamped.var(axis=1)
        self._readable = whole < largest

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        largest: float = 100.0,
        *,
        lead: str = "<progress>",
        tolerance: float = 1e-6,
    ) -> NumberReader:
        """Look up how a tokenizer writes numbers.

        Args:
            tokenizer: A transformers tokenizer.
            largest: Larger numbers count as this one.
            lead: The words directly in front of the number.
            tolerance: Share of the numbers whose decimals may stay unread.

        Returns:
            The reader.

        Raises:
            ConfigError: If digits and point are not one token each right behind the lead and
                behind each other.
        """

        def behind(head: Sequence[int], text: str) -> list[int]:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return ids[len(head) :] if ids[: len(head)] == list(head) else []

        start: list[int] = tokenizer.encode(lead, add_special_tokens=False)
        digits = [behind(start, lead + str(digit)) for digit in range(10)]
        point = behind([*start, *digits[0]], lead + "0.")
        tokens = {str(digit): ids for digit, ids in enumerate(digits)} | {".": point}
        samples = [*(f"{digit}{9 - digit}.{digit}" for digit in range(10)), "100", "99.99", "3.14%"]
        known = len(point) == 1 and all(len(ids) == 1 for ids in digits)
        for text in samples:
            number = text.removesuffix("%")
            expected = [token for letter in number for token in tokens[letter]]
            found = behind(start, lead + text)[: len(number)]
            known = known and found == expected
        if not known:
            raise ConfigError(
                f"The tokenizer must write every digit and '.' as one token behind {lead!r}, but "
                f"it writes {lead + '84.13'!r} as "
                f"{tokenizer.tokenize(lead + '84.13')}. This model's numbers cannot be read off "
                "its probabilities; use the mode 'reasoning', which reads its words."
            )
        return cls([ids[0] for ids in digits], point[0], largest, tolerance=tolerance)

    @property
    def integers(self) -> TokenTree:
        """The first tree: nodes 0 to 9 are the first digits, node ``10 + n`` is ``n`` as ``nn``."""
        return self._integers

    @property
    def columns(self) -> npt.NDArray[np.int64]:
        """``(11,) int64``: the token ids whose probabilities are needed, ``"."`` last."""
        return self._columns

    def plan_decimals(self, probs: Floats) -> TokenTree | None:
        """Choose whose decimals to read.

        Args:
            probs: ``(1 + 110, 11) float64``, probabilities (of the whole vocabulary) of
                :attr:`columns` behind the root and behind each node of :attr:`integers`.

        Returns:
            The second tree: for each chosen number its digits, the point, and the ten digits behind
            it. None when there is nothing to read.

        Raises:
            ConfigError: If the array has another shape.
            ModelError: If it holds what is no probability.
        """
        _check_probs(probs, len(self._integers))
        reach = _reach(probs)
        pointed = np.where(self._readable, reach * probs[1:, 10], 0.0)
        order = np.argsort(pointed, kind="stable")
        allowed = self._tolerance * probs[0, :10].sum()
        unread = int(np.searchsorted(np.cumsum(pointed[order]), allowed, side="right"))
        chosen = np.sort(order[unread:])
        return _decimal_tree(self._columns, chosen.tolist()) if len(chosen) else None

    def expectation(
        self, probs: Floats, decimals: Floats | None = None, tree: TokenTree | None = None
    ) -> Moments:
        """Compute the expected number.

        Args:
            probs: As for :meth:`plan_decimals`.
            decimals: ``(1 + S, 11) float64``, the same behind the root and behind each node of
                ``tree``; None leaves all decimals unread.
            tree: What :meth:`plan_decimals` returned.

        Returns:
            The number's moments.

        Raises:
            ConfigError: If the arrays do not fit the trees.
            ModelError: If they hold what is no probability.
        """
        _check_probs(probs, len(self._integers))
        reach = _reach(probs)
        ends = np.maximum(1.0 - probs[1:].sum(axis=1), 0.0)  # rounding may sum above 1
        pointed = reach * probs[1:, 10]
        three = (reach[10:, None] * probs[11:, :10]).reshape(-1)
        masses = [reach * ends, three]
        values = [self._whole, self._three]
        if tree is not None:
            if decimals is None:
                raise ConfigError("`decimals` must be given together with `tree`, got None.")
            _check_probs(decimals, len(tree))
            whole, shares = self._decimal_shares(decimals, tree)
            masses.append((pointed[whole, None] * shares).reshape(-1))
            values.append(self._decimal[whole].reshape(-1))
            pointed[whole] = 0.0
        masses.append(pointed)
        values.append(self._unread)
        mass, value = np.concatenate(masses), np.concatenate(values)
        total = float(mass.sum())
        if total <= 0.0:
            return Moments(value=None, spread=0.0, mass=0.0)
        mean = min(max(float(mass @ value) / total, 0.0), self._largest)
        variance = float(mass @ (value - mean) ** 2 + pointed @ self._unread_variance) / total
        return Moments(
            value=mean,
            spread=float(np.sqrt(variance)),
            mass=min(float(probs[0, :10].sum()), 1.0),
        )

    def _decimal_shares(
        self, decimals: Floats, tree: TokenTree
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Whole numbers ``(n,)`` of the second tree, and ``(n, 100)`` how likely .00 to .99 are."""
        points = np.flatnonzero(tree.tokens == self._columns[10])
        if len(tree) < len(points) * 11 or not len(points):
            raise ConfigError(
                "`tree` must be what `plan_decimals` returned, got "
                f"{len(tree)} nodes with {len(points)} points."
            )
        rank = np.zeros(len(tree), dtype=np.int64)
        for digit, token in enumerate(self._columns[:10].tolist()):
            rank[tree.tokens == token] = digit
        last = tree.parents[points]
        first = tree.parents[last]
        whole = np.where(first < 0, rank[last], 10 + 10 * rank[first] + rank[last])
        tenths = decimals[1 + points, :10]  # (n, 10)
        behind = decimals[1 + points[:, None] + np.arange(1, 11)]  # (n, 10, 11)
        shares = tenths[:, :, None] * behind[:, :, :10]
        # ".8" and what is no digit behind it is the number ".80"; "." alone is ".00".
        shares[:, :, 0] += tenths * np.maximum(1.0 - behind[:, :, :10].sum(axis=2), 0.0)
        shares[:, 0, 0] += np.maximum(1.0 - tenths.sum(axis=1), 0.0)
        return whole, shares.reshape(len(points), 100)


def _whole_tree(columns: npt.NDArray[np.int64]) -> TokenTree:
    digits = columns[:10]
    return TokenTree(
        tokens=np.concatenate((digits, np.tile(digits, 10))),
        parents=np.concatenate((np.full(10, -1), np.repeat(np.arange(10), 10))),
    )


def _decimal_tree(columns: npt.NDArray[np.int64], chosen: Sequence[int]) -> TokenTree:
    ids = columns.tolist()
    tokens: list[int] = []
    parents: list[int] = []

    def add(token: int, parent: int) -> int:
        tokens.append(token)
        parents.append(parent)
        return len(tokens) - 1

    firsts: dict[int, int] = {}
    for number in chosen:
        first, second = (number, None) if number < 10 else divmod(number - 10, 10)
        if first not in firsts:
            firsts[first] = add(ids[first], -1)
        last = firsts[first] if second is None else add(ids[second], firsts[first])
        point = add(ids[10], last)
        for digit in ids[:10]:  # directly behind the point: `_decimal_shares` relies on it
            add(digit, point)
    return TokenTree(
        tokens=np.asarray(tokens, dtype=np.int64), parents=np.asarray(parents, dtype=np.int64)
    )


def _reach(probs: Floats) -> Floats:
    """``(110,)``: probability of coming to each node of the first tree."""
    first = probs[0, :10]
    return np.concatenate((first, (first[:, None] * probs[1:11, :10]).reshape(-1)))


def _check_probs(probs: Floats, nodes: int) -> None:
    if probs.shape != (1 + nodes, 11):
        raise ConfigError(
            f"Probabilities must be ({1 + nodes}, 11), one row for the root and for each node, got "
            f"{probs.shape}."
        )
    if not (probs.min() >= 0.0 and probs.max() <= 1.0 + 1e-6):
        raise ModelError(
            "Probabilities must be in [0, 1], got values from "
            f"{probs.min()} to {probs.max()}: {NOT_FINITE}"
        )
