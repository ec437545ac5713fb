"""Answers in the making: token by token, until an end token or a stop.

* :func:`check_stop` - what may end an answer.
* :class:`AnswerRow` - one answer of a batch, and when it is finished.
* :class:`AnswerText` - tokens to words: piece by piece while decoding, whole when finished.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from procreward.engine import Generation, Stop
from procreward.engine.reading.inputs import cut_at_stop
from procreward.errors import ConfigError

__all__ = ["PATTERN_REACH", "AnswerRow", "AnswerText", "check_stop"]

PATTERN_REACH = 96
"""Characters behind the newest token that a stop pattern is looked for in, at the least."""


def check_stop(stop: Stop) -> None:
    """Refuse what cannot end an answer.

    Args:
        stop: Strings and patterns.

    Raises:
        ConfigError: If a string is empty or not ASCII, or a pattern matches nothing at all.
    """
    if not isinstance(stop, str) and all(map(_can_stop, stop)):
        return
    raise ConfigError(
        "`stop` must be a sequence of non-empty ASCII strings, or of compiled patterns that do not "
        f"match the empty string, got {stop!r}."
    )


def _can_stop(one: object) -> bool:
    if isinstance(one, str):
        return bool(one) and one.isascii()
    return isinstance(one, re.Pattern) and isinstance(one.pattern, str) and one.search("") is None


class AnswerRow:
    """One answer in the making.

    Stops are looked for in the decoded text, not in the tokens: a tokenizer may merge their last
    character with what follows. They are ASCII, so decoding token by token finds them even where
    other characters span several tokens. Only the newest part of the text is kept: as much as the
    longest string, and :data:`PATTERN_REACH` characters for patterns, which therefore must not look
    at what stands before their match.

    Args:
        end_ids: Tokens that end an answer and do not count to it.
        stop: What else ends it.

    Attributes:
        tokens: The answer so far, without the end token.
        finished: Whether an end token or a stop has come.
    """

    def __init__(self, end_ids: Collection[int], stop: Stop = ()) -> None:
        self._end_ids = frozenset(end_ids)
        self._words = tuple(one for one in stop if isinstance(one, str))
        self._patterns = tuple(one for one in stop if not isinstance(one, str))
        self._keep = max((len(word) - 1 for word in self._words), default=0)
        if self._patterns:
            self._keep = max(self._keep, PATTERN_REACH)
        self._tail = ""
        self.tokens: list[int] = []
        self.finished = False

    def push(self, token: int, piece: str) -> bool:
        """Take the next token unless already finished.

        Args:
            token: The token.
            piece: Its text, which may be empty where there are no stops.

        Returns:
            Whether the answer goes on.
        """
        if self.finished:
            return False
        if token in self._end_ids:
            self.finished = True
            return False
        self.tokens.append(token)
        if self._words or self._patterns:
            tail = self._tail + piece
            self.finished = any(word in tail for word in self._words) or any(
                pattern.search(tail) for pattern in self._patterns
            )
            self._tail = tail[max(len(tail) - self._keep, 0) :]
        return not self.finished


class AnswerText:
    """Turns tokens into words.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """Return the text of one token, empty for a control token.

        Args:
            token: The token.
        """
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.decode((token,))
        return piece

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of some tokens, without control tokens.

        Args:
            tokens: The tokens.
        """
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def finish(self, row: AnswerRow, stop: Stop) -> Generation:
        """Make an answer of a row, its text cut behind the first stop.

        Args:
            row: The row; need not be finished.
            stop: What the row was to stop at.

        Returns:
            The answer.
        """
        return Generation(
            text=cut_at_stop(self.decode(row.tokens), stop),
            tokens=tuple(row.tokens),
            finished=row.finished,
        )
