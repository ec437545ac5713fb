"""robosuite tasks as Gymnasium environments: seeded, truncated at the horizon, frames on demand.

The Panda is driven by robosuite's OSC_POSE deltas: an action is ``(7,) float32`` in [-1, 1], three
translations (1 is 5 cm), three rotations (1 is 0.5 rad) and the gripper (-1 opens, 1 closes). With
``rotate=False`` the three rotations are zero and left out: ``(4,)``, which is easier to learn.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import EzPickle

from procreward.checks import check_choice, check_int
from procreward.envs._actions import checked_action
from procreward.envs.robosuite_backend import SimRenderer, check_camera, load_robosuite
from procreward.envs.robosuite_progress import Reading, get_task
from procreward.instruction import check_instruction

__all__ = ["RobosuiteEnv"]

Observation = npt.NDArray[np.float64]

_PROPRIOCEPTION = (
    "robot0_joint_pos_cos",
    "robot0_joint_pos_sin",
    "robot0_joint_vel",
    "robot0_eef_pos",
    "robot0_eef_quat",
    "robot0_gripper_qpos",
    "robot0_gripper_qvel",
    "object-state",
)
# Metres, radians and radians per second stay far inside; a finite Box keeps checkers quiet.
_OBS_LIMIT = 100.0
# The model (in Lift: the cube's size) is drawn at construction. A constant makes it the same in
# every environment, so that a reset seed alone decides the episode.
_MODEL_SEED = 0
_ROTATIONS = slice(3, 6)  # of robosuite's action


class RobosuiteEnv(gym.Env[Observation, npt.NDArray[np.float32]], EzPickle):
    """A robosuite task with the Panda arm.

    Episodes never terminate on their own (``terminated`` is False unless
    ``terminate_on_success``); Gymnasium's TimeLimit truncates them. ``info`` holds ``success``.
    The reward is robosuite's sparse one: 1.0 in a successful state, else 0.0.

    Args:
        task: "Lift", "Stack", "Door" or "PickPlaceCan".
        camera: Camera of :meth:`render`; None takes the task's own, which shows all of its scene
            ("agentview" for Lift and Stack, "binsview" for PickPlaceCan, "doorview" for Door).
        width: Columns of :meth:`render`'s frame.
        height: Rows of :meth:`render`'s frame.
        cheap_render: Switch off multisampling, shadows and reflections.
        control_freq: Actions per simulated second.
        rotate: Whether the action holds the hand's three rotations; without them the hand keeps its
            orientation and the action is ``(4,)``.
        instruction: The task in words; None takes the task's own sentence.
        terminate_on_success: End the episode in a successful state.
        render_mode: "rgb_array" or None.

    Raises:
        UnknownNameError: If the task or the camera does not exist.
        ConfigError: If a size or the frequency is not a positive whole number, or the render mode
            is another.
        InstructionError: If the instruction is no sentence.
        MissingDependencyError: If robosuite or a library it needs is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's name, copied per instance below
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(
        self,
        task: str = "Lift",
        *,
        camera: str | None = None,
        width: int = 128,
        height: int = 128,
        cheap_render: bool = True,
        control_freq: int = 20,
        rotate: bool = True,
        instruction: str | None = None,
        terminate_on_success: bool = False,
        render_mode: str | None = "rgb_array",
    ) -> None:
        EzPickle.__init__(
            self,
            task,
            camera=camera,
            width=width,
            height=height,
            cheap_render=cheap_render,
            control_freq=control_freq,
            rotate=rotate,
            instruction=instruction,
            terminate_on_success=terminate_on_success,
            render_mode=render_mode,
        )
        self.task = get_task(task)
        for name, value in (("width", width), ("height", height), ("control_freq", control_freq)):
            check_int(name, value, least=1)
        check_choice("render_mode", render_mode, ("rgb_array", None))
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "render_fps": control_freq}
        self.instruction = (
            self.task.instruction if instruction is None else check_instruction(instruction)
        )
        self.stage_names = self.task.stage_names
        self._size = (width, height)
        self._terminate_on_success = terminate_on_success
        self._rotate = rotate
        self._sim_env = load_robosuite().make(
            self.task.name,
            robots="Panda",
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            renderer="mujoco",
            ignore_done=True,
            hard_reset=False,
            control_freq=control_freq,
            seed=_MODEL_SEED,
        )
        self._renderer = SimRenderer(self._sim_env.sim, cheap=cheap_render)
        self.camera_names: tuple[str, ...] = (
            *self._sim_env.sim.model.camera_names,
            *self.task.cameras,
        )
        self.default_views: tuple[str, ...] = (camera or self.task.default_camera,)
        check_camera(self.default_views[0], self.camera_names)
        size = self._flatten(self._sim_env._get_observations(force_update=True)).shape
        self.observation_space = gym.spaces.Box(-_OBS_LIMIT, _OBS_LIMIT, size, np.float64)
        low, high = (self._without_rotations(bound) for bound in self._sim_env.action_spec)
        self.action_space = gym.spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def _without_rotations(self, action: Observation) -> Observation:
        return action if self._rotate else np.delete(action, _ROTATIONS)

    @staticmethod
    def _flatten(observation: dict[str, Any]) -> Observation:
        parts = [np.ravel(observation[key]) for key in _PROPRIOCEPTION]
        flat: Observation = np.concatenate(parts).astype(np.float64)
        return flat.clip(-_OBS_LIMIT, _OBS_LIMIT)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; the same seed gives the same episode, in any instance.

        Args:
            seed: Seed of the environment's generator, or None to go on with it.
            options: Not used.

        Returns:
            The observation, ``(n,) float64``, and ``{"success": bool}``.
        """
        super().reset(seed=seed, options=options)
        draw = int(self.np_random.integers(2**63 - 1))
        # robosuite's samplers keep a reference to this generator: its state is set in place.
        fresh = np.random.default_rng(draw)
        self._sim_env.rng.bit_generator.state = fresh.bit_generator.state
        observation = self._flatten(self._sim_env.reset())
        return observation, {"success": bool(self._sim_env._check_success())}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply one action for ``1 / control_freq`` simulated seconds.

        Args:
            action: ``(7,)``, or ``(4,)`` without rotations, in [-1, 1]; values outside are clipped.

        Returns:
            Observation, reward (1.0 when successful, else 0.0), terminated, truncated (always
            False here; the TimeLimit sets it) and ``{"success": bool}``.

        Raises:
            ConfigError: If the action has another shape or is not finite.
        """
        command = checked_action(action, 7 if self._rotate else 4)
        if not self._rotate:
            command = np.insert(command, _ROTATIONS.start, np.zeros(3))
        raw, _, _, _ = self._sim_env.step(command)
        success = bool(self._sim_env._check_success())
        terminated = success and self._terminate_on_success
        return self._flatten(raw), float(success), terminated, False, {"success": success}

    def render(self) -> npt.NDArray[np.uint8]:
        """Render the default view at its configured size, ``(height, width, 3) uint8``."""
        return self.render_camera(self.default_views[0], *self._size)

    def render_camera(self, name: str, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Render one camera now.

        Args:
            name: One of ``camera_names``.
            width: Columns.
            height: Rows.

        Returns:
            Upright RGB, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no such camera.
            ConfigError: If the size is below one pixel.
            FrameError: If called on another thread than the first frame.
            MissingDependencyError: If no OpenGL context can be made.
        """
        check_camera(name, self.camera_names)
        return self._renderer.render(self.task.cameras.get(name, name), width, height)

    def project(
        self, name: str, points: npt.NDArray[np.float64], width: int, height: int
    ) -> npt.NDArray[np.float64]:
        """Return column and row, ``(n, 2) float64``, of world points ``(n, 3)`` in a view.

        Raises:
            UnknownNameError: If there is no such camera.
        """
        check_camera(name, self.camera_names)
        return self._renderer.project(self.task.cameras.get(name, name), points, width, height)

    def reading(self) -> Reading:
        """Return the measured state of the task, for experts and labels."""
        return self.task.read(self._sim_env)

    def privileged_progress(self) -> float:
        """Return the true share of the task that is done now, in [0, 1]; it may fall again."""
        return self.task.progress(self.reading())

    def privileged_state(self) -> dict[str, npt.NDArray[np.float64] | float]:
        """Return the true state in numbers, the same keys for every task.

        Returns:
            ``stage`` (index into ``stage_names``, its length when done), ``gripper``, ``object``,
            ``target`` (``(3,) float64``, metres), ``grasped`` (0 or 1), ``height`` (metres over
            rest), ``distance`` (gripper to object, metres), ``width`` (finger opening, metres)
            and ``angles`` (``(2,) float64``, hinge and latch, radians).
        """
        reading = self.reading()
        return {
            "stage": self.task.stage(reading),
            "gripper": reading.gripper,
            "object": reading.object,
            "target": reading.target,
            "grasped": float(reading.grasped),
            "height": reading.height,
            "distance": reading.distance,
            "width": reading.width,
            "angles": reading.angles,
        }

    def close(self) -> None:
        """Free the OpenGL context; may be called any number of times."""
        self._renderer.close()
