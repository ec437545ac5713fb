"""The environments of a run: those that are learned in, and the one for evaluations.

* :func:`make_eval_env` - one environment, without reward model.
* :func:`build_venv` - the sub-environments, their reward, the monitor and the normalisation.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from procreward.environments import make_env
from procreward.errors import ConfigError
from procreward.training.config import TrainConfig

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    from procreward.integrations.sb3 import VecProgressReward

__all__ = ["build_venv", "find_normalise", "find_reward", "make_eval_env"]


def make_eval_env(config: TrainConfig) -> gym.Env[Any, Any]:
    """Make an environment as the learner's are, without reward model.

    Args:
        config: The settings.

    Raises:
        ConfigError: If ``env_kwargs`` are not what it takes.
        UnknownNameError: If there is no such environment.
        MissingDependencyError: If its package is not installed.
        UnsupportedEnvError: If it cannot be made.
    """
    return make_env(config.env, env_kwargs=config.env_kwargs)


@dataclass(frozen=True, slots=True)
class _SubEnv:
    """Makes a sub-environment where it is to live."""

    env_id: str

    def __call__(self, **kwargs: Any) -> gym.Env[Any, Any]:
        if parent_process() is not None:
            # A terminal interrupts the workers too, which would take them from under the learner
            # before it has saved anything. They end with the process that started them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return make_env(self.env_id, env_kwargs=kwargs)


def build_venv(
    config: TrainConfig, *, monitor: Path | None = None, normalisation: Path | None = None
) -> VecEnv:
    """Build what the learner acts in.

    From the inside out: sub-environments, reward by the model, monitor, normalised observations.
    With ``latency: deferred`` there is no monitor, whose work ``DeferredRewards`` does.

    Args:
        config: The settings.
        monitor: CSV file that the monitor writes, its name ending in ``monitor.csv``, or None.
        normalisation: File of an earlier run's statistics to go on with, or None to begin anew.

    Raises:
        ProcrewardError: As :class:`~procreward.integrations.sb3.VecProgressReward` does.
    """
    from stable_baselines3.common.vec_env import (
        DummyVecEnv,
        SubprocVecEnv,
        VecNormalize,
        VecTransposeImage,
    )

    from procreward.integrations.sb3 import make_progress_vec_env

    deferred = config.latency == "deferred"
    venv: VecEnv = make_progress_vec_env(
        _SubEnv(config.env),
        config.num_envs,
        seed=config.seed,
        env_kwargs=config.env_kwargs,
        vec_env_cls=SubprocVecEnv if config.workers else DummyVecEnv,
        monitor_file=None if monitor is None or deferred else str(monitor),
        latency="deferred" if deferred else "blocking",
        max_lag_steps=config.max_lag_steps,
        config=config.reward,
    )
    if not config.normalise_obs:
        return venv
    space = venv.observation_space
    names = _numbers(space)
    try:
        if isinstance(space, gym.spaces.Dict) and len(names or ()) < len(space.spaces):
            # The learner would put it above, and its replay buffer take what comes from below.
            venv = VecTransposeImage(venv)
        if normalisation is not None:
            return VecNormalize.load(str(normalisation), venv)
        # A normalised reward would be no shaping any more.
        return VecNormalize(venv, norm_reward=False, norm_obs_keys=names, gamma=config.reward.gamma)
    except (AssertionError, ValueError) as error:
        venv.close()
        raise ConfigError(
            f"`normalise_obs` must be false for observations {venv.observation_space}, got true: "
            f"{error}."
        ) from error


def _numbers(space: gym.Space[Any]) -> list[str] | None:
    """What to normalise in dictionary observations: all but pictures, which go to convolutions."""
    from stable_baselines3.common.preprocessing import is_image_space

    if not isinstance(space, gym.spaces.Dict):
        return None
    return [name for name, part in space.spaces.items() if not is_image_space(part)]


def find_reward(venv: VecEnv) -> VecProgressReward:
    """Return the reward in the stack of :func:`build_venv`."""
    from stable_baselines3.common.vec_env import unwrap_vec_wrapper

    from procreward.integrations.sb3 import VecProgressReward

    found = unwrap_vec_wrapper(venv, VecProgressReward)
    assert isinstance(found, VecProgressReward)
    return found


def find_normalise(venv: VecEnv) -> VecNormalize | None:
    """Return the normalisation in the stack of :func:`build_venv`, or None."""
    from stable_baselines3.common.vec_env import unwrap_vec_normalize

    return unwrap_vec_normalize(venv)
