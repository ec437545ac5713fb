"""Batches of prompts, some of whose heads are known, against each prompt read by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from procreward.engine.answers.tree import TokenTree, label_tree
from procreward.engine.language.decoder import ModuleDecoder
from procreward.engine.reading.prefixes import Content, Prefix
from procreward.engine.reading.prompt import Chat
from procreward.engine.reading.rows import (
    Reading,
    Row,
    ensure_room,
    mask_slots,
    read_rows,
    read_trees,
)
from tests.engine.text_models import text_model

DECODER = ModuleDecoder(text_model("qwen3"))
WORDS = np.random.default_rng(0).integers(0, 90, 60)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def row(length: int, *, start: int = 0, prefix: Prefix | None = None, reused: int = 0) -> Row:
    """A prompt of words, those of the list from ``start`` on."""
    ids = WORDS[start : start + length]
    chat = Chat(
        ids=ids,
        positions=np.tile(np.arange(length), (3, 1)),
        kinds=np.zeros(length, dtype=np.int64),
        next_position=length,
    )
    content = Content(tokens=ids, head=length, first_end=length)
    return Row(chat=chat, content=content, prefix=prefix, reused=reused)


def read(*rows: Row, room: int = 0, tree: TokenTree | None = None) -> Reading:
    return read_rows(DECODER, rows, pad_id=0, room=room, tree=tree)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=3e-5)


def test_rows_with_heads_of_different_lengths_are_read_as_alone() -> None:
    long, short = read(row(12)).prefix(0), read(row(4, start=20)).prefix(0)
    rows = [
        row(15, prefix=long, reused=12),
        row(9, start=20, prefix=short, reused=3),
        row(5, start=40),
    ]
    reading = read(*rows, room=2)
    # Known heads on the left, what was read on the right, and room behind it.
    assert (reading.start, reading.end, reading.cache.used) == (12, 18, 18)
    assert reading.cache.capacity == 20
    assert [[int(one) for one in line] for line in reading.cache.valid] == [
        [1] * 12 + [0] * 3 + [1] * 3 + [0] * 2,
        [1] * 3 + [0] * 9 + [1] * 6 + [0] * 2,
        [0] * 13 + [1] * 5 + [0] * 2,
    ]
    assert not reading.cache.full
    assert reading.next_positions.tolist() == [15, 9, 5]
    for index, alone in enumerate((row(15), row(9, start=20), row(5, start=40))):
        close(reading.hidden[index], read(alone).hidden[0])


def test_one_head_for_all_needs_no_mask() -> None:
    head = read(row(12)).prefix(0)
    reading = read(*[row(15, prefix=head, reused=12)] * 2)
    assert reading.cache.full
    close(reading.hidden[1], read(row(15)).hidden[0])


@pytest.mark.parametrize(("length", "expected"), [(None, 9), (7, 7), (2, 2)])
def test_a_prefix_is_cut_out_of_known_and_read_tokens(length: int | None, expected: int) -> None:
    head = read(row(4, start=20)).prefix(0)
    reading = read(row(15), row(9, start=20, prefix=head, reused=3))
    prefix = reading.prefix(1, length)
    assert prefix.tokens.tolist() == WORDS[20 : 20 + expected].tolist()
    whole = read(row(9, start=20)).cache
    for ours, theirs in zip(
        (*prefix.keys, *prefix.values), (*whole.keys, *whole.values), strict=True
    ):
        close(ours, theirs[0, :, :expected])
        # In memory of its own, or a short head would keep a large batch.
        assert ours.untyped_storage().nbytes() == ours.nbytes
    assert prefix.nbytes == expected * reading.token_bytes


def test_a_tree_leaves_no_trace() -> None:
    reading = read(row(6), row(4, start=20), room=8)
    cache, before = reading.cache, reading.cache.valid.clone()
    labels = label_tree([(5, 6, 7), (5, 8, 9)]).tree
    trees = [labels, TokenTree.empty()]
    hidden = read_trees(DECODER, cache, trees, reading.next_positions, pad_id=0)
    assert hidden.shape == (2, 3, 64)
    assert cache.used == reading.end
    assert torch.equal(cache.valid, before)
    close(hidden[0], read(row(6), tree=labels).hidden[0, 1:])


def test_a_last_token_stands_in_front_of_its_tree() -> None:
    reading = read(row(5), room=8)
    labels = label_tree([(5, 6, 7), (5, 8, 9)]).tree
    hidden = read_trees(
        DECODER, reading.cache, [labels], reading.next_positions, pad_id=0, last=[int(WORDS[5])]
    )
    close(hidden, read(row(6), tree=labels).hidden)


def test_room_is_made_by_copying() -> None:
    cache = read(row(6), row(4, start=20), room=2).cache
    assert ensure_room(cache, 2) is cache
    larger = ensure_room(cache, 3)
    assert (larger.used, larger.capacity) == (6, 10)
    assert torch.equal(larger.valid[:, :6], cache.valid[:, :6])
    assert not larger.valid[:, 6:].any()
    assert torch.equal(larger.keys[1][:, :, :6], cache.keys[1][:, :, :6])


def test_slots_are_switched_off_one_by_one() -> None:
    cache = read(*[row(6)] * 2).cache
    full = []
    for slots in ([], [(1, 2), (0, 5)]):
        mask_slots(cache, slots)
        full.append(cache.full)
    assert full == [True, False]
    assert (~cache.valid).nonzero().tolist() == [[0, 5], [1, 2]]
