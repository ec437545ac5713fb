"""An environment whose episodes all begin alike, and scorers that do things to a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from procreward.config import ScorerConfig
from procreward.types import Query, Score


class Corridor(gym.Env[Any, Any]):
    """Walk to 1 on a line, from 0, in `num_steps` steps; the picture's grey level is the place.

    `pay` is what the environment itself pays a step, which no learner here should ever feel.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's
    observation_space = gym.spaces.Box(-2.0, 2.0, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    instruction = "walk to the right"

    def __init__(
        self, num_steps: int = 8, pay: float = 0.0, render_mode: str | None = "rgb_array"
    ) -> None:
        self.num_steps, self.pay, self.render_mode = num_steps, pay, render_mode
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.place, self.count = 0.0, 0

    def _observe(self) -> Any:
        return np.array([self.place, self.count / self.num_steps])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.count = 0.0, 0
        return self._observe(), {"success": False}

    def step(self, action: Any) -> Any:
        self.count += 1
        self.place = float(np.clip(self.place + 0.2 * float(action[0]), -1.0, 1.0))
        done = self.count >= self.num_steps
        return self._observe(), self.pay, False, done, {"success": self.place > 0.5}

    def render(self) -> Any:
        return np.full((8, 8, 3), round(100 * (self.place + 1.1)), np.uint8)

    def privileged_progress(self) -> float:
        return min(1.0, max(0.0, self.place))


class OwnHorizon(Corridor):
    """Says by itself when it cuts an episode off, as RoboCasa's environments do."""

    horizon = 8


OWN_HORIZON = "tests.training.envs:OwnHorizon-v0"
if "OwnHorizon-v0" not in gym.registry:
    gym.register("OwnHorizon-v0", "tests.training.envs:OwnHorizon")

CORRIDOR = "tests.training.envs:Corridor-v0"
if "Corridor-v0" not in gym.registry:
    gym.register("Corridor-v0", "tests.training.envs:Corridor", max_episode_steps=8)


class Bright:
    """Progress is how bright the picture is."""

    def __init__(self) -> None:
        self.asked = 0

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Bright:
        return cls()

    def describe(self) -> dict[str, Any]:
        return {"name": type(self).__name__}

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.asked += len(queries)
        return [self.judge(query) for query in queries]

    def judge(self, query: Query) -> Score:
        (frames,) = query.frames.values()
        return Score(progress=float(np.mean(frames[-1])) / 255)


class Interrupting(Bright):
    """Presses Ctrl-C after some queries, once."""

    after = 30

    def judge(self, query: Query) -> Score:
        if self.asked > self.after:
            self.asked = -(10**9)
            os.kill(os.getpid(), signal.SIGINT)
        return super().judge(query)


class Dying(Bright):
    """Fails for good after some queries."""

    def judge(self, query: Query) -> Score:
        return super().judge(query) if self.asked < 60 else Score(reason="dead")
