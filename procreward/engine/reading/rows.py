"""Prompts as rows of a batch: what is read, what is known, and where it stands in the cache.

A batch has three regions of columns: heads whose keys and values are known (each row its own
length, aligned left), the rest of the prompts (aligned right, so that all end in one column), and
what is tried behind them: guesses at the answer, or a tree of continuations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from procreward.engine.answers.tree import TokenTree
from procreward.engine.language.decoder import Decoder
from procreward.engine.language.kv import KVCache, masked_columns
from procreward.engine.reading.prefixes import Content, Prefix
from procreward.engine.reading.prompt import Chat
from procreward.engine.vision.tower import Features

__all__ = ["Reading", "Row", "ensure_room", "mask_slots", "read_rows", "read_trees"]


@dataclass(slots=True, eq=False)
class Row:
    """A prompt that is to be read.

    Attributes:
        chat: Tokens and positions.
        features: What the vision tower made of its pictures, or None without any.
        stream: Its stream, or None.
        content: What it consists of, or None if a picture has no name.
        prefix: Keys and values of its head, or None.
        reused: Leading tokens that are taken from ``prefix``, fewer than the prompt has.
    """

    chat: Chat
    features: Features | None = None
    stream: str | None = None
    content: Content | None = None
    prefix: Prefix | None = None
    reused: int = 0

    @property
    def length(self) -> int:
        """Tokens that are still to be read."""
        return len(self.chat) - self.reused

    def head(self, length: int) -> Row:
        """Return the row of the first ``length`` tokens alone."""
        chat = self.chat
        seen = int(np.count_nonzero(chat.kinds[:length]))
        return Row(
            chat=Chat(
                ids=chat.ids[:length],
                positions=chat.positions[:, :length],
                kinds=chat.kinds[:length],
                next_position=int(chat.positions[:, :length].max()) + 1,
            ),
            features=None if self.features is None else Features(self.features.levels[:, :seen]),
        )


@dataclass(slots=True, eq=False)
class Reading:
    """A batch that has been read.

    Attributes:
        hidden: ``(batch, 1 + tried, hidden)``: behind each prompt's last token and behind each
            token that was tried after it.
        cache: Keys and values.
        rows: The rows.
        start: Column of the first token that is not reused.
        end: Column behind the prompts.
    """

    hidden: torch.Tensor
    cache: KVCache
    rows: Sequence[Row]
    start: int
    end: int
    next_positions: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.next_positions = np.asarray([row.chat.next_position for row in self.rows])

    @property
    def token_bytes(self) -> int:
        """Memory of one token's keys and values in bytes."""
        parts = (*self.cache.keys, *self.cache.values)
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in parts)

    def prefix(self, index: int, length: int | None = None) -> Prefix:
        """Copy the keys and values of one row's first tokens out of the cache.

        Args:
            index: Number of the row; its content must be known.
            length: How many tokens; None for the whole prompt.

        Returns:
            The copy, in memory of its own.
        """
        row = self.rows[index]
        assert row.content is not None
        length = len(row.chat) if length is None else length
        known = min(row.reused, length)
        first = self.end - row.length
        own = slice(first, first + length - known)

        def copy(part: torch.Tensor) -> torch.Tensor:
            return torch.cat((part[index, :, :known], part[index, :, own]), dim=1)

        return Prefix(
            tokens=row.content.tokens[:length],
            keys=[copy(key) for key in self.cache.keys],
            values=[copy(value) for value in self.cache.values],
        )


def read_rows(
    decoder: Decoder,
    rows: Sequence[Row],
    *,
    pad_id: int,
    guesses: Sequence[Sequence[int]] | None = None,
    tree: TokenTree | None = None,
    room: int = 0,
    whole: bool = False,
) -> Reading:
    """Read prompts, and what is tried behind them, in one forward pass.

    Args:
        decoder: The language model.
        rows: The prompts, at least one.
        pad_id: Token to pad with.
        guesses: For each prompt, tokens to try behind it.
        tree: Continuations to try behind every prompt; not together with ``guesses``.
        room: Columns the cache is to have left.
        whole: Whether the last layer is run for every token, as transformers does, instead of for
            those whose hidden states are returned.

    Returns:
        What was read. Guesses stay in the cache until their columns are masked; padding behind a
        shorter guess is masked already.
    """
    guesses = guesses or [()] * len(rows)
    longest = max(row.length for row in rows)
    width = max(len(guess) for guess in guesses) if tree is None else len(tree)
    known = max(row.reused for row in rows)
    shape = (len(rows), longest + width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros((3, *shape), dtype=np.int64)
    valid = np.ones(shape, dtype=np.bool_)
    places, padding = [], []
    for index, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        chat, first = row.chat, longest - row.length
        ids[index, first:longest] = chat.ids[row.reused :]
        positions[:, index, first:longest] = chat.positions[:, row.reused :]
        valid[index, :first] = False
        places.append(np.flatnonzero(chat.kinds[row.reused :]) + (index * shape[1] + first))
        if tree is not None:
            ids[index, longest:] = tree.tokens
            positions[:, index, longest:] = chat.next_position + tree.depths
        else:
            ids[index, longest : longest + len(guess)] = guess
            positions[:, index, longest:] = chat.next_position + np.arange(width)
            padding += [(index, column) for column in range(longest + len(guess), shape[1])]
    device = decoder.device
    cache = _known_heads(decoder, rows, known, known + shape[1] + room)
    embeds = decoder.embed(torch.from_numpy(ids).to(device))
    visual = _place(embeds, rows, np.concatenate(places))
    hidden = decoder.forward(
        embeds,
        torch.from_numpy(positions).to(device),
        cache,
        valid=None if valid.all() else torch.from_numpy(valid).to(device),
        tree=None if tree is None or not width else torch.tensor(tree.ancestors, device=device),
        visual=visual,
        keep=None if whole else 1 + width,
    )
    mask_slots(cache, [(index, known + column) for index, column in padding])
    return Reading(
        hidden=hidden[:, -1 - width :], cache=cache, rows=rows, start=known, end=known + longest
    )


def _known_heads(decoder: Decoder, rows: Sequence[Row], known: int, capacity: int) -> KVCache:
    """A cache that holds the rows' known heads in its first columns."""
    cache = decoder.new_cache(len(rows), capacity)
    if not known:
        return cache
    same = all(row.prefix is rows[0].prefix and row.reused == known for row in rows)
    for index, row in enumerate(rows[:1] if same else rows):
        if row.prefix is None or not row.reused:
            continue
        target = slice(None) if same else slice(index, index + 1)
        kept = (*row.prefix.keys, *row.prefix.values)
        for room, part in zip((*cache.keys, *cache.values), kept, strict=True):
            room[target, :, : row.reused] = part[None, :, : row.reused]
    lengths = torch.tensor([row.reused for row in rows], device=decoder.device)
    columns = torch.arange(known, device=decoder.device)
    cache.valid[:, :known] = columns < lengths[:, None]
    cache.used = known
    cache.full = all(row.reused == known for row in rows)
    return cache


def _place(
    embeds: torch.Tensor, rows: Sequence[Row], places: npt.NDArray[np.int64]
) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
    """Put the pictures' embeddings where they belong; returns where, and the deepstack features."""
    if not len(places):
        return None
    parts = []
    for row in rows:
        if row.features is None:
            continue
        seen = int(np.count_nonzero(row.chat.kinds[: row.reused]))
        parts.append(Features(row.features.levels[:, seen:]))
    features = Features.cat(parts)
    where = torch.from_numpy(places).to(embeds.device)
    embeds.view(-1, embeds.shape[-1])[where] = features.embeds.to(embeds.dtype)
    mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    mask.view(-1)[where] = True
    return mask, list(features.deepstack)


def read_trees(
    decoder: Decoder,
    cache: KVCache,
    trees: Sequence[TokenTree],
    next_positions: npt.NDArray[np.int64],
    *,
    pad_id: int,
    last: Sequence[int] | None = None,
) -> torch.Tensor:
    """Read a tree of continuations behind every row of a cache, which keeps no trace of it.

    Args:
        decoder: The language model.
        cache: Keys and values of the rows; must have room.
        trees: One tree per row; they may differ.
        next_positions: ``(batch,)``, position of what comes next in each row.
        pad_id: Token to pad with.
        last: For each row a last token that is read in front of its tree, at ``next_positions``;
            None when the rows are complete.

    Returns:
        ``(batch, (1) + widest, hidden)``: behind the last token, if given, and behind each node.
    """
    lead = 0 if last is None else 1
    widest = max(len(tree) for tree in trees)
    ids = np.full((len(trees), lead + widest), pad_id, dtype=np.int64)
    steps = np.zeros(ids.shape, dtype=np.int64)
    seen = np.broadcast_to(np.eye(widest, dtype=np.bool_), (len(trees), widest, widest)).copy()
    for index, tree in enumerate(trees):
        if last is not None:
            ids[index, 0] = last[index]
        ids[index, lead : lead + len(tree)] = tree.tokens
        steps[index, lead : lead + len(tree)] = lead + tree.depths
        seen[index, : len(tree), : len(tree)] = tree.ancestors
    device, used = decoder.device, cache.used
    hidden = decoder.forward(
        decoder.embed(torch.from_numpy(ids).to(device)),
        torch.from_numpy(steps + next_positions[:, None]).to(device).expand(3, -1, -1),
        cache,
        tree=torch.from_numpy(seen).to(device) if widest else None,
    )
    cache.crop(used)
    return hidden


def ensure_room(cache: KVCache, columns: int) -> KVCache:
    """Return the cache, or a larger copy if fewer columns than asked for are left."""
    if cache.used + columns <= cache.capacity:
        return cache
    rows = torch.arange(cache.batch, device=cache.valid.device)
    return cache.take(rows, capacity=cache.used + max(columns, cache.capacity // 2))


def mask_slots(cache: KVCache, slots: Sequence[tuple[int, int]]) -> None:
    """Switch off single slots, given as rows and columns."""
    if slots:
        device = cache.valid.device
        rows, columns = torch.tensor(slots, device=device).T
        masked_columns(cache, rows, columns)
