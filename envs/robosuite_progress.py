"""True progress and stages of the robosuite tasks, read from the simulator's state.

Progress is a number in [0, 1] that depends on the current state alone: elapsed time does not
enter, a dropped object costs what was gained with it, and 0.9 is the line of the simulator's own
success check (every successful state is at or above it, every other state below).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from procreward.errors import UnknownNameError

__all__ = ["SUCCESS_LINE", "TASKS", "Reading", "RobosuiteTask", "get_task"]

Vector = npt.NDArray[np.float64]

SUCCESS_LINE = 0.9
"""Progress at which the simulator's own success check turns true."""

_BELOW_SUCCESS = 0.899
_OPEN_WIDTH = 0.08  # m between the Panda's finger pads when open


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What is true in the simulator now.

    Attributes:
        gripper: Grip site between the finger pads, ``(3,) float64``, metres, world frame.
        object: Centre of the object to move (the handle for Door), ``(3,) float64``, metres.
        target: Where it shall go: centre of cube B, floor of the can's bin, the handle (Door), or
            the object itself where there is no such place (Lift); ``(3,) float64``, metres.
        width: Opening between the finger pads, metres.
        grasped: Whether both finger pads touch the object.
        height: Height of the object's centre over its rest height on the table, metres.
        distance: From grip site to object centre, metres.
        angles: Hinge and latch angle, ``(2,) float64``, radians; zeros without a door.
        success: The simulator's own success check.
    """

    gripper: Vector
    object: Vector
    target: Vector
    width: float
    grasped: bool
    height: float
    distance: float
    angles: Vector
    success: bool


def _clip01(value: float) -> float:
    return min(1.0, max(0.0, value))


def _near(distance: float, full: float, zero: float) -> float:
    """1 at ``full`` metres and closer, 0 at ``zero`` metres and beyond, linear between."""
    return _clip01((zero - distance) / (zero - full))


class RobosuiteTask(ABC):
    """One task: how its state is read and what share of it is done."""

    name: ClassVar[str]
    instruction: ClassVar[str]
    stage_names: ClassVar[tuple[str, ...]]
    object_width: ClassVar[float]

    @abstractmethod
    def _points(self, env: Any) -> tuple[Vector, Vector, float, Any]:
        """Return object xyz, target xyz, the object's rest height (z) and its contact geoms."""

    @abstractmethod
    def _partial(self, reading: Reading) -> float:
        """Return progress of an unsuccessful state; it is capped below the success line."""

    @abstractmethod
    def _beyond(self, reading: Reading) -> float:
        """Return how far a successful state is beyond the success line, in [0, 1]."""

    @abstractmethod
    def _stage(self, reading: Reading) -> int:
        """Return the stage of an unsuccessful state."""

    def _angles(self, env: Any) -> Vector:
        return np.zeros(2)

    def read(self, env: Any) -> Reading:
        """Read the state of a robosuite environment (the simulator's, not a Gymnasium wrapper)."""
        robot = env.robots[0]
        gripper_model = robot.gripper["right"]
        data = env.sim.data
        gripper = np.array(data.site_xpos[robot.eef_site_id["right"]])
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
        thing, target, rest, geoms = self._points(env)
        return Reading(
            gripper=gripper,
            object=thing,
            target=target,
            width=float(abs(fingers[0]) + abs(fingers[1])),
            grasped=bool(env._check_grasp(gripper=gripper_model, object_geoms=geoms)),
            height=float(thing[2] - rest),
            distance=float(np.linalg.norm(gripper - thing)),
            angles=self._angles(env),
            success=bool(env._check_success()),
        )

    def progress(self, reading: Reading) -> float:
        """Return the share of the task that is done, in [0, 1]."""
        if reading.success:
            return SUCCESS_LINE + (1.0 - SUCCESS_LINE) * _clip01(self._beyond(reading))
        return min(_BELOW_SUCCESS, max(0.0, self._partial(reading)))

    def stage(self, reading: Reading) -> int:
        """Return the index of the current stage, ``len(stage_names)`` when done."""
        return len(self.stage_names) if reading.success else self._stage(reading)

    def _reach(self, reading: Reading, reach: float, closing: float) -> float:
        """Return progress before a grasp: ``reach`` for nearness, ``closing`` for the fingers.

        Fingers closed further than the object is wide hold nothing and earn nothing.
        """
        shut = (_OPEN_WIDTH - reading.width) / (_OPEN_WIDTH - self.object_width)
        if reading.width < 0.85 * self.object_width:
            shut = 0.0
        nearness = _near(reading.distance, 0.012, 0.222)
        return reach * nearness + closing * _clip01(shut) * _near(reading.distance, 0.012, 0.03)


class Lift(RobosuiteTask):
    """Lift the cube; robosuite's line is a centre 4 cm above the table (2 cm of lift)."""

    name = "Lift"
    instruction = "Lift the red cube off the table."
    stage_names = ("reach the cube", "grasp the cube", "lift the cube")
    object_width = 0.042

    def _points(self, env: Any) -> tuple[Vector, Vector, float, Any]:
        cube = np.array(env.sim.data.body_xpos[env.cube_body_id])
        return cube, cube.copy(), float(env.table_offset[2] + env.cube.size[2]), env.cube

    def _partial(self, reading: Reading) -> float:
        if reading.grasped:
            return 0.60 + 0.30 * _clip01(reading.height / 0.0195)
        return self._reach(reading, 0.40, 0.15)

    def _beyond(self, reading: Reading) -> float:
        return (reading.height - 0.0195) / 0.05

    def _stage(self, reading: Reading) -> int:
        if reading.grasped:
            return 2
        return 1 if reading.distance < 0.03 else 0


TASKS: dict[str, RobosuiteTask] = {task.name: task for task in (Lift(),)}
"""Task name to its definition."""


def get_task(name: str) -> RobosuiteTask:
    """Return a task by name.

    Raises:
        UnknownNameError: If there is no such task.
    """
    if name not in TASKS:
        raise UnknownNameError("robosuite task", name, TASKS)
    return TASKS[name]
