"""What lies under :class:`procreward.vector.VectorProgressReward`: modes and sub-environments.

* :func:`autoreset_modes` - what is possible above which base, and a refusal of the rest.
* :class:`SubEnvs` - attributes, observations and pictures of single sub-environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import iterate

from procreward._vector_workers import Workers
from procreward.config import CompleteMode
from procreward.errors import ConfigError, FrameError, UnsupportedEnvError
from procreward.sources import CameraSource, FrameSource, ObservationSource
from procreward.types import Frame

__all__ = ["SubEnvs", "autoreset_modes", "check_vector_env"]

AnyVectorEnv = VectorEnv[Any, Any, Any]

DISABLED_BASE = (
    "make the base with AutoresetMode.DISABLED: gym.make_vec(..., "
    'vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.DISABLED})'
)


def check_vector_env(env: object) -> None:
    """Refuse what is no vector environment.

    Raises:
        UnsupportedEnvError: If it is none.
    """
    if not isinstance(env, VectorEnv):
        raise UnsupportedEnvError(
            f"`env` must be a gymnasium.vector.VectorEnv, got {type(env).__name__}; for a single "
            "environment there is ProgressReward."
        )


def autoreset_modes(
    env: AnyVectorEnv,
    asked: AutoresetMode | str | None,
    on_complete: CompleteMode,
    sources: Mapping[str, FrameSource],
) -> tuple[AutoresetMode, AutoresetMode]:
    """Decide how sub-environments are reset.

    Args:
        env: The vector environment.
        asked: What is to be shown to the outside, or None.
        on_complete: What completion does to an episode.
        sources: Where frames come from.

    Returns:
        The base's mode, and the one that is shown.

    Raises:
        ConfigError: If the base cannot be shown as asked, or cannot be made to end episodes.
    """
    base = env.metadata.get("autoreset_mode")
    if not isinstance(base, AutoresetMode):
        raise ConfigError(
            f"`env.metadata['autoreset_mode']` must be an AutoresetMode, got {base!r} from {env}; "
            "set it to what the environment does when an episode ends."
        )
    shown = _asked_mode(asked, base)
    if shown is not base and base is not AutoresetMode.DISABLED:
        raise ConfigError(
            f"`autoreset_mode` must be {base} above a base of that mode, got {shown}; "
            f"{DISABLED_BASE}."
        )
    if shown is AutoresetMode.NEXT_STEP and base is AutoresetMode.DISABLED:
        raise ConfigError(
            f"`autoreset_mode` must be SAME_STEP or DISABLED above a base of {base}, got {shown}: "
            "such a base cannot leave a sub-environment out of a step. Make the base with "
            "AutoresetMode.NEXT_STEP."
        )
    _check_ends(env, base, on_complete)
    _check_views(base, sources)
    return base, shown


def _asked_mode(asked: AutoresetMode | str | None, base: AutoresetMode) -> AutoresetMode:
    if asked is None:
        return AutoresetMode.SAME_STEP if base is AutoresetMode.DISABLED else base
    try:
        return AutoresetMode(asked)
    except ValueError:
        known = ", ".join(repr(mode.value) for mode in AutoresetMode)
        raise ConfigError(
            f"`autoreset_mode` must be an AutoresetMode, one of {known}, or None, got {asked!r}."
        ) from None


def _check_ends(env: AnyVectorEnv, base: AutoresetMode, on_complete: CompleteMode) -> None:
    """Refuse a base whose sub-episodes the model cannot end."""
    if on_complete == "info" or base is AutoresetMode.DISABLED:
        return
    why = f"`on_complete` must be 'info' above a base of {base}, got {on_complete!r}: "
    if base is AutoresetMode.SAME_STEP:
        raise ConfigError(
            f"{why}it resets only what ended by itself, so the sub-environments that the model "
            f"ends would run on. Leave `autoreset_mode` and {DISABLED_BASE}."
        )
    inner = env.unwrapped
    if not isinstance(inner, SyncVectorEnv | AsyncVectorEnv):
        raise ConfigError(
            f"{why}{type(inner).__name__} is not known to reset single sub-environments; "
            f"{DISABLED_BASE}."
        )
    if isinstance(inner, AsyncVectorEnv) and not inner.shared_memory:
        raise ConfigError(
            f"{why}an AsyncVectorEnv with shared_memory=False resets such a sub-environment "
            f"twice. Use shared memory, or {DISABLED_BASE}."
        )


def _check_views(base: AutoresetMode, sources: Mapping[str, FrameSource]) -> None:
    """Refuse to draw what has been reset by then."""
    if base is not AutoresetMode.SAME_STEP:
        return
    drawn = [view for view, source in sources.items() if not _observed(source)]
    if drawn:
        raise ConfigError(
            f"`views` must be observation keys above a base of {base}, got {drawn}: when an "
            "episode has ended, such a base shows the next one and the last frame is gone. "
            f"Leave `autoreset_mode` and {DISABLED_BASE}."
        )


def _observed(source: FrameSource) -> bool:
    return isinstance(source, ObservationSource)


class SubEnvs:
    """Reaches the sub-environments of a vector environment one by one, where they live.

    Attributes:
        env: The vector environment, wrappers included.
        workers: The processes that they live in, if they do.
    """

    def __init__(self, env: AnyVectorEnv) -> None:
        """Keep the environment.

        Args:
            env: The vector environment, wrappers included.
        """
        self.env = env
        self.workers = Workers(env.unwrapped)
        self._have: dict[str, bool] = {}
        self._known: dict[str, Sequence[Any]] = {}

    @property
    def local(self) -> Sequence[gym.Env[Any, Any]] | None:
        """The sub-environments, if they are in this process and known."""
        inner = self.env.unwrapped
        return cast(Any, inner).envs if isinstance(inner, SyncVectorEnv) else None

    def forget(self) -> None:
        """Ask anew for attributes: they may have changed by a reset."""
        self._have.clear()
        self._known.clear()

    def __getitem__(self, index: int) -> gym.Env[Any, Any]:
        """Return a sub-environment, or what stands in for it; it can be asked for attributes."""
        local = self.local
        if local is not None:
            return local[index]
        return cast("gym.Env[Any, Any]", _Remote(self, index))

    def example(self) -> gym.Env[Any, Any]:
        """Return what stands in for all of them; it has spaces, a render mode and attributes."""
        return cast("gym.Env[Any, Any]", _Remote(self, 0))

    def attribute(self, name: str) -> Sequence[Any] | None:
        """Return an attribute of every sub-environment, or None if one of them has none.

        Args:
            name: Name of a value; methods stay where they are.
        """
        if name not in self._known:
            if not self.have(name):
                return None
            self._known[name] = cast(Any, self.env.unwrapped).get_attr(name)
        return self._known[name]

    def have(self, name: str) -> bool:
        """Tell whether every sub-environment has an attribute or a method."""
        if name not in self._have:
            inner = self.env.unwrapped
            self._have[name] = isinstance(inner, SyncVectorEnv | AsyncVectorEnv) and all(
                inner.call("has_wrapper_attr", name)
            )
        return self._have[name]

    def observations(self, obs: Any) -> list[Any]:
        """Cut a batch of observations into those of the sub-environments; views, not copies."""
        return list(iterate(self.env.observation_space, obs))

    def kept(self, obs: Any, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
        """Copy the observations of some sub-environments out of a batch.

        Args:
            obs: The batch.
            mask: Which ones, ``(num_envs,) bool``.

        Returns:
            ``(num_envs,) object``, None where ``mask`` is False.
        """
        out = np.full(len(mask), None, object)
        for index, one in enumerate(self.observations(obs)):
            if mask[index]:
                out[index] = deepcopy(one)
        return out

    def frames(
        self, sources: Mapping[str, FrameSource], indices: Sequence[int], obs: Any
    ) -> dict[int, dict[str, Frame]]:
        """Take the current frames of some sub-environments.

        Args:
            sources: View name to source.
            indices: Which ones; nothing is drawn when there are none. Above an AsyncVectorEnv all
                workers draw when one has to.
            obs: The batch of observations that was just returned.

        Returns:
            Index to view name to picture, ``(height, width, 3) uint8``, not copied.

        Raises:
            FrameError: If ``render()`` returns None.
        """
        out: dict[int, dict[str, Frame]] = {index: {} for index in indices}
        if not out:
            return out
        for view, source in sources.items():
            pictures = self._pictures(source, indices, obs)
            for index in indices:
                out[index][view] = pictures[index]
        return out

    def observed(self, sources: Mapping[str, FrameSource], obs: object) -> dict[str, Frame]:
        """Take the frames that are in one sub-environment's observation.

        Args:
            sources: View name to source; all of them observation keys.
            obs: The observation.
        """
        return {view: source.frame(self.example(), obs) for view, source in sources.items()}

    def _pictures(self, source: FrameSource, indices: Sequence[int], obs: Any) -> Any:
        if isinstance(source, ObservationSource):
            return source.frame(self.example(), obs)
        local = self.local
        if local is not None:
            return {index: source.frame(local[index], obs) for index in indices}
        if isinstance(source, CameraSource):
            size = source.width, source.height
            return cast(Any, self.env.unwrapped).call("render_camera", source.name, *size)
        pictures = self.env.render()
        if pictures is None or any(picture is None for picture in pictures):
            raise FrameError(
                "`env.render()` must return a (height, width, 3) uint8 picture of every "
                'sub-environment, got None; make them with render_mode="rgb_array".'
            )
        return pictures


class _Remote:
    """Stands in for a sub-environment that lives in another process."""

    def __init__(self, envs: SubEnvs, index: int) -> None:
        self._envs = envs
        self._index = index
        self.observation_space = envs.env.single_observation_space
        self.render_mode = envs.env.render_mode

    @property
    def unwrapped(self) -> _Remote:
        return self

    def has_wrapper_attr(self, name: str) -> bool:
        return self._envs.have(name)

    def get_wrapper_attr(self, name: str) -> Any:
        found = self._envs.attribute(name)
        if found is None:
            raise AttributeError(f"the sub-environments have no attribute {name!r}")
        return found[self._index]

    def __str__(self) -> str:
        return f"a sub-environment of {self._envs.env}"
