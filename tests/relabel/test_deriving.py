from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.config import RewardConfig
from procreward.plan import StreamPlan
from procreward.relabel import Episode, EpisodeLabels
from procreward.relabel.deriving import Fill, derive
from procreward.relabel.readings import Reading
from procreward.types import Score
from tests.helpers import discounted


def episode(length: int, *, last_picture: bool = True, terminated: bool = False) -> Episode:
    return Episode(
        index=0,
        name="ep",
        length=length,
        frames=length + last_picture,
        instruction="go",
        terminated=terminated,
        fps=None,
    )


def labels(
    of: Episode, progress: dict[int, float | None], fill: Fill = "hold", **settings: Any
) -> EpisodeLabels:
    config = RewardConfig(scorer="scripted", **({"gamma": 0.5, "scale": 8.0} | settings))
    readings = {frame: reading(frame, value) for frame, value in progress.items()}
    return derive(StreamPlan.from_config(config), of, readings, fill=fill)


def reading(frame: int, value: float | None) -> Reading:
    score = Score(reason="unparsable") if value is None else Score(progress=value, text=f"{value}")
    return Reading(frame=frame, window=(frame,), score=score)


def test_the_last_state_has_a_picture() -> None:
    found = labels(episode(4), {0: 0.0, 2: 0.5, 4: 1.0})
    # 0.5 * 8 * q - 8 * p
    assert found.reward.tolist() == [0.0, 2.0, -2.0, 0.0]
    assert found.potential.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert found.progress.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert found.queried.tolist() == [True, False, True, False, True]
    assert found.text == ("0.0", "", "0.5", "", "1.0")
    assert found.valid.all()
    assert found.terminated is False


def test_the_last_state_has_none() -> None:
    found = labels(episode(4, last_picture=False), {0: 0.0, 2: 0.5, 3: 1.0})
    # What the last action led to counts as looking like the state before.
    assert found.potential.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert found.reward.tolist() == [0.0, 2.0, 0.0, -4.0]
    assert found.progress.tolist() == [0.0, 0.0, 0.5, 1.0]


def test_a_terminal_state_has_no_potential() -> None:
    for last_picture in (True, False):
        of = episode(3, last_picture=last_picture, terminated=True)
        found = labels(of, {0: 0.0, of.frames - 1: 1.0})
        assert found.potential[-1] == 0.0
        assert found.reward[-1] == -8.0 * found.potential[-2]
        assert found.terminated is True


def test_failed_readings_are_held() -> None:
    found = labels(episode(4), {0: None, 1: None, 2: 0.25, 4: None})
    assert np.isnan(found.progress).tolist() == [True, True, False, False, False]
    assert found.progress[2:].tolist() == [0.25] * 3
    assert found.valid.tolist() == [False, False, True, True, False]
    # The first potential is not paid for.
    assert found.reward.tolist() == [0.0, 0.0, -1.0, -1.0]


def test_interpolated() -> None:
    values = {0: None, 1: 0.0, 3: 0.5, 4: None, 5: 1.0}
    held, lines = labels(episode(6), values), labels(episode(6), values, "interpolate")
    assert lines.progress[1:].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert np.isnan(lines.progress[0])
    assert lines.reward.tolist() == held.reward.tolist()
    assert lines.potential.tolist() == held.potential.tolist()
    nothing = labels(episode(2), {0: None, 1: None, 2: None}, "interpolate")
    assert np.isnan(nothing.progress).all()


def test_a_scorer_without_progress() -> None:
    plan = StreamPlan.from_config(RewardConfig(scorer="scripted", shaping="delta"))
    readings = {
        frame: Reading(frame=frame, window=(frame,), score=score)
        for frame, score in enumerate(
            [Score(success_prob=0.25), Score(complete=True), Score(success_prob=0.5)]
        )
    }
    found = derive(plan, episode(2), readings)
    assert found.progress.tolist() == [0.25, 1.0, 0.5]
    assert found.success_prob.tolist() == [0.25, 0.25, 0.5]
    assert found.reward.tolist() == [0.75, -0.5]


def test_a_judge_decides_completion() -> None:
    config = RewardConfig(
        scorer="scripted", judge="constant", confirm_queries=1, confirm_window=1, success_bonus=5.0
    )
    readings = {
        frame: Reading(
            frame=frame,
            window=(frame,),
            judge_window=(frame,),
            score=Score(progress=0.5),
            judge_score=Score(complete=done, success_prob=float(done)),
        )
        for frame, done in enumerate([False, True, True])
    }
    found = derive(StreamPlan.from_config(config.replace(gamma=1.0)), episode(2), readings)
    assert found.complete.tolist() == [False, True, True]
    assert found.success_prob.tolist() == [0.0, 1.0, 1.0]
    assert found.reward.tolist() == [5.0, 0.0]


@given(
    values=st.lists(st.none() | st.floats(0.0, 1.0), min_size=2, max_size=20),
    every=st.integers(1, 5),
    gamma=st.floats(0.5, 1.0),
    terminated=st.booleans(),
    last_picture=st.booleans(),
)
def test_rewards_telescope(
    values: list[float | None], every: int, gamma: float, terminated: bool, last_picture: bool
) -> None:
    of = episode(len(values) - last_picture, last_picture=last_picture, terminated=terminated)
    asked = {
        frame: value
        for frame, value in enumerate(values)
        if frame % every == 0 or frame == of.frames - 1
    }
    found = labels(of, asked, gamma=gamma, scale=1.0)
    known = [frame for frame, value in asked.items() if value is not None]
    if not known:
        assert not found.reward.any()
        return
    first = known[0]
    total = discounted(found.reward[first:].tolist(), gamma)
    # The first potential counts from where it is known.
    expected = gamma ** (of.length - first) * found.potential[-1] - found.potential[first]
    if first < of.length or not terminated:
        assert total == pytest.approx(expected, abs=1e-12)
