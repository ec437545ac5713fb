"""Queries of several steps in one call; what models are told about streams that have ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from procreward.checker import CompletionChecker
from procreward.config import RewardConfig, ScorerConfig
from procreward.errors import FrameError, ScorerFailedError
from procreward.registry import built_scorer, clear_scorers, get_scorer, register_scorer, resolve
from procreward.runner import DueQuery, QueryRunner, failure_reason
from procreward.session import EpisodeStream, StreamPlan
from procreward.types import Query, Score, Scorer
from procreward.video import score_video
from procreward.wrapper import ProgressReward
from tests.helpers import CounterEnv, Recorder, picture, play


class Releasing(Recorder):
    """A recorder that wants to know which streams have ended."""

    def __init__(self, answers: Sequence[Any] | None = None):
        super().__init__(answers)
        self.released: list[str] = []

    @property
    def streams(self) -> list[str]:
        """The streams it was asked about, in order and each once."""
        return list(dict.fromkeys(query.stream for query in self.queries))

    def release(self, streams: Iterable[str]) -> None:
        self.released += streams


class Lazy(Releasing):
    """The same by name, so that it is built at its first query only; keeps count of itself."""

    built: list[Lazy] = []  # noqa: RUF012

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Lazy:
        cls.built.append(cls())
        return cls.built[-1]


@pytest.fixture(autouse=True)
def _scorers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("procreward.registry._registered", {})
    register_scorer("test_lazy", f"{__name__}:Lazy")
    Lazy.built.clear()
    yield
    clear_scorers()


class TestWrapper:
    def test_a_reset_releases_the_stream_before_and_close_the_last(self) -> None:
        scorer = Releasing()
        env = ProgressReward(CounterEnv(3), scorer=scorer, every_k_steps=1)
        play(env)
        assert scorer.released == []
        play(env)
        play(env)
        assert len(scorer.streams) == 3
        assert scorer.released == scorer.streams[:2]
        env.close()
        env.close()
        assert scorer.released == scorer.streams

    def test_it_is_released_before_the_next_episode_is_asked_about(self) -> None:
        scorer = Releasing()
        env = ProgressReward(CounterEnv(3), scorer=scorer)
        env.reset()
        asked: list[list[str]] = []
        answer = scorer.score

        def score(queries: Sequence[Query]) -> list[Score]:
            asked.append(list(scorer.released))
            return answer(queries)

        scorer.score = score  # type: ignore[method-assign]  # a spy
        env.reset()
        assert asked == [scorer.streams[:1]]

    def test_scorer_and_judge_are_both_told_but_one_model_only_once(self) -> None:
        scorer, judge = Releasing(), Releasing()
        env = ProgressReward(CounterEnv(3), scorer=scorer, judge=judge)
        env.reset()
        env.close()
        assert scorer.released == judge.released == scorer.streams
        both = Releasing()
        env = ProgressReward(CounterEnv(3), scorer=both, judge=both)
        env.reset()
        env.close()
        assert both.released == both.streams

    def test_nothing_is_released_without_an_episode(self) -> None:
        scorer = Releasing()
        ProgressReward(CounterEnv(3), scorer=scorer).close()
        assert scorer.released == []

    def test_a_reset_that_fails_keeps_the_stream_for_later(self) -> None:
        class Blind(CounterEnv):
            def render(self) -> Any:
                return None if len(self.resets) == 2 else super().render()

        scorer = Releasing()
        env = ProgressReward(Blind(3), scorer=scorer)
        env.reset()
        with pytest.raises(FrameError):
            env.reset()
        assert scorer.released == []
        env.reset()
        assert scorer.released == scorer.streams[:1]

    def test_the_environment_closes_even_if_a_release_fails(self) -> None:
        class Broken(Recorder):
            def release(self, streams: Iterable[str]) -> None:
                raise RuntimeError("down")

        inner = CounterEnv(3)
        env = ProgressReward(inner, scorer=Broken())
        env.reset()
        with pytest.raises(RuntimeError, match="down"):
            env.close()
        assert inner.closed == 1

    def test_a_scorer_without_the_method_is_left_alone(self) -> None:
        scorer = Recorder()
        assert isinstance(scorer, Scorer)
        env = ProgressReward(CounterEnv(3), scorer=scorer)
        play(env)
        play(env)
        env.close()
        assert len({query.stream for query in scorer.queries}) == 2


class TestBuilt:
    def test_a_scorer_that_was_never_built_is_not_built_to_release(self) -> None:
        env = ProgressReward(CounterEnv(3), scorer="test_lazy")
        handle = resolve("test_lazy")
        env.close()
        assert (Lazy.built, built_scorer(handle)) == ([], None)

    def test_one_that_was_forgotten_is_not_built_again(self) -> None:
        env = ProgressReward(CounterEnv(3), scorer="test_lazy")
        env.reset()
        (scorer,) = Lazy.built
        clear_scorers()
        env.close()
        assert Lazy.built == [scorer]
        assert scorer.released == []

    def test_a_built_one_is_told(self) -> None:
        env = ProgressReward(CounterEnv(3), scorer="test_lazy")
        env.reset()
        env.close()
        (scorer,) = Lazy.built
        assert scorer.released == scorer.streams
        assert built_scorer(resolve("test_lazy")) is scorer

    def test_live_scorers_are_always_built(self) -> None:
        scorer = Releasing()
        handle = resolve(scorer)
        assert built_scorer(handle) is get_scorer(handle) is scorer


class TestOtherDoors:
    def test_the_checker_releases_at_its_reset(self) -> None:
        judge = Releasing()
        checker = CompletionChecker(judge, "go")
        assert judge.released == []
        for _ in range(2):
            checker.push(picture(3))
        checker.reset("stop")
        checker.reset()
        assert judge.released == judge.streams
        checker.push(picture(3))
        checker.reset()
        assert judge.released == judge.streams
        assert len(judge.streams) == 2

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_video_is_released_at_its_end(self, tmp_path: Path, fails: bool) -> None:
        path = tmp_path / "clip.mp4"
        writer = imageio_ffmpeg.write_frames(str(path), (16, 16), fps=10, macro_block_size=8)
        writer.send(None)
        for grey in (50, 100, 150):
            writer.send(np.full((16, 16, 3), grey, np.uint8))
        writer.close()
        scorer = Releasing([0.5, FrameError("`frames` must be brighter.")] if fails else None)
        if fails:
            with pytest.raises(FrameError, match="brighter"):
                score_video(path, "go", scorer)
        else:
            assert len(score_video(path, "go", scorer)) == 3
        assert len(scorer.streams) == 1
        assert scorer.released == scorer.streams


class Planning(Recorder):
    """A recorder that is told what comes, and to forget."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int]] = []
        self.forgot = 0

    def announce(self, queries: Sequence[Query]) -> None:
        self.told.append([query.frame_steps[-1] for query in queries])
        if len(queries) > 2:
            raise RuntimeError("too many")

    def forget(self) -> None:
        self.forgot += 1


def test_models_are_told_what_comes_and_to_forget() -> None:
    scorer, judge = Planning(), Planning()
    runner = QueryRunner(resolve(scorer), resolve(judge), max_consecutive_failures=3)
    query = Query(frames={"main": picture(9)[None]}, instruction="go", frame_steps=(4,))
    due, other = DueQuery(role="scorer", query=query), DueQuery(role="judge", query=query)
    runner.announce([due, other, due])
    assert (scorer.told, judge.told, scorer.queries) == ([[4, 4]], [[4]], [])
    runner.announce([due] * 3)  # what it raises comes again when it is asked
    runner.forget()
    assert (scorer.forgot, judge.forgot) == (1, 1)


def test_models_that_do_not_look_ahead_are_left_alone() -> None:
    runner = QueryRunner(resolve(Recorder()), max_consecutive_failures=3)
    query = Query(frames={"main": picture(9)[None]}, instruction="go", frame_steps=(4,))
    runner.announce([DueQuery(role="scorer", query=query)])
    runner.forget()
    unbuilt = QueryRunner(resolve("scripted"), max_consecutive_failures=3)
    unbuilt.forget()
    assert built_scorer(resolve("scripted")) is None


def test_queries_after_the_end_belong_to_no_stream() -> None:
    scorer = Releasing([0.5])
    plan = StreamPlan.from_config(RewardConfig(scorer=scorer, every_k_steps=1))
    stream, runner = EpisodeStream(plan), plan.runner()
    assert stream.end() == ()
    frames: Mapping[str, Any] = {"main": picture(9)}
    stream.apply(runner.run(stream.begin(frames, "go")))
    (name,) = scorer.streams
    assert (stream.end(), stream.end()) == ((name,), ())
    stream.apply(runner.run(stream.advance(frames, 1)))
    assert scorer.streams == [name, ""]
    assert stream.end() == ()
    stream.apply(runner.run(stream.begin(frames, "go")))
    assert scorer.streams[-1] not in ("", name)


class TestTogether:
    def groups(self, *steps: list[int]) -> list[list[DueQuery]]:
        return [[self.due(step) for step in group] for group in steps]

    def due(self, step: int) -> DueQuery:
        query = Query(frames={"main": picture(9)[None]}, instruction="go", frame_steps=(step,))
        return DueQuery(role="scorer", query=query)

    def runner(self, scorer: Recorder, **settings: Any) -> QueryRunner:
        return StreamPlan.from_config(RewardConfig(scorer=scorer, **settings)).runner()

    def test_one_call_counts_as_one_for_each_group(self) -> None:
        scorer = Recorder([None, None, 0.5])
        runner = self.runner(scorer, max_consecutive_failures=2)
        answers = runner.run_many(self.groups([0, 1], [2, 0], [1]))
        assert [[answer.reason for answer in group] for group in answers] == [
            ["unparsable", "unparsable"],
            ["", "unparsable"],
            ["unparsable"],
        ]
        assert scorer.calls == 1
        stats = runner.stats
        assert (stats.queries, stats.failures, stats.consecutive_failures) == (5, 4, 1)

    def test_groups_before_too_many_failures_are_answered(self) -> None:
        runner = self.runner(Recorder([None, 0.5]), max_consecutive_failures=2)
        answers = runner.run_many(self.groups([1], [0], [0], [1]))
        assert [next(answers)[0].reason for _ in range(2)] == ["", "unparsable"]
        with pytest.raises(ScorerFailedError, match="2 queries in a row"):
            next(answers)

    def test_a_call_that_fails_is_put_again_group_by_group(self) -> None:
        scorer = Recorder([0.25, RuntimeError("too large"), 0.75])
        runner = self.runner(scorer)
        answers = list(runner.run_many(self.groups([0], [1, 2], [2])))
        assert [[failure_reason(answer) for answer in group] for group in answers] == [
            [None],
            ["RuntimeError", "RuntimeError"],
            [None],
        ]
        assert (runner.stats.queries, runner.stats.failures, scorer.calls) == (4, 2, 4)
