from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from procreward.errors import ConfigError
from procreward.relabel.readings import Reading
from procreward.report.clips import in_order
from procreward.report.config import ReportConfig
from procreward.report.content import details, finite, row
from procreward.report.figures import Flag, Thresholds, find_flags, spans, value_order_correlation
from procreward.report.records import StepTrace
from procreward.report.runs import Entry
from procreward.types import Score
from tests.report.helpers import episode, step_trace


def trace(readings: Sequence[float | None], every: int = 8) -> list[StepTrace]:
    """A trace with a query at every ``every``-th step; None is an invalid answer."""
    steps: list[StepTrace] = []
    held: float | None = None
    for number, reading in enumerate(readings):
        held = held if reading is None else reading
        for offset in range(every if number < len(readings) - 1 else 1):
            asked = {"queried": offset == 0, "valid": reading is not None}
            step = number * every + offset
            steps.append(step_trace(step, progress=held, potential=held or 0.0, **asked))
    return steps


def test_a_stall_begins_at_the_reading_that_is_not_exceeded() -> None:
    rising = [0.0, 0.2, 0.4]
    assert find_flags(trace([*rising, 0.4, 0.41, 0.4, 0.4, 0.4])) == [
        Flag(kind="stall", start=16, end=56, best=0.41)
    ]
    # The reading that ends it is its last one.
    assert find_flags(trace([*rising, 0.4, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6])) == [
        Flag(kind="stall", start=16, end=64, best=0.4)
    ]
    assert find_flags(trace([*rising, 0.4, 0.4, 0.4, 0.4])) == []
    assert find_flags(trace([0.4] * 4), Thresholds(stall_queries=3)) == [
        Flag(kind="stall", start=0, end=24, best=0.4)
    ]


def test_a_drop_lasts_until_the_reading_is_back() -> None:
    assert find_flags(trace([0.1, 0.6, 0.4, 0.3, 0.55])) == [
        Flag(kind="drop", start=16, end=32, best=0.6, lowest=0.3)
    ]
    assert find_flags(trace([0.1, 0.6, 0.46])) == []
    assert find_flags(trace([0.1, 0.6, 0.46]), Thresholds(regression_delta=0.14)) == [
        Flag(kind="drop", start=16, end=16, best=0.6, lowest=0.46)
    ]


def test_what_is_complete_does_not_stall() -> None:
    steps = [
        step_trace(one.step, progress=one.progress, queried=one.queried, complete=True)
        for one in trace([0.9] * 9)
    ]
    assert find_flags(steps) == []


def test_invalid_answers_are_flagged_and_otherwise_passed_over() -> None:
    found = find_flags(trace([None, 0.2, None, 0.6, None]))
    assert [(flag.kind, flag.start, flag.end) for flag in found] == [
        ("invalid", 0, 0),
        ("invalid", 16, 16),
        ("invalid", 32, 32),
    ]


def test_nothing_is_found_in_episodes_without_readings() -> None:
    assert find_flags([]) == []
    assert [flag.kind for flag in find_flags(trace([None, None], every=1))] == ["invalid"] * 2
    assert find_flags([step_trace(0, queried=False)]) == []


@given(st.lists(st.none() | st.integers(0, 20), max_size=30))
def test_flags_lie_within_the_episode_and_mean_what_they_say(values: list[int | None]) -> None:
    steps = trace([None if value is None else value / 20 for value in values], every=2)
    for flag in find_flags(steps):
        assert 0 <= flag.start <= flag.end <= len(steps) - 1
        if flag.kind == "drop":
            assert flag.best is not None
            assert flag.lowest is not None
            assert flag.best - flag.lowest >= 0.15 - 1e-9
        if flag.kind == "stall":
            assert flag.end - flag.start >= 2 * 5


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20))
def test_voc_is_the_rank_correlation_with_time(values: list[int]) -> None:
    found = value_order_correlation(trace([value / 10 for value in values], every=3))
    if len(set(values)) == 1:
        assert found == 0.0
    else:
        expected = stats.spearmanr(values, range(len(values))).statistic
        assert found == pytest.approx(expected, abs=1e-9)


def test_voc_of_known_orders() -> None:
    assert value_order_correlation(trace([0.1, 0.2, None, 0.9])) == pytest.approx(1.0)
    assert value_order_correlation(trace([0.9, 0.2, 0.1])) == pytest.approx(-1.0)
    assert value_order_correlation(trace([None, 0.2])) is None
    assert value_order_correlation([]) is None


def test_spans() -> None:
    assert spans([]) == []
    assert spans([True, True, False, True]) == [(0, 1), (3, 3)]


def entry(**changes: object) -> Entry:
    record = episode(**changes)
    return Entry(place=0, number=7, key="7", name="demo_7", record=record)


def test_a_row_sums_up_the_episode() -> None:
    found = row(entry(), Thresholds())
    assert found.pop("spark") == [0, 0.25, 0.5, 0.75, 1]
    assert found == {
        "key": "7",
        "number": 7,
        "name": "demo_7",
        "task": "move the red dot onto the blue square",
        "policy": "expert",
        "length": 4,
        "final": 1,
        "complete": 3,
        "held": True,
        "success": True,
        "voc": 1,
        "queries": 5,
        "invalid": 0,
        "stalls": 0,
        "drops": 0,
        "return": 0.25,
        "error": 0,
    }


def test_numbers_that_json_has_not_become_none() -> None:
    assert finite(math.nan) is finite(math.inf) is finite(None) is None
    assert repr(finite(0.30000000000000004)) == "0.3"
    steps = (step_trace(0, progress=None, potential=math.nan, valid=False, true_progress=None),)
    odd = entry(trace=steps, steps=0, final_progress=None, episode_return=math.nan, queries=1)
    assert row(odd, Thresholds())["return"] is None
    assert row(odd, Thresholds())["voc"] is None
    found = details(odd, Thresholds())
    assert found["potential"] == found["progress"] == [None]
    assert found["truth"] is None
    assert found["queries"] == [
        {"step": 0, "valid": False, "text": "<progress>0%</progress>", "progress": None}
    ]


def test_why_a_query_of_a_demo_failed() -> None:
    steps = (step_trace(0, valid=False, text="", reason="RuntimeError"), step_trace(1))
    first, second = details(entry(trace=steps, steps=1), Thresholds())["queries"]
    assert (first["valid"], first["reason"]) == (False, "RuntimeError")
    assert "reason" not in second


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"stall_queries": 0}, "`stall_queries` must be an integer of at least 1"),
        ({"regression_delta": 1.5}, "`regression_delta` must be a number in"),
        ({"max_mb": 0.0}, "`max_mb` must be above 0"),
        ({"fps": float("nan")}, "`fps` must be above 0"),
        ({"limit": 0}, "`limit` must be an integer of at least 1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReportConfig(run=Path(), **setting)  # type: ignore[arg-type]  # wrong on purpose


def test_what_only_the_judge_failed_to_answer_is_flagged_too() -> None:
    failed = Reading(
        frame=1,
        window=(0, 1),
        judge_window=(1,),
        score=Score(progress=0.25),
        judge_score=Score(reason="truncated"),
    )
    silent = Reading(frame=2, window=(1, 2), judge_window=(2,), judge_failed="TimeoutError")
    found = details(replace(entry(), readings={1: failed, 2: silent}), Thresholds())
    assert [(flag["kind"], flag["start"]) for flag in found["flags"]] == [
        ("invalid", 1),
        ("invalid", 2),
    ]
    assert found["queries"][1]["judge"] == {"valid": False, "reason": "truncated"}
    judge = found["queries"][2]["judge"]
    assert judge == {"valid": False, "reason": "TimeoutError", "text": ""}


def test_work_is_done_in_order_and_no_more_than_asked_for() -> None:
    asked: list[int] = []

    def work(item: int) -> int:
        asked.append(item)
        time.sleep(0.01 if item % 2 else 0.0)
        return item * item

    assert list(in_order(work, range(20))) == [(item, item * item) for item in range(20)]
    asked.clear()
    some = in_order(work, range(1000))
    assert next(some) == (0, 0)
    some.close()
    assert len(asked) < 30


def test_errors_of_the_work_come_out() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // item, [1, 0, 2]))
