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

from procreward.envs.robosuite_backend import FreeCamera
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
        target: Where it shall be in the end, ``(3,) float64``, metres: on top of cube B, in the
            can's bin, where the handle of an open door is; the object itself in Lift.
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
    default_camera: ClassVar[str] = "agentview"
    cameras: ClassVar[dict[str, FreeCamera]] = {}

    @abstractmethod
    def _points(self, env: Any) -> tuple[Vector, Vector, float, Any]:
        """Return object xyz, target xyz, the object's resting z and its contact geoms."""

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


class _Placing(RobosuiteTask):
    """Pick something up and put it down at the target."""

    reach: ClassVar[float] = 0.25
    carry_height: ClassVar[float]  # m over rest at which the object counts as lifted
    clear_distance: ClassVar[float]  # m between hand and object when a success begins

    @abstractmethod
    def _over_target(self, reading: Reading) -> bool:
        """Return whether the object is over, or at, the place where it shall be put down."""

    def _over(self, reading: Reading) -> float:
        away = float(np.linalg.norm((reading.object - reading.target)[:2]))
        return 1.0 if self._over_target(reading) else 1.0 - _clip01(away / self.travel)

    travel: ClassVar[float]  # m to the target at which nearness to it starts to count

    def _partial(self, reading: Reading) -> float:
        over_target = self._over_target(reading)
        if not reading.grasped:
            # Let go above or in the right place: falling, or the hand is still around it.
            return 0.86 if over_target else self._reach(reading, self.reach, 0.05)
        lifted = 1.0 if over_target else _clip01(reading.height / self.carry_height)
        above = max(0.0, float(reading.object[2] - reading.target[2]))
        lowered = _near(above, 0.005, self.carry_height) if over_target else 0.0
        start = self.reach + 0.10
        return start + 0.15 * lifted + 0.25 * self._over(reading) * lifted + 0.10 * lowered

    def _beyond(self, reading: Reading) -> float:
        return (reading.distance - self.clear_distance) / 0.06

    def _stage(self, reading: Reading) -> int:
        if self._over_target(reading):
            return 4
        if not reading.grasped:
            return 1 if reading.distance < 0.03 else 0
        return 2 if reading.height < 0.75 * self.carry_height else 3


class Stack(_Placing):
    """Put the red cube (A) on the green one (B) and let go."""

    name = "Stack"
    instruction = "Stack the red cube on the green cube."
    stage_names = (
        "reach the red cube",
        "grasp the red cube",
        "lift the red cube",
        "move the red cube over the green cube",
        "release the red cube on the green cube",
    )
    object_width = 0.04
    carry_height = 0.05
    clear_distance = 0.02
    travel = 0.25

    def _points(self, env: Any) -> tuple[Vector, Vector, float, Any]:
        red = np.array(env.sim.data.body_xpos[env.cubeA_body_id])
        green = np.array(env.sim.data.body_xpos[env.cubeB_body_id])
        half = float(env.cubeA.size[2])
        top = green + np.array([0.0, 0.0, env.cubeB.size[2] + half])
        return red, top, float(env.table_offset[2]) + half, env.cubeA

    def _over_target(self, reading: Reading) -> bool:
        away = reading.object - reading.target
        return bool(np.linalg.norm(away[:2]) < 0.022 and away[2] > -0.01)


class PickPlaceCan(_Placing):
    """Put the can into its compartment, the one at the front right of the picture."""

    name = "PickPlaceCan"
    instruction = "Pick up the red can and place it in its bin."
    stage_names = (
        "reach the can",
        "grasp the can",
        "lift the can",
        "move the can over its bin",
        "release the can in its bin",
    )
    object_width = 0.05
    default_camera = "binsview"
    # agentview cuts the can's compartment off at the right.
    cameras = {  # noqa: RUF012 - never written
        "binsview": FreeCamera(lookat=(0.1, 0.02, 0.70), distance=1.65, azimuth=180, elevation=-50)
    }
    carry_height = 0.12
    clear_distance = 0.043
    travel = 0.85

    def _points(self, env: Any) -> tuple[Vector, Vector, float, Any]:
        can = env.objects[env.object_id]
        place = np.array(env.sim.data.body_xpos[env.obj_body_id[can.name]])
        rest = float(env.bin1_pos[2] - can.bottom_offset[2])
        target = np.array(env.target_bin_placements[env.object_id])
        return place, target + np.array([0.0, 0.0, -can.bottom_offset[2]]), rest, can

    def _over_target(self, reading: Reading) -> bool:
        across, along = np.abs(reading.object - reading.target)[:2]
        return bool(across < 0.0975 and along < 0.1225)


class Door(RobosuiteTask):
    """Press the latched door's handle down and pull the door open to 0.3 rad."""

    name = "Door"
    instruction = "Turn the handle and open the door."
    stage_names = ("reach the handle", "turn the handle", "pull the door open")
    object_width = 0.02
    default_camera = "doorview"
    # In agentview the door is at the left edge, half outside.
    cameras = {  # noqa: RUF012 - never written
        "doorview": FreeCamera(lookat=(-0.1, -0.2, 0.95), distance=1.2, azimuth=225, elevation=-35)
    }
    open_angle = 0.3
    wide_angle = 0.4  # rad, where the hinge ends
    free_angle = 1.2  # rad of the handle at which the latch lets the door go

    def _points(self, env: Any) -> tuple[Vector, Vector, float, Any]:
        handle = np.array(env._handle_xpos)
        hinge_id = env.sim.model.joint_name2id(env.door.joints[0])
        hinge = np.array(env.sim.data._data.xanchor[hinge_id])
        axis = float(env.sim.data._data.xaxis[hinge_id][2])
        missing = axis * (self.wide_angle - env.sim.data.qpos[env.hinge_qpos_addr])
        turn = np.array([[np.cos(missing), -np.sin(missing)], [np.sin(missing), np.cos(missing)]])
        target = handle.copy()
        target[:2] = hinge[:2] + turn @ (handle - hinge)[:2]
        geoms = [name for name in env.door.contact_geoms if "handle" in name]
        return handle, target, float(handle[2]), geoms

    def _angles(self, env: Any) -> Vector:
        qpos = env.sim.data.qpos
        return np.array([qpos[env.hinge_qpos_addr], qpos[env.handle_qpos_addr]], dtype=np.float64)

    def _partial(self, reading: Reading) -> float:
        hinge, latch = reading.angles
        opened = _clip01(hinge / self.open_angle)
        turned = 1.0 if hinge > 0.03 else _clip01(abs(latch) / self.free_angle)
        reached = _near(reading.distance, 0.02, 0.25)
        return 0.25 * reached + 0.05 * reading.grasped + 0.15 * turned + 0.44 * opened

    def _beyond(self, reading: Reading) -> float:
        return float(reading.angles[0] - self.open_angle) / 0.08

    def _stage(self, reading: Reading) -> int:
        hinge, latch = reading.angles
        if hinge > 0.03 or abs(latch) > self.free_angle:
            return 2
        return 1 if reading.distance < 0.05 else 0


TASKS: dict[str, RobosuiteTask] = {
    task.name: task for task in (Lift(), Stack(), PickPlaceCan(), Door())
}
"""Task name to its definition."""


def get_task(name: str) -> RobosuiteTask:
    """Return a task by name.

    Raises:
        UnknownNameError: If there is no such task.
    """
    if name not in TASKS:
        raise UnknownNameError("robosuite task", name, TASKS)
    return TASKS[name]
