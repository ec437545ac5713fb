"""Guesses at an answer, taken from earlier answers and verified by the model before they count.

Consecutive answers of one episode differ in a few tokens. The last answer is put behind the prompt
and read in the same pass; every token of it that the model would have chosen itself is accepted, at
the first other one the model's own token takes its place, and the rest of the guess is lined up
anew. What comes out is what greedy decoding gives, in fewer passes (speculative decoding, with the
last answer as the draft model).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from procreward.engine.reading.prefixes import owned_by

__all__ = ["Draft", "DraftBook", "accepted"]

_LOOK_AHEAD = 24
_RECENT = 16
_STREAMS = 4096
_CONTEXT = 3


def accepted(guess: Sequence[int], chosen: Sequence[int]) -> int:
    """Return how many tokens of a guess the model chose itself.

    Args:
        guess: The tokens put behind the prompt.
        chosen: What the model chooses behind the prompt and behind each of them, one more.
    """
    for place, (token, own) in enumerate(zip(guess, chosen, strict=False)):
        if token != own:
            return place
    return len(guess)


@dataclass(slots=True, eq=False)
class Draft:
    """What is left of the guess at one answer.

    Attributes:
        source: The earlier answer that is followed.
        place: Index in ``source`` of the next token to guess.
        recent: Other answers to look for a continuation in, newest first.
        digits: Tokens that change from answer to answer and say nothing about what follows.
        misses: Guesses in a row of which nothing was right; the next one is the shorter for it.
    """

    source: tuple[int, ...] = ()
    place: int = 0
    recent: Sequence[tuple[int, ...]] = ()
    digits: frozenset[int] = frozenset()
    written: list[int] = field(default_factory=list)
    misses: int = 0

    def guess(self, limit: int) -> list[int]:
        """Return the next tokens to try, at most ``limit``."""
        limit >>= 2 * max(self.misses - 2, 0)
        return list(self.source[self.place : self.place + limit])

    def follow(self, right: int, own: int | None) -> None:
        """Line up the rest of the guess with what the model chose.

        Args:
            right: How many tokens of the last guess were right.
            own: The token that the model put behind them.
        """
        self.written += self.source[self.place : self.place + right]
        self.place += right
        if own is None:
            return
        missed = self.source[self.place : self.place + 1] != (own,)
        self.place += 1
        self.written.append(own)
        if right or not missed:
            self.misses = 0
        if missed and own not in self.digits:
            self.misses += 1
            self._line_up(own)

    def _line_up(self, own: int) -> None:
        """Look for the model's token further on, then for its last words in other answers."""
        ahead = self.source[self.place : self.place + _LOOK_AHEAD]
        if own in ahead:
            self.place += ahead.index(own) + 1
            return
        for length in range(min(_CONTEXT, len(self.written)), 1, -1):
            words = tuple(self.written[-length:])
            for answer in self.recent:
                end = _find(answer, words)
                if end is not None:
                    self.source, self.place = answer, end
                    return


def _find(answer: tuple[int, ...], words: tuple[int, ...]) -> int | None:
    """Index behind the first occurrence of ``words``, or None if nothing follows one."""
    length = len(words)
    for start in range(len(answer) - length):
        if answer[start : start + length] == words:
            return start + length
    return None


class DraftBook:
    """The last answer of every stream, and the last few different answers of all.

    Args:
        digits: Tokens that are digits.
    """

    def __init__(self, digits: Iterable[int] = ()) -> None:
        self._digits = frozenset(digits)
        self._last: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._recent: OrderedDict[tuple[int, ...], tuple[int, ...]] = OrderedDict()

    def draft(self, stream: str | None) -> Draft:
        """Return the guess at a stream's next answer; that of another stream before its first."""
        recent = tuple(reversed(self._recent.values()))
        source = self._last.get(stream) if stream is not None else None
        if source is None:
            source = recent[0] if recent and stream is not None else ()
        return Draft(source=source, recent=recent, digits=self._digits)

    def keep(self, stream: str | None, answer: Sequence[int]) -> None:
        """Remember an answer."""
        if stream is None or not answer:
            return
        tokens = tuple(answer)
        self._last[stream] = tokens
        self._last.move_to_end(stream)
        # Answers that differ in their number only are one answer.
        shape = tuple(-1 if token in self._digits else token for token in tokens)
        self._recent[shape] = tokens
        self._recent.move_to_end(shape)
        for kept, most in ((self._last, _STREAMS), (self._recent, _RECENT)):
            while len(kept) > most:
                kept.popitem(last=False)

    def release(self, streams: Iterable[str]) -> None:
        """Forget streams that have ended; their answers stay among the recent ones."""
        for stream in streams:
            for name in [name for name in self._last if owned_by(name, stream)]:
                del self._last[name]
