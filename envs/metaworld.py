"""Meta-World tasks as Gymnasium environments with cheap, upright camera frames.

Meta-World's own environments ignore the seed given to ``reset``, return observations outside
their declared space, end at 500 steps with an exception and render some cameras upside down.
:class:`MetaWorldEnv` drives the same simulation, tasks and success tests without those defects.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import EzPickle

from procreward.checks import check_choice, check_int
from procreward.envs._actions import checked_action
from procreward.envs._mujoco_camera import CameraRig
from procreward.envs.metaworld_progress import Progress, ProgressMeter, find_task
from procreward.errors import MissingDependencyError
from procreward.instruction import check_instruction
from procreward.types import Frame

__all__ = ["MetaWorldEnv"]

Vector = npt.NDArray[np.float64]

_OBS_INDEX: Final = np.r_[0:7, 18:25, 36:39]
_HAND_LOW: Final = (-0.525, 0.348, -0.0525, 0.0)
_HAND_HIGH: Final = (0.525, 1.025, 0.7, 1.0)
_NEVER: Final = 2**62


class MetaWorldEnv(gym.Env[Vector, npt.NDArray[np.float32]], EzPickle):
    """One Meta-World task with a new object position every episode.

    Observation: ``(17,) float64``: hand position (3), gripper opening (1), object position (3),
    the same seven one step earlier, goal position (3); metres, opening in [0, 1]. Action:
    ``(4,) float32`` in [-1, 1]: hand displacement (1 = 1 cm a step) and gripper effort (1 =
    close). ``info`` holds ``success`` (bool) and ``metaworld_reward`` (float, the task's own dense
    reward in [0, 10]; 0.0 at reset). The environment never truncates by itself.

    The view ``"front"`` looks at the fingers and the object from the side; Meta-World's own
    cameras are there under their names, turned upright. Markers (sites) are not drawn, except the
    goal of ``reach``.

    Args:
        task: ``"window-open"``, ``"drawer-close"``, ``"button-press-topdown"`` or ``"reach"``.
        width: Width in pixels of what :meth:`render` returns.
        height: Height in pixels of what :meth:`render` returns.
        cheap_render: Draw without shadows, reflections and multisampling, an order of magnitude
            faster.
        reward: ``"sparse"`` for 1.0 on every step on which the task is solved and 0.0 otherwise,
            ``"dense"`` for Meta-World's own reward.
        terminate_on_success: Whether a solved task ends the episode.
        instruction: The task in words; None for the task's own sentence.
        render_mode: ``"rgb_array"`` or None.

    Attributes:
        instruction: The task in words.
        stage_names: What is to be done, in order.
        camera_names: Cameras that :meth:`render_camera` knows.
        default_views: Cameras a reward model should see when nothing else is asked for.

    Raises:
        UnknownNameError: If the task is none of the above.
        ConfigError: If a size, the reward or the render mode cannot be right.
        InstructionError: If the instruction is empty.
        MissingDependencyError: If Meta-World is not installed.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - declared so by Gymnasium
        "render_modes": ["rgb_array"],
        "render_fps": 80,
    }
    default_views: ClassVar[tuple[str, ...]] = ("front",)

    def __init__(
        self,
        task: str = "window-open",
        *,
        width: int = 128,
        height: int = 128,
        cheap_render: bool = True,
        reward: Literal["sparse", "dense"] = "sparse",
        terminate_on_success: bool = False,
        instruction: str | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        EzPickle.__init__(
            self,
            task,
            width=width,
            height=height,
            cheap_render=cheap_render,
            reward=reward,
            terminate_on_success=terminate_on_success,
            instruction=instruction,
            render_mode=render_mode,
        )
        check_choice("reward", reward, ("sparse", "dense"))
        check_choice("render_mode", render_mode, ("rgb_array", None))
        self._task = find_task(task)
        self.instruction = (
            self._task.instruction if instruction is None else check_instruction(instruction)
        )
        check_int("width", width, least=1)
        check_int("height", height, least=1)
        self._size = (width, height)
        self._dense = reward == "dense"
        self._terminate_on_success = terminate_on_success
        self.render_mode = render_mode
        self._simulator = _build_simulator(f"{self._task.name}-v3")
        model = self._simulator.model
        self._home = model.body_pos.copy(), model.site_pos.copy()
        self._meter = ProgressMeter(self._task)
        self._cameras = CameraRig(
            model,
            {"front": self._task.view},
            cheap=cheap_render,
            show_sites=self._task.shows_goal,
        )
        self._low, self._high = _observation_bounds()
        self.observation_space = gym.spaces.Box(self._low, self._high, dtype=np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.stage_names = self._task.stage_names
        self._observed = np.zeros(39)

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Names that :meth:`render_camera` accepts."""
        return self._cameras.names

    @property
    def simulator(self) -> Any:
        """Meta-World's own environment object."""
        return self._simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """Begin an episode with a new object position drawn from ``self.np_random``.

        Args:
            seed: Makes this and, without further seeds, all later episodes reproducible.
            options: Not used.

        Returns:
            Observation and info.
        """
        import mujoco

        super().reset(seed=seed)
        sim = self._simulator
        # Meta-World leaves the last episode's scene in place while it moves the hand home, and so
        # lets one episode depend on the one before.
        sim.model.body_pos[:], sim.model.site_pos[:] = self._home
        mujoco.mj_resetData(sim.model, sim.data)
        sim.np_random = self.np_random
        sim.curr_path_length = 0
        sim._did_see_sim_exception = False
        sim.reset_model()
        mujoco.mj_forward(sim.model, sim.data)
        if hasattr(sim, "window_handle_pos_init"):
            sim.window_handle_pos_init = sim._get_pos_objects()
        sim._prev_obs = sim._get_curr_obs_combined_no_goal()
        self._observed = sim._get_obs()
        self._meter.reset(sim)
        return self._observation(), {"success": self._read().success, "metaworld_reward": 0.0}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Advance by one control step (12.5 ms).

        Args:
            action: ``(4,)`` in [-1, 1]; values outside are clipped.

        Returns:
            Observation, reward, terminated, truncated (always False) and info.

        Raises:
            ConfigError: If the action has another shape or is not finite.
        """
        command = checked_action(action, 4)
        self._observed, dense, _, _, verdict = self._simulator.step(command)
        success = bool(verdict["success"])
        info = {"success": success, "metaworld_reward": float(dense)}
        reward = float(dense) if self._dense else float(success)
        return self._observation(), reward, success and self._terminate_on_success, False, info

    def render(self) -> Frame:
        """Return a frame of the view ``"front"``, ``(height, width, 3) uint8``."""
        return self.render_camera("front", *self._size)

    def render_camera(self, name: str, width: int, height: int) -> Frame:
        """Draw the present state as one camera sees it.

        Args:
            name: One of :attr:`camera_names`.
            width: Width in pixels.
            height: Height in pixels.

        Returns:
            Upright RGB frame, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no camera of that name.
            MissingDependencyError: If no OpenGL context can be created.
            FrameError: If called on another thread than the first frame's, or in a process that
                was forked from one that has drawn frames.
        """
        return self._cameras.render(self._simulator.data, name, width, height)

    def privileged_progress(self) -> float:
        """Return the true progress in [0, 1], from simulator state; it can fall again."""
        return self._read().value

    def privileged_state(self) -> dict[str, npt.NDArray[np.float64] | float]:
        """Return what a camera cannot tell for sure, from simulator state.

        Returns:
            ``stage`` (index into ``stage_names``, their number once done), ``gripper``,
            ``object``, ``target`` (``(3,) float64``, metres), ``distance`` from finger tips to
            where they must push (metres), ``fraction`` of the object's travel that is done, and
            ``grasped`` and ``height``, always 0.0 because nothing is lifted.
        """
        sim, reading = self._simulator, self._read()
        return {
            "stage": float(reading.stage),
            "gripper": np.array(sim.tcp_center, dtype=np.float64),
            "object": self._task.part(sim),
            "target": np.array(sim._target_pos, dtype=np.float64),
            "grasped": 0.0,
            "height": 0.0,
            "distance": reading.distance,
            "fraction": reading.fraction,
        }

    def close(self) -> None:
        """Free the rendering contexts; closing again does nothing."""
        self._cameras.close()

    def _read(self) -> Progress:
        return self._meter.read(self._simulator)

    def _observation(self) -> Vector:
        shown: Vector = np.clip(self._observed[_OBS_INDEX], self._low, self._high)
        return shown


def _observation_bounds() -> tuple[Vector, Vector]:
    low = (*_HAND_LOW, -2.0, -2.0, -2.0)
    high = (*_HAND_HIGH, 2.0, 2.0, 2.0)
    return np.array([*low, *low, -2.0, -2.0, -2.0]), np.array([*high, *high, 2.0, 2.0, 2.0])


def _build_simulator(name: str) -> Any:
    # MuJoCo chooses its OpenGL platform when it is imported, and would ask for a display.
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise MissingDependencyError(
            "Meta-World environments need the package `metaworld`; "
            'install it with pip install "procreward[metaworld]".'
        ) from error
    simulator = ALL_V3_ENVIRONMENTS[name]()
    simulator._partially_observable = False
    # Cached from the time the goal was hidden; steps would clip the goal to zero.
    simulator.__dict__.pop("sawyer_observation_space", None)
    simulator._freeze_rand_vec = False
    simulator.seeded_rand_vec = True
    simulator._set_task_called = True
    simulator.max_path_length = _NEVER
    return simulator
