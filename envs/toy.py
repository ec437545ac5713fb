"""A point that should reach a disc: an environment with pictures that needs NumPy only.

It has everything that the simulated ones have (instruction, cameras, true progress, success), so
examples and tests run in microseconds.

Example:
    >>> env = ToyEnv()
    >>> obs, info = env.reset(seed=0)
    >>> info
    {'success': False}
    >>> while not info["success"]:
    ...     obs, reward, terminated, truncated, info = env.step(env.expert_action())
    >>> env.privileged_progress(), reward, terminated
    (1.0, 1.0, False)
    >>> env.render().shape
    (64, 64, 3)
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from procreward.checks import check_choice, check_int, check_names
from procreward.envs._actions import checked_action
from procreward.instruction import check_instruction
from procreward.types import Frame

__all__ = ["ToyEnv"]

Vector = npt.NDArray[np.float64]

_INSTRUCTION: Final = "Move the red point onto the green disc."
_STEP: Final = 0.1
_RADIUS: Final = 0.15
_LEAST_START: Final = 0.8
_UNFINISHED_CAP: Final = 0.94
_COMPASS: Final = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
_FLOOR: Final = (200, 200, 210)
_BORDER: Final = (90, 90, 100)
_GOAL: Final = (40, 160, 60)
_POINT: Final = (200, 40, 40)


class ToyEnv(gym.Env[Any, Any]):
    """Move a red point onto a green disc, in the square [-1, 1] x [-1, 1].

    Observation: ``(4,) float64`` in [-1, 1], the point's and the disc's position; with
    ``observe_pixels`` a dictionary of that (``"state"``) and the picture (``"pixels"``,
    ``(height, width, 3) uint8``). A full action moves the point by 0.1. ``info`` holds
    ``success``, whether the point is on the disc. The environment never truncates by itself.

    Args:
        actions: ``"box"`` for ``(2,) float32`` in [-1, 1], ``"discrete"`` for stay, right, up,
            left, down.
        width: Width in pixels of what :meth:`render` returns.
        height: Height in pixels of what :meth:`render` returns.
        observe_pixels: Whether the observation contains the picture.
        terminate_on_success: Whether reaching the disc ends the episode.
        instruction: The task in words; None for the environment's own.
        render_mode: ``"rgb_array"`` or None.

    Raises:
        ConfigError: If a size, the action kind or the render mode is wrong.
        InstructionError: If the instruction is empty.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  declared so by Gymnasium
    camera_names: ClassVar[tuple[str, ...]] = ("front", "side")
    default_views: ClassVar[tuple[str, ...]] = ("front",)
    stage_names: ClassVar[tuple[str, ...]] = ("reach the green disc",)

    def __init__(
        self,
        actions: Literal["box", "discrete"] = "box",
        *,
        width: int = 64,
        height: int = 64,
        observe_pixels: bool = False,
        terminate_on_success: bool = False,
        instruction: str | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        check_choice("actions", actions, ("box", "discrete"))
        check_choice("render_mode", render_mode, ("rgb_array", None))
        self.render_mode = render_mode
        self.instruction = _INSTRUCTION if instruction is None else check_instruction(instruction)
        check_int("width", width, least=1)
        check_int("height", height, least=1)
        self._size = (width, height)
        self._observe_pixels = observe_pixels
        self._terminate_on_success = terminate_on_success
        self._discrete = actions == "discrete"
        self.action_space = (
            gym.spaces.Discrete(len(_COMPASS))
            if self._discrete
            else gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        )
        state = gym.spaces.Box(-1.0, 1.0, (4,), np.float64)
        pixels = gym.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.observation_space = (
            gym.spaces.Dict({"state": state, "pixels": pixels}) if observe_pixels else state
        )
        self._point = self._start = np.zeros(2)
        self._goal = np.ones(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Put the point and the disc at new random places, at least 0.8 apart.

        Args:
            seed: Makes this and, without further seeds, all later episodes reproducible.
            options: Not used.

        Returns:
            Observation and info.
        """
        super().reset(seed=seed)
        self._goal = self.np_random.uniform(-0.8, 0.8, 2)
        self._start = self.np_random.uniform(-0.9, 0.9, 2)
        while self._distance(self._start) < _LEAST_START:
            self._start = self.np_random.uniform(-0.9, 0.9, 2)
        self._point = self._start.copy()
        return self._observation(), {"success": self._success()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the point.

        Args:
            action: As the action space says; box actions outside it are clipped.

        Returns:
            Observation, reward (1.0 on the disc, else 0.0), terminated, truncated (always False)
            and info.

        Raises:
            ConfigError: If a box action has another shape or is not finite.
        """
        move = _COMPASS[int(action)] if self._discrete else checked_action(action, 2)
        self._point = np.clip(self._point + _STEP * move, -1.0, 1.0)
        success = self._success()
        terminated = success and self._terminate_on_success
        return self._observation(), float(success), terminated, False, {"success": success}

    def render(self) -> Frame:
        """Return a frame of the view ``"front"``, ``(height, width, 3) uint8``."""
        return self.render_camera("front", *self._size)

    def render_camera(self, name: str, width: int, height: int) -> Frame:
        """Draw the square.

        Args:
            name: ``"front"`` (x to the right, y up) or ``"side"`` (y to the right, x up).
            width: Width in pixels.
            height: Height in pixels.

        Returns:
            RGB frame, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no camera of that name.
            ConfigError: If the size is below one pixel.
        """
        check_names("camera", [name], self.camera_names)
        check_int("width", width, least=1)
        check_int("height", height, least=1)
        order = slice(None) if name == "front" else slice(None, None, -1)
        right = np.linspace(-1.1, 1.1, width)[None, :]
        up = np.linspace(1.1, -1.1, height)[:, None]
        frame = np.empty((height, width, 3), dtype=np.uint8)
        frame[:] = _FLOOR
        frame[np.maximum(np.abs(right), np.abs(up)) > 1.0] = _BORDER
        for place, radius, colour in ((self._goal, 0.2, _GOAL), (self._point, 0.1, _POINT)):
            x, y = place[order]
            frame[np.hypot(right - x, up - y) <= radius] = colour
        return frame

    def privileged_progress(self) -> float:
        """Return the true progress in [0, 1]: the share of the start's distance that is gone."""
        if self._success():
            return 1.0
        start = self._distance(self._start) - _RADIUS
        left = self._distance(self._point) - _RADIUS
        return float(np.clip(1.0 - left / start, 0.0, _UNFINISHED_CAP))

    def privileged_state(self) -> dict[str, npt.NDArray[np.float64] | float]:
        """Return the state under the keys that the simulated environments use.

        Returns:
            ``stage`` (0.0, or 1.0 once done), ``gripper`` and ``object`` (the point), ``target``
            (``(3,) float64``), ``distance`` from point to disc, ``grasped`` and ``height`` (0.0).
        """
        point = np.array([*self._point, 0.0])
        return {
            "stage": float(self._success()),
            "gripper": point,
            "object": point.copy(),
            "target": np.array([*self._goal, 0.0]),
            "grasped": 0.0,
            "height": 0.0,
            "distance": self._distance(self._point),
        }

    def expert_action(self) -> Any:
        """Return the action that leads straight to the disc, as the action space says."""
        way = (self._goal - self._point) / _STEP
        if not self._discrete:
            return (way / max(1.0, float(np.abs(way).max()))).astype(np.float32)
        if float(np.abs(way).max()) < 0.5:
            return 0
        return int(np.argmax(_COMPASS @ way))

    def _distance(self, point: Vector) -> float:
        return float(np.linalg.norm(point - self._goal))

    def _success(self) -> bool:
        return self._distance(self._point) <= _RADIUS

    def _observation(self) -> Any:
        state = np.concatenate([self._point, self._goal])
        return {"state": state, "pixels": self.render()} if self._observe_pixels else state
