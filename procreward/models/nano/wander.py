"""Render hands that wander, with true progress labels: more episodes for nano's training.

::

    python -m procreward.models.nano.wander --task window_open --episodes 350 --seed-start 300000

Scripted experts keep their fingers closed, move smoothly and stay near the part. A policy that
learns does none of this: it trembles, opens the fingers, holds the hand where it *would* be at the
end without having moved anything, and goes on after it has succeeded. Here a hand goes from one
drawn place to the next, takes turns with an expert, trembles as an exploring policy does and holds
its fingers in any way. Shards are as :mod:`procreward.models.nano.render` writes them, and go into
the same folder; an episode depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from procreward.models.nano.render import FRAME_STRIDE, Episode, rendering_command, shards_of
from procreward.models.nano.tasks import Task

__all__ = ["TASK_NAMES", "Hand", "main", "render_wandering", "wander_episode"]

Action = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

TASK_NAMES: Final = ("window_open", "button_press", "drawer_close")
"""Tasks with a hand that is moved by displacements: Meta-World's."""

_EXPERTS: Final = ("expert", "expert", "retry", "drop", "miss", "miss", "backtrack", "stall")
_GRIPS: Final = ("open", "closed", "walk", "half")
_NOISES: Final = (0.0, 0.2, 0.5, 0.9)
_REACH: Final = ((-0.45, 0.4, 0.03), (0.45, 0.95, 0.5))
_FLOOR_M: Final = 0.02
_GAIN: Final = 20.0
_SCRIPTED_SHARE: Final = 0.55
_FOR_GOOD: Final = 1000


class Hand:
    """A hand that goes from place to place, or does what it is told with its own tremble.

    Args:
        bare: The environment, unwrapped and just reset.
        rng: Source of all draws.
        place: Draws where to go next, ``(3,)`` metres; None for places about the part and its way.
    """

    def __init__(
        self, bare: Any, rng: np.random.Generator, place: Callable[[], Vector] | None = None
    ) -> None:
        self._bare, self._rng, self._place = bare, rng, place or self._place_about
        self._grip_mode = str(rng.choice(_GRIPS))
        self._noise = float(rng.choice(_NOISES) * rng.uniform(0.6, 1.2))
        self._grip = float(rng.uniform(-1, 1))
        self._start: Vector = np.array(bare.privileged_state()["gripper"])
        self._leave()

    def wander(self) -> Action:
        """Return the action of a step towards the present goal, which changes now and then."""
        self._left -= 1
        if self._left <= 0:
            self._leave()
        tips = self._bare.privileged_state()["gripper"]
        return self.tremble(np.clip(_GAIN * (self._goal - tips), -self._speed, self._speed))

    def tremble(self, motion: Vector) -> Action:
        """Return the action for a motion ``(3,)``, disturbed, with the fingers as this hand has.

        Args:
            motion: Displacement in [-1, 1].
        """
        fingers = self._fingers()
        jittered = motion + self._rng.normal(0, 1, 3) * self._noise
        grip = fingers + self._rng.normal(0, self._noise)
        return np.clip(np.array([*jittered, grip]), -1.0, 1.0).astype(np.float32)

    def _fingers(self) -> float:
        # Drawn in every mode, so that the mode changes nothing but the fingers.
        walked = float(np.clip(self._grip + self._rng.normal(0, 0.3), -1, 1))
        if self._grip_mode == "walk":
            self._grip = walked
        return {"open": -1.0, "closed": 1.0}.get(self._grip_mode, self._grip)

    def _leave(self) -> None:
        """Draw the next goal, the way there and, sometimes, other fingers."""
        rng = self._rng
        self._goal = self._place()
        self._goal[2] = max(self._goal[2], _FLOOR_M)
        self._speed = float(rng.uniform(0.25, 1.0))
        self._left = int(rng.integers(8, 45))
        if rng.random() < 0.3:
            self._grip = float(rng.uniform(-1, 1))

    def _place_about(self) -> Vector:
        rng, state = self._rng, self._bare.privileged_state()
        part, target = state["object"], state["target"]
        lot = rng.random()
        place: Vector
        if lot < 0.35:
            place = part + rng.normal(0, 0.09, 3)
        elif lot < 0.65:
            # Where the hand would be on the way to the end, had it moved the part.
            place = part + rng.uniform(0.3, 1.3) * (target - part) + rng.normal(0, 0.05, 3)
        elif lot < 0.85:
            place = rng.uniform(*_REACH)
        else:
            way = rng.uniform(0.2, 1.5) * (part - self._start)
            place = self._start + way + rng.normal(0, 0.05, 3)
        return place


class _Turns:
    """Whose turn it is: the expert's or the wandering hand's."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.scripted = bool(rng.random() < _SCRIPTED_SHARE)
        self._left = int(rng.integers(15, 90)) if rng.random() < 0.6 else _FOR_GOOD
        self._after: int | None = None

    def begin_step(self) -> None:
        """Hand over where a turn is over."""
        if self._left <= 0:
            self.scripted = not self.scripted
            self._left = int(self._rng.integers(10, 60))
        self._left -= 1

    def end_step(self, success: bool) -> None:
        """Wander for good, a while after the first success."""
        if success and self._after is None:
            self._after = int(self._rng.integers(3, 40))
        if self._after is not None:
            self._after -= 1
            if self._after == 0:
                self.scripted, self._left = False, _FOR_GOOD


def wander_episode(env: Any, task: Task, seed: int) -> Episode:
    """Run one episode to its horizon and keep every fourth frame and the last.

    Args:
        env: A Meta-World environment of ours, wrapped by its time limit.
        task: The task, for the expert.
        seed: Seed of scene and behaviour.

    Returns:
        The episode; its kind is ``"loose"`` if an expert begins and ``"wander"`` if not.
    """
    from procreward.envs.experts import make_expert

    rng = np.random.default_rng([seed, 11])
    expert = make_expert(task.env_id, str(rng.choice(_EXPERTS)), seed)
    _, info = env.reset(seed=seed)
    expert.reset(env)
    bare = env.unwrapped
    hand, turns = Hand(bare, rng), _Turns(rng)
    episode = Episode(kind="loose" if turns.scripted else "wander", seed=seed)
    episode.record(bare, 0, bool(info["success"]))
    step, over = 0, False
    while not over:
        turns.begin_step()
        if turns.scripted:
            told = np.asarray(expert.act(env), dtype=np.float64)[:3]
            action = hand.tremble(told * rng.uniform(0.9, 1.0))
        else:
            action = hand.wander()
        _, _, terminated, truncated, info = env.step(action)
        step, over = step + 1, terminated or truncated
        turns.end_step(bool(info["success"]))
        if step % FRAME_STRIDE == 0 or over:
            episode.record(bare, step, bool(info["success"]))
    return episode


render_wandering = shards_of(wander_episode)
"""Renders episodes of a task of :data:`TASK_NAMES` into shards under ``out``; those that exist are
skipped."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    rendering_command(
        argv,
        render_wandering,
        description="Render wandering hands, for nano.",
        tasks=TASK_NAMES,
        episodes=350,
        seed_start=300_000,
    )


if __name__ == "__main__":
    main()
