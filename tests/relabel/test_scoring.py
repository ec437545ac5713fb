from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from procreward import registry
from procreward.config import RewardConfig
from procreward.errors import DatasetError, FrameError, ScorerFailedError
from procreward.relabel import scoring
from procreward.relabel.episodes import Episode
from procreward.relabel.readings import Reading
from procreward.relabel.run import run_jobs
from procreward.relabel.scoring import EpisodeJob, GroupJob, GroupResult, score_group
from procreward.types import Frame, Score
from tests.helpers import Recorder
from tests.relabel.scorers import Down, Grey
from tests.relabel.sets import InMemory, ramp, write_frames


@pytest.fixture(autouse=True)
def _no_live_scorers() -> Any:
    yield
    registry.clear_scorers()


def job(source: InMemory, scorer: Any, **changes: Any) -> GroupJob:
    settings: dict[str, Any] = {"window_frames": 2, "every_k_steps": 4, "frame_stride_steps": 1}
    names = {"judge", *settings, "max_consecutive_failures"}
    settings |= {name: changes.pop(name) for name in list(changes) if name in names}
    return GroupJob(
        source="memory",
        format="video",
        config=RewardConfig(scorer=scorer, **settings),
        episodes=tuple(
            EpisodeJob(index=one.index, instruction=one.instruction) for one in source.episodes
        ),
        **changes,
    )


def frames_of(result: GroupResult) -> list[list[int]]:
    return [[one.frame for one in each.readings] for each in result.episodes]


def test_every_kth_picture_and_the_last_is_asked_about() -> None:
    source, scorer = InMemory(ramp(10), ramp(5), ramp(1)), Recorder()
    result = score_group(job(source, scorer), source)
    assert frames_of(result) == [[0, 4, 8, 9], [0, 4], [0]]
    assert [one.window for one in result.episodes[0].readings] == [(0, 0), (3, 4), (7, 8), (8, 9)]
    # The mean of the two pictures' greys.
    readings = result.episodes[0].readings
    assert [one.score and one.score.progress for one in readings] == [
        pytest.approx(value / 255) for value in (20.0, 51.5, 87.5, 96.5)
    ]
    assert (result.asked, result.decoded) == (7, 16)
    assert result.account == {"scorer": {"name": "recorder"}, "judge": None}
    assert {query.instruction for query in scorer.queries} == {"task 0", "task 1", "task 2"}
    assert {tuple(query.frames) for query in scorer.queries} == {("front",)}


def test_queries_of_all_episodes_share_calls() -> None:
    source, scorer = InMemory(*[ramp(21)] * 4), Grey()
    score_group(job(source, scorer, batch_queries=12), source)
    # First one of each, for nothing is known yet; then three of each.
    assert scorer.batches == [4, 12, 8]
    assert len(set(scorer.released)) == 4
    assert sorted(source.closed) == [0, 1, 2, 3]


@pytest.mark.parametrize("batch_queries", [1, 3, 64])
def test_readings_do_not_depend_on_the_calls(batch_queries: int) -> None:
    source = InMemory(ramp(13), ramp(9, 40), ramp(20, 3))
    alone = [
        score_group(replace(job(source, Grey()), episodes=(one,)), source).episodes[0]
        for one in job(source, Grey()).episodes
    ]
    together = score_group(job(source, Grey(), batch_queries=batch_queries), source)
    assert list(together.episodes) == alone


def test_until_something_is_known_every_picture_is_asked_about() -> None:
    answers = [None, RuntimeError("down"), 0.5, 0.6, None, 0.7, 0.8]
    source = InMemory(ramp(7))
    (found,) = score_group(job(source, Recorder(answers)), source).episodes
    assert [one.frame for one in found.readings] == [0, 1, 2, 4, 6]
    assert [one.reasons for one in found.readings] == [
        ("unparsable",),
        ("RuntimeError",),
        (),
        ("unparsable",),
        (),
    ]


def test_a_judge_is_asked_beside_the_scorer() -> None:
    source, scorer = InMemory(ramp(6)), Grey()
    judge = Recorder([Score(complete=False)] * 5 + [Score(complete=True)])
    (found,) = score_group(job(source, scorer, judge=judge), source).episodes
    assert [one.judge_score and one.judge_score.complete for one in found.readings] == [
        False,
        False,
        True,
    ]
    # Its window is its own preset's, not the setting.
    assert [len(one.judge_window) for one in found.readings] == [8, 8, 8]


def test_views_are_chosen() -> None:
    source, scorer = InMemory(ramp(3)), Recorder([0.1])
    score_group(job(source, scorer, views=("wrist", "front")), source)
    assert tuple(scorer.queries[0].frames) == ("wrist", "front")


def test_what_is_known_is_not_asked_again() -> None:
    source = InMemory(ramp(10), ramp(6))
    first = score_group(job(source, Grey()), source)
    known = tuple(
        replace(one, known=each.readings)
        for one, each in zip(job(source, Grey()).episodes, first.episodes, strict=True)
    )
    source.opened.clear()
    again = score_group(replace(job(source, Down()), episodes=known), source)
    assert again.episodes == first.episodes
    assert (again.asked, again.decoded, again.account, source.opened) == (0, 0, {}, [])


def test_a_finer_k_asks_for_what_is_missing() -> None:
    source = InMemory(ramp(11))
    (coarse,) = score_group(job(source, Grey()), source).episodes
    scorer = Grey()
    finer = job(source, scorer, every_k_steps=2)
    with_known = replace(finer, episodes=(replace(finer.episodes[0], known=coarse.readings),))
    result = score_group(with_known, source)
    assert frames_of(result) == [[0, 2, 4, 6, 8, 10]]
    # 2 and 6; and the last one, whose window held another picture.
    assert result.asked == 3
    assert result.episodes == score_group(finer, source).episodes


def test_a_coarser_k_needs_no_model() -> None:
    source = InMemory(ramp(12))
    (fine,) = score_group(job(source, Grey(), every_k_steps=2), source).episodes
    coarse = job(source, Down(), every_k_steps=6)
    denser = replace(coarse, episodes=(replace(coarse.episodes[0], denser=fine.readings),))
    (found,) = score_group(denser, source).episodes
    assert [one.frame for one in found.readings] == [0, 6, 11]
    assert all(one in fine.readings for one in found.readings)


def test_a_broken_episode_stops_or_is_skipped() -> None:
    source = InMemory(ramp(10), ramp(10), ramp(10), broken={1: 6})
    with pytest.raises(DatasetError, match="Episode 'episode_1' is damaged"):
        score_group(job(source, Grey()), source)
    done: list[int] = []
    result = score_group(job(source, Grey(), skip_broken=True), source, on_frames=done.append)
    assert [one.error for one in result.episodes] == ["", "Episode 'episode_1' is damaged.", ""]
    assert frames_of(result) == [[0, 4, 8, 9], [], [0, 4, 8, 9]]
    assert sum(done) == 30


@pytest.mark.parametrize("frame", [0, 1, 6, 15, 19])
def test_how_far_a_damaged_episode_can_be_read_changes_no_call(frame: int) -> None:
    greys = ramp(20), ramp(20), ramp(20, 40)
    source, alone = InMemory(*greys), Grey()
    whole = job(source, alone, batch_queries=3)
    expected = score_group(replace(whole, episodes=whole.episodes[::2]), source)
    damaged, scorer = InMemory(*greys, broken={1: frame}), Grey()
    found = score_group(job(damaged, scorer, batch_queries=3, skip_broken=True), damaged)
    assert found.episodes[::2] == expected.episodes
    assert scorer.batches[-len(alone.batches) :] == alone.batches
    assert found.asked == sum(scorer.batches)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_a_full_disk_is_no_fault_of_an_episode(number: int) -> None:
    source = InMemory(ramp(5))

    def frames(episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        raise OSError(number, os.strerror(number))
        yield {}

    source.frames = frames  # type: ignore[method-assign]  # of a machine in need
    with pytest.raises(DatasetError, match=rf"Episode 'episode_0': \[Errno {number}\]"):
        score_group(job(source, Grey(), skip_broken=True), source)


def test_damaged_episodes_are_found_together() -> None:
    source, done = InMemory(*[ramp(20)] * 4, broken={1: 2, 2: 17}), list[int]()
    result = score_group(job(source, Grey(), skip_broken=True), source, on_frames=done.append)
    assert [bool(one.error) for one in result.episodes] == [False, True, True, False]
    assert sorted(source.opened) == sorted(source.closed) == [0, 0, 1, 2, 3, 3]
    assert sum(done) == 80


def test_too_few_and_too_many_pictures() -> None:
    source = InMemory(ramp(10))
    source.episodes = (replace(source.episodes[0], frames=11),)
    with pytest.raises(DatasetError, match="'episode_0' must have 11 frames, got only 10"):
        score_group(job(source, Grey()), source)
    source.episodes = (replace(source.episodes[0], frames=9),)
    with pytest.raises(DatasetError, match="'episode_0' must have 9 frames, got more"):
        score_group(job(source, Grey()), source)


def test_a_black_picture_is_the_episode_s_fault() -> None:
    source = InMemory([0, 0, 9])
    with pytest.raises(DatasetError, match=r"Episode 'episode_0'.*black all over") as caught:
        score_group(job(source, Grey()), source)
    assert isinstance(caught.value.__cause__, FrameError)


def test_a_model_that_is_down_is_no_result() -> None:
    source = InMemory(ramp(3))
    with pytest.raises(ScorerFailedError, match=r"All 3 queries .*'episode_0' on failed.*Connect"):
        score_group(job(source, Down()), source)
    with pytest.raises(ScorerFailedError, match="2 queries in a row"):
        score_group(job(source, Down(), max_consecutive_failures=2), source)
    assert sorted(source.closed) == [0, 0]


def groups(source: InMemory, scorer: Any) -> list[tuple[int, GroupJob]]:
    """A job for every two episodes."""
    whole = job(source, scorer)
    return [
        (number, replace(whole, episodes=whole.episodes[2 * number : 2 * number + 2]))
        for number in range(len(whole.episodes) // 2)
    ]


def test_the_next_group_is_decoded_while_one_is_asked_about() -> None:
    source = InMemory(*[ramp(9, 20 + 3 * index) for index in range(6)])
    alone = [score_group(one, source).episodes for _, one in groups(source, Grey())]
    source.opened.clear()
    seen: list[int] = []
    results = []
    for number, result in run_jobs(groups(source, Grey()), source, lambda count: None):
        results.append((number, result.episodes))
        seen.append(len(source.opened))
    assert results == list(enumerate(alone))
    # Those of a group and of the next one, and never of more.
    assert [2 <= one <= 4 for one in seen[:1]] == [True]
    assert seen[1:] == [6, 6]


def test_groups_are_closed_when_nobody_wants_more() -> None:
    source = InMemory(*[ramp(9)] * 6)
    results = run_jobs(groups(source, Grey()), source, lambda count: None)
    next(results)
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert sorted(source.closed) == sorted(source.opened)
    broken = InMemory(*[ramp(9)] * 6, broken={1: 3})
    with pytest.raises(DatasetError, match="episode_1"):
        list(run_jobs(groups(broken, Grey()), broken, lambda count: None))
    assert sorted(broken.closed) == sorted(broken.opened)


def test_long_windows_make_calls_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    source, scorer = InMemory(*[ramp(21)] * 4), Grey()
    window = 2 * 16 * 16 * 3
    monkeypatch.setattr(scoring, "CALL_BYTES", 8 * window)
    score_group(job(source, scorer), source)
    # The first pictures say how large windows are: two of each episode at a time from then on.
    assert scorer.batches == [4, 8, 8, 4]


def test_slow_pictures_change_the_time_but_no_call() -> None:
    source, scorer, other = InMemory(*[ramp(19), ramp(11), ramp(15)]), Grey(), Grey()
    fast = score_group(job(source, scorer, batch_queries=6), source)
    at_once = source.frames

    def frames(episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        for number, pictures in enumerate(at_once(episode, views)):
            time.sleep(0.003 * ((number * (1 + episode.index)) % 3))
            yield pictures

    source.frames = frames  # type: ignore[method-assign]  # slower ones
    slow = score_group(job(source, other, batch_queries=6), source)
    assert slow.episodes == fast.episodes
    assert other.batches == scorer.batches
    assert slow.waited_s > 0.0


def test_the_job_can_be_sent_elsewhere(tmp_path: Any) -> None:
    write_frames(tmp_path / "lift", ramp(5))
    sent = GroupJob(
        source=str(tmp_path),
        format="frames",
        config=RewardConfig(scorer="scripted", every_k_steps=2),
        episodes=(EpisodeJob(index=0, instruction="lift"),),
    )
    result = pickle.loads(pickle.dumps(score_group(pickle.loads(pickle.dumps(sent)))))
    assert frames_of(result) == [[0, 2, 4]]
    assert isinstance(result.episodes[0].readings[0], Reading)
