"""One middle, many doors: what holds for every schedule, window, failure and ending."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.checker import CompletionChecker
from procreward.config import RewardConfig
from procreward.errors import FrameError, InstructionError, ScorerError
from procreward.registry import clear_scorers, resolve
from procreward.session import EpisodeStream, StreamPlan
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder, discounted, picture, play

FRAME = {"main": picture(9)}

# None is an answer that cannot be read; the exception is a model that falls over.
ANSWERS = st.one_of(
    st.floats(0.0, 1.0, allow_subnormal=False), st.none(), st.just(RuntimeError("down"))
)


@pytest.fixture(autouse=True)
def _forget_scorers() -> Any:
    yield
    clear_scorers()


@dataclass
class Case:
    answers: list[float | RuntimeError | None]
    end: str
    settings: dict[str, Any]

    @property
    def num_steps(self) -> int:
        return len(self.answers) - 1

    def env(self, scorer: Recorder, **changes: Any) -> ProgressReward[Any, Any]:
        return ProgressReward(
            CounterEnv(self.num_steps, self.end), scorer=scorer, **{**self.settings, **changes}
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        answers=draw(st.lists(ANSWERS, min_size=2, max_size=16)),
        end=draw(st.sampled_from(["terminated", "truncated"])),
        settings={
            "every_k_steps": draw(st.integers(1, 7)),
            "window_frames": draw(st.integers(1, 4)),
            "frame_stride_steps": draw(st.integers(1, 3)),
            "pad": draw(st.booleans()),
            "gamma": draw(st.sampled_from([0.5, 0.9, 0.99, 1.0])),
            "scale": draw(st.sampled_from([0.5, 1.0, 3.0])),
            "ratchet": draw(st.booleans()),
            "smooth_alpha": draw(st.sampled_from([None, 0.5])),
            "offset": draw(st.booleans()),
            "max_consecutive_failures": 99,
        },
    )


def from_first_reading(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = next((i for i, entry in enumerate(trace) if entry["valid"]), len(trace) - 1)
    assert all(entry["reward"] == 0.0 for entry in trace[: known + 1])
    return trace[known:]


@given(cases())
@settings(max_examples=60, deadline=None)
def test_discounted_shaping_telescopes(case: Case) -> None:
    env = case.env(Recorder(case.answers))
    trace = from_first_reading(play(env))
    gamma, scale = case.settings["gamma"], case.settings["scale"]
    total = discounted([entry["reward"] for entry in trace[1:]], gamma)
    steps = len(trace) - 1
    end = 0.0 if case.end == "terminated" else trace[-1]["potential"]
    expected = scale * (gamma**steps * end - trace[0]["potential"]) if steps else 0.0
    assert total == pytest.approx(expected, abs=1e-12 * scale * max(1, steps))
    assert all(abs(entry["reward"]) <= scale * (1 + 1e-12) for entry in trace)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_last_reward(case: Case) -> None:
    env = case.env(Recorder(case.answers), ratchet=False, smooth_alpha=None, offset=False)
    trace = from_first_reading(play(env))
    if len(trace) < 2:
        return
    gamma, scale = case.settings["gamma"], case.settings["scale"]
    held = trace[-2]["potential"]
    last = case.answers[-1]
    final = last if isinstance(last, float) else held
    expected = -scale * held
    if case.end == "truncated":
        expected = gamma * scale * final - scale * held
    assert trace[-1]["reward"] == expected


@given(cases())
@settings(max_examples=40, deadline=None)
def test_delta_telescopes_without_a_discount(case: Case) -> None:
    trace = from_first_reading(play(case.env(Recorder(case.answers), shaping="delta")))
    total = sum(entry["reward"] for entry in trace[1:])
    expected = case.settings["scale"] * (trace[-1]["potential"] - trace[0]["potential"])
    assert total == pytest.approx(expected, abs=1e-11)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_asked_once_a_step_on_schedule_and_until_something_is_known(case: Case) -> None:
    scorer = Recorder(case.answers)
    trace = play(case.env(scorer))
    expected, known = [], False
    for step, answer in enumerate(case.answers):
        if step % case.settings["every_k_steps"] == 0 or step == case.num_steps or not known:
            expected.append(step)
            known = known or isinstance(answer, float)
    assert scorer.steps == expected
    assert [step for step, entry in enumerate(trace) if entry["queried"]] == expected


@given(cases(), st.integers(0, 15))
@settings(max_examples=40, deadline=None)
def test_episodes_leave_nothing_behind(case: Case, steps_before: int) -> None:
    used = case.env(Recorder(case.answers))
    play(used, min(steps_before, case.num_steps))
    assert play(used) == play(case.env(Recorder(case.answers)))


@given(cases())
@settings(max_examples=40, deadline=None)
def test_wrapper_equals_stream_on_the_same_frames(case: Case) -> None:
    """Also: an episode that is recorded and scored later earns the same, bit for bit."""
    online = play(case.env(Recorder(case.answers)))
    config = RewardConfig(scorer=Recorder(case.answers), **case.settings)
    plan = StreamPlan.from_config(config)
    stream, runner = EpisodeStream(plan), plan.runner()
    offline = [stream.apply(runner.run(stream.begin({"render": picture(1)}, "go")))]
    for step in range(1, case.num_steps + 1):
        ended = step == case.num_steps
        dues = stream.advance(
            {"render": picture(step + 1)},
            step,
            terminated=ended and case.end == "terminated",
            truncated=ended and case.end == "truncated",
        )
        offline.append(stream.apply(runner.run(dues)))
    assert [entry["reward"] for entry in online] == [o.shaping + o.bonus for o in offline]
    assert [entry["potential"] for entry in online] == [o.potential for o in offline]
    assert [entry["complete"] for entry in online] == [o.complete for o in offline]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_checker_sees_what_the_wrapper_sees(k: int, window: int, stride: int, steps: int) -> None:
    wrapped, watching = Recorder(), Recorder()
    env = ProgressReward(
        CounterEnv(99), scorer=wrapped, every_k_steps=k, window_frames=window,
        frame_stride_steps=stride,
    )  # fmt: skip
    trace = play(env, steps)
    checker = CompletionChecker(
        watching, "go", every_k_frames=k, window_frames=window, frame_stride_frames=stride
    )
    for entry, step in zip(trace, range(steps + 1), strict=True):
        checker.push(picture(step + 1))
        assert checker.verdict().progress == entry["progress"]
        assert checker.outcome is not None
        assert checker.outcome.potential == entry["potential"]
    assert [q.frame_steps for q in watching.queries] == [q.frame_steps for q in wrapped.queries]


def stream_of(**changes: Any) -> tuple[EpisodeStream, Any]:
    plan = StreamPlan.from_config(RewardConfig(scorer="constant", every_k_steps=2, **changes))
    return EpisodeStream(plan), plan.runner()


def test_frames_may_be_left_out_where_they_are_not_wanted() -> None:
    stream, runner = stream_of()
    stream.apply(runner.run(stream.begin(FRAME, "go")))
    assert not stream.wants_frame(1)
    assert stream.wants_frame(1, ended=True)
    assert stream.advance(None, 1) == []
    assert stream.apply([]).age_steps == 1
    with pytest.raises(FrameError, match="`frames` must be given at step 2"):
        stream.advance(None, 2)


def test_every_due_query_needs_an_answer() -> None:
    stream, runner = stream_of()
    with pytest.raises(InstructionError, match="call begin"):
        stream.advance(FRAME, 1)
    dues = stream.begin(FRAME, "go")
    with pytest.raises(ScorerError, match="got 0 for 1 due queries"):
        stream.apply([])
    stream.apply(runner.run(dues))
    with pytest.raises(ScorerError, match="for no step"):
        stream.apply([])


def test_queries_of_many_streams_go_out_in_one_call() -> None:
    scorer = Recorder()
    judge = Recorder([0.5])
    plan = StreamPlan.from_config(RewardConfig(scorer=scorer, judge=judge))
    runner = plan.runner()
    streams = [EpisodeStream(plan) for _ in range(3)]
    dues = [s.begin({"main": picture(51 * (i + 1))}, "go") for i, s in enumerate(streams)]
    answers = runner.run([due for own in dues for due in own])
    assert (scorer.calls, judge.calls, runner.stats.queries) == (1, 1, 6)
    outcomes = [s.apply(answers[2 * i : 2 * i + 2]) for i, s in enumerate(streams)]
    assert [outcome.progress for outcome in outcomes] == [0.2, 0.4, 0.6]


def test_thresholds_come_from_the_decider_unless_given() -> None:
    assert StreamPlan.from_config(RewardConfig(scorer="constant")).complete_threshold == 0.95
    config = RewardConfig(scorer="constant", judge="constant", complete_threshold=0.5)
    assert StreamPlan.from_config(config).complete_threshold == 0.5


def test_why_there_was_no_answer() -> None:
    scorer = Recorder([0.5, None, RuntimeError("down"), 0.25])
    plan = StreamPlan.from_config(RewardConfig(scorer=scorer, every_k_steps=1))
    stream, runner = EpisodeStream(plan), plan.runner()
    outcomes = [stream.apply(runner.run(stream.begin(FRAME, "go")))]
    outcomes += [stream.apply(runner.run(stream.advance(FRAME, step))) for step in (1, 2, 3)]
    assert [outcome.reason for outcome in outcomes] == ["", "unparsable", "RuntimeError", ""]


def test_a_copy_goes_on_under_a_name_of_its_own() -> None:
    # Models know a frame by stream and step, and the two may see different frames from here on.
    scorer = Recorder()
    plan = StreamPlan.from_config(RewardConfig(scorer=scorer, every_k_steps=1, window_frames=2))
    stream, runner = EpisodeStream(plan), plan.runner()
    stream.apply(runner.run(stream.begin(FRAME, "go")))
    copies = [copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    for grey, one in enumerate((stream, *copies), start=10):
        one.apply(runner.run(one.advance({"main": picture(grey)}, 1)))
    first, second, third, fourth = scorer.queries
    assert first.stream == second.stream
    assert len({second.stream, third.stream, fourth.stream}) == 3
    shown = [query.frames["main"][:, 0, 0, 0].tolist() for query in (second, third, fourth)]
    assert shown == [[9, 10], [9, 11], [9, 12]]
    assert copy.deepcopy(EpisodeStream(plan)).end() == ()


def test_a_plan_holds_no_model() -> None:
    scorer, judge = Recorder(), Recorder()
    plan = StreamPlan.from_config(RewardConfig(scorer=scorer, judge=judge))
    specs = resolve(scorer).spec, resolve(judge).spec
    assert (plan.config.scorer, plan.config.judge) == specs
    assert pickle.loads(pickle.dumps(plan)) == plan
