"""Scripted behaviour for the Meta-World environments: one that succeeds and many that do not.

Every script steers by privileged state, with its own speed, gain, noise and pauses each episode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from procreward.envs.experts._metaworld_moves import MOVES, Guide, Moves, Scene
from procreward.errors import UnsupportedEnvError

__all__ = ["MetaWorldExpert", "make_metaworld_expert"]

Action: TypeAlias = npt.NDArray[np.float32]
Vector: TypeAlias = npt.NDArray[np.float64]
Generator: TypeAlias = np.random.Generator

_TASKS: Final = {
    "WindowOpen": "window-open",
    "DrawerClose": "drawer-close",
    "ButtonPressTopdown": "button-press-topdown",
}
"""Name in the environment's id to Meta-World's own."""

_NEAR_M: Final = 0.07


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """Follow a guide until a condition holds or the steps run out.

    ``gentle`` caps the speed where the part is near or has moved, as a share of full speed.
    """

    guide: Guide
    until: Callable[[Scene], bool] = lambda scene: False
    steps: int = 10**9
    gentle: float = 1.0


class MetaWorldExpert:
    """Plays one kind of behaviour, differently every episode.

    Args:
        task: Task name such as ``"window-open"``.
        kind: One of :data:`procreward.envs.experts.KINDS`.
        seed: Seeds the variation; episodes after the same number of resets are alike.
    """

    def __init__(self, task: str, kind: str, seed: int) -> None:
        self._moves = MOVES[task]
        self._plan = _PLANS[kind]
        self._kind = kind
        self._rng = np.random.default_rng(seed)
        self._segments: list[_Segment] = []
        self._spent = 0

    def reset(self, env: gym.Env[Any, Any]) -> None:
        """Begin an episode: draw its speed, noise, pauses and plan.

        Args:
            env: The environment, just reset, wrapped or not.
        """
        rng = self._rng
        self._start = np.asarray(_state(env)["gripper"], dtype=np.float64)
        hurried = self._kind == "retry"
        self._speed = rng.uniform(0.9 if hurried else 0.8, 1.0)
        self._gain = rng.uniform(20.0 if hurried else 16.0, 28.0)
        self._noise = rng.uniform(0.0, 0.25)
        self._grip = 1.0 if rng.random() < 0.8 else rng.uniform(0.3, 1.0)
        self._drift = np.zeros(4)
        self._pauses = not hurried and rng.random() < 0.25
        self._paused = 0
        self._spent = 0
        self._segments = list(self._plan(self._moves, rng))

    def act(self, env: gym.Env[Any, Any]) -> Action:
        """Return the next action, ``(4,) float32`` in [-1, 1].

        Args:
            env: The environment, wrapped or not.
        """
        if self._kind in ("random", "idle"):
            return self._wander()
        scene = self._look(env)
        self._advance(scene)
        if self._pauses and not self._paused and self._rng.random() < 0.02:
            self._paused = int(self._rng.integers(2, 7))
        if self._paused:
            self._paused -= 1
            return self._action(np.zeros(3), self._noise * 0.3)
        segment = self._segments[0]
        near = scene.distance < _NEAR_M or scene.fraction > 0.0
        speed = min(self._speed, segment.gentle) if near else self._speed
        step = self._gain * (segment.guide(scene) - scene.tips)
        return self._action(np.clip(step, -speed, speed), min(self._noise, 0.5 * speed))

    def _look(self, env: gym.Env[Any, Any]) -> Scene:
        state = _state(env)
        return Scene(
            tips=state["gripper"],
            part=state["object"],
            start=self._start,
            distance=state["distance"],
            fraction=state["fraction"],
        )

    def _advance(self, scene: Scene) -> None:
        self._spent += 1
        segment = self._segments[0]
        if len(self._segments) > 1 and (segment.until(scene) or self._spent > segment.steps):
            self._segments.pop(0)
            self._spent = 0

    def _action(self, motion: Vector, noise: float) -> Action:
        jitter = self._rng.normal(0.0, 1.0, 3) * noise
        action = np.array([*(motion + jitter), self._grip])
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _wander(self) -> Action:
        """An Ornstein-Uhlenbeck walk through the actions; a tremble on the spot when idle."""
        jitter = self._rng.normal(0.0, 1.0, 4)
        if self._kind == "idle":
            return np.clip(0.03 * jitter + [0.0, 0.0, 0.0, self._grip], -1.0, 1.0).astype(
                np.float32
            )
        self._drift += 0.35 * jitter - 0.08 * self._drift
        return np.clip(self._drift, -1.0, 1.0).astype(np.float32)


def make_metaworld_expert(task: str, kind: str, seed: int) -> MetaWorldExpert:
    """Make the expert of a Meta-World task; both names must exist (checked by ``make_expert``)."""
    return MetaWorldExpert(_TASKS[task], kind, seed)


def _state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    try:
        state: dict[str, Any] = env.unwrapped.privileged_state()  # type: ignore[attr-defined]  # ours
    except AttributeError:
        raise UnsupportedEnvError(
            f"`env` must be a procreward Meta-World environment, got {env.unwrapped!r}; build it "
            "with gymnasium.make('procreward.envs:procreward/WindowOpen-v0')."
        ) from None
    return state


def _work(moves: Moves, rng: Generator) -> _Segment:
    """The right way, in a lane a few millimetres off."""
    return _Segment(guide=moves.work(rng.normal(0.0, 0.003, 3)))


def _work_until(
    moves: Moves, rng: Generator, condition: Callable[[Scene], bool], haste: float = 0.0
) -> _Segment:
    """The right way until a condition holds, gently enough not to overshoot it by far."""
    pace = haste + rng.uniform(0.12, 0.28) if moves.glides else 1.0
    return replace(_work(moves, rng), until=condition, gentle=pace)


def _hold() -> _Segment:
    """Stay where the segment finds the tips."""
    place: list[Vector] = []

    def guide(scene: Scene) -> Vector:
        if not place:
            place.append(scene.tips.copy())
        return place[0]

    return _Segment(guide=guide)


def _withdraw(moves: Moves, rng: Generator) -> _Segment:
    """Let go along the task's way out, some way towards where the hand came from."""
    away = np.array(moves.retreat) * rng.uniform(0.6, 1.4) + rng.normal(0.0, 0.015, 3)
    home = rng.choice([0.0, 0.0, rng.uniform(0.3, 1.0)])
    goal: list[Vector] = []

    def guide(scene: Scene) -> Vector:
        if not goal:
            goal.append(scene.tips + away)
        near = float(np.linalg.norm(scene.tips - goal[0])) < 0.03
        if near and home:
            goal[0] = goal[0] + home * (scene.start - goal[0])
        return goal[0]

    return _Segment(guide=guide)


def _partway(rng: Generator, most: float = 0.55) -> Callable[[Scene], bool]:
    share = rng.uniform(0.1, most)
    return lambda scene: scene.fraction >= share


def _approached(rng: Generator) -> Callable[[Scene], bool]:
    distance = rng.uniform(0.03, 0.15)
    return lambda scene: scene.distance <= distance


def _missing(moves: Moves, rng: Generator, shortest: int, longest: int) -> list[_Segment]:
    """One attempt that passes the part or pushes it the wrong way, and the way back from it."""
    guide = moves.work(moves.misses(rng))
    if moves.undo is not None and rng.random() < 0.2:
        guide = moves.undo
    attempt = _Segment(guide=guide, steps=int(rng.integers(shortest, longest)))
    return [attempt, replace(_withdraw(moves, rng), steps=int(rng.integers(4, 12)))]


def _plan_expert(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    pace = rng.uniform(0.4, 1.0) if moves.glides else 1.0
    return [replace(_work(moves, rng), gentle=pace)]


def _plan_retry(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    if rng.random() < 0.4:
        away = replace(_withdraw(moves, rng), steps=int(rng.integers(4, 10)))
        first = _work_until(moves, rng, _partway(rng, 0.3), haste=0.15)
        return [first, away, _work(moves, rng)]
    return [*_missing(moves, rng, 20, 34), _work(moves, rng)]


def _plan_drop(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    return [_work_until(moves, rng, _partway(rng)), _withdraw(moves, rng)]


def _plan_miss(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    return [*_missing(moves, rng, 45, 80), *_missing(moves, rng, 45, 80), _hold()]


def _plan_stall(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    condition = _partway(rng) if rng.random() < 0.5 else _approached(rng)
    return [_work_until(moves, rng, condition), _hold()]


def _plan_backtrack(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    if rng.random() < 0.4:
        return [_work_until(moves, rng, _approached(rng)), _withdraw(moves, rng)]
    forward = _work_until(moves, rng, _partway(rng, 0.35), haste=0.1)
    if moves.undo is None:
        return [forward, _withdraw(moves, rng)]
    away = replace(_withdraw(moves, rng), steps=int(rng.integers(5, 12)))
    back = _Segment(guide=moves.undo, until=lambda scene: scene.fraction < 0.02)
    return [forward, away, back, _withdraw(moves, rng)]


def _plan_fail(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    share = rng.uniform(0.3, 0.5)
    return [_work_until(moves, rng, lambda scene: scene.fraction >= share), _withdraw(moves, rng)]


def _plan_nothing(moves: Moves, rng: Generator) -> Sequence[_Segment]:
    return []


_PLANS: Final[dict[str, Callable[[Moves, Generator], Sequence[_Segment]]]] = {
    "expert": _plan_expert,
    "retry": _plan_retry,
    "drop": _plan_drop,
    "miss": _plan_miss,
    "stall": _plan_stall,
    "backtrack": _plan_backtrack,
    "idle": _plan_nothing,
    "random": _plan_nothing,
    "fail": _plan_fail,
}
