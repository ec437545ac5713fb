"""How often heads are read that prompts share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from procreward.engine.language.decoder import ModuleDecoder
from procreward.engine.reading.prefixes import Content, PrefixStore
from procreward.engine.reading.prompt import Chat
from procreward.engine.reading.recall import Recall
from procreward.engine.reading.rows import Row
from tests.engine.text_models import text_model

DECODER = ModuleDecoder(text_model("qwen3"))
HEAD = 30
TAIL = 5


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def row(task: int, own: int, stream: str | None = None) -> Row:
    """The words of a task, then words of the row's own."""
    head = np.random.default_rng(task).integers(0, 90, HEAD)
    ids = np.concatenate((head, np.random.default_rng(100 + own).integers(0, 90, TAIL)))
    chat = Chat(
        ids=ids,
        positions=np.tile(np.arange(len(ids)), (3, 1)),
        kinds=np.zeros(len(ids), dtype=np.int64),
        next_position=len(ids),
    )
    return Row(chat=chat, stream=stream, content=Content(tokens=ids, head=HEAD, first_end=HEAD + 1))


def recall(max_bytes: int = 2**20) -> Recall:
    return Recall(DECODER, PrefixStore(max_bytes), pad_id=0)


def counts(one: Recall) -> tuple[int, int, int]:
    return one.stats.passes, one.stats.tokens_read, one.stats.tokens_reused


def check(one: Recall, *rows: Row) -> None:
    hidden = one.read(rows).hidden
    for index, each in enumerate(rows):
        alone = recall(0).read([Row(chat=each.chat)]).hidden
        torch.testing.assert_close(hidden[index], alone[0], rtol=1e-5, atol=3e-5)


def test_a_head_is_kept_from_the_pass_that_read_it() -> None:
    one = recall()
    check(one, row(0, 0))
    assert counts(one) == (1, 35, 0)
    check(one, row(0, 1))
    assert counts(one) == (2, 40, 30)


def test_rows_that_share_unknown_heads_have_them_read_once_in_one_pass() -> None:
    one = recall()
    check(one, row(0, 0), row(1, 1), row(0, 2), row(1, 3), row(2, 4))
    # Two heads for two rows each, then five tails and the head that one row has for itself.
    assert counts(one) == (2, 2 * 30 + 4 * 5 + 35, 2 * 30)
    check(one, row(2, 5), row(1, 6))
    assert counts(one) == (3, 115 + 10, 60 + 60)


def test_without_memory_heads_are_shared_within_a_call_only() -> None:
    one = recall(0)
    check(one, row(0, 0))
    check(one, row(0, 0))
    assert counts(one) == (2, 70, 0)
    check(one, row(0, 1), row(0, 2))
    assert counts(one) == (4, 70 + 40, 30)


def test_a_stream_that_goes_on_needs_its_new_words_only() -> None:
    one = recall()
    check(one, row(0, 0, "a"))
    check(one, row(0, 0, "a"))
    # The last token is read again: its hidden state is not kept.
    assert counts(one) == (2, 36, 34)
    one.release(["a"])
    check(one, row(0, 0, "a"))
    assert counts(one) == (3, 41, 64)
