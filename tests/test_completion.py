from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.completion import CompletionTracker
from procreward.errors import ConfigError
from procreward.types import Score, Verdict

FAILED = Score(reason="unparsable", text="hm")


def progress(value: float) -> Score:
    return Score(progress=value)


def run(tracker: CompletionTracker, scores: list[Score | None]) -> list[Verdict]:
    return [tracker.update(score, 10 * i) for i, score in enumerate(scores)]


def complete(tracker: CompletionTracker, scores: list[Score | None]) -> str:
    """One character a query: ``#`` complete, ``.`` not."""
    return "".join(".#"[verdict.complete] for verdict in run(tracker, scores))


def by_progress(*values: float) -> list[Score | None]:
    return [progress(value) for value in values]


# --- votes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("confirm", "window", "verdicts"),
    [
        (1, 1, ".#.##.."),
        (2, 2, "....#.."),
        (2, 3, "...###."),
        (3, 3, "......."),
        (3, 5, "....##."),  # the vote of the second query leaves with the seventh
    ],
)
def test_n_of_the_last_m_votes(confirm: int, window: int, verdicts: str) -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=confirm, confirm_window=window
    )
    readings = by_progress(0.5, 0.9, 0.89, 1.0, 0.95, 0.1, 0.2)
    assert complete(tracker, readings) == verdicts


def test_label_comes_before_probability_and_probability_before_progress() -> None:
    def first(score: Score) -> bool:
        return (
            CompletionTracker(complete_threshold=0.5, confirm_queries=1, confirm_window=1)
            .update(score, 0)
            .complete
        )

    assert first(Score(complete=True, success_prob=0.1, progress=0.1))
    assert not first(Score(complete=False, success_prob=0.9, progress=0.9))
    assert first(Score(success_prob=0.5, progress=0.1))
    assert not first(Score(success_prob=0.4, progress=0.9))
    assert first(progress(0.5))


def test_failed_queries_cast_no_vote() -> None:
    tracker = CompletionTracker(complete_threshold=0.9, confirm_queries=2, confirm_window=2)
    assert complete(tracker, [progress(1.0), FAILED, None, progress(1.0), FAILED]) == "...##"
    tracker.reset()
    assert complete(tracker, [progress(1.0), FAILED, progress(0.0), progress(1.0)]) == "...."


def test_judge_is_held_to_a_least_progress() -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=1, confirm_window=1, min_progress=0.6
    )
    scores: list[Score | None] = [
        Score(complete=True),  # nothing known yet
        Score(complete=True, progress=0.5),
        Score(complete=True, progress=0.6),
        Score(complete=True),  # the latest known progress, 0.6
        Score(complete=False, progress=0.9),
    ]
    assert complete(tracker, scores) == "..##."


# --- hysteresis -------------------------------------------------------------------------------


def test_release_holds_until_as_many_low_readings_in_a_row() -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=2, confirm_window=2, release_threshold=0.5
    )
    readings = by_progress(0.95, 0.95, 0.6, 0.5, 0.4, 0.6, 0.4, 0.4, 0.95, 0.95)
    assert complete(tracker, readings) == ".######..#"


def test_without_release_the_votes_decide() -> None:
    tracker = CompletionTracker(complete_threshold=0.9, confirm_queries=2, confirm_window=2)
    assert complete(tracker, by_progress(0.95, 0.95, 0.6, 0.95, 0.95)) == ".#..#"


def test_votes_start_anew_after_a_release() -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=2, confirm_window=6, release_threshold=0.5
    )
    assert complete(tracker, by_progress(1.0, 1.0, 0.1, 0.1, 0.1, 1.0, 1.0)) == ".##...#"


def test_failed_queries_do_not_release() -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=2, confirm_window=2, release_threshold=0.5
    )
    scores: list[Score | None] = [progress(1.0), progress(1.0), progress(0.1), FAILED, None]
    assert complete(tracker, scores) == ".####"
    assert not tracker.update(progress(0.1), 50).complete


def test_label_alone_releases_as_zero_or_one() -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=1, confirm_window=1, release_threshold=0.5
    )
    labels = [Score(complete=True), Score(complete=True), Score(complete=False)]
    assert complete(tracker, [*labels]) == "##."


# --- stall and regression ---------------------------------------------------------------------


def test_stall_is_no_rise_of_the_best_in_so_many_queries() -> None:
    tracker = CompletionTracker(complete_threshold=1.0, stall_queries=3, stall_delta=0.1)
    verdicts = run(tracker, by_progress(0.2, 0.3, 0.3, 0.1, 0.35, 0.39, 0.4, 0.4, 0.4, 0.4))
    assert [verdict.stalled for verdict in verdicts] == [
        False,
        False,  # 0.3 is a rise by 0.1
        False,
        False,
        True,  # three queries since
        True,
        False,  # 0.4 is another rise by 0.1: slow progress adds up
        False,
        False,
        True,
    ]


def test_failed_queries_do_not_count_towards_a_stall() -> None:
    tracker = CompletionTracker(complete_threshold=1.0, stall_queries=2, stall_delta=0.1)
    scores: list[Score | None] = [progress(0.2), FAILED, None, progress(0.2), FAILED, progress(0.2)]
    assert [v.stalled for v in run(tracker, scores)] == [False] * 5 + [True]


def test_complete_is_not_stalled() -> None:
    tracker = CompletionTracker(
        complete_threshold=0.9, confirm_queries=1, confirm_window=1, stall_queries=1
    )
    verdicts = run(tracker, by_progress(1.0, 1.0, 1.0, 0.5))
    assert [verdict.complete for verdict in verdicts] == [True, True, True, False]
    assert [verdict.stalled for verdict in verdicts] == [False, False, False, True]


def test_regression_is_measured_from_the_best() -> None:
    tracker = CompletionTracker(complete_threshold=1.0, regression_delta=0.2)
    verdicts = run(tracker, by_progress(0.1, 0.7, 0.6, 0.5, 0.4, 0.6))
    assert [verdict.regressed for verdict in verdicts] == [False, False, False, True, True, False]
    assert tracker.best == 0.7


def test_stall_and_regression_are_off_by_default() -> None:
    verdicts = run(CompletionTracker(complete_threshold=1.0), by_progress(0.9, *[0.0] * 50))
    assert not any(verdict.stalled or verdict.regressed for verdict in verdicts)


# --- verdicts ---------------------------------------------------------------------------------


def test_verdict_tells_what_is_known() -> None:
    tracker = CompletionTracker(complete_threshold=0.9)
    nothing = Verdict(
        complete=False, progress=None, stalled=False, regressed=False, step=0, valid=False
    )
    assert tracker.verdict == nothing
    assert tracker.best is None
    first = tracker.update(Score(progress=0.25, text="25%"), 8)
    assert first == tracker.verdict
    assert (first.progress, first.step, first.valid, first.text) == (0.25, 8, True, "25%")
    failed = tracker.update(FAILED, 16)
    assert (failed.progress, failed.step, failed.valid, failed.text) == (0.25, 16, False, "hm")
    none = tracker.update(None, 24)
    assert (none.progress, none.step, none.valid, none.text) == (0.25, 24, False, "")
    tracker.reset()
    assert tracker.verdict == nothing


scores = st.lists(
    st.one_of(
        st.none(),
        st.just(FAILED),
        st.builds(progress, st.floats(0, 1)),
        st.builds(lambda c: Score(complete=c), st.booleans()),
        st.builds(lambda p: Score(success_prob=p), st.floats(0, 1)),
    ),
    max_size=30,
)
trackers: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "complete_threshold": st.floats(0.5, 1.0),
        "confirm_queries": st.integers(1, 3),
        "confirm_window": st.integers(3, 5),
        "release_threshold": st.one_of(st.none(), st.floats(0.0, 0.5)),
        "min_progress": st.one_of(st.none(), st.floats(0.0, 1.0)),
        "stall_queries": st.one_of(st.none(), st.integers(1, 5)),
        "regression_delta": st.one_of(st.none(), st.floats(0.1, 1.0)),
    }
)


@given(scores, scores, trackers)
def test_nothing_leaks_over_a_reset(
    first: list[Score | None], second: list[Score | None], settings: dict[str, Any]
) -> None:
    used = CompletionTracker(**settings)
    run(used, first)
    used.reset()
    assert run(used, second) == run(CompletionTracker(**settings), second)


@given(scores, trackers)
def test_completion_needs_as_many_votes_as_asked_for(
    sequence: list[Score | None], settings: dict[str, Any]
) -> None:
    verdicts = run(CompletionTracker(**settings), sequence)
    answered = [v.complete for v in verdicts if v.valid]
    assert not any(answered[: settings["confirm_queries"] - 1])
    before = [False, *(verdict.complete for verdict in verdicts)]
    assert all(v.valid or v.complete == b for v, b in zip(verdicts, before, strict=False))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("complete_threshold", 0.0),
        ("complete_threshold", 1.5),
        ("complete_threshold", math.nan),
        ("confirm_queries", 0),
        ("confirm_window", 1),
        ("release_threshold", 0.95),
        ("release_threshold", -0.1),
        ("min_progress", 2.0),
        ("stall_queries", 0),
        ("stall_delta", 0.0),
        ("regression_delta", 0.0),
    ],
)
def test_settings_out_of_range(setting: str, value: float) -> None:
    settings: dict[str, Any] = {"complete_threshold": 0.9, setting: value}
    with pytest.raises(ConfigError, match=f"`{setting}` must be .*, got {value}"):
        CompletionTracker(**settings)
