"""The thread that asks: order, company, errors and what it leaves behind."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from procreward._asking import SWITCH_INTERVAL_S, AskingThread
from procreward.config import RewardConfig
from procreward.errors import ScorerError
from procreward.registry import clear_scorers
from procreward.runner import DueQuery, QueryRunner
from procreward.session import StreamPlan
from procreward.types import Query, Score
from tests.helpers import Recorder, picture
from tests.vectors import Gated


@pytest.fixture(autouse=True)
def _forget_scorers() -> Iterator[None]:
    yield
    clear_scorers()


def runner_of(scorer: Any, **settings: Any) -> QueryRunner:
    return StreamPlan.from_config(RewardConfig(scorer=scorer, **settings)).runner()


def due(step: int) -> DueQuery:
    query = Query(frames={"main": picture(9)[None]}, instruction="go", frame_steps=(step,))
    return DueQuery(role="scorer", query=query)


def progress(answers: Iterable[Any]) -> list[float]:
    return [answer.progress for answer in answers]


def test_in_order_and_together() -> None:
    class Keeping(Recorder):
        def release(self, streams: Sequence[str]) -> None:
            done.append(f"release {' '.join(streams)}")

        def score(self, queries: Sequence[Query]) -> list[Score]:
            done.append(f"score {[query.frame_steps[-1] for query in queries]}")
            return super().score(queries)

    done: list[str] = []
    scorer = Gated(Keeping([0.0, 0.25, 0.5, 0.75]))
    thread = AskingThread(runner_of(scorer))
    first = thread.ask([due(0)])
    assert scorer.asked.wait(30.0)
    rest = [thread.ask([due(1), due(2)]), thread.release(["a"]), thread.ask([due(3)])]
    scorer.gate.set()
    assert progress(first.result(30.0)) == [0.0]
    assert [progress(future.result(30.0)) for future in rest] == [[0.25, 0.5], [], [0.75]]
    assert done == ["score [0]", "score [1, 2, 3]", "release a"]
    thread.close()


def test_errors_are_promises_too_and_the_thread_goes_on() -> None:
    class Strict(Recorder):
        def score(self, queries: Sequence[Query]) -> list[Score]:
            if any(query.frame_steps[-1] == 1 for query in queries):
                raise ScorerError("not this one")
            return super().score(queries)

        def release(self, streams: Sequence[str]) -> None:
            raise SystemExit(3)

    scorer = Gated(Strict([0.5]))
    thread = AskingThread(runner_of(scorer))
    futures = [thread.ask([due(0)])]
    assert scorer.asked.wait(30.0)
    futures += [thread.ask([due(step)]) for step in (2, 1, 3)]
    scorer.gate.set()
    assert [progress(future.result(30.0)) for future in futures[:2]] == [[0.5], [0.5]]
    for future in futures[2:]:
        with pytest.raises(ScorerError, match="not this one"):
            future.result(30.0)
    with pytest.raises(SystemExit):
        thread.release(["a"]).result(30.0)
    assert progress(thread.ask([due(4)]).result(30.0)) == [0.5]
    thread.close()


def test_threads_take_turns_sooner_while_a_model_is_asked() -> None:
    class Watching(Recorder):
        def score(self, queries: Sequence[Query]) -> list[Score]:
            seen.append(sys.getswitchinterval())
            return super().score(queries)

    before = sys.getswitchinterval()
    seen: list[float] = []
    try:
        # Of these some lose a microsecond each time they are read and set again.
        for interval in (0.000302, 0.000304, 0.005, 0.0001):
            sys.setswitchinterval(interval)
            found = sys.getswitchinterval()
            thread = AskingThread(runner_of(Watching([0.5])))
            for _ in range(20):
                thread.ask([due(0)]).result(30.0)
            thread.close()
            assert sys.getswitchinterval() == found
    finally:
        sys.setswitchinterval(before)
    assert seen == pytest.approx([SWITCH_INTERVAL_S] * 60 + [0.0001] * 20, abs=2e-6)


def test_it_ends_when_it_is_forgotten() -> None:
    thread = AskingThread(runner_of(Recorder([0.5])))
    thread.ask([due(0)]).result(30.0)
    (running,) = [one for one in threading.enumerate() if one.name == "procreward-asking"]
    del thread
    gc.collect()
    running.join(30.0)
    assert not running.is_alive()


def test_after_close_nothing_is_promised() -> None:
    thread = AskingThread(runner_of(Recorder([0.5])))
    thread.close()
    with pytest.raises(CancelledError):
        thread.ask([due(0)]).result(30.0)


def test_two_threads_are_never_inside_one_model() -> None:
    class Alone(Recorder):
        inside = 0

        def score(self, queries: Sequence[Query]) -> list[Score]:
            self.inside += 1
            assert self.inside == 1
            entered.set()
            # Long enough for the other thread to come in, if it could.
            overtaken.wait(0.05)
            self.inside -= 1
            return super().score(queries)

    entered, overtaken = threading.Event(), threading.Event()
    scorer = Alone([0.5])
    thread, here = AskingThread(runner_of(scorer)), runner_of(scorer)
    future = thread.ask([due(0)])
    assert entered.wait(30.0)
    assert progress(here.run([due(1)])) == [0.5]
    overtaken.set()
    assert progress(future.result(30.0)) == [0.5]
    assert (here.stats.failures, scorer.steps) == (0, [0, 1])
    thread.close()
