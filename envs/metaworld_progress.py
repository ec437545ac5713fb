"""True progress of the Meta-World tasks, read from simulator state.

Each task is a reach followed by a push, so one definition serves them all. With ``d`` the distance
from the finger tips to where they must push and ``g`` the travel that part still lacks::

    reach    = (d_start - d) / (d_start - d_contact)      clipped to [0, 1]
    fraction = (g_start - g) / (g_start - g_success)      clipped to [0, 1]
    progress = 0.3 * max(reach, fraction) + 0.7 * fraction

Progress falls again when the part moves back or the hand withdraws. A state that counts as a
success reads 1.0; any other state reads at most :data:`UNFINISHED_CAP`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from procreward.envs._mujoco_camera import CameraView
from procreward.errors import UnknownNameError

__all__ = [
    "TASKS",
    "UNFINISHED_CAP",
    "MetaWorldTask",
    "Progress",
    "ProgressMeter",
    "find_task",
]

Vector = npt.NDArray[np.float64]

UNFINISHED_CAP: Final = 0.94
"""Highest progress that a state short of success can have."""

_REACH_SHARE: Final = 0.3
_CONTACT_MARGIN_M: Final = 0.02
_MOVED_FRACTION: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaWorldTask:
    """What tells one Meta-World task from another.

    Attributes:
        name: Meta-World's name without its version suffix.
        instruction: The task in words.
        stage_names: What is to be done, in order.
        view: The camera named ``"front"``.
        part: Position of the part to be moved, ``(3,) float64``, metres, given the simulator.
        touch: Offset from the part to where the finger tips are to go, metres.
        gap: Travel that the part still lacks, metres, given the simulator.
        success_gap: Largest gap that counts as a success, metres.
        contact: Distance from finger tips to that place at which reaching is done, metres.
        shows_goal: Whether the goal marker is drawn. Only where nothing else in the picture says
            what the goal is.
    """

    name: str
    instruction: str
    stage_names: tuple[str, ...]
    view: CameraView
    part: Callable[[Any], Vector]
    touch: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gap: Callable[[Any], float]
    success_gap: float
    contact: float
    shows_goal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One reading of a task's state.

    Attributes:
        value: Progress in [0, 1].
        fraction: Share of the part's travel that is done, in [0, 1].
        distance: From the finger tips to where they are to go, metres.
        stage: Index into the stage names; their number once the task is done.
        success: Whether the state counts as a success.
    """

    value: float
    fraction: float
    distance: float
    stage: int
    success: bool


def _part(simulator: Any) -> Vector:
    return np.array(simulator._get_pos_objects(), dtype=np.float64)


def _drawer_handle(simulator: Any) -> Vector:
    # Meta-World's own point hovers above the handle.
    handle: Vector = _part(simulator) + np.array([0.0, 0.01, -0.05])
    return handle


def _target(simulator: Any) -> Vector:
    return np.array(simulator._target_pos, dtype=np.float64)


def _axis_gap(axis: int) -> Callable[[Any], float]:
    def gap(simulator: Any) -> float:
        return float(abs(_part(simulator)[axis] - _target(simulator)[axis]))

    return gap


def _tip_gap(simulator: Any) -> float:
    return float(np.linalg.norm(np.asarray(simulator.tcp_center) - _target(simulator)))


# Meta-World accepts a drawer within 65 mm of a target that lies 50 mm below its handle.
_DRAWER_SUCCESS_GAP_M: Final = float(np.sqrt(0.065**2 - 0.05**2))

TASKS: Final[dict[str, MetaWorldTask]] = {
    task.name: task
    for task in (
        MetaWorldTask(
            name="window-open",
            instruction="Slide the window open by its handle.",
            stage_names=("reach the window handle", "push the window open"),
            view=CameraView(lookat=(0.02, 0.68, 0.08), distance=1.05, azimuth=130, elevation=-25),
            part=_part,
            gap=_axis_gap(0),
            success_gap=0.05,
            contact=0.03,
        ),
        MetaWorldTask(
            name="drawer-close",
            instruction="Push the drawer closed.",
            stage_names=("reach the drawer handle", "push the drawer shut"),
            view=CameraView(lookat=(0.0, 0.69, 0.05), distance=1.0, azimuth=155, elevation=-25),
            part=_drawer_handle,
            touch=(0.0, -0.05, 0.0),
            gap=_axis_gap(1),
            success_gap=_DRAWER_SUCCESS_GAP_M,
            contact=0.03,
        ),
        MetaWorldTask(
            name="button-press-topdown",
            instruction="Press the red button from above.",
            stage_names=("reach the button", "press the button down"),
            view=CameraView(lookat=(0.0, 0.70, 0.16), distance=1.0, azimuth=155, elevation=-20),
            part=_part,
            gap=_axis_gap(2),
            success_gap=0.024,
            contact=0.03,
        ),
        MetaWorldTask(
            name="reach",
            instruction="Move the gripper to the red goal marker.",
            stage_names=("reach the goal",),
            view=CameraView(lookat=(0.0, 0.7, 0.06), distance=1.0, azimuth=150, elevation=-25),
            part=_target,
            gap=_tip_gap,
            success_gap=0.05,
            contact=0.05,
            shows_goal=True,
        ),
    )
}
"""Task name to task; the tasks that have a definition of progress."""


def find_task(name: str) -> MetaWorldTask:
    """Return the task of that name, with or without Meta-World's ``-v3``.

    Raises:
        UnknownNameError: If no progress is defined for a task of that name.
    """
    try:
        return TASKS[name.removesuffix("-v3")]
    except KeyError:
        raise UnknownNameError("Meta-World task", name, TASKS) from None


class ProgressMeter:
    """Measures progress against the state an episode began with.

    Args:
        task: The task.
    """

    def __init__(self, task: MetaWorldTask) -> None:
        self._task = task
        self._start_distance = self._start_gap = np.inf

    def reset(self, simulator: Any) -> None:
        """Take the simulator's state as the beginning of an episode."""
        self._start_distance = self._distance(simulator)
        self._start_gap = self._task.gap(simulator)

    def read(self, simulator: Any) -> Progress:
        """Read the simulator's present state."""
        task = self._task
        distance, gap = self._distance(simulator), task.gap(simulator)
        reach = _share(self._start_distance, distance, task.contact)
        fraction = _share(self._start_gap, gap, task.success_gap)
        success = gap <= task.success_gap
        value = _REACH_SHARE * max(reach, fraction) + (1.0 - _REACH_SHARE) * fraction
        moved = fraction > _MOVED_FRACTION or distance <= task.contact + _CONTACT_MARGIN_M
        stage = min(int(moved), len(task.stage_names) - 1)
        return Progress(
            value=1.0 if success else min(value, UNFINISHED_CAP),
            fraction=fraction,
            distance=distance,
            stage=len(task.stage_names) if success else stage,
            success=success,
        )

    def _distance(self, simulator: Any) -> float:
        tips = np.asarray(simulator.tcp_center, dtype=np.float64)
        place = self._task.part(simulator) + np.asarray(self._task.touch)
        return float(np.linalg.norm(tips - place))


def _share(start: float, now: float, end: float) -> float:
    """Share of the way from start to end that is done; a start at the end counts as all of it."""
    if start <= end:
        return float(now <= end)
    return float(np.clip((start - now) / (start - end), 0.0, 1.0))
