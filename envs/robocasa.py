"""RoboCasa kitchens as Gymnasium environments that learners can train on.

RoboCasa's own environments never end, draw three cameras at every step, hand out the success
reward again and again, mix text into observations and take a dictionary of actions.
:class:`RoboCasaEnv` drives them, unmodified, without those defects. RoboCasa has to be installed by
the recipe in docs/robocasa.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import EzPickle

from procreward.checks import check, check_choice, check_int
from procreward.envs._actions import checked_action
from procreward.envs.robocasa_backend import (
    building_kitchen,
    check_split,
    make_kitchen,
    task_horizon,
)
from procreward.envs.robosuite_backend import SimRenderer, check_camera
from procreward.errors import ConfigError
from procreward.instruction import check_instruction
from procreward.types import Frame

__all__ = ["ACTION_PARTS", "STATE_PARTS", "RoboCasaEnv", "make_robocasa"]

Observation: TypeAlias = "npt.NDArray[np.float32] | dict[str, npt.NDArray[Any]]"

ENV_ID = "procreward/RoboCasa-v0"

STATE_PARTS: tuple[tuple[str, int], ...] = (
    ("state.gripper_qpos", 2),
    ("state.base_position", 3),
    ("state.base_rotation", 4),
    ("state.end_effector_position_relative", 3),
    ("state.end_effector_rotation_relative", 4),
)
"""Keys of RoboCasa's observation in the order of ours, with their lengths; 16 numbers together."""

ACTION_PARTS: tuple[tuple[str, int], ...] = (
    ("action.end_effector_position", 3),
    ("action.end_effector_rotation", 3),
    ("action.gripper_close", 1),
    ("action.base_motion", 4),
    ("action.control_mode", 1),
)
"""Keys of RoboCasa's action in the order of ours, with their lengths; 12 numbers together."""

# Metres stay far inside; a finite Box keeps checkers quiet.
_STATE_LIMIT = 100.0


class RoboCasaEnv(gym.Env[Observation, npt.NDArray[np.float32]], EzPickle):
    """A RoboCasa task with the PandaOmron, in a kitchen that is new in every episode.

    Observation: ``(16,) float32``: gripper joints (2), position (3, metres) and quaternion (4) of
    the mobile base, position (3, metres) and quaternion (4) of the hand relative to the base. The
    order is that of :data:`STATE_PARTS`. RoboCasa's environments tell nothing about objects but in
    pictures: with ``images`` the observation is a dictionary of ``state`` and one picture,
    ``(height, width, 3) uint8``, per camera.

    Action: ``(12,) float32`` in [-1, 1]: hand translation (3) and rotation (3), gripper (1; closes
    from 0.5 on), base and torso (4), control mode (1; the base moves from 0.5 on, else the arm), as
    RoboCasa's ``convert_action`` orders them. RoboCasa's data sets order them otherwise.

    The reward is 1.0 on the step on which the task is first done, else 0.0; ``info["success"]``
    says of every step whether it is done, at the reset too. Nothing is drawn but what is asked for
    (RoboCasa's environments draw three cameras a step, which is nine tenths of their time), and
    pictures are those that RoboCasa itself would give, upright.

    Episodes are cut off (``truncated``) after ``horizon`` steps by the environment itself, since
    the horizon depends on the task; a time limit around it (``gym.make(...,
    max_episode_steps=...)``) can only be shorter.

    Args:
        task: Name of a task, such as "OpenDrawer" or "PickPlaceCounterToCabinet".
        split: Scenes and objects: "pretrain", "target" (RoboCasa's benchmark), "all", or None for
            what ``kitchen`` says.
        horizon: Steps of an episode; None takes the task's from RoboCasa's registry.
        images: Cameras whose pictures are part of the observation.
        camera: Camera of :meth:`render`, and the view that a reward model is shown unless it names
            its own.
        width: Columns of pictures of :meth:`render` and in observations.
        height: Rows of the same.
        cheap_render: Draw without multisampling, shadows and reflections: faster, but not what
            models that were trained on RoboCasa's pictures have seen.
        instruction: The task in words; None takes RoboCasa's sentence, which is kept from the
            reset to the end of the episode.
        terminate_on_success: End the episode when the task is done.
        kitchen: Further settings of RoboCasa's own, such as ``{"use_novel_instructions": True}``
            or, with ``split=None``, ``{"layout_ids": 1, "style_ids": 1}``.
        render_mode: "rgb_array" or None.

    Attributes:
        instruction: The running episode's instruction.
        horizon: Steps after which an episode is cut off.
        camera_names: Cameras that :meth:`render_camera` knows.
        default_views: The view a reward model is shown when nothing else is asked for.

    Raises:
        UnknownNameError: If the task or a camera does not exist.
        ConfigError: If a setting cannot be right.
        InstructionError: If the instruction is empty.
        MissingDependencyError: If RoboCasa, its assets or a robosuite that it runs on are missing;
            the message has the commands to get them.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - declared so by Gymnasium
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(
        self,
        task: str = "OpenDrawer",
        *,
        split: str | None = "pretrain",
        horizon: int | None = None,
        images: Sequence[str] = (),
        camera: str = "robot0_agentview_right",
        width: int = 256,
        height: int = 256,
        cheap_render: bool = False,
        instruction: str | None = None,
        terminate_on_success: bool = False,
        kitchen: Mapping[str, Any] | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        EzPickle.__init__(
            self,
            task,
            split=split,
            horizon=horizon,
            images=images,
            camera=camera,
            width=width,
            height=height,
            cheap_render=cheap_render,
            instruction=instruction,
            terminate_on_success=terminate_on_success,
            kitchen=kitchen,
            render_mode=render_mode,
        )
        check(not isinstance(images, str), "images", "a sequence of camera names", images)
        check_choice("render_mode", render_mode, ("rgb_array", None))
        for name, number in (("width", width), ("height", height), ("horizon", horizon)):
            if number is not None:
                check_int(name, number, least=1)
        given = None if instruction is None else check_instruction(instruction)
        check_split(split, kitchen or {})
        self.task = task
        self.render_mode = render_mode
        self._size = (width, height)
        self._cheap = cheap_render
        self._terminate_on_success = terminate_on_success
        self._env = make_kitchen(task, split=split, kitchen=kitchen or {})
        self._sim_env: Any = self._env.unwrapped.env  # type: ignore[attr-defined] # RoboCasa's
        self._draw_nothing_unasked()
        self.horizon = horizon or _horizon(task)
        self.metadata = {**type(self).metadata, "render_fps": int(self._sim_env.control_freq)}
        self.camera_names: tuple[str, ...] = tuple(self._sim_env.sim.model.camera_names)
        self.default_views: tuple[str, ...] = (camera,)
        self._images = tuple(images)
        for name in (camera, *self._images):
            check_camera(name, self.camera_names)
        self._given = given
        self.instruction = given or self._sentence()
        self.observation_space = self._observation_space()
        self.action_space = gym.spaces.Box(-1.0, 1.0, (12,), np.float32)
        self._renderer = SimRenderer(self._sim_env.sim, cheap=cheap_render)
        self._steps, self._paid, self._success = 0, False, False

    def _draw_nothing_unasked(self) -> None:
        """Take the cameras out of RoboCasa's observations, from the next reset on."""
        sim = self._sim_env.sim
        context, sim._render_context_offscreen = sim._render_context_offscreen, None
        if context is not None:
            # Freed here, where it is current; else it frees the buffers of whichever is.
            context.gl_ctx.make_current()
        self._sim_env.use_camera_obs = self._sim_env.has_offscreen_renderer = False
        for name in self._sim_env.observation_names:
            if name.endswith("_image"):
                self._sim_env.modify_observable(name, "enabled", False)

    def _sentence(self) -> str:
        return check_instruction(self._sim_env.get_ep_meta()["lang"], "RoboCasa's instruction")

    def _observation_space(self) -> gym.Space[Any]:
        numbers = sum(length for _, length in STATE_PARTS)
        state = gym.spaces.Box(-_STATE_LIMIT, _STATE_LIMIT, (numbers,), np.float32)
        if not self._images:
            return state
        width, height = self._size
        picture = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        return gym.spaces.Dict({"state": state, **dict.fromkeys(self._images, picture)})

    def _observation(self, theirs: Mapping[str, Any]) -> Observation:
        parts = [np.ravel(theirs[key]) for key, _ in STATE_PARTS]
        state: npt.NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
        np.clip(state, -_STATE_LIMIT, _STATE_LIMIT, out=state)
        if not self._images:
            return state
        pictures = {name: self.render_camera(name, *self._size) for name in self._images}
        return {"state": state, **pictures}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Build a kitchen and start an episode in it.

        Args:
            seed: The same seed gives the same kitchen and episode, in any instance, and the one
                that RoboCasa's own environment has with this seed. It settles all later episodes
                too, whatever is done in this one.
            options: Not used.

        Returns:
            The observation and ``{"success": bool}``.

        Raises:
            MissingDependencyError: If the assets of this kitchen are missing.
        """
        super().reset(seed=seed, options=options)
        if seed is None:
            seed = int(self.np_random.integers(2**63 - 1))
        self._renderer.close()
        with building_kitchen():
            theirs, _ = self._env.reset(seed=seed)
        self._renderer = SimRenderer(self._sim_env.sim, cheap=self._cheap)
        said = theirs["annotation.human.task_description"]
        self.instruction = self._given or check_instruction(said, "RoboCasa's instruction")
        self._steps, self._paid = 0, False
        self._success = bool(self._sim_env._check_success())
        return self._observation(theirs), {"success": self._success}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action for ``1 / metadata["render_fps"]`` simulated seconds.

        Args:
            action: ``(12,)`` in [-1, 1]; values outside are clipped.

        Returns:
            Observation, reward (1.0 on the step on which the task is first done, else 0.0),
            terminated, truncated (True at the horizon) and ``{"success": bool}``.

        Raises:
            ConfigError: If the action has another shape or is not finite.
        """
        theirs, _, _, _, info = self._env.step(_action_parts(action))
        before, self._success = self._success, bool(info["success"])
        rises = self._success and not before and not self._paid
        self._paid |= rises
        self._steps += 1
        terminated = self._success and self._terminate_on_success
        truncated = self._steps >= self.horizon
        success = {"success": self._success}
        return self._observation(theirs), float(rises), terminated, truncated, success

    def render(self) -> Frame:
        """Draw the default view now, ``(height, width, 3) uint8``."""
        return self.render_camera(self.default_views[0], *self._size)

    def render_camera(self, name: str, width: int, height: int) -> Frame:
        """Draw one camera now.

        Args:
            name: One of ``camera_names``.
            width: Columns.
            height: Rows.

        Returns:
            Upright RGB, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no such camera.
            ConfigError: If the size is below one pixel.
            FrameError: If called on another thread than the episode's first frame.
            MissingDependencyError: If no OpenGL context can be made.
        """
        check_camera(name, self.camera_names)
        return self._renderer.render(name, width, height)

    def close(self) -> None:
        """Free the simulation and the OpenGL context; may be called any number of times."""
        env = self.__dict__.get("_env")
        if env is None:  # closed, or never made
            return
        if "_renderer" in self.__dict__:
            self._renderer.close()
        env.close()
        del self._env


def _horizon(task: str) -> int:
    horizon = task_horizon(task)
    if horizon is None:
        raise ConfigError(
            f"`horizon` must be given for the task {task!r}, got None: RoboCasa's registry knows "
            "none of it."
        )
    return horizon


def _action_parts(action: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
    """Cut a flat action into RoboCasa's parts."""
    flat, parts, start = checked_action(action, 12), {}, 0
    for key, length in ACTION_PARTS:
        parts[key] = flat[start : start + length]
        start += length
    return parts


def make_robocasa(task: str = "OpenDrawer", **settings: Any) -> gym.Env[Any, Any]:
    """Make a RoboCasa task, registered, so that its spec can be written down.

    The same as ``gym.make("procreward.envs:procreward/RoboCasa-v0", task=task, ...)``.

    Args:
        task: Name of a task.
        settings: Those of :class:`RoboCasaEnv`, and ``gym.make``'s own, such as
            ``max_episode_steps``.

    Returns:
        :class:`RoboCasaEnv` in Gymnasium's usual wrappers.

    Raises:
        ProcrewardError: As :class:`RoboCasaEnv` says.
    """
    return gym.make(ENV_ID, task=task, **settings)
