from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from procreward.engine.answers.drafts import Draft, DraftBook, accepted

DIGITS = range(10)
ACTIONS, REACH, GRASP, LIFT, PERCENT = 100, 101, 102, 103, 104


def write(draft: Draft, answer: Sequence[int], limit: int = 8) -> int:
    """Verify guesses against the true answer, as decoding does; returns the number of passes."""
    written, passes = 0, 0
    while written < len(answer):
        guess = draft.guess(limit)
        chosen = [*answer[written : written + len(guess)], -1]
        right = accepted(guess, chosen)
        own = answer[written + right] if written + right < len(answer) else None
        draft.follow(right, own)
        written += right + (own is not None)
        passes += 1
    return passes


def test_accepted_counts_up_to_the_first_difference() -> None:
    assert accepted([1, 2, 3], [1, 2, 3, 4]) == 3
    assert accepted([1, 2, 3], [1, 9, 3, 4]) == 1
    assert accepted([1, 2, 3], [7, 2, 3, 4]) == 0
    assert accepted([], [5]) == 0


def test_the_same_answer_takes_one_pass() -> None:
    book = DraftBook(DIGITS)
    book.keep("a", (ACTIONS, REACH, 4, 2, PERCENT))
    draft = book.draft("a")
    assert draft.guess(3) == [ACTIONS, REACH, 4]
    assert write(draft, (ACTIONS, REACH, 4, 2, PERCENT), limit=8) == 1


def test_another_digit_costs_one_pass_and_the_rest_still_counts() -> None:
    book = DraftBook(DIGITS)
    # The same digit later on must not be mistaken for the place to go on from.
    book.keep("a", (4, 2, PERCENT, 5, ACTIONS, REACH))
    assert write(book.draft("a"), (5, 2, PERCENT, 5, ACTIONS, REACH)) == 2


def test_an_item_that_is_done_is_skipped() -> None:
    book = DraftBook(DIGITS)
    book.keep("a", (ACTIONS, REACH, GRASP, LIFT, PERCENT))
    assert write(book.draft("a"), (ACTIONS, GRASP, LIFT, PERCENT)) == 2


def test_other_answers_help_when_an_item_comes_back() -> None:
    book = DraftBook(DIGITS)
    book.keep("b", (ACTIONS, REACH, GRASP, LIFT, PERCENT))
    book.keep("a", (ACTIONS, LIFT, PERCENT))
    draft = book.draft("a")
    assert draft.guess(3) == [ACTIONS, LIFT, PERCENT]
    draft.follow(1, REACH)
    assert draft.guess(3) == [GRASP, LIFT, PERCENT]


def test_a_new_stream_starts_from_the_latest_answer_of_another() -> None:
    book = DraftBook(DIGITS)
    assert book.draft("a").guess(4) == []
    book.keep("a", (ACTIONS, REACH))
    assert book.draft("b").guess(4) == [ACTIONS, REACH]
    assert book.draft(None).guess(4) == []


def test_guesses_get_shorter_while_nothing_is_right() -> None:
    draft = Draft(source=tuple(range(100, 180)))
    lengths = []
    for own in (1, 2, 3, 4, 5):
        lengths.append(len(draft.guess(16)))
        draft.follow(0, own)
    assert lengths == [16, 16, 16, 4, 1]
    assert draft.guess(16) == []
    draft.follow(0, draft.source[draft.place])  # the model came back to it
    assert len(draft.guess(16)) == 16


def test_released_streams_are_forgotten() -> None:
    book = DraftBook(DIGITS)
    book.keep("a/main", (ACTIONS, REACH))
    book.keep("ab/main", (ACTIONS, LIFT))
    book.keep("c", (ACTIONS, GRASP))
    book.release(["a"])
    assert book.draft("ab/main").guess(2) == [ACTIONS, LIFT]
    assert book.draft("a/main").guess(2) == [ACTIONS, GRASP]  # the latest of another stream


@given(
    answers=st.lists(st.lists(st.integers(0, 14), min_size=1, max_size=12), min_size=1),
    limit=st.integers(1, 6),
)
def test_any_answer_can_be_written_in_at_most_as_many_passes_as_tokens(
    answers: list[list[int]], limit: int
) -> None:
    book = DraftBook(DIGITS)
    for answer in answers:
        draft = book.draft("a")
        passes = write(draft, answer, limit)
        assert 1 <= passes <= len(answer)
        assert draft.written == answer
        book.keep("a", answer)
