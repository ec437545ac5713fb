"""Render hands and parts that know nothing of each other: more episodes for nano's training.

::

    python -m procreward.models.nano.apart --task window_open --episodes 700 --seed-start 350000

Wherever a part was moved by a hand, the hand is still near it, so a model may read the hand's place
for the part's; then a hand in front of a closed window looks like an open one, and a policy finds
that out. Here the part is put anywhere on its way (often untouched, often done) once the hand has
gone where it likes: along the part's way without touching it, in front of it, where the part would
be at the end, or elsewhere. The label is the simulator's own progress, measured from the scene as
it was reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from procreward.models.nano.render import FRAME_STRIDE, Episode, rendering_command, shards_of
from procreward.models.nano.tasks import Task
from procreward.models.nano.wander import Hand

__all__ = ["SLIDES", "Slide", "apart_episode", "main", "render_apart"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slide:
    """The one joint of a task's part.

    Attributes:
        joint: Its name in the simulator.
        start: Its position at a reset, metres.
        end: Its position at the other stop, metres.
        returns: Whether a spring pushes the part back, so that it has to be held.
    """

    joint: str
    start: float
    end: float
    returns: bool = False


SLIDES: Final[Mapping[str, Slide]] = MappingProxyType(
    {
        "window_open": Slide(joint="window_slide", start=0.0, end=0.2),
        "drawer_close": Slide(joint="goal_slidey", start=-0.15, end=0.0),
        "button_press": Slide(joint="btnbox_joint", start=0.0, end=-0.06, returns=True),
    }
)
"""The joint of every task that has one."""

_STEPS: Final = 80
_UNTOUCHED: Final = 0.4
_DONE: Final = 0.15
_SCRIPTED: Final = 0.2
_ASIDE: Final = ((-0.08, -0.22, -0.1), (0.12, 0.04, 0.1))
_BOX: Final = ((-0.25, -0.3, -0.15), (0.3, 0.1, 0.2))
_REACH: Final = ((-0.45, 0.4, 0.03), (0.45, 0.95, 0.5))


class _Part:
    """The part, put somewhere on its way and, if it returns by itself, held there."""

    def __init__(self, bare: Any, slide: Slide, share: float) -> None:
        self._simulator, self._slide = bare.simulator, slide
        self._place = slide.start + share * (slide.end - slide.start)

    def put(self) -> None:
        """Move the part to its place, at rest."""
        import mujoco

        data = self._simulator.data
        joint = data.joint(self._slide.joint)
        joint.qpos, joint.qvel = self._place, 0.0
        mujoco.mj_forward(self._simulator.model, data)

    def hold(self) -> None:
        """Undo what the spring has done; a hand may still push further."""
        if self._slide.returns:
            now = float(self._simulator.data.joint(self._slide.joint).qpos[0])
            way = self._slide.end - self._slide.start
            if (self._place - now) / way > 0.0:
                self.put()


class _Places:
    """Draws places for a hand, none of which depends on where the part has been put."""

    def __init__(self, bare: Any, rng: np.random.Generator) -> None:
        state = bare.privileged_state()
        self._rng, self._start, self._end = rng, state["object"], state["target"]
        # Beside the part's way, mostly on the robot's side of it; lasts for the episode.
        self._aside: Vector = rng.uniform(*_ASIDE)

    def __call__(self) -> Vector:
        """Return a place, ``(3,)`` metres."""
        rng, lot = self._rng, self._rng.random()
        place: Vector
        if lot < 0.4:
            way = rng.uniform(-0.1, 1.2) * (self._end - self._start)
            place = self._start + way + self._aside + rng.normal(0, 0.015, 3)
        elif lot < 0.6:
            place = self._end + rng.uniform(*_ASIDE)
        elif lot < 0.75:
            place = self._start + rng.normal(0, 0.06, 3)
        elif lot < 0.9:
            place = self._start + rng.uniform(*_BOX)
        else:
            place = rng.uniform(*_REACH)
        return place


def apart_episode(env: Any, task: Task, seed: int) -> Episode:
    """Run one episode and keep every fourth frame.

    Args:
        env: The task's environment, wrapped by its time limit.
        task: A task of :data:`SLIDES`.
        seed: Seed of scene and behaviour.

    Returns:
        The episode, of kind ``"apart"``; it begins where the hand has gone before.
    """
    from procreward.envs.experts import make_expert

    rng = np.random.default_rng([seed, 13])
    env.reset(seed=seed)
    bare = env.unwrapped
    hand = Hand(bare, rng, _Places(bare, rng))
    part = _Part(bare, SLIDES[task.name], _share(rng))
    expert = make_expert(task.env_id, "expert", seed)
    expert.reset(env)
    scripted = bool(rng.random() < _SCRIPTED)
    for _ in range(int(rng.integers(0, 70))):
        bare.step(hand.wander())
    part.put()
    # A hand that stood in the part's new place is pushed out of it.
    for _ in range(2):
        bare.step(hand.wander())
        part.hold()
    episode = Episode(kind="apart", seed=seed)
    episode.record(bare, 0, _success(bare))
    for step in range(1, _STEPS + 1):
        told = np.asarray(expert.act(env), dtype=np.float64)[:3] if scripted else None
        action = hand.wander() if told is None else hand.tremble(told)
        bare.step(action)
        part.hold()
        if step % FRAME_STRIDE == 0:
            episode.record(bare, step, _success(bare))
    return episode


def _success(bare: Any) -> bool:
    """Tell whether the state counts as a success, whoever has brought it about."""
    return bool(bare.privileged_progress() == 1.0)


def _share(rng: np.random.Generator) -> float:
    """Draw how far the part is: untouched, anywhere between, or done."""
    lot = rng.random()
    if lot < _UNTOUCHED:
        return 0.0
    return min(1.0, rng.uniform(0.85, 1.1) if lot < _UNTOUCHED + _DONE else rng.random())


render_apart = shards_of(apart_episode)
"""Renders episodes of a task of :data:`SLIDES` into shards under ``out``; those that exist are
skipped."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    rendering_command(
        argv,
        render_apart,
        description="Render hands apart from parts, for nano.",
        tasks=tuple(SLIDES),
        episodes=700,
        seed_start=350_000,
    )


if __name__ == "__main__":
    main()
