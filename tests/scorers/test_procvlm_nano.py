"""ProcVLM's modes and readouts with real weights, on frames of a real simulator."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from procreward.config import load_preset
from procreward.envs.experts import make_expert
from procreward.scorers.procvlm import ProcVLM
from procreward.scorers.procvlm_text import DIRECT_PREFIX, LEAD
from procreward.types import Query, Score

pytestmark = pytest.mark.sim

ENV_ID = "procreward/Lift-v0"
TEXT = "Lift the red cube off the table."


@cache
def queries() -> tuple[Query, ...]:
    """Five windows of an expert's episode, from its first frame to its last."""
    env = gym.make(f"procreward.envs:{ENV_ID}", render_mode="rgb_array")
    policy = make_expert(ENV_ID, "expert", 3)
    env.reset(seed=3)
    policy.reset(env)
    frames, done = [env.render()], False
    while not done:
        _, _, terminated, truncated, _ = env.step(policy.act(env))
        done = terminated or truncated
        frames.append(env.render())
    env.close()
    windows = []
    for last in np.linspace(0, len(frames) - 1, 5).astype(int).tolist():
        steps = tuple(max(last - back, 0) for back in (12, 8, 4, 0))
        clip: Any = np.stack([frames[step] for step in steps])
        windows.append(
            Query(frames={"main": clip}, instruction=TEXT, frame_steps=steps, stream="lift")
        )
    return tuple(windows)


@cache
def ask(mode: str, readout: str) -> Any:
    config = load_preset("nano").scorer
    options = {**config.options, "mode": mode, "readout": readout}
    return ProcVLM.from_config(replace(config, options=options)).score(queries())


def progress(scores: list[Score]) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert all(score.valid for score in scores)
    return np.array([score.progress for score in scores], np.float64)


@pytest.mark.parametrize("mode", ["reasoning", "direct"])
def test_expectations_are_near_the_digits_and_have_a_spread(mode: str) -> None:
    greedy, expected = ask(mode, "greedy"), ask(mode, "expectation")
    np.testing.assert_allclose(progress(expected), progress(greedy), atol=0.15)
    assert [score.spread for score in greedy] == [None] * 5
    for score in expected:
        assert 0.0 < score.spread < 0.5
        assert score.details["number_mass"] > 0.9
        assert score.progress == pytest.approx(score.details["percent"] / 100)


@pytest.mark.parametrize("mode", ["reasoning", "direct"])
@pytest.mark.parametrize("readout", ["greedy", "expectation"])
def test_progress_rises_along_the_episode(mode: str, readout: str) -> None:
    values = progress(ask(mode, readout))
    assert values[0] < 0.3
    assert values[-1] > 0.9


def test_the_words_are_the_same_up_to_the_number() -> None:
    for whole, begun in zip(
        ask("reasoning", "greedy"), ask("reasoning", "expectation"), strict=True
    ):
        assert whole.text.endswith("%")  # stopped as soon as the number was whole
        assert begun.text.endswith(LEAD)
        assert whole.text.startswith(begun.text)
    assert {score.text for score in ask("direct", "expectation")} == {DIRECT_PREFIX}
