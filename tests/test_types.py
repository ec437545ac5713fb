from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from procreward.errors import ScorerError
from procreward.types import Score


def test_numpy_values_become_plain_ones() -> None:
    score = Score(progress=np.float32(0.5), success_prob=np.float64(1.0), complete=np.bool_(True))  # type: ignore[arg-type]  # on purpose
    assert (score.progress, score.success_prob, score.complete) == (0.5, 1.0, True)
    assert type(score.progress) is float
    assert type(score.success_prob) is float
    assert type(score.complete) is bool


@pytest.mark.parametrize(
    "value", [1.5, -0.1, float("nan"), float("inf"), "0.5", np.array([0.5]), [0.5]]
)
@pytest.mark.parametrize("name", ["progress", "success_prob"])
def test_what_is_no_share_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ScorerError, match=rf"`Score.{name}` must be a number in \[0, 1\] or None"):
        Score(**{name: value})


@pytest.mark.parametrize("value", [1, 0.7, "complete", np.array([True])])
def test_a_label_is_a_bool(value: Any) -> None:
    with pytest.raises(ScorerError, match=r"`Score.complete` must be a bool or None"):
        Score(complete=value)


def test_no_value_needs_a_reason() -> None:
    with pytest.raises(ScorerError, match="needs a `reason`"):
        Score(text="no number here")
    assert not Score(text="no number here", reason="unparsable").valid


@pytest.mark.parametrize("name", ["text", "reason", "mode"])
def test_words_are_strings(name: str) -> None:
    with pytest.raises(ScorerError, match=f"`Score.{name}` must be a string, got None"):
        Score(progress=0.5, **{name: None})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), "0.5", None, np.array([0.5])])
def test_figures_are_finite_numbers(value: Any) -> None:
    with pytest.raises(ScorerError, match=r"`Score.details\['x'\]` must be a finite number"):
        Score(progress=0.5, details={"x": value})
    if value is not None:
        with pytest.raises(ScorerError, match=r"`Score.spread` must be a finite number"):
            Score(progress=0.5, spread=value)


def test_figures_become_plain_numbers_that_json_takes() -> None:
    score = Score(progress=0.5, spread=np.float32(0.25), details={"x": np.float32(0.5), "n": 2})  # type: ignore[arg-type]  # on purpose
    assert json.dumps([score.spread, score.details]) == '[0.25, {"x": 0.5, "n": 2.0}]'
