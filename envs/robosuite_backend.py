"""Everything that touches robosuite's import and its OpenGL context, in one place.

robosuite and MuJoCo are imported by :func:`load_robosuite` only, after their versions and the
OpenGL backend were settled.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.checks import check_int
from procreward.envs._opengl import DrawingThread, close_at_exit, no_context, same_process
from procreward.errors import FrameError, MissingDependencyError, UnknownNameError

__all__ = ["FreeCamera", "SimRenderer", "load_robosuite"]

_INSTALL = 'pip install "procreward[robosuite]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeCamera:
    """A camera of our own: a point it looks at and where it stands around that point.

    Attributes:
        lookat: The point in the middle of the picture, metres, world frame.
        distance: From that point to the camera, metres.
        azimuth: Direction of view around the vertical axis, degrees.
        elevation: Direction of view over the horizon, degrees; negative looks down.
        fovy: Vertical field of view, degrees.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float
    fovy: float = 45.0

    def pose(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return position, ``(3,)``, and rotation, ``(3, 3)`` with columns right, up, back."""
        azimuth, elevation = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        level = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        forward = np.cos(elevation) * level + np.array([0.0, 0.0, np.sin(elevation)])
        right = np.array([level[1], -level[0], 0.0])
        up = np.cross(right, forward)
        position = np.array(self.lookat) - self.distance * forward
        return position, np.stack([right, up, -forward], axis=1)


def _drop_below_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _check_versions() -> None:
    try:
        importlib.metadata.version("robosuite")
        mujoco = importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(
            f"This environment needs the package {error.name!r}. Install it with: {_INSTALL}"
        ) from error
    major, minor = (int(part) for part in mujoco.split(".")[:2])
    if not (3, 3) <= (major, minor) < (3, 10):
        raise MissingDependencyError(
            f"robosuite 1.5 works with mujoco>=3.3,<3.10, got mujoco {mujoco}. "
            f"Install a working set with: {_INSTALL}"
        )


def _choose_gl() -> str:
    if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl"
    return os.environ.get("MUJOCO_GL", "")


def load_robosuite() -> Any:
    """Import robosuite with its console notes silenced and return the module.

    Raises:
        MissingDependencyError: If robosuite or MuJoCo is missing, MuJoCo's version does not work
            with robosuite, or the OpenGL library that ``MUJOCO_GL`` names is not installed.
    """
    _check_versions()
    backend = _choose_gl()
    # robosuite notes optional parts and its config file on the console at every start.
    notes = logging.getLogger("robosuite_logs")
    if _drop_below_error not in notes.filters:
        notes.addFilter(_drop_below_error)
    try:
        import mujoco  # noqa: F401  is it there?
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise no_context(backend, error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import robosuite
    except ImportError as error:
        raise MissingDependencyError(
            f"robosuite could not be imported ({error}). Install it with: {_INSTALL}"
        ) from error
    return robosuite


class SimRenderer:
    """Renders a robosuite simulation on demand, upright, on one thread.

    The OpenGL context is made at the first frame, so that an environment that is never rendered
    needs neither a GL library nor the context's memory.

    Args:
        sim: robosuite's ``MjSim``.
        cheap: Switch off multisampling, shadows and reflections (a third of the time, nearly the
            same picture).
    """

    def __init__(self, sim: Any, *, cheap: bool) -> None:
        self._sim = sim
        self._cheap = cheap
        self._context: Any = None
        self._place = DrawingThread()

    def _make_context(self) -> Any:
        import mujoco
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        class Context(MjRenderContextOffscreen):  # type: ignore[misc]  # untyped base
            def __del__(self) -> None:
                # The parent's fails noisily when its constructor did not get far, and frees the
                # buffers of whichever context is current: another environment's, maybe.
                if hasattr(self, "con") and same_process():
                    self.gl_ctx.make_current()
                    super().__del__()

        if self._cheap:
            self._sim.model.vis.quality.offsamples = 0
        # robosuite advances the derived state here, which would make the first frame, and what
        # follows it, depend on when the first frame was asked for.
        self._sim.forward = lambda: None
        try:
            context = Context(self._sim, device_id=-1)
        except Exception as error:
            backend = os.environ.get("MUJOCO_GL", "")
            raise no_context(backend, error) from error
        finally:
            del self._sim.forward
        context.vopt.geomgroup[0] = 0  # collision shapes
        context.vopt.geomgroup[1] = 1  # what is meant to be seen
        if self._cheap:
            context.scn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        close_at_exit(self)
        return context

    def render(self, camera: str | FreeCamera, width: int, height: int) -> npt.NDArray[np.uint8]:
        """Render one frame.

        Args:
            camera: Name of a camera of the model, or a camera of our own.
            width: Columns of the frame.
            height: Rows of the frame.

        Returns:
            Upright RGB, ``(height, width, 3) uint8``, contiguous.

        Raises:
            ConfigError: If the size is below one pixel.
            FrameError: If called on another thread than the first frame (OpenGL would answer with
                a black picture) or in a fork of a process that rendered (it would hang), or if
                the picture is black all the same.
            MissingDependencyError: If no OpenGL context can be made.
        """
        import mujoco

        check_int("width", width, least=1)
        check_int("height", height, least=1)
        self._place.enter()
        if self._context is None:
            self._context = self._make_context()
        context = self._context
        context.gl_ctx.make_current()
        camera_id = None
        if isinstance(camera, str):
            camera_id = self._sim.model.camera_name2id(camera)
        else:
            context.cam.type = mujoco.mjtCamera.mjCAMERA_FREE
            context.cam.lookat[:] = camera.lookat
            context.cam.distance = camera.distance
            context.cam.azimuth = camera.azimuth
            context.cam.elevation = camera.elevation
            self._sim.model.vis.global_.fovy = camera.fovy
        context.render(width=width, height=height, camera_id=camera_id)
        frame = np.ascontiguousarray(context.read_pixels(width, height)[::-1])
        if not frame.any():
            raise FrameError(
                f"The simulator returned a black frame for camera {camera!r}. Check that rendering "
                "happens on one thread and that the OpenGL driver works."
            )
        return frame

    def project(
        self,
        camera: str | FreeCamera,
        points: npt.NDArray[np.float64],
        width: int,
        height: int,
    ) -> npt.NDArray[np.float64]:
        """Project world points into a picture.

        Args:
            camera: Name of a camera of the model, or a camera of our own.
            points: ``(num_points, 3) float64``, metres, world frame.
            width: Columns of the frame.
            height: Rows of the frame.

        Returns:
            Column and row of each point, ``(num_points, 2) float64``, in pixels; outside
            ``[0, width) x [0, height)`` when not in the picture.
        """
        if isinstance(camera, str):
            camera_id = self._sim.model.camera_name2id(camera)
            position = np.array(self._sim.data.cam_xpos[camera_id])
            rotation = np.array(self._sim.data.cam_xmat[camera_id]).reshape(3, 3)
            fovy = float(self._sim.model.cam_fovy[camera_id])
        else:
            position, rotation = camera.pose()
            fovy = camera.fovy
        local = (np.asarray(points, dtype=np.float64) - position) @ rotation
        focal = 0.5 * height / np.tan(np.deg2rad(fovy) / 2)
        depth = np.maximum(-local[:, 2], 1e-6)
        columns = 0.5 * width + focal * local[:, 0] / depth
        rows = 0.5 * height - focal * local[:, 1] / depth
        return np.stack([columns, rows], axis=1)

    def close(self) -> None:
        """Free the OpenGL context; a later frame makes a new one."""
        context, self._context = self._context, None
        if context is not None:
            self._sim._render_context_offscreen = None
        self._place = DrawingThread()


def check_camera(name: str, known: tuple[str, ...]) -> None:
    """Raise :class:`UnknownNameError` unless ``name`` is one of ``known``."""
    if name not in known:
        raise UnknownNameError("camera", name, known)
