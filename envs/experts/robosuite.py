"""Scripted Panda policies for Lift, Stack, PickPlaceCan and Door."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from procreward.envs.experts._robosuite_base import CLOSE, OPEN, Motion, RobosuiteExpert, up
from procreward.envs.robosuite_progress import Reading

__all__ = ["DoorExpert", "LiftExpert", "PickPlaceCanExpert", "StackExpert", "make_robosuite_expert"]

Vector = npt.NDArray[np.float64]


class LiftExpert(RobosuiteExpert):
    """Lifts the cube and holds it."""


class _PlacingExpert(RobosuiteExpert):
    """Carries the object to the target, sets it down and lets go."""

    carry: ClassVar[tuple[float, float]]  # m over rest, range of the height while carrying
    release: ClassVar[tuple[float, float]]  # m over the target, range of where it lets go

    def _carry_to(self, offset: Vector, height: float, *, share: float = 1.0) -> Motion:
        """Carry the held object over the target plus ``offset``, or ``share`` of the way."""
        start = self.now.object.copy()
        rest = start[2] - self.now.height

        def goal(reading: Reading) -> Vector:
            point = start + share * (reading.target + offset - start)
            point[2] = rest + height
            return reading.gripper + point - reading.object

        for way, grip in self._go(goal, CLOSE, tolerance=0.015, limit=110):
            if not self.now.grasped:
                return
            yield way, grip

    def _lower_to(self, offset: Vector, above: float) -> Motion:
        """Lower the held object to ``above`` metres over the target plus ``offset``."""

        def goal(reading: Reading) -> Vector:
            return reading.gripper + reading.target + offset + up(above) - reading.object

        for way, grip in self._go(goal, CLOSE, tolerance=0.006, limit=35):
            if not self.now.grasped:
                return
            yield way, grip

    def _finish(self) -> Motion:
        height = self._rng.uniform(*self.carry)
        yield from self._raise(height)
        yield from self._carry_to(np.zeros(3), height)
        if not self.now.grasped:
            return
        yield from self._lower_to(np.zeros(3), self._rng.uniform(*self.release))
        yield from self._grip(OPEN)
        yield from self._back_off(self._rng.uniform(0.08, 0.15))
        while self.now.success:
            yield from self._stay(10, OPEN)

    def _carry_some(self) -> Motion:
        yield from self._pick()
        height = self._rng.uniform(*self.carry)
        where = self._rng.random()
        if where < 0.35:
            yield from self._raise(self._rng.uniform(0.01, 1.3) * height)
        else:
            yield from self._raise(height)
            if where < 0.6:
                aside = self._rng.normal(0.0, 0.03, 3) * np.array([1.0, 1.0, 0.0])
                yield from self._carry_to(aside, height, share=self._rng.uniform(0.1, 0.7))
            else:
                offset = self._wrong_place()
                yield from self._carry_to(offset, height)
                if self._rng.random() < 0.7:
                    yield from self._lower_to(offset, self._rng.uniform(-0.04, 0.05))
        yield from self._stay(int(self._rng.integers(0, 10)), CLOSE)

    def _wrong_place(self) -> Vector:
        """Return an offset from the target at which it is certain not to count."""
        raise NotImplementedError

    def _halt(self) -> Motion:
        if self._rng.random() < 0.3:
            height = self._rng.uniform(*self.carry)
            yield from self._pick()
            yield from self._raise(height)
            yield from self._carry_to(np.zeros(3), height)
        else:
            yield from self._carry_some()

    def _half_way(self) -> Motion:
        height = self._rng.uniform(*self.carry)
        yield from self._pick()
        yield from self._raise(height)
        yield from self._carry_to(self._wrong_place(), height)


class StackExpert(_PlacingExpert):
    """Stacks the red cube on the green one."""

    slowest = (0.4, 0.6)
    carry = (0.07, 0.13)
    release = (0.0, 0.004)

    def _wrong_place(self) -> Vector:
        return self._beside(0.065, 0.11)


class PickPlaceCanExpert(_PlacingExpert):
    """Puts the can into its compartment."""

    slowest = (0.5, 0.8)
    grasp_offset = 0.005
    carry = (0.13, 0.2)
    release = (0.01, 0.06)

    def _wrong_place(self) -> Vector:
        places = [(-0.195, 0.0), (0.0, -0.245), (-0.195, -0.245), (0.0, -0.4), (0.0, -0.55)]
        across, along = places[int(self._rng.integers(len(places)))]
        return np.array([across, along, 0.0]) + self._beside(0.0, 0.05)


class DoorExpert(RobosuiteExpert):
    """Presses the handle down and pulls the door open."""

    slowest = (0.6, 0.9)
    hover = (0.06, 0.1)

    def _grip(self, grip: float) -> Motion:
        yield from self._stay(int(self._rng.integers(18, 24)), grip)

    def _approach(self, offset: Vector) -> Motion:
        yield from super()._approach(offset + 0.014 * self._outwards())

    def _pick(self) -> Motion:
        # Around the slanting handle often one pad and one finger touch: no grasp to wait for.
        yield from self._approach(np.zeros(3))
        yield from self._grip(CLOSE)

    def _outwards(self) -> Vector:
        """Return the level direction in which the handle moves when the door opens."""
        way = self.now.target - self.now.object
        way[2] = 0.0
        return way / max(1e-6, float(np.linalg.norm(way)))

    def _press(self, angle: float) -> Motion:
        """Follow the handle's circle down, until it has turned by ``angle`` radians."""
        self._cap = max(self._cap, 0.6)
        for _ in range(60):
            turned = self.now.angles[1]
            if turned > angle:
                return
            out = self._outwards()
            along = np.array([-out[1], out[0], 0.0])
            down = -np.sin(turned) * along + up(-np.cos(turned))
            yield self.now.object - self.now.gripper + 0.06 * down, CLOSE

    def _pull(self, angle: float) -> Motion:
        self._cap, self._pause_chance = 1.0, 0.0  # less does not move the door
        for _ in range(80):
            if self.now.angles[0] > angle:
                return
            turn = np.array([0.0, 0.0, 0.1])  # the hand turns with the door
            yield np.concatenate([0.12 * self._outwards() + up(-0.03), turn]), CLOSE

    def _finish(self) -> Motion:
        yield from self._press(1.45)
        yield from self._pull(0.36)
        while self.now.angles[0] > 0.1:
            # The handle's spring and the bent arm close it again where nothing pulls.
            yield (0.04 if self.now.angles[0] > 0.35 else 0.1) * self._outwards(), CLOSE
        yield from self._grip(OPEN)

    def _carry_some(self) -> Motion:
        yield from self._pick()
        yield from self._press(self._rng.uniform(0.3, 1.6))
        yield from self._pull(self._rng.uniform(0.0, 0.2))

    _halt = _carry_some

    def _half_way(self) -> Motion:
        self._noise = 0.0
        yield from self._pick()
        yield from self._press(1.45)
        yield from self._pull(0.1)

    def _put_back(self) -> Motion:
        yield from self._grip(OPEN)

    def _beside(self, low: float, high: float) -> Vector:
        # Only in front of the handle: the door itself is behind it.
        return self._rng.uniform(low, high) * self._outwards()

    def _retry(self) -> Motion:
        # Closes in front of the handle; a turned handle would leave the hand turned as well.
        yield from self._approach(self._beside(0.05, 0.09))
        yield from self._grip(CLOSE)
        yield from self._back_off(self._rng.uniform(0.05, 0.08))
        yield from self._expert()


_EXPERTS: dict[str, type[RobosuiteExpert]] = {
    "Lift": LiftExpert,
    "Stack": StackExpert,
    "PickPlaceCan": PickPlaceCanExpert,
    "Door": DoorExpert,
}


def make_robosuite_expert(task: str, kind: str, seed: int) -> RobosuiteExpert:
    """Make the expert of a robosuite task; both names must exist (checked by ``make_expert``)."""
    return _EXPERTS[task](kind, seed)
