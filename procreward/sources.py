"""Where frames come from: an observation, ``render()``, or a camera on demand.

* :class:`FrameSource` - the protocol.
* :class:`ObservationSource` - a picture that is in the observation anyway: free, and the only
  one that is surely of this step wherever the environment sits.
* :class:`RenderSource` - ``env.render()``.
* :class:`CameraSource` - ``env.render_camera(name, width, height)``, as procreward's own
  environments have it: any camera, any size, and only when a frame is needed.
* :func:`resolve_sources` - from what a user wrote to sources, checked.

Sources hold names and numbers only, never an environment, so they can be copied and pickled.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from procreward.checks import check_frame_size
from procreward.errors import ConfigError, FrameError, UnknownNameError, UnsupportedEnvError
from procreward.frames import layout_defect
from procreward.types import Frame

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = [
    "CameraSource",
    "FrameSource",
    "ObservationSource",
    "RenderSource",
    "resolve_sources",
]

logger = logging.getLogger(__name__)

DEFAULT_CAMERA_SIZE = (128, 128)
"""Width and height in pixels of a camera frame when nothing else is asked for."""


@runtime_checkable
class FrameSource(Protocol):
    """Takes the frame of one view at the environment's current step."""

    @property
    def view(self) -> str:
        """Name of the view."""
        ...

    def frame(self, env: gym.Env[Any, Any], obs: object) -> Frame:
        """Return the current frame, ``(height, width, 3) uint8``, not copied and not checked.

        Args:
            env: The environment, on the thread that made it.
            obs: What its ``reset`` or ``step`` just returned.
        """
        ...


@dataclass(frozen=True, slots=True)
class ObservationSource:
    """Takes the frame from the observation.

    Attributes:
        key: Key of a dictionary observation, with ``/`` between the keys of nested ones, or
            ``"obs"`` when the observation itself is the picture.
        flip: Whether the picture is upside down there, as robosuite's are, and has to be turned.
    """

    key: str
    flip: bool = False

    @property
    def view(self) -> str:
        """The key."""
        return self.key

    def frame(self, env: gym.Env[Any, Any], obs: object) -> Frame:
        """Return the picture at the key.

        Raises:
            UnknownNameError: If the observation has no such key.
        """
        found = self._found(obs)
        # A batch of pictures has an axis before the rows.
        return found[..., ::-1, :, :] if self.flip and np.ndim(found) >= 3 else found

    def _found(self, obs: object) -> Frame:
        if not isinstance(obs, Mapping):
            if self.key == "obs":
                return cast(Frame, obs)
            raise UnknownNameError("observation key", self.key, ["obs"])
        found: Any = obs
        for part in (self.key,) if self.key in obs else tuple(self.key.split("/")):
            if not isinstance(found, Mapping) or part not in found:
                raise UnknownNameError("observation key", self.key, (str(key) for key in obs))
            found = found[part]
        return cast(Frame, found)


@dataclass(frozen=True, slots=True)
class RenderSource:
    """Takes the frame from ``env.render()``, in render mode ``"rgb_array"``."""

    @property
    def view(self) -> str:
        """``"render"``."""
        return "render"

    def frame(self, env: gym.Env[Any, Any], obs: object) -> Frame:
        """Return what ``env.render()`` returns.

        Raises:
            FrameError: If it returns None.
        """
        picture = env.render()
        if picture is None:
            raise FrameError(
                "`env.render()` must return a (height, width, 3) uint8 picture, got None; make "
                'the environment with render_mode="rgb_array".'
            )
        return cast(Frame, picture)


@dataclass(frozen=True, slots=True)
class CameraSource:
    """Renders one of the environment's cameras, whatever its render mode is.

    Attributes:
        name: One of the environment's ``camera_names``.
        width: Pixels.
        height: Pixels.
    """

    name: str
    width: int = DEFAULT_CAMERA_SIZE[0]
    height: int = DEFAULT_CAMERA_SIZE[1]

    @property
    def view(self) -> str:
        """The camera's name."""
        return self.name

    def frame(self, env: gym.Env[Any, Any], obs: object) -> Frame:
        """Return a fresh rendering of the camera.

        Raises:
            UnsupportedEnvError: If the environment has no such method.
        """
        render_camera = env.get_wrapper_attr("render_camera")
        if not callable(render_camera):
            raise _no_camera_method(self.name, env, render_camera)
        return cast(Frame, render_camera(self.name, self.width, self.height))


def resolve_sources(
    env: gym.Env[Any, Any],
    views: Sequence[str] | None = None,
    frame_size: tuple[int, int] | None = None,
) -> dict[str, FrameSource]:
    """Find out where the frames of each view come from.

    Args:
        env: The environment that will be asked for frames.
        views: What to look at, in this order. ``"obs:KEY"`` is an entry of the observation
            (``"obs:obs"`` or ``"obs"`` the observation itself), ``"flip:KEY"`` one that is upside
            down there and is turned, ``"camera:NAME"`` one of the environment's cameras,
            ``"render"`` its ``render()``, and a bare name the entry of the observation of that name
            or else the camera. None takes the environment's ``default_views``, or else the
            observation if it is a picture, or else ``"render"``.
        frame_size: Width and height in pixels at which cameras are rendered; 128 x 128 when None.
            Observations and ``render()`` come as they are.

    Returns:
        Name of the view (without what is before the colon) to its source, in the order asked for.

    Raises:
        UnknownNameError: If there is no such key or camera; the message names those there are.
        UnsupportedEnvError: If the environment cannot render as asked.
        FrameError: If an entry of the observation is not laid out as a picture.
        ConfigError: If ``views`` is empty or names a view twice, or ``frame_size`` is wrong.
    """
    if isinstance(views, str):
        views = (views,)
    size = DEFAULT_CAMERA_SIZE if frame_size is None else check_frame_size("frame_size", frame_size)
    available = _EnvViews(env, size)
    sources: dict[str, FrameSource] = {}
    for spec in available.default_views() if views is None else views:
        source = available.source(spec)
        if source.view in sources:
            raise ConfigError(f"`views` must name each view once, got {source.view!r} twice.")
        sources[source.view] = source
    if not sources:
        raise ConfigError("`views` must name at least one view, got none; None takes the default.")
    return sources


class _EnvViews:
    """What an environment can show."""

    def __init__(self, env: gym.Env[Any, Any], camera_size: tuple[int, int]):
        self.env = env
        self.camera_size = camera_size
        self.spaces = _leaf_spaces(env.observation_space)
        self.pictures = [key for key, space in self.spaces.items() if not _space_defect(space)]
        self.cameras = self._cameras()

    def _cameras(self) -> tuple[str, ...]:
        if not callable(self._camera_method()):
            return ()
        if not self.env.has_wrapper_attr("camera_names"):
            return ()
        return tuple(self.env.get_wrapper_attr("camera_names"))

    def _camera_method(self) -> object:
        """What the environment has under that name, which need not be a method, or None."""
        import gymnasium as gym

        if not self.env.has_wrapper_attr("render_camera"):
            return None
        env: object = self.env
        if not isinstance(env, gym.Env):
            # It stands in for one that is elsewhere: methods stay there, CameraSource looks.
            return CameraSource.frame
        return self.env.get_wrapper_attr("render_camera")

    def default_views(self) -> Sequence[str]:
        if self.env.has_wrapper_attr("default_views"):
            return cast(Sequence[str], self.env.get_wrapper_attr("default_views"))
        if self.pictures == ["obs"]:
            return ("obs",)
        if self.env.render_mode == "rgb_array":
            return ("render",)
        raise UnsupportedEnvError(
            f"{self.env} shows no picture by itself; name `views` (known: "
            f'{", ".join(self._known()) or "none"}) or make it with render_mode="rgb_array".'
        )

    def source(self, spec: str) -> FrameSource:
        kind, colon, name = spec.partition(":")
        if colon and kind in ("obs", "flip"):
            return self._observation(name, flip=kind == "flip")
        if colon and kind == "camera":
            return self._camera(name)
        if spec == "render":
            return self._render()
        if spec in self.spaces:
            return self._observation(spec)
        if spec in self.cameras:
            return self._camera(spec)
        raise UnknownNameError("view", spec, self._known())

    def _known(self) -> list[str]:
        render = ["render"] if self.env.render_mode == "rgb_array" else []
        return list(dict.fromkeys([*self.pictures, *self.cameras, *render]))

    def _observation(self, key: str, *, flip: bool = False) -> FrameSource:
        if key not in self.spaces:
            raise UnknownNameError("observation key", key, self.pictures)
        defect = _space_defect(self.spaces[key])
        if defect:
            raise FrameError(
                f"`observation {key!r}` must be a (height, width, 3) uint8 RGB picture, got "
                f"{defect}"
            )
        if not flip and self._is_upside_down(key):
            logger.warning(
                "The picture %r of robosuite's observations is upside down (its "
                "macros.IMAGE_CONVENTION is 'opengl'), which no model will say; use the view "
                '"flip:%s", unless a wrapper has turned it already.',
                key,
                key,
            )
        return ObservationSource(key, flip)

    def _is_upside_down(self, key: str) -> bool:
        """Whether an observation's picture is one that robosuite itself has put there."""
        if not key.endswith("_image") or not self.env.has_wrapper_attr("use_camera_obs"):
            return False
        macros = sys.modules.get("robosuite.macros")
        return getattr(macros, "IMAGE_CONVENTION", "opencv") == "opengl"

    def _camera(self, name: str) -> FrameSource:
        method = self._camera_method()
        if not callable(method):
            raise _no_camera_method(name, self.env, method)
        if name not in self.cameras:
            raise UnknownNameError("camera", name, self.cameras)
        return CameraSource(name, *self.camera_size)

    def _render(self) -> FrameSource:
        mode = self.env.render_mode
        if mode == "rgb_array":
            return RenderSource()
        why = ""
        if mode is not None and mode.endswith("_list"):
            why = " (a list mode hands out each frame once: frames would be stolen from others)"
        raise UnsupportedEnvError(
            f'view "render" needs render_mode="rgb_array", got {mode!r}{why}; pass it when making '
            "the environment."
        )


def _no_camera_method(name: str, env: object, found: object) -> UnsupportedEnvError:
    got = f"got {env}" if found is None else f"got {env}, whose `render_camera` is {found!r}"
    return UnsupportedEnvError(
        f"`camera:{name}` needs an environment with a method render_camera(name, width, height) "
        f"that returns an upright (height, width, 3) uint8 picture, {got}; add it in a wrapper, or "
        'use "render" or an observation key.'
    )


def _leaf_spaces(space: object, prefix: str = "") -> dict[str, object]:
    """Key (nested ones joined by ``/``) to space; ``"obs"`` when it is no dictionary."""
    nested = getattr(space, "spaces", None)
    if not isinstance(nested, Mapping):
        return {prefix or "obs": space}
    leaves: dict[str, object] = {}
    for key, inner in nested.items():
        leaves |= _leaf_spaces(inner, f"{prefix}/{key}" if prefix else str(key))
    return leaves


def _space_defect(space: object) -> str:
    """Say why observations of the space are no pictures, or return ``""``."""
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None or not np.issubdtype(dtype, np.number):
        return f"{type(space).__name__}."
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    bounds = None
    if isinstance(low, np.ndarray) and isinstance(high, np.ndarray) and low.size:
        bounds = (float(low.min()), float(high.max()))
    return layout_defect(tuple(shape), np.dtype(dtype), bounds)
