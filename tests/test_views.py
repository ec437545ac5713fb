"""Which views each of the two models is shown, at which size, and what is drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from procreward.config import RewardConfig, ScorerConfig
from procreward.errors import UnknownNameError
from procreward.plan import StreamPlan
from procreward.registry import clear_scorers, get_scorer, register_scorer, resolve
from procreward.sources import CameraSource, ObservationSource
from procreward.types import Frame, Query, Score
from procreward.views import plan_sources
from procreward.wrapper import ProgressReward

CAMERAS = ("robot0_agentview_right", "robot0_agentview_left", "wrist")
RIGHT, LEFT, WRIST = CAMERAS


class Kitchen(gym.Env[Any, Any]):
    """Four steps, three cameras of different greys, one of them the default; an image as well."""

    instruction = "open the drawer"
    camera_names = CAMERAS
    default_views = (RIGHT,)

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {"front": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)}
        )
        self.action_space = gym.spaces.Discrete(2)
        self.drawn: list[tuple[str, int, int]] = []
        self.greys = dict(zip(CAMERAS, (10, 20, 30), strict=True))

    def _obs(self) -> dict[str, Frame]:
        return {"front": np.full((8, 8, 3), 40, np.uint8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._obs(), 0.0, False, self.steps == 4, {}

    def render_camera(self, name: str, width: int, height: int) -> Frame:
        self.drawn.append((name, width, height))
        return np.full((height, width, 3), self.greys[name], np.uint8)


class Watcher:
    """Notes what it is shown; `views` and `view` of its options are for the wrapper to read."""

    def __init__(self) -> None:
        self.queries: list[Query] = []

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Watcher:
        return cls()

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.queries += queries
        return [Score(progress=0.5) for _ in queries]

    def describe(self) -> dict[str, object]:
        return {"name": "watcher"}


register_scorer("tests-watcher", "tests.test_views:Watcher")


@pytest.fixture(autouse=True)
def forgotten():
    yield
    clear_scorers()


def watcher(name: str, **options: Any) -> dict[str, Any]:
    """Another one for every name; the process keeps one per description."""
    return {"name": "tests-watcher", "options": {"which": name, **options}}


def seen_by(spec: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Per query, the views and the shapes of their frames."""
    scorer: Any = get_scorer(resolve(spec))
    return [
        {view: clip.shape[1:] for view, clip in query.frames.items()} for query in scorer.queries
    ]


def sources(**settings: Any) -> dict[str, Any]:
    return plan_sources(Kitchen(), StreamPlan.from_config(RewardConfig(**settings)))


def test_one_view_for_nano_and_two_for_the_robocasa_judge_each_at_its_own_size() -> None:
    assert sources(scorer="nano", judge="robocasa-judge") == {
        f"scorer:{RIGHT}": CameraSource(RIGHT, 128, 128),
        f"judge:{RIGHT}": CameraSource(RIGHT, 224, 224),
        f"judge:{LEFT}": CameraSource(LEFT, 224, 224),
    }


def test_what_both_see_is_drawn_once() -> None:
    assert sources(scorer="nano", judge="robocasa-judge", frame_size=(224, 224)) == {
        RIGHT: CameraSource(RIGHT, 224, 224),
        f"judge:{LEFT}": CameraSource(LEFT, 224, 224),
    }
    assert sources(scorer="nano", judge="nano-judge") == {RIGHT: CameraSource(RIGHT, 128, 128)}


def test_without_a_judge_names_are_those_of_the_views() -> None:
    assert sources(scorer="nano") == {RIGHT: CameraSource(RIGHT, 128, 128)}
    assert sources(scorer="nano", views=(LEFT, "obs:front")) == {
        LEFT: CameraSource(LEFT, 128, 128),
        "front": ObservationSource("front"),
    }


def test_a_view_that_is_named_in_the_options_need_not_be_among_the_views() -> None:
    scorer = {"preset": "nano", "options": {"view": LEFT}}
    assert sources(scorer=scorer) == {LEFT: CameraSource(LEFT, 128, 128)}
    assert sources(scorer=scorer, views="obs:front") == {LEFT: CameraSource(LEFT, 128, 128)}
    assert sources(scorer=scorer, views="obs:front", judge="constant") == {
        f"scorer:{LEFT}": CameraSource(LEFT, 128, 128),
        "judge:front": ObservationSource("front"),
    }


def test_a_named_view_is_taken_from_where_the_views_say() -> None:
    scorer = {"preset": "nano", "options": {"view": "front"}}
    assert sources(scorer=scorer, views=(RIGHT, "obs:front")) == {
        "front": ObservationSource("front")
    }


def test_a_named_view_that_the_environment_has_not_is_refused_at_once() -> None:
    scorer = {"preset": "nano", "options": {"view": "robot0_agentview_lefd"}}
    with pytest.raises(UnknownNameError, match=f"Did you mean '{LEFT}'"):
        ProgressReward(Kitchen(), scorer=scorer)


def test_models_are_shown_their_own_views_only() -> None:
    env = Kitchen()
    scorer, judge = watcher("progress"), watcher("done", views={LEFT: 0.5, RIGHT: 0.5})
    wrapped = ProgressReward(env, scorer=scorer, judge=judge, every_k_steps=4, window_frames=1)
    wrapped.reset(seed=0)
    for _ in range(4):
        wrapped.step(0)
    side = (128, 128, 3)
    assert seen_by(scorer) == [{RIGHT: side}] * 2
    assert seen_by(judge) == [{RIGHT: side, LEFT: side}] * 2
    assert wrapped.stats.queries == 4
    queries = get_scorer(resolve(judge)).queries  # type: ignore[attr-defined] # a Watcher
    assert {view: int(clip[-1, 0, 0, 0]) for view, clip in queries[-1].frames.items()} == {
        RIGHT: 10,
        LEFT: 20,
    }


def test_a_change_that_only_the_judge_sees_counts_as_one() -> None:
    env = Kitchen()
    judge = watcher("alert", views=[WRIST])
    wrapped = ProgressReward(
        env, scorer=watcher("calm"), judge=judge, every_k_steps=1, skip_unchanged=1.0
    )
    wrapped.reset(seed=0)
    queried = []
    for grey in (30, 90, 90):
        env.greys[WRIST] = grey
        queried.append(wrapped.step(0)[4]["procreward"]["queried"])
    assert queried == [False, True, False]
    assert len(seen_by(judge)) == 2


@pytest.mark.parametrize("name", ["obs:front", "flip:front", f"camera:{LEFT}"])
def test_a_model_finds_its_view_under_the_name_that_it_gives_it(name: str) -> None:
    scorer = watcher(f"prefixed {name}", view=name)
    wrapped = ProgressReward(Kitchen(), scorer=scorer, every_k_steps=4, frame_size=(8, 8))
    wrapped.reset(seed=0)
    assert seen_by(scorer) == [{name: (8, 8, 3)}]
