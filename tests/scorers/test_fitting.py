from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.engine import Clip, Engine, Prompt
from procreward.engine.generic import GenericEngine
from procreward.engine.loading.generic import load_generic
from procreward.errors import FrameError
from procreward.registry import get_scorer, resolve
from procreward.scorers.fitting import FittingEngine, FrameLimits
from procreward.types import Query
from tests.serving import Server, completion, prompt_of, serving
from tests.tiny import save_tiny_generic


def clip(height: int, width: int, count: int = 2) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def query(height: int, width: int, view: str = "front") -> Query:
    return Query(
        frames={view: clip(height, width)}, instruction="lift it", frame_steps=(0, 1), fps=20.0
    )


def test_frames_within_the_limits_are_left_alone() -> None:
    frames = clip(48, 64)
    limits = FrameLimits(min_pixels=48 * 64, max_pixels=48 * 64, frame_size=(64, 48))
    assert limits.fit(frames) is frames
    assert FrameLimits().fit(frames) is frames


@pytest.mark.parametrize(
    ("limits", "shape"),
    [
        (FrameLimits(max_pixels=64 * 64), (64, 64)),
        (FrameLimits(min_pixels=256 * 256), (256, 256)),
        (FrameLimits(min_pixels=160 * 160, max_pixels=192 * 192), (160, 160)),
    ],
)
def test_the_area_is_brought_within_bounds(limits: FrameLimits, shape: tuple[int, int]) -> None:
    frames = limits.fit(clip(128, 128))
    assert frames.shape == (2, *shape, 3)
    assert frames.dtype == np.uint8


def test_another_size_than_demanded_is_refused() -> None:
    with pytest.raises(FrameError, match=r"64x48 .*got 48x64"):
        FrameLimits(frame_size=(64, 48)).fit(clip(64, 48))


@pytest.fixture(scope="module")
def generic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_generic(tmp_path_factory.mktemp("generic") / "model")


def test_models_of_other_makers_keep_to_the_limits(generic: Path) -> None:
    options: dict[str, Any] = {"frame_size": [48, 32], "layout": "images"}
    judge = get_scorer(
        resolve({"name": "completion_judge", "model": str(generic), "options": options})
    )
    assert judge.describe()["frame_size"] == [48, 32]
    assert judge.score([query(32, 48)])[0].valid
    with pytest.raises(FrameError, match=r"48x32 .*got 64x32"):
        judge.score([query(32, 64)])


def test_large_frames_reach_models_of_other_makers_reduced(generic: Path) -> None:
    engine = GenericEngine(load_generic(str(generic), threads=1))
    limits = FrameLimits(max_pixels=32 * 32)
    fitting = FittingEngine(engine, limits)
    large = clip(96, 96)

    def likelihoods(asked: Engine, frames: Any) -> Any:
        prompt = Prompt(parts=(Clip(frames=frames), "lift it"))
        return asked.label_nll([prompt], ["yes", "no"]).nll

    np.testing.assert_array_equal(
        likelihoods(fitting, large), likelihoods(engine, limits.fit(large))
    )
    assert np.abs(likelihoods(fitting, large) - likelihoods(engine, large)).max() > 1e-3


@contextmanager
def served(**options: Any) -> Iterator[tuple[Server, Any]]:
    with serving(lambda request: completion("50%")) as server:
        options |= {"engine": "served", "server": {"base_url": server.url, "model": "m"}}
        config = {"name": "progresslm", "options": {"demo": ["reach", "lift"], **options}}
        yield server, get_scorer(resolve(config))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (128, 128)),
        ({"max_pixels": 64 * 64}, (64, 64)),
        ({"min_pixels": 256 * 256}, (256, 256)),
    ],
)
def test_servers_get_frames_within_the_limits(
    options: dict[str, Any], shape: tuple[int, int]
) -> None:
    with served(think=False, **options) as (server, scorer):
        (score,) = scorer.score([query(128, 128)])
        assert score.progress == 0.5
        pictures = [
            part for part in prompt_of(server.requests[0]).parts if not isinstance(part, str)
        ]
    assert [picture.frames.shape[1:3] for picture in pictures] == [shape]
