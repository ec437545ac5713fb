"""Gymnasium environments with frames on demand, true progress and scripted experts.

Importing this package registers (and imports no simulator for it)::

    procreward/Lift-v0  Stack-v0  Door-v0  PickPlaceCan-v0           robosuite, Panda, OSC_POSE
    procreward/WindowOpen-v0  DrawerClose-v0  ButtonPressTopdown-v0  Meta-World, Sawyer
    procreward/Toy-v0                                                NumPy only
    procreward/RoboCasa-v0  RoboCasa-OpenDrawer-v0  RoboCasa-CloseDrawer-v0
    RoboCasa-OpenCabinet-v0  RoboCasa-PickPlaceCounterToCabinet-v0   RoboCasa, PandaOmron

so ``gym.make("procreward.envs:procreward/Lift-v0")`` works from anywhere. Every environment ends
an episode by ``truncated`` at its horizon, puts ``success`` into ``info`` on reset and step, and
has, unwrapped, ``instruction``, ``camera_names``, ``default_views``, ``render_camera``,
``privileged_progress``, ``privileged_state`` and ``stage_names`` (RoboCasa's have not the last
three). ``procreward/RoboCasa-v0`` takes any of RoboCasa's tasks as ``task=``; RoboCasa itself has
to be installed by hand, see docs/robocasa.md.
"""

from __future__ import annotations

import gymnasium as gym

__all__ = ["ENV_IDS", "ROBOCASA_IDS"]

_ROBOSUITE = "procreward.envs.robosuite:RobosuiteEnv"
_METAWORLD = "procreward.envs.metaworld:MetaWorldEnv"
_TOY = "procreward.envs.toy:ToyEnv"

# id -> (entry point, task, horizon in steps)
_TABLE: dict[str, tuple[str, str | None, int]] = {
    "procreward/Lift-v0": (_ROBOSUITE, "Lift", 120),
    "procreward/Stack-v0": (_ROBOSUITE, "Stack", 200),
    "procreward/Door-v0": (_ROBOSUITE, "Door", 250),
    "procreward/PickPlaceCan-v0": (_ROBOSUITE, "PickPlaceCan", 250),
    "procreward/WindowOpen-v0": (_METAWORLD, "window-open-v3", 120),
    "procreward/DrawerClose-v0": (_METAWORLD, "drawer-close-v3", 100),
    "procreward/ButtonPressTopdown-v0": (_METAWORLD, "button-press-topdown-v3", 100),
    "procreward/Toy-v0": (_TOY, None, 50),
}

ENV_IDS: tuple[str, ...] = tuple(_TABLE)
"""Ids that this package registers with Gymnasium and pip can install all of."""

_ROBOCASA = "procreward.envs.robocasa:RoboCasaEnv"
_ROBOCASA_TASKS = ("OpenDrawer", "CloseDrawer", "OpenCabinet", "PickPlaceCounterToCabinet")

ROBOCASA_IDS: tuple[str, ...] = (
    "procreward/RoboCasa-v0",
    *(f"procreward/RoboCasa-{task}-v0" for task in _ROBOCASA_TASKS),
)
"""Ids of RoboCasa's tasks; the first takes the name of any task as ``task=``."""


def _register() -> None:
    for env_id, (entry_point, task, horizon) in _TABLE.items():
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=entry_point,
                max_episode_steps=horizon,
                kwargs={} if task is None else {"task": task},
            )
    for env_id, name in zip(ROBOCASA_IDS, ("OpenDrawer", *_ROBOCASA_TASKS), strict=True):
        if env_id not in gym.registry:
            # Cuts itself off: the horizon is known to RoboCasa, which is not imported here.
            gym.register(id=env_id, entry_point=_ROBOCASA, kwargs={"task": name})


_register()
