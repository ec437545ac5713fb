from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.wrappers import ClipReward, TimeLimit

from procreward.errors import ConformanceError, FrameError, InstructionError
from procreward.scorers import check_query
from procreward.testing import Report, check_scorer, check_wrapper
from procreward.types import Query, Score
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder, make_counter


class Good:
    """Keeps the contract: progress is the brightness of the newest frame."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        for query in queries:
            check_query(query)
        return [self.answer(query) for query in queries]

    def answer(self, query: Query) -> Score:
        (clip,) = query.frames.values()
        return Score(progress=float(clip[-1].mean()) / 255.0)

    def describe(self) -> Mapping[str, object]:
        return {"name": "good"}


def failed(report: Report) -> list[str]:
    return [check.name for check in report.failures]


def test_good_scorer_passes() -> None:
    report = check_scorer(Good(), frame_size=(24, 16), window_frames=3)
    assert report.ok
    assert len(report.checks) == 11
    assert all(check.explanation for check in report.checks)


@pytest.mark.parametrize("name", ["constant", "scripted"])
def test_own_scorers_pass(name: str) -> None:
    assert check_scorer(name).ok


@pytest.mark.parametrize(
    ("account", "views"),
    [
        ({}, {"main"}),
        ({"view": None, "views": None}, {"main"}),
        ({"view": "front"}, {"front"}),
        ({"views": {"left": 0.5, "right": 0.5}}, {"left", "right"}),
    ],
)
def test_scorers_are_shown_the_views_they_are_set_up_for(
    account: dict[str, Any], views: set[str]
) -> None:
    class Choosy(Recorder):
        def describe(self) -> Mapping[str, object]:
            return {"name": "choosy", **account}

    scorer = Choosy([0.5])
    check_scorer(scorer, raise_on_failure=False)
    assert {view for query in scorer.queries for view in query.frames} == views
    assert {query.fps for query in scorer.queries} == {20.0}


class Nameless(Good):
    def describe(self) -> Mapping[str, object]:
        return {}


class NotJson(Good):
    def describe(self) -> Mapping[str, object]:
        return {"name": "x", "model": object()}


class Reversed(Good):
    """Sorts by brightness and forgets to put the answers back."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        return sorted(super().score(queries), key=lambda score: score.progress or 0.0)


class OneTooFew(Good):
    def score(self, queries: Sequence[Query]) -> list[Score]:
        return super().score(queries)[:-1]


class Chance(Good):
    def __init__(self) -> None:
        self.numbers = itertools.count()

    def answer(self, query: Query) -> Score:
        return Score(progress=next(self.numbers) % 7 / 7)


class BatchMinded(Good):
    def score(self, queries: Sequence[Query]) -> list[Score]:
        scores = super().score(queries)
        return [Score(progress=(score.progress or 0.0) / len(queries)) for score in scores]


class MixesEpisodes(Good):
    """Keeps what it answered by step alone, and so mixes episodes."""

    def __init__(self) -> None:
        self.cache: dict[object, Score] = {}

    def answer(self, query: Query) -> Score:
        name = query.stream.split("-")[-1]
        return self.cache.setdefault(name, super().answer(query))


class Painter(Good):
    def answer(self, query: Query) -> Score:
        (clip,) = query.frames.values()
        clip[:] = 7
        return super().answer(query)


class Undemanding(Good):
    def score(self, queries: Sequence[Query]) -> list[Score]:
        return [Score(progress=0.5) for _ in queries]


class LongWindowsOnly(Good):
    def answer(self, query: Query) -> Score:
        if len(query.frame_steps) < 2:
            raise IndexError("window too short")
        return super().answer(query)


REFUSALS = ["refuses_no_instruction", "refuses_float_frames", "refuses_channels_first"]


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        (Nameless(), ["describes_itself"]),
        (NotJson(), ["describes_itself"]),
        (Reversed(), ["order_kept", "batch_equals_singles"]),
        (OneTooFew(), ["one_score_each", "short_window"]),
        (Chance(), ["deterministic", "order_kept", "batch_equals_singles", "streams_apart"]),
        (BatchMinded(), ["batch_equals_singles"]),
        (MixesEpisodes(), ["streams_apart"]),
        (Painter(), ["one_score_each"]),
        (Undemanding(), REFUSALS),
        (LongWindowsOnly(), ["short_window"]),
    ],
)
def test_broken_scorers_are_found_out(scorer: Any, expected: list[str]) -> None:
    report = check_scorer(scorer, frame_size=(24, 16), raise_on_failure=False)
    assert failed(report) == expected
    with pytest.raises(ConformanceError, match=expected[0]):
        report.raise_if_failed()


def test_raises_unless_told_otherwise() -> None:
    with pytest.raises(ConformanceError, match=r"FAILED  describes_itself.*\n.*with a `name`"):
        check_scorer(Nameless(), frame_size=(8, 8))


def test_check_query() -> None:
    import numpy as np

    good = np.zeros((2, 4, 4, 3), np.uint8)
    check_query(Query(frames={"a": good}, instruction="go", frame_steps=(0, 1)))
    with pytest.raises(FrameError, match="must hold at least one view"):
        check_query(Query(frames={}, instruction="go", frame_steps=(0,)))
    with pytest.raises(FrameError, match=r"one frame per entry of `frame_steps` \(1\)"):
        check_query(Query(frames={"a": good}, instruction="go", frame_steps=(0,)))
    with pytest.raises(InstructionError, match=r"`Query.instruction` must be a sentence .*got ''"):
        check_query(Query(frames={"a": good}, instruction="", frame_steps=(0, 1)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shaping": "delta", "scale": 2.0},
        {"shaping": "raw", "env_reward_weight": 0.5},
        {"shaping": "sparse", "success_bonus": 1.0},
        {"on_complete": "terminate", "success_bonus": 1.0},
        {"every_k_steps": 3, "gamma": 0.5, "smooth_alpha": 0.5, "offset": True},
        {"skip_unchanged": 5.0},
    ],
)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_good_wrappers_pass(settings: dict[str, Any], end: str) -> None:
    scorer = {"name": "scripted", "options": {"ramp_steps": 6}}
    env = ProgressReward(make_counter(num_steps=11, end=end), scorer=scorer, **settings)
    report = check_wrapper(env)
    assert report.ok
    assert len(report.checks) == 10


def test_failing_answers_break_nothing() -> None:
    answers = [None, None, 0.25, None, RuntimeError("x"), 0.5]
    env = ProgressReward(make_counter(num_steps=8), scorer=Recorder(answers), every_k_steps=1)
    assert check_wrapper(env).ok


def test_time_limit_outside_is_found() -> None:
    env = TimeLimit(ProgressReward(make_counter(), scorer="constant"), 5)
    report = check_wrapper(env, raise_on_failure=False)
    # Making it again from its spec puts the TimeLimit inside, which is not what it was.
    assert failed(report) == ["stack_order", "spec_round_trip"]
    assert "TimeLimit is around the ProgressReward: it cuts episodes off" in str(report)


def test_clip_reward_outside_is_found() -> None:
    env = ClipReward(ProgressReward(make_counter(), scorer="constant"), 0.0, 1.0)
    assert failed(check_wrapper(env, raise_on_failure=False)) == ["stack_order"]


def test_no_wrapper_at_all() -> None:
    with pytest.raises(ConformanceError, match="there is one ProgressReward in the stack"):
        check_wrapper(CounterEnv())


def test_environment_without_a_spec_is_skipped_there() -> None:
    report = check_wrapper(ProgressReward(CounterEnv(), scorer="constant"))
    assert [check.name for check in report.checks if check.skipped] == ["spec_round_trip"]


def test_callable_instruction_is_explained() -> None:
    env = ProgressReward(make_counter(), scorer="constant", instruction=lambda env, obs, info: "go")
    assert failed(check_wrapper(env, raise_on_failure=False)) == ["spec_round_trip"]


def test_environment_that_ignores_its_seed_is_found() -> None:
    class Unseeded(CounterEnv):
        episodes = 0

        def reset(self, **kwargs: Any) -> Any:
            Unseeded.episodes += 1
            return super().reset(**kwargs)

        def _picture(self) -> Any:
            return super()._picture() + Unseeded.episodes

    env = ProgressReward(Unseeded(), scorer=Recorder(), every_k_steps=2)
    assert failed(check_wrapper(env, raise_on_failure=False)) == ["deterministic"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda entry: entry.update(progress=1), "info_constant"),
        (lambda entry: entry.update(age_steps=float("nan")), "info_constant"),
        (lambda entry: entry.update(queried=True), "queries_on_schedule"),
        (lambda entry: entry.update(shaping=0.5), "reward_adds_up"),
        (lambda entry: entry.update(potential=0.5), "telescopes"),
    ],
)
def test_a_wrapper_that_tells_stories_is_found(change: Any, expected: str) -> None:
    class Lying(ProgressReward[Any, Any]):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            change(info["procreward"])
            return (*rest, info)

    env: gym.Env[Any, Any] = Lying(CounterEnv(6, "truncated"), scorer=Recorder(), every_k_steps=4)
    assert expected in failed(check_wrapper(env, raise_on_failure=False))
