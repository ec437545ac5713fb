"""The tasks that nano knows, and the words that people use for them.

Every task has several phrasings of its instruction, beside the environment's own. One per task,
:attr:`Task.held_out`, is never trained on and measures how far the wording may drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from procreward.errors import UnknownNameError

__all__ = ["TASKS", "Task", "get_task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One manipulation task.

    Attributes:
        name: Short name, used in file names and result keys.
        env_id: Gymnasium id of the environment.
        phrasings: Instructions that training uses, with and without capital and full stop.
        held_out: An instruction that training never sees.
    """

    name: str
    env_id: str
    phrasings: tuple[str, ...]
    held_out: str


_ALL = (
    Task(
        name="lift",
        env_id="procreward.envs:procreward/Lift-v0",
        phrasings=(
            "lift the cube",
            "lift the red cube off the table",
            "pick up the cube",
            "pick up the red block",
            "grasp the cube and lift it up",
            "raise the block above the table",
            "grab the red cube and raise it",
        ),
        held_out="pick the red cube up off the table",
    ),
    Task(
        name="stack",
        env_id="procreward.envs:procreward/Stack-v0",
        phrasings=(
            "stack the red cube on the green cube",
            "put the red cube on top of the green cube",
            "place the red block on the green block",
            "pick up the red cube and stack it on the green one",
            "stack the red block on top of the green block",
            "stack the cubes with the red one on top",
        ),
        held_out="put the red block on the green cube",
    ),
    Task(
        name="can",
        env_id="procreward.envs:procreward/PickPlaceCan-v0",
        phrasings=(
            "put the can into the bin",
            "pick up the can and place it in the bin",
            "place the can in its bin",
            "move the soda can to the other bin",
            "pick the red can and put it into its bin",
            "pick and place the can",
        ),
        held_out="put the soda can in the bin",
    ),
    Task(
        name="window_open",
        env_id="procreward.envs:procreward/WindowOpen-v0",
        phrasings=(
            "open the window",
            "slide the window open",
            "slide the window open by its handle",
            "push the window handle to open the window",
            "open the sliding window",
            "move the window handle until the window is open",
        ),
        held_out="slide open the window",
    ),
    Task(
        name="drawer_close",
        env_id="procreward.envs:procreward/DrawerClose-v0",
        phrasings=(
            "close the drawer",
            "push the drawer closed",
            "shut the drawer",
            "push the drawer in until it is closed",
            "slide the drawer shut",
        ),
        held_out="push the drawer shut",
    ),
    Task(
        name="button_press",
        env_id="procreward.envs:procreward/ButtonPressTopdown-v0",
        phrasings=(
            "press the button",
            "press the button from above",
            "push the button down",
            "push down the red button",
            "press the red button down from the top",
        ),
        held_out="press down on the button",
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""Every task by its short name."""


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, list(TASKS))
    return TASKS[name]
