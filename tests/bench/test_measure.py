from __future__ import annotations

from collections.abc import Sequence

import pytest

from procreward.bench.baselines import Batched, OneByOne
from procreward.bench.frames import Episode, moving_frames, sliding
from procreward.bench.measure import Goal, Job, compare, judge_goals, run_job
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel
from procreward.engine.reference import ReferenceEngine
from procreward.errors import ConfigError
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.types import Query, Score


class Watched(ProcVLM):
    """Remembers what it was asked."""

    asked: list[list[Query]]

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.__dict__.setdefault("asked", []).append(list(queries))
        return super().score(queries)


def job(loaded: LoadedModel, moments: list[list[Query]]) -> Job:
    engine, options = FastEngine(loaded), ProcVLMOptions(max_new_tokens=8)
    return Job(
        name="job",
        engine=engine,
        ours=Watched(engine, options),
        documented=Watched(OneByOne(ReferenceEngine(loaded)), options),
        batched=Watched(Batched(loaded), options),
        moments=moments,
        warm_up=moments[0] if moments else (),
        every=2,
        documented_queries=1,
    )


def moments(count: int) -> list[list[Query]]:
    clips = [
        [
            Episode(
                name=f"env{index}",
                frames={"front": moving_frames(3 + count, (64, 64), seed=index)},
                instruction="lift the cube",
                fps=10.0,
            )
        ]
        for index in range(2)
    ]
    return list(sliding(clips, window=3))[:count]


def test_a_job_measures_all_paths_and_finds_the_same_answers(loaded: LoadedModel) -> None:
    one = job(loaded, moments(5))
    figures = run_job(one)
    assert {key.removeprefix("job_") for key in figures} == {
        "ratio",
        "vs_batched",
        "ours_ms_per_query",
        "documented_ms_per_query",
        "batched_ms_per_query",
        "blocks",
        "queries",
        "max_abs_diff",
        "same_text",
        "compared",
        "answer_tokens",
        "changed_text_share",
        "passes_per_call",
        "draft_acceptance",
        "frames_reused_share",
        "tokens_reused_share",
    }
    assert figures["job_same_text"] == 1.0
    assert figures["job_max_abs_diff"] == 0.0
    # Five moments in blocks of two, each with one query of two on the documented path.
    assert figures["job_blocks"] == 3
    assert figures["job_queries"] == 10
    assert figures["job_compared"] == 3
    # Of fifteen frames of each environment seven are new.
    assert figures["job_frames_reused_share"] == pytest.approx(8 / 15)
    assert figures["job_ratio"] > 0
    assert figures["job_vs_batched"] > 0


def test_baselines_are_told_no_streams_and_ours_sees_every_moment(loaded: LoadedModel) -> None:
    one = job(loaded, moments(4))
    run_job(one)
    ours, documented, batched = (
        path.asked for path in (one.ours, one.documented, one.batched) if isinstance(path, Watched)
    )
    assert [query.frame_steps[-1] for (query, _) in ours[2:]] == [2, 3, 4, 5]
    assert [query.frame_steps[-1] for (query,) in documented[1:]] == [2, 4]
    assert {query.stream for asked in documented + batched for query in asked} == {""}
    assert {query.stream for asked in ours for query in asked} == {"env0", "env1"}


def test_a_job_without_questions_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="moments"):
        run_job(job(loaded, []))


def test_answers_are_compared_by_text_and_by_what_was_read() -> None:
    half, more = Score(progress=0.5, text="a"), Score(progress=0.75, text="a")
    none = Score(reason="unparsable", text="b")
    assert compare(half, half) == (True, 0.0)
    assert compare(half, more) == (True, 0.25)
    assert compare(half, none) == (False, 1.0)
    assert compare(none, none) == (True, 0.0)
    labels = [
        Score(complete=True, text="complete", details={"nll_complete/a": nll, "frames": frames})
        for nll, frames in ((1.0, 3.0), (1.5, 9.0))
    ]
    assert compare(labels[0], labels[1]) == (True, 0.5)
    truths = [
        Score(progress=0.5, details={"log_true": true, "log_false": -2.0}) for true in (-1.0, -1.25)
    ]
    assert compare(truths[0], truths[1]) == (True, 0.25)


def test_goals_are_met_or_missed_and_missing_figures_left_out() -> None:
    lines: list[str] = []
    goals = (
        Goal(figure="ratio", bound=5.0),
        Goal(figure="gap", bound=1e-4, least=False),
        Goal(figure="absent", bound=1.0),
    )
    missed = judge_goals({"ratio": 4.5, "gap": 1e-5}, goals, lines.append)
    assert missed == 1
    assert [" ".join(line.split()) for line in lines] == [
        "ratio 4.5 goal >= 5: MISSED",
        "gap 1e-05 goal <= 0.0001: met",
    ]
    assert goals[2].met({}) is None
