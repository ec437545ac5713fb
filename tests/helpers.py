"""An environment whose every step is known beforehand, and scorers to go with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from procreward.types import Frame, Query, Score

INSTRUCTION = "count to the end"


def picture(value: int, size: int = 8) -> Frame:
    """A picture that is `value` all over; `value` is never 0 (that would be a black frame)."""
    return np.full((size, size, 3), value, np.uint8)


class CounterEnv(gym.Env[Any, Any]):
    """Counts its steps; the picture's grey level is the count plus 1.

    Ends after `num_steps` steps, terminated or truncated. The environment's reward is its step.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        num_steps: int = 10,
        end: str = "terminated",
        *,
        instruction: str | None = INSTRUCTION,
        render_mode: str | None = "rgb_array",
        dict_obs: bool = False,
        greys: Sequence[int] | None = None,
    ):
        self.num_steps, self.end, self.greys = num_steps, end, greys
        self.render_mode = render_mode
        self.dict_obs = dict_obs
        self.action_space = gym.spaces.Discrete(2)
        image = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        number = gym.spaces.Box(0.0, 1e6, (1,), np.float64)
        self.observation_space = (
            gym.spaces.Dict({"image": image, "count": number}) if dict_obs else number
        )
        if instruction is not None:
            self.instruction = instruction
        self.count = 0
        self.renders: list[int] = []
        self.resets: list[tuple[int | None, Any]] = []
        self.closed = 0

    def _obs(self) -> Any:
        number = np.array([self.count], np.float64)
        return {"image": self._picture(), "count": number} if self.dict_obs else number

    def _picture(self) -> Frame:
        grey = self.count + 1 if self.greys is None else self.greys[self.count]
        return picture(grey)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets.append((seed, options))
        self.count = 0
        return self._obs(), {"success": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        ended = self.count >= self.num_steps
        return (
            self._obs(),
            float(self.count),
            ended and self.end == "terminated",
            ended and self.end == "truncated",
            {"success": ended},
        )

    def render(self) -> Any:
        self.renders.append(self.count)
        return self._picture()

    def close(self) -> None:
        self.closed += 1


def make_counter(**kwargs: Any) -> gym.Env[Any, Any]:
    """A made `CounterEnv`: with a spec, so that it can be made again."""
    return gym.make(
        EnvSpec("procreward-tests/Counter-v0", entry_point="tests.helpers:CounterEnv"),
        disable_env_checker=True,
        **kwargs,
    )


class Recorder:
    """Answers from a list by step, and keeps every query it was asked.

    An entry that is an exception is raised; None is an answer that could not be read; a Score is
    returned as it is.
    """

    def __init__(self, answers: Sequence[float | Score | Exception | None] | None = None):
        self.answers = answers
        self.queries: list[Query] = []
        self.calls = 0

    @property
    def steps(self) -> list[int]:
        """The steps that were asked about, in order."""
        return [query.frame_steps[-1] for query in self.queries]

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.calls += 1
        self.queries.extend(queries)
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Score:
        if self.answers is None:
            # Grey levels as progress, so that answers depend on the frames alone.
            (clip,) = query.frames.values()
            return Score(progress=float(clip[:, 0, 0, 0].mean()) / 255.0)
        step = query.frame_steps[-1]
        answer = self.answers[min(step, len(self.answers) - 1)]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Score):
            return answer
        if answer is None:
            return Score(reason="unparsable", text="no number here")
        return Score(progress=answer, text=f"<progress>{100 * answer:g}%</progress>")

    def describe(self) -> Mapping[str, object]:
        return {"name": "recorder"}


def play(env: gym.Env[Any, Any], num_steps: int | None = None) -> list[dict[str, Any]]:
    """Reset and step with action 0 until the episode ends (or `num_steps`); one dict a step."""
    _, info = env.reset(seed=0)
    trace = [{"reward": 0.0, "terminated": False, "truncated": False, **info["procreward"]}]
    while num_steps is None or len(trace) <= num_steps:
        _, reward, terminated, truncated, info = env.step(0)
        trace.append(
            {
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                **info["procreward"],
            }
        )
        if num_steps is None and (terminated or truncated):
            break
    return trace


def discounted(rewards: Sequence[float], gamma: float) -> float:
    """The discounted sum, the first reward undiscounted."""
    return math.fsum(gamma**t * reward for t, reward in enumerate(rewards))
