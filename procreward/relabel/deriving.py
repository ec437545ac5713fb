"""From what the models said about an episode to its rewards, without a model.

The numbers go through the very parts that reward an environment
(:class:`~procreward.outcome.EpisodeLedger`), so an episode that is recorded and relabelled has the
rewards that it had online, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from procreward.outcome import EpisodeLedger, Outcome, StepEnd
from procreward.plan import StreamPlan
from procreward.relabel.episodes import Episode, EpisodeLabels
from procreward.relabel.readings import Reading
from procreward.types import Score
from procreward.wrapping import step_reward

__all__ = ["Fill", "derive"]

Fill: TypeAlias = Literal["hold", "interpolate"]
"""What stands between two queries: the last reading, or a line to the next one."""

Values = npt.NDArray[np.float64]


def derive(
    plan: StreamPlan, episode: Episode, readings: Mapping[int, Reading], *, fill: Fill = "hold"
) -> EpisodeLabels:
    """Turn readings into rewards and labels.

    The reward of a step is that of :class:`~procreward.wrapper.ProgressReward` with
    ``env_reward_weight=0``. Where the state after the last action has no picture, it counts as
    looking like the one before: its potential is the last one.

    Args:
        plan: The settings.
        episode: Which episode.
        readings: By picture; at the last one too.
        fill: What ``progress`` and ``success_prob`` are between two queries. Rewards, potentials
            and completion are of held readings always: a line to the next reading knows of later
            actions.
    """
    outcomes = _outcomes(plan, episode, readings)
    # The state after the last action may have no picture.
    seen = outcomes[: episode.frames]
    scores = {frame: readings[frame] for frame in sorted(readings)}
    progress = {frame: _progress(one.score) for frame, one in scores.items()}
    chances = {frame: _success_prob(one, plan) for frame, one in scores.items()}
    spread = _held if fill == "hold" else _interpolated
    return EpisodeLabels(
        episode=episode,
        reward=np.array([step_reward(one, 0.0, 0.0) for one in outcomes[1:]], np.float64),
        potential=np.array([one.potential for one in outcomes], np.float64),
        progress=spread(progress, episode.frames),
        success_prob=spread(chances, episode.frames),
        complete=np.array([one.complete for one in seen], np.bool_),
        queried=np.array([one.queried for one in seen], np.bool_),
        valid=np.array([one.valid for one in seen], np.bool_),
        text=tuple("" if one.score is None else one.score.text for one in seen),
        terminated=episode.terminated,
    )


def _outcomes(plan: StreamPlan, episode: Episode, readings: Mapping[int, Reading]) -> list[Outcome]:
    """What every state came to, ``length + 1`` of them."""
    ledger = EpisodeLedger(plan)
    found = []
    for step in range(episode.length + 1):
        reading = readings.get(step)
        score = None if reading is None else reading.score
        judge_score = None if reading is None else reading.judge_score
        if reading is not None:
            ledger.take(step, score, judge_score)
        last = step == episode.length
        end = StepEnd(
            step=step,
            terminated=last and episode.terminated,
            truncated=last and not episode.terminated,
            queried=reading is not None,
        )
        found.append(ledger.settle(end, score=score, judge_score=judge_score))
    return found


def _progress(score: Score | None) -> float | None:
    """What the potential is read from; a judge that stands in for a scorer has no progress."""
    if score is None:
        return None
    if score.progress is not None:
        return score.progress
    if score.success_prob is not None:
        return score.success_prob
    return None if score.complete is None else float(score.complete)


def _success_prob(reading: Reading, plan: StreamPlan) -> float | None:
    score = reading.score if plan.judge is None else reading.judge_score
    return None if score is None else score.success_prob


def _known(values: Mapping[int, float | None]) -> tuple[list[int], list[float]]:
    known = {frame: value for frame, value in values.items() if value is not None}
    return list(known), list(known.values())


def _held(values: Mapping[int, float | None], frames: int) -> Values:
    """The last value at or before each picture, NaN before the first."""
    places, known = _known(values)
    before = np.searchsorted(places, np.arange(frames), side="right")
    return np.array([np.nan, *known])[before]


def _interpolated(values: Mapping[int, float | None], frames: int) -> Values:
    """A line from value to value, NaN before the first."""
    places, known = _known(values)
    if not places:
        return np.full(frames, np.nan)
    return np.interp(np.arange(frames), places, known, left=np.nan)
