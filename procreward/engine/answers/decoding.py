"""Greedy answers behind prompts that have been read, several tokens a pass where a guess holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from procreward.engine import NOT_FINITE
from procreward.engine.answers.answer import AnswerRow, AnswerText
from procreward.engine.answers.drafts import Draft, accepted
from procreward.engine.language.decoder import Decoder
from procreward.engine.language.kv import KVCache
from procreward.engine.reading.rows import Reading, ensure_room, mask_slots
from procreward.errors import ModelError

__all__ = ["Answering", "decode"]

_LONGEST_CHUNK = 16
"""Tokens tried in a pass after the first; a guess that failed once is worth less."""


@dataclass(slots=True, eq=False)
class _Writing:
    """One answer and what is tried for it.

    Attributes:
        row: The answer so far.
        draft: Where guesses come from.
        guess: Tokens that are being tried.
        end: Column behind the last of the answer's tokens in the cache; the newest token has no
            column before it has been read.
    """

    row: AnswerRow
    draft: Draft
    guess: list[int]
    end: int = 0


@dataclass(slots=True, eq=False)
class Answering:
    """Answers that have been decoded.

    Attributes:
        rows: The answers, in the order of the prompts.
        cache: Keys and values of the prompts and of every token of the answers but the last.
        passes: Forward passes, that over the prompts not counted.
        offered: Guessed tokens that were tried.
        accepted: Guessed tokens that were right.
    """

    rows: list[AnswerRow]
    cache: KVCache
    passes: int = 0
    offered: int = 0
    accepted: int = 0


def decode(
    decoder: Decoder,
    reading: Reading,
    rows: Sequence[AnswerRow],
    drafts: Sequence[Draft],
    guesses: Sequence[Sequence[int]],
    text: AnswerText,
    *,
    max_new_tokens: int,
    pad_id: int,
    keep_rows: bool = False,
) -> Answering:
    """Write every row's answer to its end.

    Args:
        decoder: The language model.
        reading: The prompts with ``guesses`` behind them.
        rows: Empty answers.
        drafts: Where the guesses came from.
        guesses: What was tried behind the prompts.
        text: Tokens to words.
        max_new_tokens: Limit per answer.
        pad_id: Token to pad with.
        keep_rows: Whether finished rows stay in the cache, because they are read on.

    Returns:
        The answers and the cache; without ``keep_rows`` the cache is of no further use.
    """
    return _Loop(decoder, text, max_new_tokens, pad_id, keep_rows).run(
        reading,
        [
            _Writing(row, draft, list(guess))
            for row, draft, guess in zip(rows, drafts, guesses, strict=True)
        ],
    )


class _Loop:
    def __init__(
        self, decoder: Decoder, text: AnswerText, limit: int, pad_id: int, keep_rows: bool
    ) -> None:
        self._decoder = decoder
        self._text = text
        self._limit = limit
        self._pad_id = pad_id
        self._keep_rows = keep_rows
        # Finished rows cost time in every pass, and so does copying the others together. CUDA
        # graphs would not run on the copy.
        self._compacts = not keep_rows and decoder.device.type != "cuda"

    def run(self, reading: Reading, writings: list[_Writing]) -> Answering:
        answering = Answering(rows=[one.row for one in writings], cache=reading.cache)
        active = list(writings)
        starts = reading.next_positions
        base, hidden = reading.end, reading.hidden
        while True:
            chosen = self._choose(hidden)
            for one, own in zip(active, chosen, strict=True):
                if not self._done(one):
                    answering.offered += len(one.guess)
                    answering.accepted += self._take(one, own, base)
            running = [index for index, one in enumerate(active) if not self._done(one)]
            if running or self._keep_rows:
                _forget(answering.cache, base, [one.end for one in active])
            if not running:
                return answering
            if self._compacts and 4 * len(running) <= 3 * len(active):
                chosen_rows = torch.tensor(running, device=self._decoder.device)
                answering.cache = answering.cache.take(chosen_rows)
                active, starts = [active[index] for index in running], starts[running]
            hidden = self._pass(answering, active, starts)
            base = answering.cache.used - hidden.shape[1] + 1

    def _choose(self, hidden: torch.Tensor) -> list[list[int]]:
        logits = self._decoder.head(hidden)
        # Asked of what overflows only: the answer would be some token or other, again and again.
        if logits.dtype == torch.float16 and not bool(logits.isfinite().all()):
            raise ModelError(f"No word can be chosen: {NOT_FINITE}")
        chosen: list[list[int]] = logits.argmax(dim=-1).tolist()
        return chosen

    def _done(self, one: _Writing) -> bool:
        return one.row.finished or len(one.row.tokens) >= self._limit

    def _take(self, one: _Writing, chosen: list[int], base: int) -> int:
        """Accept what is right of a guess and the model's own token behind it."""
        right = accepted(one.guess, chosen)
        for place, token in enumerate((*one.guess[:right], chosen[right])):
            if not one.row.push(token, self._text.piece(token)):
                break
            if place < right:
                one.end = base + place + 1
            if self._done(one):
                break
        one.draft.follow(right, chosen[right])
        return right

    def _pass(
        self, answering: Answering, active: list[_Writing], starts: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """Read every running row's newest token and the next guess behind it."""
        chunks = []
        for one in active:
            if self._done(one):
                one.guess = []
                chunks.append([self._pad_id])
                continue
            left = self._limit - len(one.row.tokens) - 1
            one.guess = one.draft.guess(min(_LONGEST_CHUNK - 1, left))
            chunks.append([one.row.tokens[-1], *one.guess])
        width = max(map(len, chunks))
        ids = np.full((len(chunks), width), self._pad_id, dtype=np.int64)
        for index, chunk in enumerate(chunks):
            ids[index, : len(chunk)] = chunk
        written = np.asarray([len(one.row.tokens) - 1 for one in active])
        steps = (starts + written)[:, None] + np.arange(width)
        cache = answering.cache = ensure_room(answering.cache, width)
        device = self._decoder.device
        hidden = self._decoder.forward(
            self._decoder.embed(torch.from_numpy(ids).to(device)),
            torch.from_numpy(steps).to(device).expand(3, -1, -1),
            cache,
        )
        answering.passes += 1
        finished = []
        for index, one in enumerate(active):
            column = cache.used - width
            if self._done(one):
                finished.append((index, column))
            else:
                one.end = column + 1
        mask_slots(cache, finished)
        return hidden


def _forget(cache: KVCache, base: int, ends: Sequence[int]) -> None:
    """Forget guesses that were wrong: for each row, the columns from its end on.

    Where no row has kept anything, columns are given back; between rows that kept more and less
    there are holes, which cost masks and time from then on.

    Args:
        cache: The cache, changed in place.
        base: The first column that was guessed.
        ends: For each row the column behind what it keeps; below ``base`` if it keeps no guess.
    """
    kept = max(base, *ends)
    if kept < cache.used:
        cache.crop(kept)
    mask_slots(
        cache,
        [(row, column) for row, end in enumerate(ends) for column in range(max(base, end), kept)],
    )
