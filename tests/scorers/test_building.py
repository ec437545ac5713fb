from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.errors import ConfigError
from procreward.scorers.building import (
    EngineOptions,
    ModelScorer,
    clamped_details,
    frame_keys,
    stream_name,
)
from procreward.types import Query, Score


def query(stream: str = "e", steps: tuple[int, ...] = (0, 0, 4)) -> Query:
    frames = np.zeros((len(steps), 8, 8, 3), np.uint8)
    return Query(frames={"front": frames}, instruction="go", frame_steps=steps, stream=stream)


class Counting(ModelScorer[EngineOptions]):
    """Answers with the size of the batch."""

    def _score_batch(self, queries: Sequence[Query]) -> list[Score]:
        return [Score(progress=len(queries) / 100) for _ in queries]


@pytest.mark.parametrize(
    ("batch_size", "count", "sizes"),
    [(2, 5, [2, 2, 2, 2, 1]), (5, 5, [5] * 5), (9, 5, [5] * 5), (1, 3, [1] * 3), (4, 0, [])],
)
def test_no_batch_is_larger_than_asked(batch_size: int, count: int, sizes: list[int]) -> None:
    scorer = Counting(None, EngineOptions(batch_size=batch_size))  # type: ignore[arg-type]  # on purpose
    assert [score.progress for score in scorer.score([query()] * count)] == [
        size / 100 for size in sizes
    ]


def test_names_for_what_an_engine_may_keep() -> None:
    assert frame_keys(query(), "front") == (
        ("e", "front", 0),
        ("e", "front", 0),
        ("e", "front", 4),
    )
    assert stream_name(query(), "front") == "e/front"
    assert (frame_keys(query(""), "front"), stream_name(query(""), "front")) == (None, None)


@given(st.floats(allow_nan=False))
def test_numbers_out_of_range_stay_json(percent: float) -> None:
    details = clamped_details(percent, clamped=True)
    assert details["clamped"] == 1.0
    json.dumps(details, allow_nan=False)
    assert clamped_details(percent, clamped=False) == clamped_details(None, clamped=True) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "quick"}, "`engine` must be one of 'auto', 'fast'"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"cache_gib": -0.5}, "`cache_gib` must be at least 0, got -0.5"),
        ({"cache_gib": "2GB"}, "`cache_gib` must be at least 0, got '2GB'"),
        ({"server": "http://127.0.0.1:8000"}, "`server` must be a mapping"),
        ({"server": {"base_url": "x"}}, "`server` belongs to `engine: served`"),
        ({"engine": "served"}, "Set both, or neither"),
        ({"vllm": {"seed": 1}}, "`vllm` must be a mapping that belongs to `engine: vllm`"),
    ],
)
def test_wrong_engine_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**options)  # type: ignore[arg-type]  # wrong on purpose, or from a mapping
