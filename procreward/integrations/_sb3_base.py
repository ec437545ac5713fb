"""What lies under :class:`procreward.integrations.sb3.VecProgressReward`.

* :class:`OnDemandReset` - sits in every sub-environment and waits with the reset until it is told.
* :func:`check_vec_env` - a refusal of what cannot be wrapped.
* :class:`SubEnvs` - resets, attributes and pictures of single sub-environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar, cast

import gymnasium as gym

from procreward._vector_workers import Workers
from procreward.config import CompleteMode
from procreward.errors import (
    ConfigError,
    MissingDependencyError,
    UnsupportedEnvError,
)
from procreward.sources import FrameSource, ObservationSource
from procreward.types import Frame
from procreward.wrapping import INFO_KEY, render_fps

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
except ImportError as error:
    raise MissingDependencyError(
        "procreward.integrations.sb3 needs Stable-Baselines3, which could not be imported "
        f"({error}). Run `pip install 'procreward[sb3]'`."
    ) from error

__all__ = ["OnDemandReset", "SubEnvs", "check_vec_env", "put_row", "row"]

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")

HOW = (
    "make it with make_progress_vec_env(ENV_ID, n_envs), or put OnDemandReset around every "
    "sub-environment, outermost: make_vec_env(..., wrapper_class=OnDemandReset)"
)


class OnDemandReset(gym.Wrapper[ObsType, ActType, ObsType, ActType]):
    """Waits with the reset at the end of an episode until it is told.

    A VecEnv of Stable-Baselines3 resets a sub-environment in the step in which its episode ends.
    Around a sub-environment, as the outermost wrapper, this takes that one call and does nothing,
    so that the last picture can still be drawn; :meth:`begin_episode` resets, also where the
    VecEnv knows of no end. Only for use under
    :class:`~procreward.integrations.sb3.VecProgressReward`.
    """

    def __init__(self, env: gym.Env[ObsType, ActType]) -> None:
        """Wrap a sub-environment.

        Args:
            env: The sub-environment, TimeLimit and all other wrappers included.
        """
        super().__init__(env)
        self.outermost = False
        self._last: tuple[ObsType] | None = None
        self._waits = False

    def is_outermost(self) -> bool:
        """Tell whether ``set_attr("outermost", True)`` of a VecEnv has reached this wrapper."""
        return self.outermost

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Reset, but not in the step that has ended an episode.

        Args:
            seed: Passed on.
            options: Passed on.

        Returns:
            What the environment returns; in a step that has ended an episode its last observation.
        """
        if self._last is not None:
            (obs,) = self._last
            self._last, self._waits = None, True
            return obs, {}
        self._waits = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: ActType) -> tuple[ObsType, Any, bool, bool, dict[str, Any]]:
        """Step, and note the reward as it is: a VecEnv rounds it to float32.

        Args:
            action: Passed on.

        Raises:
            gymnasium.error.ResetNeeded: If :meth:`begin_episode` was not called.
        """
        if self._waits:
            raise gym.error.ResetNeeded(
                "OnDemandReset.step() needs an episode: call begin_episode(). It is meant for use "
                "under VecProgressReward only."
            )
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._last = (obs,) if terminated or truncated else None
        return obs, reward, terminated, truncated, {**info, INFO_KEY: float(reward)}

    def begin_episode(self) -> tuple[ObsType, dict[str, Any]]:
        """Reset now."""
        self._last, self._waits = None, False
        return self.env.reset()

    def draw(self, sources: Mapping[str, FrameSource]) -> dict[str, Frame]:
        """Draw the current pictures, ``(height, width, 3) uint8``.

        Args:
            sources: View name to source; none of them an observation key.
        """
        return {view: source.frame(self.env, None) for view, source in sources.items()}


def check_vec_env(venv: object, on_complete: CompleteMode) -> None:
    """Refuse what cannot be wrapped.

    Args:
        venv: What should be a VecEnv.
        on_complete: What completion does to an episode.

    Raises:
        UnsupportedEnvError: If it is none, a wrapper, without :class:`OnDemandReset`, or has
            dictionary actions.
        ConfigError: If a Monitor would miss the ends that the model declares.
    """
    if not isinstance(venv, VecEnv):
        raise UnsupportedEnvError(
            f"`venv` must be a VecEnv of Stable-Baselines3, got {type(venv).__name__}; {HOW}. "
            "For Gymnasium's vector environments there is VectorProgressReward."
        )
    if isinstance(venv, VecEnvWrapper):
        raise UnsupportedEnvError(
            f"`venv` must be a VecEnv without wrappers, got {type(venv).__name__}: it would miss "
            "resets. Put VecMonitor, VecNormalize and VecFrameStack above VecProgressReward."
        )
    if isinstance(venv.action_space, gym.spaces.Dict):
        raise UnsupportedEnvError(
            f"`venv.action_space` must be one that Stable-Baselines3 can act in, got "
            f"{venv.action_space}; flatten it in the sub-environments."
        )
    if not all(venv.env_is_wrapped(OnDemandReset)):
        raise UnsupportedEnvError(
            "`venv` must have OnDemandReset in every sub-environment, got "
            f"{type(venv).__name__} without: it resets in the step in which an episode ends, when "
            "the last picture can no longer be drawn, and the model could end no episode. Do "
            f"this: {HOW}."
        )
    # Set where the VecEnv reaches in, read where the wrapper is.
    venv.set_attr("outermost", True)
    if not all(venv.env_method("is_outermost")):
        raise UnsupportedEnvError(
            "`venv` must have OnDemandReset as the outermost wrapper of its sub-environments, got "
            f"others above it, which would miss resets. Do this: {HOW}."
        )
    if on_complete != "info" and any(venv.env_is_wrapped(Monitor)):
        raise ConfigError(
            f"`on_complete` must be 'info' above sub-environments with a Monitor, got "
            f"{on_complete!r}: it would not see the end of episodes that the model ends. Leave it "
            "out (as make_progress_vec_env does) and put VecMonitor above VecProgressReward."
        )


def row(obs: Any, index: int) -> Any:
    """Return one sub-environment's part of a batch of observations, not copied."""
    if isinstance(obs, dict):
        return {key: value[index] for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(value[index] for value in obs)
    return obs[index]


def put_row(obs: Any, index: int, one: Any) -> None:
    """Write one sub-environment's observation into a batch, in place."""
    if isinstance(obs, dict):
        for key, value in obs.items():
            value[index] = one[key]
    elif isinstance(obs, tuple):
        for value, part in zip(obs, one, strict=True):
            value[index] = part
    else:
        obs[index] = one


class SubEnvs:
    """Reaches the sub-environments of a VecEnv one by one, where they live.

    Attributes:
        venv: The VecEnv.
        workers: The processes that they live in, if they do.
    """

    def __init__(self, venv: VecEnv) -> None:
        """Keep the environment.

        Args:
            venv: As :func:`check_vec_env` accepts it.
        """
        self.venv = venv
        self.workers = Workers(venv)
        self._together: list[int] = []
        self._have: dict[str, dict[int, bool]] = {}
        self._values: dict[str, dict[int, Any]] = {}

    @property
    def fps(self) -> float | None:
        """Steps per second, or None when unknown."""
        return render_fps(self.venv.get_attr("metadata", [0])[0])

    def __getitem__(self, index: int) -> gym.Env[Any, Any]:
        """Return a sub-environment, or what stands in for it; it can be asked for attributes."""
        if isinstance(self.venv, DummyVecEnv):
            return self.venv.envs[index]
        return cast("gym.Env[Any, Any]", _Remote(self, index))

    def example(self) -> gym.Env[Any, Any]:
        """Return what stands in for all of them; it has spaces, a render mode and attributes."""
        return cast("gym.Env[Any, Any]", _Remote(self, 0))

    def ask_together(self, indices: Sequence[int]) -> None:
        """Ask some sub-environments at once for an attribute that one of them is asked for.

        Args:
            indices: Which ones; until the next call. What was known of attributes is forgotten.
        """
        self._together = list(indices)
        self._have.clear()
        self._values.clear()

    def have(self, name: str, index: int) -> bool:
        """Tell whether a sub-environment has an attribute or a method."""
        known = self._have.setdefault(name, {})
        if index not in known:
            indices = self._asked_with(index)
            found = self.venv.env_method("has_wrapper_attr", name, indices=indices)
            known.update(zip(indices, map(bool, found), strict=True))
        return known[index]

    def attribute(self, name: str, index: int) -> Any:
        """Return an attribute of a sub-environment.

        Raises:
            AttributeError: If it has none of that name.
        """
        known = self._values.setdefault(name, {})
        if index not in known:
            indices = [one for one in self._asked_with(index) if self.have(name, one)]
            if index not in indices:
                raise AttributeError(f"sub-environment {index} has no attribute {name!r}")
            known.update(zip(indices, self.venv.get_attr(name, indices), strict=True))
        return known[index]

    def _asked_with(self, index: int) -> list[int]:
        return self._together if index in self._together else [index]

    def begin(self, indices: Sequence[int], obs: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Reset some sub-environments.

        Args:
            indices: Which ones, at least one.
            obs: The batch of observations; not changed.

        Returns:
            The batch with their first observations, and their infos in the order of ``indices``.
        """
        obs = deepcopy(obs)
        infos = []
        begun = self.venv.env_method("begin_episode", indices=list(indices))
        for index, (one, info) in zip(indices, begun, strict=True):
            put_row(obs, index, one)
            infos.append(info)
        return obs, infos

    def frames(
        self, sources: Mapping[str, FrameSource], indices: Sequence[int], obs: Any
    ) -> dict[int, dict[str, Frame]]:
        """Take the current frames of some sub-environments.

        Args:
            sources: View name to source.
            indices: Which ones; nothing is drawn elsewhere.
            obs: The batch of observations that was just returned.

        Returns:
            Index to view name to picture, ``(height, width, 3) uint8``, not copied.
        """
        drawn = {
            view: source
            for view, source in sources.items()
            if not isinstance(source, ObservationSource)
        }
        pictures: list[dict[str, Frame]] = [{} for _ in indices]
        if drawn and indices:
            pictures = self.venv.env_method("draw", drawn, indices=list(indices))
        example = self.example()
        return {
            index: {
                view: got[view] if view in drawn else source.frame(example, row(obs, index))
                for view, source in sources.items()
            }
            for index, got in zip(indices, pictures, strict=True)
        }


class _Remote:
    """Stands in for a sub-environment that lives behind a VecEnv."""

    def __init__(self, envs: SubEnvs, index: int) -> None:
        self._envs, self._index = envs, index
        self.observation_space = envs.venv.observation_space
        self.render_mode = envs.venv.render_mode

    @property
    def unwrapped(self) -> _Remote:
        return self

    def has_wrapper_attr(self, name: str) -> bool:
        return self._envs.have(name, self._index)

    def get_wrapper_attr(self, name: str) -> Any:
        return self._envs.attribute(name, self._index)

    def __str__(self) -> str:
        return f"a sub-environment of {type(self._envs.venv).__name__}"
