"""What the scripted Panda policies have in common: motions, and ways to fail.

A script is a generator of motions. Each motion yields ``(way, grip)``: the way from the grip site
to where it shall be, in metres, and the gripper command (-1 opens, 1 closes). The expert turns
that into an OSC_POSE action with its own gain, speed cap, noise and pauses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from procreward.envs.robosuite_progress import Reading
from procreward.errors import ConfigError

__all__ = ["CLOSE", "OPEN", "Motion", "RobosuiteExpert", "up"]

Vector = npt.NDArray[np.float64]
Motion: TypeAlias = Iterator[tuple[Vector, float]]
Goal: TypeAlias = Callable[[Reading], Vector]

OPEN, CLOSE = -1.0, 1.0
_METRES_PER_ACTION = 0.05
_FOREVER = 10_000


def up(height: float) -> Vector:
    """Return a vector ``height`` metres upwards."""
    return np.array([0.0, 0.0, height])


def _beyond(offset: Vector, reading: Reading) -> Vector:
    return reading.object + offset


class RobosuiteExpert:
    """Plays one kind of episode in one robosuite task.

    Args:
        kind: Name of a script of the class, see :mod:`procreward.envs.experts`.
        seed: Seed of everything it draws.
    """

    grasp_offset = 0.0  # m over the object's centre where the fingers close
    slowest = (0.3, 0.6)  # lowest speed cap, and that of an episode with a second attempt
    hover = (0.05, 0.14)  # m over the grasp, range of the approach height

    def __init__(self, kind: str, seed: int) -> None:
        self._kind = kind
        self._rng = np.random.default_rng(seed)
        self._now: Reading | None = None
        self._script: Motion = iter(())

    # -- the Expert protocol ------------------------------------------------------------------

    def reset(self, env: Any) -> None:
        """Draw this episode's manners and start its script."""
        rng = self._rng
        self._now = env.unwrapped.reading()
        self._gain = rng.uniform(4.0, 10.0)
        # A second attempt must fit into the horizon.
        self._cap = rng.uniform(self.slowest[self._kind == "retry"], 1.0)
        self._noise = rng.uniform(0.0, 0.3) * (rng.random() < 0.8)
        self._pause_chance = rng.uniform(0.005, 0.03) * (rng.random() < 0.4)
        self._pause_left = 0
        self._home = self.now.gripper.copy()
        self._script = self._scripts()[self._kind]()

    def act(self, env: Any) -> npt.NDArray[np.float32]:
        """Return the next action, ``(7,) float32`` in [-1, 1]; ``(4,)`` without rotations.

        Raises:
            ConfigError: If the script turns the hand in an environment that cannot.
        """
        self._now = env.unwrapped.reading()
        way, grip = next(self._script, (np.zeros(3), 0.0))
        rotation = np.zeros(3)
        if way.size == 6:
            way, rotation = way[:3], way[3:]
        if self._pause_left > 0:
            self._pause_left -= 1
            way = np.zeros(3)
        elif self._rng.random() < self._pause_chance:
            self._pause_left = int(self._rng.integers(3, 16))
        move = way / _METRES_PER_ACTION * (self._gain / 5.0)
        size = float(np.abs(move).max())
        if size > self._cap:
            move *= self._cap / size
        move = move + self._rng.normal(0.0, 1.0, 3) * self._noise
        if env.action_space.shape == (4,):
            self._check_still(rotation)
            rotation = rotation[:0]
        return np.clip(np.concatenate([move, rotation, [grip]]), -1.0, 1.0).astype(np.float32)

    def _check_still(self, rotation: Vector) -> None:
        if rotation.any():
            raise ConfigError(
                f"The script {self._kind!r} turns the hand, and the environment was made with "
                "`rotate=False`; make it with `rotate=True`."
            )

    @property
    def now(self) -> Reading:
        """The state that the current action answers."""
        assert self._now is not None, "reset(env) comes first"
        return self._now

    # -- motions ------------------------------------------------------------------------------

    def _go(self, goal: Goal, grip: float, *, tolerance: float = 0.01, limit: int = 45) -> Motion:
        """Move the grip site to ``goal(reading)``, which may follow a moving thing."""
        for _ in range(limit):
            way = goal(self.now) - self.now.gripper
            if float(np.linalg.norm(way)) < tolerance:
                return
            yield way, grip

    def _to(self, point: Vector, grip: float, **settings: Any) -> Motion:
        return self._go(lambda _: point, grip, **settings)

    def _stay(self, steps: int, grip: float) -> Motion:
        """Hold the place, and drift a little around it as a hand does."""
        place, drift = self.now.gripper.copy(), self._rng.uniform(0.0, 0.01)
        for _ in range(steps):
            yield place + self._rng.normal(0.0, drift, 3) - self.now.gripper, grip

    def _grip(self, grip: float) -> Motion:
        yield from self._stay(int(self._rng.integers(6, 12)), grip)

    def _approach(self, offset: Vector) -> Motion:
        """Come from above to ``offset`` from the grasp point, with an open hand."""
        height = self._rng.uniform(*self.hover)
        wanted = offset + up(self.grasp_offset + self._rng.uniform(-0.004, 0.004))
        yield from self._go(lambda r: r.object + wanted + up(height), OPEN, tolerance=0.02)
        yield from self._go(lambda r: r.object + wanted, OPEN, tolerance=0.008, limit=30)

    def _pick(self) -> Motion:
        """Grasp the object; again from the start when the fingers closed on nothing."""
        for _ in range(6):
            yield from self._approach(np.zeros(3))
            yield from self._grip(CLOSE)
            if self.now.grasped:
                return
            yield from self._back_off(0.06)

    def _raise(self, height: float) -> Motion:
        place = self.now.gripper + up(height)
        yield from self._to(place, CLOSE, tolerance=0.012, limit=25)

    def _back_off(self, height: float) -> Motion:
        sideways = self._rng.normal(0.0, 0.02, 3) * np.array([1.0, 1.0, 0.0])
        yield from self._to(
            self.now.gripper + up(height) + sideways, OPEN, tolerance=0.02, limit=40
        )

    def _beside(self, low: float, high: float) -> Vector:
        """Return a level offset in a random direction, ``low`` to ``high`` metres long."""
        angle = self._rng.uniform(0.0, 2 * np.pi)
        return self._rng.uniform(low, high) * np.array([np.cos(angle), np.sin(angle), 0.0])

    # -- scripts ------------------------------------------------------------------------------

    def _scripts(self) -> dict[str, Callable[[], Motion]]:
        return {
            "expert": self._expert,
            "retry": self._retry,
            "drop": self._drop,
            "fail": self._fail,
            "miss": self._miss,
            "stall": self._stall,
            "backtrack": self._backtrack,
            "idle": self._idle,
            "random": self._random,
        }

    def _finish(self) -> Motion:
        """What is left of the task once the object is in the hand; may lose it on the way."""
        height = self._rng.uniform(0.07, 0.2)
        yield from self._raise(height)
        yield from self._hold()

    def _hold(self) -> Motion:
        place = self.now.gripper.copy()
        while self.now.grasped:
            yield place + self._rng.normal(0.0, 0.006, 3) - self.now.gripper, CLOSE

    def _expert(self) -> Motion:
        yield from self._stay(int(self._rng.integers(0, 8)), OPEN)
        while True:
            yield from self._pick()
            yield from self._finish()

    def _carry_some(self) -> Motion:
        """Take the object and get part of the way, never to the end."""
        yield from self._pick()
        yield from self._raise(0.008 + 0.19 * self._rng.uniform(0.0, 1.0) ** 2)
        yield from self._stay(int(self._rng.integers(0, 12)), CLOSE)

    def _lose(self) -> Motion:
        yield from self._grip(OPEN)

    def _drop(self) -> Motion:
        yield from self._carry_some()
        yield from self._lose()
        yield from self._leave()

    def _fail(self) -> Motion:
        yield from self._half_way()
        yield from self._stay(int(self._rng.integers(6, 16)), CLOSE)
        yield from self._lose()
        yield from self._leave()

    def _half_way(self) -> Motion:
        """Take the object about half of the way, never so far that it is a success."""
        self._noise = 0.0
        yield from self._pick()
        for _ in range(20):
            if self.now.height > 0.006:
                return
            yield up(0.007), CLOSE

    def _leave(self) -> Motion:
        """After a loss: stay over it, go up, go home, or wander, for the rest of the episode."""
        way = self._rng.integers(0, 4)
        grip = OPEN
        if way > 0 and self._rng.random() < 0.3:
            # Away from the object first: closing on the spot would take it up again.
            yield from self._back_off(self._rng.uniform(0.06, 0.1))
            grip = CLOSE
        if way == 1:
            yield from self._back_off(self._rng.uniform(0.04, 0.2))
        elif way == 2:
            yield from self._to(self._home, grip, tolerance=0.02)
        elif way == 3:
            yield from self._wander(int(self._rng.integers(1, 5)), grip)
        yield from self._stay(_FOREVER, grip)

    def _retry(self) -> Motion:
        if self._rng.random() < 0.5:
            yield from self._carry_some()
            yield from self._lose()
        else:
            yield from self._miss_once()
        yield from self._back_off(self._rng.uniform(0.05, 0.12))
        yield from self._expert()

    def _miss_once(self) -> Motion:
        """Close the hand beside or on top of the object and lift nothing.

        The nearest ones catch a corner now and then, and lose it: state and progress say so.
        """
        if self._rng.random() < 0.25:
            offset = self._beside(0.0, 0.015) + up(self._rng.uniform(0.042, 0.065))
        else:
            offset = self._beside(0.035, 0.09) + up(self._rng.uniform(-0.005, 0.04))
            # Along the way the fingers close they would still catch something this near.
            if abs(offset[1]) > abs(offset[0]):
                offset[1] = np.sign(offset[1]) * max(0.06, abs(offset[1]))
        yield from self._approach(offset)
        yield from self._grip(CLOSE)
        if self.now.grasped:  # caught by accident, as when another object is in the way
            yield from self._grip(OPEN)
            yield from self._back_off(0.08)
        yield from self._raise(self._rng.uniform(0.02, 0.2))

    def _wander(self, count: int, grip: float) -> Motion:
        """Pass over, behind and beside the object, 2 to 15 cm high."""
        for _ in range(count):
            behind = np.array([-self._rng.uniform(0.0, 0.12), self._rng.normal(0.0, 0.03), 0.0])
            offset = behind if self._rng.random() < 0.5 else self._beside(0.0, 0.1)
            offset = offset + up(self._rng.uniform(0.02, 0.15) + self.grasp_offset)
            yield from self._go(partial(_beyond, offset), grip, tolerance=0.02, limit=30)
            yield from self._stay(int(self._rng.integers(0, 8)), grip)

    def _miss(self) -> Motion:
        yield from self._miss_once()
        ending = self._rng.random()
        if ending < 0.25:
            yield from self._stay(_FOREVER, CLOSE)
        yield from self._wander(int(self._rng.integers(1, 5)), CLOSE)
        if ending > 0.75:
            yield from self._back_off(self._rng.uniform(0.02, 0.1))
            yield from self._miss_once()
            yield from self._wander(2, CLOSE)
        yield from self._stay(_FOREVER, CLOSE)

    def _stall(self) -> Motion:
        if self._rng.random() < 0.5:
            share = self._rng.uniform(0.2, 1.0)
            height = self._rng.uniform(0.0, 0.08)
            start = self.now.gripper.copy()
            goal = self.now.object + up(self.grasp_offset + height)
            yield from self._to(start + share * (goal - start), OPEN, tolerance=0.012)
            yield from self._stay(_FOREVER, OPEN if self._rng.random() < 0.7 else CLOSE)
        yield from self._halt()
        yield from self._stay(_FOREVER, CLOSE)

    def _halt(self) -> Motion:
        """Take the object to where the hand stalls, short of success."""
        yield from self._pick()
        if self._rng.random() < 0.7:
            yield from self._raise(self._rng.uniform(0.0, 0.014))

    def _backtrack(self) -> Motion:
        if self._rng.random() < 0.45:
            share = self._rng.uniform(0.3, 1.0)
            start = self.now.gripper.copy()
            goal = self.now.object + up(self.grasp_offset + self._rng.uniform(0.0, 0.06))
            yield from self._to(start + share * (goal - start), OPEN, tolerance=0.012)
            yield from self._stay(int(self._rng.integers(0, 10)), OPEN)
        else:
            yield from self._carry_some()
            yield from self._put_back()
        yield from self._back_off(self._rng.uniform(0.05, 0.12))
        yield from self._to(self._home, OPEN, tolerance=0.02)
        yield from self._stay(_FOREVER, OPEN)

    def _put_back(self) -> Motion:
        """Set the held object down where it is and let go."""
        for _ in range(60):
            if self.now.height < 0.004 or not self.now.grasped:
                break
            yield up(-max(0.015, self.now.height)), CLOSE
        yield from self._grip(OPEN)

    def _idle(self) -> Motion:
        yield from self._stay(_FOREVER, OPEN if self._rng.random() < 0.7 else CLOSE)

    def _random(self) -> Motion:
        """Coloured noise around the object, with a hand that opens, closes and turns."""
        rng = self._rng
        velocity, turn, grip = np.zeros(3), np.zeros(3), OPEN
        strength, twist = rng.uniform(0.01, 0.05), rng.uniform(0.0, 0.15)
        anchor = self.now.object + up(rng.uniform(0.05, 0.15))
        while True:
            velocity = 0.9 * velocity + rng.normal(0.0, strength, 3)
            turn = 0.9 * turn + rng.normal(0.0, twist, 3) * 0.3
            if rng.random() < 0.05:
                grip = -grip
            away = anchor - self.now.gripper
            pull = away * max(0.0, float(np.linalg.norm(away)) - 0.12) * 3.0
            yield np.concatenate([velocity + pull, turn]), grip
