"""Upright frames from a MuJoCo model, drawn on demand."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from procreward.checks import check_int, check_names
from procreward.envs._opengl import DrawingThread, close_at_exit, no_context, same_process
from procreward.types import Frame

__all__ = ["CameraRig", "CameraView"]

_MOST_GEOMS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraView:
    """A free camera.

    Attributes:
        lookat: World point in the middle of the frame, metres.
        distance: From the camera to that point, metres.
        azimuth: Direction of sight around the vertical, degrees; 90 looks along +y, away from the
            robot.
        elevation: Direction of sight above the horizon, degrees; negative looks down.
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float


class CameraRig:
    """Draws a model from its own cameras and from extra free cameras.

    The OpenGL context is created at the first frame, so that an environment that is built but
    never looked at costs none. Frames must be drawn on the thread that drew the first one, and not
    in a process that was forked after that.

    Args:
        model: The ``mujoco.MjModel``.
        views: Extra cameras by name.
        cheap: Draw without shadows, reflections and multisampling.
        show_sites: Whether to draw sites (markers).
    """

    def __init__(
        self, model: Any, views: Mapping[str, CameraView], *, cheap: bool, show_sites: bool
    ) -> None:
        self._model = model
        self._place = DrawingThread()
        self._views = dict(views)
        self._cheap = cheap
        self._show_sites = show_sites
        self._canvas: _Canvas | None = None
        fixed = tuple(model.camera(index).name for index in range(model.ncam))
        self._names = (*self._views, *fixed)

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras, extra ones first."""
        return self._names

    def render(self, data: Any, name: str, width: int, height: int) -> Frame:
        """Draw the state of ``data`` as one camera sees it.

        Args:
            data: The ``mujoco.MjData``.
            name: One of :attr:`names`.
            width: Width in pixels.
            height: Height in pixels.

        Returns:
            Upright RGB frame, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no camera of that name.
            ConfigError: If the size is below one pixel.
            MissingDependencyError: If no OpenGL context can be created.
            FrameError: If called on another thread than the first frame's, or in a process that
                was forked from one that has drawn frames.
        """
        check_names("camera", [name], self._names)
        check_int("width", width, least=1)
        check_int("height", height, least=1)
        self._place.enter()
        if self._canvas is None or not self._canvas.fits(width, height):
            self._free()
            self._canvas = _Canvas(self._model, width, height, cheap=self._cheap)
            close_at_exit(self)
        frame = self._canvas.draw(
            data, self._camera(name), width, height, show_sites=self._show_sites
        )
        return self._upright(data, name, frame)

    def close(self) -> None:
        """Free the OpenGL context; a later frame creates a new one, on whichever thread."""
        self._free()
        self._place = DrawingThread()

    def _free(self) -> None:
        if self._canvas is not None:
            self._canvas.free()
            self._canvas = None

    def _camera(self, name: str) -> Any:
        import mujoco

        camera = mujoco.MjvCamera()
        view = self._views.get(name)
        if view is None:
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self._model.camera(name).id
            return camera
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.lookat
        camera.distance, camera.azimuth = view.distance, view.azimuth
        camera.elevation = view.elevation
        return camera

    def _upright(self, data: Any, name: str, frame: Frame) -> Frame:
        """Turn the picture of a camera that is mounted head down."""
        if name in self._views:
            return frame
        head_down = data.camera(name).xmat[7] < -0.5
        return np.ascontiguousarray(frame[::-1, ::-1]) if head_down else frame


class _Canvas:
    """An OpenGL context and what MuJoCo keeps in it, for frames of up to one size."""

    def __init__(self, model: Any, width: int, height: int, *, cheap: bool) -> None:
        import mujoco

        visual = model.vis
        visual.global_.offwidth, visual.global_.offheight = width, height
        if cheap:
            visual.quality.offsamples = 0
        self._model, self._size = model, (width, height)
        self._context = _open_context(width, height)
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._mjr)
        self._scene = mujoco.MjvScene(model, _MOST_GEOMS)
        if cheap:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def fits(self, width: int, height: int) -> bool:
        return width <= self._size[0] and height <= self._size[1]

    def draw(self, data: Any, camera: Any, width: int, height: int, *, show_sites: bool) -> Frame:
        import mujoco

        options = mujoco.MjvOption()
        if not show_sites:
            options.sitegroup[:] = 0
        self._context.make_current()
        mujoco.mjv_updateScene(
            self._model,
            data,
            options,
            None,
            camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, self._scene, self._mjr)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, rectangle, self._mjr)
        return np.ascontiguousarray(pixels[::-1])

    def free(self) -> None:
        if not same_process():
            return
        self._context.make_current()
        self._mjr.free()
        self._context.free()


def _open_context(width: int, height: int) -> Any:
    """Create an OpenGL context, whatever MuJoCo chose when it was imported."""
    # Chosen here because MuJoCo settles on a window system when it was imported without the
    # variable, and then cannot render without a screen.
    platform = os.environ.setdefault("MUJOCO_GL", "egl").lower()
    try:
        context = importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
        context.make_current()
    except Exception as error:  # which kind is raised depends on the platform's loader
        raise no_context(platform, error) from error
    return context
