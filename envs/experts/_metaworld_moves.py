"""Where the hand goes in each Meta-World task: the right way, and wrong ways.

A *guide* maps a :class:`Scene` to the point that the finger tips should head for next, metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["MOVES", "Guide", "Moves", "Scene"]

Vector: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a script sees, from privileged state.

    Attributes:
        tips: Position between the finger tips, ``(3,) float64``, metres.
        part: Position of the part to be moved, ``(3,) float64``, metres.
        start: Position of the finger tips when the episode began, ``(3,) float64``, metres.
        distance: From the finger tips to where they must push, metres.
        fraction: Share of the part's travel that is done, in [0, 1].
    """

    tips: Vector
    part: Vector
    start: Vector
    distance: float
    fraction: float


Guide: TypeAlias = Callable[[Scene], Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """The moves of one task.

    Attributes:
        work: Guide that solves the task, given an offset of the lane in which the tips push;
            a large offset makes it miss.
        misses: Draws an offset with which ``work`` passes the part.
        retreat: Direction in which the hand lets go and withdraws.
        undo: Guide that moves the part back, or None where it returns by itself.
        glides: Whether the part glides on after it is let go, so that a hand which wants to leave
            it half-way must push gently.
    """

    work: Callable[[Vector], Guide]
    misses: Callable[[np.random.Generator], Vector]
    retreat: tuple[float, float, float]
    undo: Guide | None
    glides: bool = True


def _off(place: Vector, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Vector:
    moved: Vector = place + np.array([x, y, z])
    return moved


def _window_work(offset: Vector) -> Guide:
    """Come from the robot's side, go in left of the handle, push right."""

    def guide(scene: Scene) -> Vector:
        handle = scene.part + offset
        x, y, z = scene.tips - handle
        if abs(y) < 0.025 and abs(z) < 0.03 and x < 0.02:
            return _off(handle, 0.1, 0.0, 0.0)
        if x > -0.02 and y > -0.08:
            return np.array([scene.tips[0], handle[1] - 0.13, handle[2]])
        if x > -0.02 or y < -0.2:
            return _off(handle, -0.05, -0.13, 0.0)
        return _off(handle, -0.045, 0.0, 0.0)

    return guide


def _window_undo(scene: Scene) -> Vector:
    """Go round to the right of the handle and push it back to the left."""
    x, y, z = scene.tips - scene.part
    if abs(y) < 0.03 and abs(z) < 0.04 and x > 0.03:
        return _off(scene.part, x=-0.05)
    if x < 0.07:
        return (
            _off(scene.part, x=0.11, y=-0.12) if y < -0.08 else _off(scene.part, x=-0.04, y=-0.14)
        )
    return _off(scene.part, x=0.1)


def _window_misses(rng: np.random.Generator) -> Vector:
    """Past the handle on its near side, or over it."""
    if rng.random() < 0.6:
        return np.array([0.0, -rng.uniform(0.055, 0.12), rng.uniform(-0.06, 0.08)])
    return np.array([0.0, rng.uniform(-0.03, 0.0), rng.uniform(0.095, 0.15)])


def _drawer_work(offset: Vector) -> Guide:
    """Back off over the handle, come down in front of it, push."""

    def guide(scene: Scene) -> Vector:
        handle = scene.part + offset
        x, y, z = scene.tips - handle
        if abs(x) < 0.05 and abs(z) < 0.035 and y < -0.01:
            return _off(handle, 0.0, 0.1, 0.0)
        if y > -0.05:
            if z < 0.05:
                return np.array([scene.tips[0], scene.tips[1] - 0.03, handle[2] + 0.09])
            return np.array([handle[0], handle[1] - 0.09, handle[2] + 0.07])
        return _off(handle, 0.0, -0.075, 0.0)

    return guide


def _drawer_undo(scene: Scene) -> Vector:
    """Dip in behind the handle and pull."""
    x, y, z = scene.tips - scene.part
    if abs(x) < 0.05 and 0.0 < y < 0.06 and z < 0.02:
        return _off(scene.part, y=-0.08, z=-0.01)
    if abs(x) > 0.02 or abs(y - 0.025) > 0.015:
        return _off(scene.part, y=0.025, z=0.08)
    return _off(scene.part, y=0.025, z=-0.01)


def _drawer_misses(rng: np.random.Generator) -> Vector:
    """Past the drawer on either side, or over it."""
    sign = rng.choice([-1.0, 1.0])
    choices = (
        [sign * rng.uniform(0.15, 0.2), 0.0, rng.uniform(-0.01, 0.06)],
        [rng.uniform(-0.06, 0.06), 0.0, rng.uniform(0.11, 0.17)],
        [sign * rng.uniform(0.0, 0.1), -rng.uniform(0.13, 0.2), 0.0],
    )
    return np.array(choices[rng.integers(len(choices))])


def _button_work(offset: Vector) -> Guide:
    """Go above the button and press down."""

    def guide(scene: Scene) -> Vector:
        button = scene.part + offset
        if float(np.linalg.norm((scene.tips - button)[:2])) > 0.02:
            return _off(button, 0.0, 0.0, 0.07)
        return _off(button, 0.0, 0.0, min(0.0, -0.1 + 2.0 * max(offset[2], 0.0)))

    return guide


def _button_misses(rng: np.random.Generator) -> Vector:
    """Down beside the button, or to a height just above it."""
    if rng.random() < 0.3:
        return np.array([*rng.uniform(-0.02, 0.02, 2), rng.uniform(0.05, 0.09)])
    angle, radius = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.075, 0.13)
    return np.array([radius * np.cos(angle), radius * np.sin(angle), 0.0])


MOVES: Final[dict[str, Moves]] = {
    "window-open": Moves(
        work=_window_work,
        misses=_window_misses,
        retreat=(-0.04, -0.14, 0.03),
        undo=_window_undo,
    ),
    "drawer-close": Moves(
        work=_drawer_work,
        misses=_drawer_misses,
        retreat=(0.0, -0.1, 0.06),
        undo=_drawer_undo,
    ),
    "button-press-topdown": Moves(
        work=_button_work,
        misses=_button_misses,
        retreat=(0.0, -0.05, 0.12),
        undo=None,
        glides=False,
    ),
}
"""Task name to its moves."""
