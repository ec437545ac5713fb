from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from procreward.checker import CompletionChecker
from procreward.errors import (
    ConfigError,
    FrameError,
    InstructionError,
    ScorerFailedError,
    UnknownNameError,
)
from procreward.types import Score
from tests.helpers import Recorder, picture


def push(checker: CompletionChecker, count: int) -> list[bool]:
    verdicts = []
    for grey in range(1, count + 1):
        checker.push(picture(grey))
        verdicts.append(checker.verdict().complete)
    return verdicts


def test_completion_by_progress() -> None:
    checker = CompletionChecker(Recorder([0.5, 1.0, 0.2, 1.0, 1.0]), "go")
    assert push(checker, 5) == [False, False, False, True, True]


def test_completion_by_label() -> None:
    yes, no = Score(complete=True), Score(complete=False)
    checker = CompletionChecker(Recorder([no, yes, yes]), "go")
    assert push(checker, 3) == [False, False, True]
    assert checker.verdict().progress is None


def test_every_k_frames_and_hysteresis() -> None:
    judge = Recorder([0.0, 9.9, 1.0, 9.9, 1.0, 9.9, 0.7, 9.9, 0.1, 9.9, 0.1])
    checker = CompletionChecker(judge, "go", every_k_frames=2, release_threshold=0.5)
    complete = push(checker, 11)
    assert judge.steps == [0, 2, 4, 6, 8, 10]
    assert complete == [False] * 4 + [True] * 6 + [False]


def test_stall_and_regression() -> None:
    judge = Recorder([0.5, 0.5, 0.5, 0.3])
    checker = CompletionChecker(judge, "go", stall_queries=2, regression_delta=0.2)
    seen = []
    for _ in range(4):
        checker.push(picture(9))
        verdict = checker.verdict()
        seen.append((verdict.stalled, verdict.regressed, verdict.step))
    assert seen == [(False, False, 0), (False, False, 1), (True, False, 2), (True, True, 3)]


def test_verdict_before_the_first_frame_knows_nothing() -> None:
    verdict = CompletionChecker("constant", "go").verdict()
    assert (verdict.complete, verdict.progress, verdict.valid) == (False, None, False)


def test_failed_queries_hold_the_verdict() -> None:
    checker = CompletionChecker(Recorder([1.0, 1.0, None, RuntimeError("x")]), "go")
    assert push(checker, 4) == [False, True, True, True]
    assert checker.verdict().valid is False
    assert checker.stats.failures == 2
    assert checker.last_score is None


def test_reset_begins_anew() -> None:
    judge = Recorder([1.0])
    checker = CompletionChecker(judge, "first")
    assert push(checker, 2) == [False, True]
    checker.reset("second")
    assert checker.verdict().complete is False
    assert checker.last_score is None
    assert push(checker, 2) == [False, True]
    checker.reset()
    checker.push(picture(1))
    texts = [query.instruction for query in judge.queries]
    assert texts == ["first"] * 2 + ["second"] * 3
    assert judge.steps == [0, 1, 0, 1, 0]


def test_a_closed_checker_has_parted_with_its_stream() -> None:
    class Forgetful(Recorder):
        released: tuple[str, ...] = ()

        def release(self, streams: Iterable[str]) -> None:
            self.released += tuple(streams)

    judge = Forgetful([1.0])
    checker = CompletionChecker(judge, "go")
    push(checker, 1)
    checker.close()
    checker.close()
    assert judge.released == (judge.queries[0].stream,)
    assert checker.verdict().progress is None


def test_several_views_and_rate() -> None:
    judge = Recorder([0.5])
    checker = CompletionChecker(judge, "go", fps=20.0, window_frames=2)
    checker.push({"left": picture(3), "right": picture(4)})
    (query,) = judge.queries
    assert query.fps == 20.0
    greys = {view: clip[:, 0, 0, 0].tolist() for view, clip in query.frames.items()}
    assert greys == {"left": [3, 3], "right": [4, 4]}
    with pytest.raises(FrameError, match=r"must have the episode's views \['left', 'right'\]"):
        checker.push(picture(5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"judge": "constnt"}, UnknownNameError, "Did you mean 'constant'"),
        ({"instruction": " "}, InstructionError, "`instruction` must be a sentence"),
        ({"every_k_frames": 0}, ConfigError, "`every_k_frames` must be an integer of at least 1"),
        ({"frame_stride_frames": 0}, ConfigError, "`frame_stride_frames` must be an integer"),
        ({"complete_threshold": 2.0}, ConfigError, "`complete_threshold` must be"),
        ({"fps": 0}, ConfigError, "`fps` must be above 0, or None when unknown, got 0"),
        ({"fps": float("nan")}, ConfigError, "`fps` must be above 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CompletionChecker(**{"judge": "constant", "instruction": "go", **arguments})


@pytest.mark.parametrize(("frames", "got"), [(None, "NoneType"), ([[1, 2]], "list")])
def test_what_is_no_frame_is_refused(frames: Any, got: str) -> None:
    checker = CompletionChecker("constant", "go")
    with pytest.raises(FrameError, match=rf"uint8 RGB picture, got {got}"):
        checker.push(frames)


def test_bad_frames_and_a_dead_judge() -> None:
    checker = CompletionChecker(Recorder([None]), "go", max_consecutive_failures=2)
    with pytest.raises(FrameError, match="channels first"):
        checker.push(picture(9).transpose(2, 0, 1))
    checker.push(picture(9))
    with pytest.raises(ScorerFailedError, match="2 queries in a row"):
        checker.push(picture(9))
