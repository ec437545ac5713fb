"""Scripted experts, and ways to fail, for the registered environments.

An expert reads the simulator's true state, so it sees what a policy may not. Which kind of
episode it plays is chosen by name; everything else (speed, noise, pauses, where it misses) is
drawn from its seed.

Kinds:
    * ``expert``: does the task.
    * ``retry``: drops or misses first, then does the task.
    * ``drop``: loses the object on the way and leaves it (where there is one to lose).
    * ``miss``: closes the hand beside the object and goes on with an empty hand.
    * ``stall``: stops for good before or while holding the object.
    * ``backtrack``: undoes what it did, or backs off.
    * ``idle``: does nothing of use.
    * ``random``: moves about.
    * ``fail``: gets about half-way and loses it; the failure to show.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from procreward.checks import check_names
from procreward.errors import UnknownNameError

__all__ = ["KINDS", "Expert", "make_expert"]

KINDS: tuple[str, ...] = (
    "expert",
    "retry",
    "drop",
    "miss",
    "stall",
    "backtrack",
    "idle",
    "random",
    "fail",
)
"""Kinds of episode that :func:`make_expert` can play."""

_ROBOSUITE = ("Lift", "Stack", "Door", "PickPlaceCan")
_METAWORLD = ("WindowOpen", "DrawerClose", "ButtonPressTopdown")


class Expert(Protocol):
    """A scripted policy that plays one episode after another."""

    def reset(self, env: Any) -> None:
        """Begin an episode; call after ``env.reset``.

        Args:
            env: The environment, wrapped or not.
        """
        ...

    def act(self, env: Any) -> npt.NDArray[np.float32]:
        """Return the next action, shaped and bounded like ``env.action_space``.

        Args:
            env: The environment that was reset, wrapped or not.
        """
        ...


def make_expert(env_id: str, kind: str, seed: int) -> Expert:
    """Make a scripted policy for a registered environment.

    Args:
        env_id: Such as "procreward/Lift-v0"; a module prefix ("procreward.envs:") is allowed.
        kind: One of :data:`KINDS`.
        seed: Seed of everything the script draws; consecutive episodes of one expert differ.

    Returns:
        An expert; the simulator's code is imported only now.

    Raises:
        UnknownNameError: If there is no such kind, or no expert for the environment.
    """
    check_names("kind of expert", [kind], KINDS)
    task = env_id.rpartition(":")[2].removeprefix("procreward/").removesuffix("-v0")
    if task in _ROBOSUITE:
        from procreward.envs.experts.robosuite import make_robosuite_expert

        return make_robosuite_expert(task, kind, seed)
    if task in _METAWORLD:
        from procreward.envs.experts.metaworld import make_metaworld_expert

        return make_metaworld_expert(task, kind, seed)
    known = [f"procreward/{name}-v0" for name in (*_ROBOSUITE, *_METAWORLD)]
    raise UnknownNameError("environment with experts", env_id, known)
