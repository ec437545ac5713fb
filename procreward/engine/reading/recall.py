"""Reads batches of prompts and recalls the heads of prompts that were read before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from procreward.engine.answers.tree import TokenTree
from procreward.engine.language.decoder import Decoder
from procreward.engine.reading.prefixes import LEAST_SHARED, PrefixStore
from procreward.engine.reading.rows import Reading, Row, read_rows

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
        """Read prompts; see :func:`procreward.engine.reading.rows.read_rows`.

        Args:
            rows: The prompts; which of their tokens are reused is decided here.
            guesses: For each prompt, tokens to try behind it.
            tree: Continuations to try behind every prompt.
            room: Columns the cache is to have left.

        Returns:
            What was read.
        """
        self._look_up(rows)
        reading = read_rows(
            self._decoder,
            rows,
            pad_id=self._pad_id,
            guesses=guesses,
            tree=tree,
            room=room,
            whole=self._whole,
        )
        self._count(1, sum(row.length for row in rows), sum(row.reused for row in rows))
        for index, row in enumerate(rows):
            self._keep(reading, index, row)
        return reading

    def release(self, streams: Iterable[str]) -> None:
        """Forget streams that have ended.

        Args:
            streams: Their names.
        """
        self._store.release(streams)

    def forget(self) -> None:
        """Forget everything."""
        self._store.clear()

    def _look_up(self, rows: Sequence[Row]) -> None:
        """Find the longest known head of each row."""
        unknown: dict[bytes, list[Row]] = {}
        for row in rows:
            row.prefix, row.reused = None, 0
            content = row.content
            if content is None:
                continue
            if _shares_head(row):
                row.prefix = self._store.shared(content)
                row.reused = 0 if row.prefix is None else content.head
            if row.stream is not None:
                prefix, length = self._store.of_stream(row.stream, content)
                length = min(length, len(row.chat) - 1)
                if prefix is not None and length >= max(LEAST_SHARED, row.reused + 1):
                    row.prefix, row.reused = prefix, length
            if _shares_head(row) and row.reused < content.head:
                unknown.setdefault(content.tokens[: content.head].tobytes(), []).append(row)
        self._read_heads([alike for alike in unknown.values() if len(alike) > 1])

    def _read_heads(self, groups: Sequence[Sequence[Row]]) -> None:
        """Read heads that several rows of a batch share, once for all of them."""
        if not groups:
            return
        heads = []
        for group in groups:
            content = group[0].content
            assert content is not None
            head = group[0].head(content.head)
            head.content = content
            heads.append(head)
        reading = read_rows(self._decoder, heads, pad_id=self._pad_id)
        for index, (head, group) in enumerate(zip(heads, groups, strict=True)):
            prefix, length = reading.prefix(index), len(head.chat)
            self._store.keep_shared(prefix)
            for row in group:
                row.prefix, row.reused = prefix, length
            # The row that stands first takes it from memory, but it was not spared.
            self._count(0, length, -length)
        self._count(1, 0, 0)

    def _count(self, passes: int, read: int, reused: int) -> None:
        stats = self._stats
        self._stats = RecallStats(
            passes=stats.passes + passes,
            tokens_read=stats.tokens_read + read,
            tokens_reused=stats.tokens_reused + reused,
        )

    def _keep(self, reading: Reading, index: int, row: Row) -> None:
        """Keep what later prompts may begin with."""
        content = row.content
        if content is None:
            return
        store, cost = self._store, reading.token_bytes
        if _shares_head(row) and store.takes(content.head * cost) and not store.shared(content):
            store.keep_shared(reading.prefix(index, content.head))
        if row.stream is None:
            return
        # While the stream's next prompt may begin like this one.
        wanted = store.wants(row.stream, content) and store.takes(len(row.chat) * cost)
        store.keep_stream(row.stream, reading.prefix(index) if wanted else None)


def _shares_head(row: Row) -> bool:
    """Whether what stands before a row's own pictures is worth keeping."""
    content = row.content
    return content is not None and LEAST_SHARED <= content.head < len(row.chat)
