from __future__ import annotations

import logging
import pickle
from typing import Any

import cloudpickle
import numpy as np
import pytest

from procreward.config import RewardConfig
from procreward.errors import (
    ScorerFailedError,
)
from procreward.runner import QueryStats
from procreward.types import Query, Score
from procreward.wrapper import ProgressReward
from tests.helpers import INSTRUCTION, CounterEnv, Recorder, play

KEYS = [
    "progress",
    "potential",
    "shaping",
    "env_reward",
    "queried",
    "complete",
    "age_steps",
    "valid",
]


def rewards(trace: list[dict[str, Any]]) -> list[float]:
    return [entry["reward"] for entry in trace[1:]]


def test_step_by_step_every_two_steps_terminated() -> None:
    scorer = Recorder([0.25, 9.9, 0.5, 9.9, 0.75, 1.0])
    env = ProgressReward(CounterEnv(5), scorer=scorer, every_k_steps=2, gamma=0.5, scale=2.0)
    trace = play(env)
    assert scorer.steps == [0, 2, 4, 5]
    assert rewards(trace) == [-0.25, 0.0, -0.5, -0.25, -1.5]
    assert [entry["progress"] for entry in trace] == [0.25, 0.25, 0.5, 0.5, 0.75, 1.0]
    assert [entry["potential"] for entry in trace] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.0]
    assert [entry["age_steps"] for entry in trace] == [0, 1, 0, 1, 0, 0]
    assert [entry["queried"] for entry in trace] == [True, False, True, False, True, True]
    assert [entry["env_reward"] for entry in trace] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert trace[-1]["terminated"] is True


def test_truncated_keeps_the_last_potential() -> None:
    scorer = Recorder([0.25, 9.9, 9.9, 0.75])
    env = ProgressReward(CounterEnv(3, "truncated"), scorer=scorer, every_k_steps=8, gamma=0.5)
    trace = play(env)
    assert scorer.steps == [0, 3]
    assert rewards(trace) == [-0.125, -0.125, 0.125]
    assert trace[-1]["potential"] == 0.75
    assert (trace[-1]["terminated"], trace[-1]["truncated"]) == (False, True)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("delta", [0.25, 0.5]), ("raw", [0.5, 1.0]), ("sparse", [0.0, 0.0])],
)
def test_other_modes(mode: Any, expected: list[float]) -> None:
    env = ProgressReward(
        CounterEnv(2), scorer=Recorder([0.25, 0.5, 1.0]), every_k_steps=1, shaping=mode
    )
    assert rewards(play(env)) == expected


def test_info_types() -> None:
    trace = play(ProgressReward(CounterEnv(3), scorer=Recorder([None, 0.5]), every_k_steps=2))
    for entry in trace:
        types = [type(entry[key]) for key in KEYS]
        assert types == [float, float, float, float, bool, bool, int, bool]
    assert [type(entry["reward"]) for entry in trace] == [float] * 4


def test_environment_reward_and_bonus_add_up() -> None:
    env = ProgressReward(
        CounterEnv(4),
        scorer=Recorder([0.0, 0.5, 1.0, 1.0, 1.0]),
        every_k_steps=1,
        gamma=1.0,
        env_reward_weight=0.5,
        success_bonus=3.0,
    )
    # Completion is confirmed by the second of two votes, at step 3, and lasts.
    assert rewards(play(env)) == [0.5 + 0.5, 0.5 + 1.0, 0.0 + 1.5 + 3.0, -1.0 + 2.0]


def test_bonus_is_paid_once_however_often_completion_begins() -> None:
    answers = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    env = ProgressReward(
        CounterEnv(6),
        scorer=Recorder(answers),
        every_k_steps=1,
        shaping="sparse",
        success_bonus=1.0,
        confirm_queries=1,
        confirm_window=1,
    )
    for _ in range(2):
        trace = play(env)
        assert rewards(trace) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        complete = [entry["complete"] for entry in trace]
        assert complete == [False, True, False, True, False, True, True]


def test_nan_of_an_environment_that_is_not_wanted_stays_out() -> None:
    class NanEnv(CounterEnv):
        def step(self, action: Any) -> Any:
            obs, _, terminated, truncated, info = super().step(action)
            return obs, float("nan"), terminated, truncated, info

    assert rewards(play(ProgressReward(NanEnv(2), scorer="constant", gamma=1.0))) == [0.0, -0.5]


@pytest.mark.parametrize(
    ("on_complete", "length", "last", "flags"),
    [
        ("info", 6, -1.0, (True, False)),
        ("terminate", 3, -1.0, (True, False)),
        ("truncate", 3, 0.0, (False, True)),
    ],
)
def test_on_complete(on_complete: Any, length: int, last: float, flags: tuple[bool, bool]) -> None:
    scorer = Recorder([0.0, 0.5, 1.0, 1.0])
    env = ProgressReward(
        CounterEnv(6), scorer=scorer, every_k_steps=1, gamma=1.0, on_complete=on_complete
    )
    trace = play(env)
    assert len(trace) - 1 == length
    assert trace[-1]["reward"] == last
    assert (trace[-1]["terminated"], trace[-1]["truncated"]) == flags
    assert trace[3]["complete"] is True


@pytest.mark.parametrize("skip_unchanged", [None, 1.0])
def test_completion_from_the_reset_on_ends_at_a_query(skip_unchanged: float | None) -> None:
    scorer = Recorder([1.0, 1.0, 0.9])
    env = ProgressReward(
        CounterEnv(6, greys=[7] * 7),
        scorer=scorer,
        every_k_steps=2,
        gamma=1.0,
        confirm_queries=1,
        complete_threshold=0.8,
        on_complete="truncate",
        skip_unchanged=skip_unchanged,
    )
    trace = play(env)
    # The last potential is that of the last state, not the reset's.
    assert scorer.steps == [0, 2]
    assert [step["truncated"] for step in trace] == [False, False, True]
    assert trace[-1]["potential"] == 0.9


def test_judge_decides_completion_and_the_scorer_the_reward() -> None:
    scorer = Recorder([1.0])
    verdicts = [Score(complete=False), Score(complete=True)]
    judge = Recorder([verdicts[0], verdicts[0], verdicts[1], verdicts[1], verdicts[1]])
    env = ProgressReward(
        CounterEnv(9), scorer=scorer, judge=judge, every_k_steps=1, on_complete="terminate"
    )
    trace = play(env)
    assert [entry["complete"] for entry in trace] == [False, False, False, True]
    assert scorer.steps == judge.steps == [0, 1, 2, 3]
    assert env.stats.queries == 8


def test_fooled_judge_is_guarded_by_the_scorers_progress() -> None:
    judge = Recorder([Score(complete=True)])
    env = ProgressReward(
        CounterEnv(5),
        scorer=Recorder([0.1, 0.2, 0.7, 0.8, 0.9, 0.9]),
        judge=judge,
        every_k_steps=1,
        min_progress=0.6,
        confirm_queries=2,
        confirm_window=2,
    )
    assert [entry["complete"] for entry in play(env)] == [False, False, False, True, True, True]


def test_judge_has_a_window_of_its_own() -> None:
    scorer, judge = Recorder(), Recorder([Score(complete=False)])
    env = ProgressReward(
        CounterEnv(4), scorer=scorer, judge=judge, every_k_steps=2, window_frames=2
    )
    play(env)
    assert [query.frame_steps for query in scorer.queries] == [(0, 0), (1, 2), (3, 4)]
    # A live scorer has the default preset: windows of eight frames, padded.
    assert judge.queries[-1].frame_steps == (0, 0, 0, 0, 1, 2, 3, 4)


def test_failing_judge_casts_no_vote() -> None:
    judge = Recorder([Score(complete=True), RuntimeError("no"), None, Score(complete=True)])
    env = ProgressReward(CounterEnv(3), scorer="constant", judge=judge, every_k_steps=1)
    trace = play(env)
    assert [entry["complete"] for entry in trace] == [False, False, False, True]
    assert env.stats.invalid_reasons == {"RuntimeError": 1, "unparsable": 1}


def test_success_probability_is_the_potential_of_a_model_without_progress() -> None:
    scorer = Recorder([Score(success_prob=0.25), Score(complete=True), Score(complete=False)])
    env = ProgressReward(CounterEnv(2, "truncated"), scorer=scorer, every_k_steps=1, gamma=1.0)
    assert rewards(play(env)) == [0.75, -1.0]


def test_failures_hold_the_potential_and_are_counted() -> None:
    answers = [0.5, None, RuntimeError("out of luck"), 0.75]
    env = ProgressReward(
        CounterEnv(4, "truncated"), scorer=Recorder(answers), every_k_steps=1, gamma=0.5
    )
    trace = play(env)
    assert [entry["valid"] for entry in trace] == [True, False, False, True, True]
    assert [entry["progress"] for entry in trace] == [0.5, 0.5, 0.5, 0.75, 0.75]
    assert [entry["age_steps"] for entry in trace] == [0, 1, 2, 0, 0]
    assert rewards(trace) == [-0.25, -0.25, -0.125, -0.375]
    stats = env.stats
    assert (stats.queries, stats.failures, stats.consecutive_failures) == (5, 2, 0)
    assert stats.invalid_reasons == {"unparsable": 1, "RuntimeError": 1}
    assert isinstance(stats, QueryStats)
    assert stats.blocked_s == stats.waiting_s > 0.0


def test_first_reading_is_not_paid_for_when_it_comes_late() -> None:
    scorer = Recorder([None, RuntimeError("x"), 0.75, 9.9, 1.0])
    env = ProgressReward(CounterEnv(4, "truncated"), scorer=scorer, every_k_steps=4, gamma=1.0)
    trace = play(env)
    assert scorer.steps == [0, 1, 2, 4]
    assert rewards(trace) == [0.0, 0.0, 0.0, 0.25]
    assert [entry["valid"] for entry in trace] == [False, False, True, True, True]
    assert [entry["progress"] for entry in trace] == [0.0, 0.0, 0.75, 0.75, 1.0]


def test_too_many_failures_in_a_row() -> None:
    env = ProgressReward(
        CounterEnv(9),
        scorer=Recorder([0.5, None, 0.5, RuntimeError("boom")]),
        every_k_steps=1,
        max_consecutive_failures=3,
    )
    env.reset(seed=0)
    for _ in range(4):
        env.step(0)
    message = r"3 queries in a row to scorer .* failed; the last: RuntimeError: boom. Check"
    with pytest.raises(ScorerFailedError, match=message):
        env.step(0)
    assert env.stats.consecutive_failures == 3
    env.reset(seed=0)
    assert env.stats.consecutive_failures == 0


def test_only_the_first_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    env = ProgressReward(CounterEnv(3), scorer=Recorder([0.5, None]), every_k_steps=1)
    with caplog.at_level(logging.WARNING):
        play(env)
    (record,) = caplog.records
    assert "failed (unparsable, output 'no number here')" in record.getMessage()


def test_lack_of_memory_is_a_failed_query() -> None:
    scorer = Recorder([0.5, MemoryError("full"), 0.75])
    env = ProgressReward(CounterEnv(2), scorer=scorer, every_k_steps=1, gamma=1.0)
    trace = play(env)
    assert [step["potential"] for step in trace[:2]] == [0.5, 0.5]
    assert [step["valid"] for step in trace] == [True, False, True]
    assert env.stats.invalid_reasons == {"MemoryError": 1}


def test_numpy_answers_leave_info_as_it_is() -> None:
    score = Score(progress=np.float32(1.0), complete=np.bool_(True))  # type: ignore[arg-type]  # on purpose
    env = ProgressReward(CounterEnv(2), scorer=Recorder([score]), every_k_steps=1)
    for step in play(env):
        assert type(step["complete"]) is bool
        assert type(step["terminated"]) is bool
        assert type(step["progress"]) is float


def test_clamped_answers_are_counted() -> None:
    scorer = Recorder([Score(progress=1.0, details={"clamped": 1.0}), 0.5])
    env = ProgressReward(CounterEnv(2), scorer=scorer, every_k_steps=1)
    play(env)
    assert env.stats.clamped == 1


def test_last_score_outcome_and_instruction() -> None:
    env = ProgressReward(CounterEnv(4), scorer=Recorder([0.5, None, 0.75]), every_k_steps=1)
    assert (env.last_score, env.outcome, env.instruction) == (None, None, "")
    env.reset(seed=0)
    assert env.last_score == Score(progress=0.5, text="<progress>50%</progress>")
    env.step(0)
    assert env.last_score is not None
    assert env.last_score.reason == "unparsable"
    assert env.outcome is not None
    assert env.outcome.verdict.progress == 0.5
    assert env.instruction == INSTRUCTION


def test_query_holds_window_instruction_and_rate() -> None:
    scorer = Recorder()
    env = ProgressReward(CounterEnv(4), scorer=scorer, every_k_steps=4, window_frames=2)
    play(env)
    play(env)
    first, last, again = scorer.queries[:3]
    assert isinstance(first, Query)
    assert (first.instruction, first.fps) == (INSTRUCTION, 10)
    assert last.frame_steps == (3, 4)
    assert last.frames["render"][:, 0, 0, 0].tolist() == [4, 5]
    assert first.stream == last.stream != again.stream


def test_short_windows_without_padding() -> None:
    scorer = Recorder()
    play(ProgressReward(CounterEnv(2), scorer=scorer, every_k_steps=1, window_frames=3, pad=False))
    assert [query.frame_steps for query in scorer.queries] == [(0,), (0, 1), (0, 1, 2)]


def test_only_frames_that_a_query_shows_are_rendered() -> None:
    env = CounterEnv(10)
    play(
        ProgressReward(
            env, scorer=Recorder(), every_k_steps=4, window_frames=2, frame_stride_steps=2
        )
    )
    assert env.renders == [0, 2, 4, 6, 8, 10]


def test_unchanged_pictures_are_not_asked_about() -> None:
    greys = [10, 10, 11, 13, 13, 13]
    scorer = Recorder([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    env = ProgressReward(
        CounterEnv(5, "truncated", greys=greys), scorer=scorer, every_k_steps=1, skip_unchanged=2.0
    )
    trace = play(env)
    assert scorer.steps == [0, 3, 5]
    assert [entry["progress"] for entry in trace] == [0.1, 0.1, 0.1, 0.4, 0.4, 0.6]


def test_failed_query_is_not_skipped() -> None:
    scorer = Recorder([0.1, 0.2, None, 0.4])
    env = ProgressReward(
        CounterEnv(3, greys=[10, 50, 90, 90]), scorer=scorer, every_k_steps=1, skip_unchanged=2.0
    )
    play(env)
    assert scorer.steps == [0, 1, 2, 3]


def test_options_are_taken_out_of_a_copy() -> None:
    env = ProgressReward(CounterEnv(), scorer="constant")
    options = {"procreward": {"instruction": "count twice"}, "other": 1}
    env.reset(seed=3, options=options)
    assert env.instruction == "count twice"
    assert options == {"procreward": {"instruction": "count twice"}, "other": 1}
    inner = env.unwrapped
    assert isinstance(inner, CounterEnv)
    assert inner.resets == [(3, {"other": 1})]
    untouched = {"other": 2}
    env.reset(options=untouched)
    assert inner.resets[-1][1] is untouched
    assert env.instruction == INSTRUCTION


def test_instruction_may_change_per_episode() -> None:
    sentences = iter(["first", "second"])
    scorer = Recorder()
    env = ProgressReward(
        CounterEnv(2), scorer=scorer, instruction=lambda env, obs, info: next(sentences)
    )
    play(env)
    play(env)
    texts = [query.instruction for query in scorer.queries]
    assert texts == ["first", "first", "second", "second"]


def test_close_is_idempotent_and_leaves_the_scorer() -> None:
    env = ProgressReward(CounterEnv(), scorer=Recorder([0.5]))
    env.close()
    env.close()
    inner = env.unwrapped
    assert isinstance(inner, CounterEnv)
    assert inner.closed == 1


def test_config_object_and_keywords_are_alike() -> None:
    config = RewardConfig(scorer="constant", every_k_steps=3, gamma=0.9)
    by_object = ProgressReward(CounterEnv(), config=config)
    by_keyword = ProgressReward(CounterEnv(), scorer="constant", every_k_steps=3, gamma=0.9)
    assert by_object.config == by_keyword.config == config
    # A keyword that equals the general default overrides the object all the same.
    both = ProgressReward(CounterEnv(), config=config, gamma=0.99)
    assert (both.config.gamma, both.config.every_k_steps) == (0.99, 3)


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_pickling_in_the_middle_of_an_episode(module: Any) -> None:
    env = ProgressReward(CounterEnv(6), scorer=Recorder(), every_k_steps=2, window_frames=3)
    env.reset(seed=0)
    env.step(0)
    copy = module.loads(module.dumps(env))
    for _ in range(5):
        _, reward, terminated, _, info = env.step(0)
        _, reward_2, terminated_2, _, info_2 = copy.step(0)
        assert (reward, terminated, info) == (reward_2, terminated_2, info_2)


def test_observation_key_as_view() -> None:
    scorer = Recorder()
    inner = CounterEnv(3, dict_obs=True, render_mode=None)
    play(ProgressReward(inner, scorer=scorer, views="image", every_k_steps=1, window_frames=1))
    greys = [query.frames["image"][0, 0, 0, 0] for query in scorer.queries]
    assert greys == [1, 2, 3, 4]
    assert inner.renders == []


def test_an_environment_without_metadata() -> None:
    scorer = Recorder()
    inner = CounterEnv(3)
    inner.metadata = None  # type: ignore[assignment]  # as robosuite's GymWrapper has it
    play(ProgressReward(inner, scorer=scorer, every_k_steps=1))
    assert [query.fps for query in scorer.queries] == [None] * 4
