"""Answers written with guesses of all kinds, against one token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine.answers.answer import AnswerRow, AnswerText
from procreward.engine.answers.decoding import Answering, decode
from procreward.engine.answers.drafts import Draft
from procreward.engine.language.decoder import ModuleDecoder
from procreward.engine.reading.prompt import Chat
from procreward.engine.reading.rows import Row, read_rows
from tests.engine.text_models import text_model
from tests.tiny import tiny_tokenizer

DECODER = ModuleDecoder(text_model("qwen3"))
TEXT = AnswerText(tiny_tokenizer())
WORDS = np.random.default_rng(1).integers(0, 90, 60)
LIMIT = 12
NEVER = 1000


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompt(length: int, start: int) -> Chat:
    return Chat(
        ids=WORDS[start : start + length],
        positions=np.tile(np.arange(length), (3, 1)),
        kinds=np.zeros(length, dtype=np.int64),
        next_position=length,
    )


PROMPTS = [prompt(7, 0), prompt(4, 10), prompt(7, 20), prompt(5, 30)]


def plain(chat: Chat, count: int = LIMIT) -> list[int]:
    """The answer, each token by a forward pass over everything before it."""
    tokens: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.tensor([[*chat.ids.tolist(), *tokens]])
            length = ids.shape[1]
            hidden = DECODER.forward(
                DECODER.embed(ids),
                torch.arange(length).expand(3, 1, -1),
                DECODER.new_cache(1, length),
            )
            tokens.append(int(DECODER.head(hidden[0, -1]).argmax()))
    return tokens


ANSWERS = [plain(chat) for chat in PROMPTS]


def write(
    rows: Sequence[int],
    sources: Sequence[Sequence[int]],
    *,
    limit: int = LIMIT,
    end: int = NEVER,
    room: int = 40,
    keep_rows: bool = False,
) -> Answering:
    drafts = [Draft(source=tuple(source)) for source in sources]
    guesses = [draft.guess(limit - 1) for draft in drafts]
    with torch.inference_mode():
        reading = read_rows(
            DECODER,
            [Row(chat=PROMPTS[index]) for index in rows],
            pad_id=0,
            guesses=guesses,
            room=room,
        )
        return decode(
            DECODER,
            reading,
            [AnswerRow((end,)) for _ in rows],
            drafts,
            guesses,
            TEXT,
            max_new_tokens=limit,
            pad_id=0,
            keep_rows=keep_rows,
        )


def test_a_guess_that_is_right_takes_no_further_pass() -> None:
    done = write([0], [ANSWERS[0]])
    assert done.rows[0].tokens == ANSWERS[0]
    assert (done.passes, done.offered, done.accepted) == (0, 11, 11)


def test_one_row_gives_the_columns_of_wrong_guesses_back() -> None:
    wrong = [*ANSWERS[0][:3], 89, 89, 89, 89, 89]
    assert 89 not in ANSWERS[0]
    done = write([0], [wrong], keep_rows=True)
    assert done.rows[0].tokens == ANSWERS[0]
    assert done.accepted == 3
    # The prompt and every token of the answer but the last, and no mask.
    assert (done.cache.used, done.cache.full) == (7 + 11, True)


def test_rows_that_keep_less_than_others_have_holes() -> None:
    wrong = [*ANSWERS[2][:2], 89, 89, 89]
    done = write([0, 2], [ANSWERS[0][:5], wrong], limit=6, keep_rows=True)
    assert [row.tokens for row in done.rows] == [ANSWERS[0][:6], ANSWERS[2][:6]]
    # Row 0 is done at once; row 1 keeps two guesses and goes on behind the longest row.
    assert done.cache.valid[0, :12].all()
    assert not done.cache.valid[0, 12:].any()
    assert done.cache.valid[1, :9].all()
    assert not done.cache.valid[1, 9:12].any()
    assert done.cache.valid.sum(dim=1).tolist() == [12, 12]


def test_finished_rows_leave_the_cache_unless_they_are_kept() -> None:
    rows, end = [0, 1, 2, 3], ANSWERS[1][1]
    expected = [answer[: answer.index(end)] if end in answer else answer for answer in ANSWERS]
    assert len(expected[1]) == 1
    assert max(map(len, expected)) == LIMIT
    for keep_rows in (True, False):
        done = write(rows, [()] * 4, end=end, keep_rows=keep_rows)
        assert [row.tokens for row in done.rows] == expected
        assert (done.cache.batch == 4) == keep_rows


def test_the_cache_grows_with_the_answer() -> None:
    done = write([1], [()], room=0)
    assert done.rows[0].tokens == ANSWERS[1]
    assert done.passes == 11
    assert done.cache.used == 4 + 11


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    limit=st.integers(1, LIMIT),
    end=st.sampled_from([NEVER, *ANSWERS[0][2:5], ANSWERS[3][1]]),
    keep_rows=st.booleans(),
    room=st.sampled_from([0, 40]),
)
def test_no_guess_changes_an_answer(
    rows: list[int], seed: int, limit: int, end: int, keep_rows: bool, room: int
) -> None:
    generator = np.random.default_rng(seed)
    sources = []
    for index in rows:
        source = np.asarray(ANSWERS[index])
        source = np.where(generator.random(LIMIT) < 0.3, generator.integers(0, 90), source)
        sources.append(source[: generator.integers(0, LIMIT + 1)].tolist())
    done = write(rows, sources, limit=limit, end=end, keep_rows=keep_rows, room=room)
    for place, (index, row) in enumerate(zip(rows, done.rows, strict=True)):
        answer = ANSWERS[index][:limit]
        assert row.tokens == (answer[: answer.index(end)] if end in answer else answer)
        assert row.finished == (end in answer)
        if keep_rows:
            # All but the last token; all when an end token followed it.
            kept = len(PROMPTS[index]) + len(row.tokens) - (not row.finished)
            assert int(done.cache.valid[place].sum()) == kept
