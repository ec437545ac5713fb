from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine import Stop
from procreward.engine.answers.answer import PATTERN_REACH, AnswerRow, AnswerText, check_stop
from procreward.errors import ConfigError
from tests.tiny import save_tiny

NUMBER = re.compile(r"<p>\s*\d+(?:\.\d+)?\s*%", re.ASCII)
END = 7


def stream(row: AnswerRow, pieces: list[str]) -> int:
    """Push pieces as tokens 100, 101, ... until the row is finished; returns how many it took."""
    for count, piece in enumerate(pieces, start=1):
        if not row.push(99 + count, piece):
            return count
    return len(pieces)


def first_match(pieces: list[str], stop: Stop) -> int | None:
    """How many pieces it takes until their whole text holds a stop."""
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        for one in stop:
            if one in text if isinstance(one, str) else one.search(text):
                return count
    return None


class TestRow:
    def test_an_end_token_finishes_and_does_not_count(self) -> None:
        row = AnswerRow((END, 8))
        assert [row.push(token, "") for token in (1, END, 2)] == [True, False, False]
        assert (row.tokens, row.finished) == ([1], True)

    def test_a_string_over_several_tokens_stops_at_its_last(self) -> None:
        row = AnswerRow((END,), ("</p>",))
        assert [row.push(n, piece) for n, piece in enumerate(["a<", "/", "p", ">."])] == [
            True,
            True,
            True,
            False,
        ]
        assert row.tokens == [0, 1, 2, 3]

    def test_a_pattern_stops_at_the_sign_behind_the_number(self) -> None:
        row = AnswerRow((END,), ("</p>", NUMBER))
        pieces = ["<p", ">", "8", "4", ".", "1", "%", "</", "p>"]
        assert stream(row, pieces) == 7

    def test_a_single_character_stops(self) -> None:
        assert stream(AnswerRow((END,), ("x",)), ["a", "bx", "c"]) == 2

    def test_without_stops_nothing_is_looked_at(self) -> None:
        row = AnswerRow((END,))
        assert row.push(1, "</p>")
        assert not row.finished

    def test_replacement_characters_between_do_not_hide_a_stop(self) -> None:
        # Half a character decodes to U+FFFD, however many tokens it takes.
        pieces = ["<p> 4", "\ufffd", "\ufffd", "<p>", "4%"]
        assert stream(AnswerRow((END,), (NUMBER,)), pieces) == 5

    @settings(max_examples=300, deadline=None)
    @given(
        pieces=st.lists(
            st.one_of(
                st.sampled_from(["<p>", "<", "p", ">", "</p>", "4", "2.", "%", " ", "\n", "é"]),
                st.text(max_size=12),
            ),
            max_size=60,
        ),
        stop=st.sampled_from(
            [("</p>",), (NUMBER,), ("</p>", NUMBER), ("p", "4%"), (re.compile("4{3,5}"), "<<<")]
        ),
    )
    def test_it_stops_at_the_very_token_that_completes_a_stop(
        self, pieces: list[str], stop: Stop
    ) -> None:
        row = AnswerRow((END,), stop)
        taken = stream(row, pieces)
        expected = first_match(pieces, stop)
        assert row.finished is (expected is not None)
        assert taken == (len(pieces) if expected is None else expected)
        assert len(row.tokens) == taken

    @pytest.mark.parametrize("extra", [0, 1])
    def test_a_match_may_reach_back_so_far_and_no_further(self, extra: int) -> None:
        row = AnswerRow((END,), (re.compile("a+b"), re.compile("ca+d")))
        letters = "a" * (PATTERN_REACH - 1 + extra)
        row.push(1, "c" + letters)
        assert row.push(2, "d") is (extra == 1)


class TestCheck:
    @pytest.mark.parametrize("stop", [(), ("</p>",), [NUMBER, "x"]])
    def test_strings_and_patterns_are_fine(self, stop: Any) -> None:
        check_stop(stop)

    @pytest.mark.parametrize("stop", [("",), ("é",), "</p>", (b"x",), (re.compile("x*"),), (3,)])
    def test_other_things_are_refused(self, stop: Any) -> None:
        with pytest.raises(ConfigError, match="`stop` must be a sequence of non-empty ASCII"):
            check_stop(stop)

    def test_patterns_over_bytes_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="compiled patterns"):
            check_stop((re.compile(b"x"),))  # type: ignore[arg-type]  # on purpose


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> AnswerText:
    from transformers import AutoTokenizer

    folder: Path = save_tiny(tmp_path_factory.mktemp("answer") / "model")
    return AnswerText(AutoTokenizer.from_pretrained(folder))


class TestText:
    def encode(self, text: AnswerText, words: str) -> list[int]:
        ids: list[int] = text._tokenizer(words)["input_ids"]
        return ids

    @pytest.mark.parametrize(
        "words", ["lift <progress>84%</progress>.", " é٣ ☃\n", "<|im_end|> a <|image_pad|>"]
    )
    def test_pieces_of_ascii_join_to_the_whole(self, text: AnswerText, words: str) -> None:
        ids = self.encode(text, words)
        assert ids
        joined = "".join(text.piece(token) for token in ids)
        whole = text.decode(ids)
        assert [c for c in joined if c.isascii()] == [c for c in whole if c.isascii()]

    def test_control_tokens_have_no_words(self, text: AnswerText) -> None:
        assert "im_end" not in text.decode(self.encode(text, "a<|im_end|>b"))

    @pytest.mark.parametrize("stop", [("</progress>",), (re.compile("84%"),)])
    def test_a_finished_row_becomes_a_cut_answer(self, text: AnswerText, stop: Stop) -> None:
        row = AnswerRow((END,), stop)
        for token in self.encode(text, "é <progress>84%</progress>. And more"):
            if not row.push(token, text.piece(token)):
                break
        answer = text.finish(row, stop)
        assert answer.finished
        assert answer.tokens == tuple(row.tokens)
        ends = ("</progress>", "84%")
        assert answer.text.startswith("é <progress>84%")
        assert answer.text.endswith(ends)

    def test_an_unfinished_row_keeps_what_it_has(self, text: AnswerText) -> None:
        row = AnswerRow((END,))
        for token in self.encode(text, "lift"):
            row.push(token, "")
        answer = text.finish(row, ())
        assert (answer.text, answer.finished) == ("lift", False)
