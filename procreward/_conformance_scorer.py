"""The points of :func:`procreward.testing.check_scorer`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from procreward.config import ScorerSpec
from procreward.errors import ProcrewardError
from procreward.registry import ScorerHandle, get_scorer, resolve
from procreward.testing import Report, Suite
from procreward.types import Frames, Query, Score, Scorer

DEFAULT_SIZE = (128, 128)
DEFAULT_VIEW = "main"
FPS = 20.0
NUM_QUERIES = 3


def run_scorer_suite(
    spec: ScorerSpec,
    *,
    views: tuple[str, ...] | None,
    frame_size: tuple[int, int] | None,
    window_frames: int | None,
    instruction: str,
    tolerance: float,
) -> Report:
    """Run every point; see :func:`procreward.testing.check_scorer`."""
    handle = resolve(spec)
    scorer = get_scorer(handle)
    queries = _queries(handle, views or _own_views(scorer), frame_size, window_frames, instruction)
    points = _Points(scorer, queries, tolerance)
    suite = Suite(f"scorer {handle.preset.name!r}")
    suite.run(
        "describes_itself",
        "`describe()` is JSON-able and has a `name`, so that results can say what gave them",
        points.describe,
    )
    suite.run("empty_list", "no queries give no scores", points.empty)
    if suite.run(
        "one_score_each",
        "every query gets one Score, in a list; a failing answer is a Score with a `reason`",
        points.one_each,
    ):
        points.run_comparisons(suite)
    suite.run(
        "short_window",
        "a window of one frame is answered, as at an episode's start without padding",
        points.short_window,
    )
    suite.run(
        "refuses_no_instruction",
        "an empty instruction is refused with an error of procreward, not answered",
        lambda: points.refuses(replace(queries[0], instruction=" ")),
    )
    suite.run(
        "refuses_float_frames",
        "frames of another dtype are refused: read as pixels they would be nearly black",
        lambda: points.refuses(_as_float(queries[0])),
    )
    suite.run(
        "refuses_channels_first",
        "frames laid out (3, height, width) are refused",
        lambda: points.refuses(_channels_first(queries[0])),
    )
    return suite.report()


class _Points:
    """What is looked at, each returning what is wrong."""

    def __init__(self, scorer: Scorer, queries: list[Query], tolerance: float) -> None:
        self.scorer, self.queries, self.tolerance = scorer, queries, tolerance
        self.batch: list[Score] = []

    def describe(self) -> str:
        description = self.scorer.describe()
        if not isinstance(description, Mapping) or not description.get("name"):
            return f"`describe()` must return a mapping with a `name`, got {description!r}."
        json.dumps(dict(description), allow_nan=False)
        return ""

    def empty(self) -> str:
        scores = self.scorer.score([])
        return "" if list(scores) == [] else f"score([]) must return [], got {scores!r}."

    def one_each(self) -> str:
        before = [_bytes(query) for query in self.queries]
        scores = self.scorer.score(self.queries)
        if not isinstance(scores, list) or not all(isinstance(item, Score) for item in scores):
            return f"score() must return a list of Score, got {scores!r}."
        if len(scores) != len(self.queries):
            return f"{len(self.queries)} queries must give as many scores, got {len(scores)}."
        if before != [_bytes(query) for query in self.queries]:
            return "score() must leave the frames of its queries as they are, and changed them."
        self.batch = scores
        return ""

    def run_comparisons(self, suite: Suite) -> None:
        suite.run(
            "deterministic",
            "the same queries get the same scores again; a potential must not depend on chance",
            lambda: self._compare(self.queries, self.batch, "asked again"),
        )
        suite.run(
            "order_kept",
            "scores come in the order of the queries",
            lambda: self._compare(self.queries[::-1], self.batch[::-1], "asked in reverse"),
        )
        suite.run(
            "batch_equals_singles",
            "a query's score does not depend on those it is asked together with",
            self.singles,
        )
        suite.run(
            "streams_apart",
            "a query's score does not depend on its stream's name: caches may not mix episodes",
            lambda: self._compare(
                [replace(query, stream=f"{query.stream}-other") for query in self.queries],
                self.batch,
                "asked under other stream names",
            ),
        )

    def singles(self) -> str:
        scores = [self.scorer.score([query])[0] for query in self.queries]
        return self._difference(scores, self.batch, "asked one by one")

    def _compare(self, queries: Sequence[Query], expected: Sequence[Score], how: str) -> str:
        return self._difference(self.scorer.score(queries), expected, how)

    def _difference(self, got: Sequence[Score], expected: Sequence[Score], how: str) -> str:
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            for name in ("progress", "success_prob", "complete"):
                first, second = getattr(other, name), getattr(one, name)
                if not _close(first, second, self.tolerance):
                    return f"`{name}` of query {index} was {first}, and {second} when {how}."
        return ""

    def short_window(self) -> str:
        query = self.queries[0]
        short = replace(
            query,
            frames={view: clip[:1] for view, clip in query.frames.items()},
            frame_steps=query.frame_steps[:1],
        )
        scores = self.scorer.score([short])
        return "" if len(scores) == 1 else f"one query must give one score, got {len(scores)}."

    def refuses(self, query: Query) -> str:
        try:
            (score,) = self.scorer.score([query])
        except ProcrewardError:
            return ""
        except Exception as error:
            return f"must raise an error of procreward.errors, got {type(error).__name__}: {error}"
        return f"must raise an error of procreward.errors, answered {score!r}."


def _close(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance


def _bytes(query: Query) -> list[bytes]:
    return [clip.tobytes() for clip in query.frames.values()]


def _own_views(scorer: Scorer) -> tuple[str, ...]:
    """The views that a scorer is set up for, as its description says."""
    try:
        description: Any = scorer.describe()
        views = description.get("views") or description.get("view") or DEFAULT_VIEW
        return (views,) if isinstance(views, str) else tuple(map(str, views))
    except Exception:  # a bad description is a finding of the suite's own
        return (DEFAULT_VIEW,)


def _queries(
    handle: ScorerHandle,
    views: tuple[str, ...],
    frame_size: tuple[int, int] | None,
    window_frames: int | None,
    instruction: str,
) -> list[Query]:
    """Distinct queries of soft noise; the scorer need not make sense of them, only keep order."""
    width, height = frame_size or handle.preset.frame_size or DEFAULT_SIZE
    length = window_frames or handle.preset.window_frames
    stride = handle.preset.frame_stride_steps
    rng = np.random.default_rng(0)
    return [
        Query(
            frames={view: _clip(rng, length, height, width) for view in views},
            instruction=instruction,
            frame_steps=tuple(10 * index + stride * place for place in range(length)),
            stream=f"check-{index}",
            fps=FPS,
        )
        for index in range(NUM_QUERIES)
    ]


def _clip(rng: np.random.Generator, length: int, height: int, width: int) -> Frames:
    coarse = rng.integers(40, 216, (length, -(-height // 8), -(-width // 8), 3), np.uint8)
    clip: Frames = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)[:, :height, :width]
    return np.ascontiguousarray(clip)


def _as_float(query: Query) -> Query:
    frames: dict[str, Any] = {
        view: (clip / 255.0).astype(np.float32) for view, clip in query.frames.items()
    }
    return replace(query, frames=frames)


def _channels_first(query: Query) -> Query:
    return replace(
        query, frames={view: np.moveaxis(clip, 3, 1) for view, clip in query.frames.items()}
    )
