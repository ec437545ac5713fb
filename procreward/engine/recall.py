"""Reads batches of prompts and recalls the heads of prompts that were read before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from procreward.engine.language import Decoder
from procreward.engine.prefixes import LEAST_SHARED, Prefix, PrefixStore
from procreward.engine.rows import Reading, Row, read_rows
from procreward.engine.tree import TokenTree

__all__ = ["Recall", "RecallStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallStats:
    """What was read and what was known; a snapshot.

    Attributes:
        passes: Forward passes of the language model over prompts.
        tokens_read: Tokens of prompts that went through it.
        tokens_reused: Tokens of prompts whose keys and values were kept from an earlier pass.
    """

    passes: int = 0
    tokens_read: int = 0
    tokens_reused: int = 0


class Recall:
    """Reads prompts, as little of them as necessary.

    Args:
        decoder: The language model.
        store: What is remembered.
        pad_id: Token to pad with.
        whole: Whether every layer is run for every token, as transformers does.
    """

    def __init__(
        self, decoder: Decoder, store: PrefixStore, *, pad_id: int, whole: bool = False
    ) -> None:
        self._decoder = decoder
        self._store = store
        self._pad_id = pad_id
        self._whole = whole
        self._stats = RecallStats()

    @property
    def stats(self) -> RecallStats:
        """What was read so far."""
        return self._stats

    def read(
        self,
        rows: Sequence[Row],
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        tree: TokenTree | None = None,
        room: int = 0,
    ) -> Reading:
        """Read prompts; see :func:`procreward.engine.rows.read_rows`.

        Args:
            rows: The prompts; which of their tokens are reused is decided here.
            guesses: For each prompt, tokens to try behind it.
            tree: Continuations to try behind every prompt.
            room: Columns the cache is to have left.

        Returns:
            What was read.
        """
        for row in rows:
            self._look_up(row)
        reading = read_rows(
            self._decoder,
            rows,
            pad_id=self._pad_id,
            guesses=guesses,
            tree=tree,
            room=room,
            whole=self._whole,
        )
        self._count(sum(row.length for row in rows), sum(row.reused for row in rows))
        for index, row in enumerate(rows):
            self._keep(reading, index, row)
        return reading

    def release(self, streams: Iterable[str]) -> None:
        """Forget streams that have ended.

        Args:
            streams: Their names.
        """
        self._store.release(streams)

    def _look_up(self, row: Row) -> None:
        content = row.content
        row.prefix, row.reused = None, 0
        if content is None:
            return
        if LEAST_SHARED <= content.head < len(row.chat):
            row.prefix = self._store.shared(content) or self._read_head(row, content.head)
            row.reused = content.head
        if row.stream is None:
            return
        prefix, length = self._store.of_stream(row.stream, content)
        length = min(length, len(row.chat) - 1)
        if prefix is not None and length >= max(LEAST_SHARED, row.reused + 1):
            row.prefix, row.reused = prefix, length

    def _read_head(self, row: Row, length: int) -> Prefix:
        """Read a head that other prompts will share, and keep it."""
        head = row.head(length)
        head.content = row.content
        prefix = read_rows(self._decoder, [head], pad_id=self._pad_id).prefix(0)
        # The row that asked takes it from memory, but it was not spared.
        self._count(length, -length)
        self._store.keep_shared(prefix)
        return prefix

    def _count(self, read: int, reused: int) -> None:
        stats = self._stats
        self._stats = RecallStats(
            passes=stats.passes + 1,
            tokens_read=stats.tokens_read + read,
            tokens_reused=stats.tokens_reused + reused,
        )

    def _keep(self, reading: Reading, index: int, row: Row) -> None:
        """Keep a prompt while the stream's next one may begin like it."""
        if row.stream is None or row.content is None:
            return
        if self._store.wants(row.stream, row.content):
            self._store.keep_stream(row.stream, reading.prefix(index))
        else:
            self._store.keep_stream(row.stream, None)
