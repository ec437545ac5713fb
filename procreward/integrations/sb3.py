"""Stable-Baselines3: one question to the reward model for all sub-environments of a ``VecEnv``.

* :func:`make_progress_vec_env` - sub-environments, reward and monitor in the right order.
* :class:`VecProgressReward` - the reward, as a ``VecEnvWrapper``.
* :class:`OnDemandReset` - what its sub-environments have to be wrapped in.
* :class:`DeferredRewards`, :class:`DeferredReplayBuffer`, :class:`DeferredDictReplayBuffer` - what
  a learner needs to be told its rewards later, with ``latency="deferred"``.
* :func:`check_learner`, :class:`LearnerCheck` - can the learner learn from this reward?

Needs ``pip install "procreward[sb3]"``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym

from procreward.config import RewardConfig
from procreward.deferred import Latency
from procreward.errors import ConfigError, UnsupportedEnvError, WorkerError
from procreward.integrations._sb3_base import OnDemandReset
from procreward.integrations._sb3_buffers import DeferredDictReplayBuffer, DeferredReplayBuffer
from procreward.integrations._sb3_deferred import DeferredRewards
from procreward.integrations._sb3_env import VecProgressReward

# Says how to install it where it is missing, so it comes after that.
from stable_baselines3.common.base_class import BaseAlgorithm  # isort: skip
from stable_baselines3.common.callbacks import BaseCallback  # isort: skip
from stable_baselines3.common.vec_env import (  # isort: skip
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecMonitor,
    unwrap_vec_wrapper,
)

__all__ = [
    "DeferredDictReplayBuffer",
    "DeferredReplayBuffer",
    "DeferredRewards",
    "LearnerCheck",
    "OnDemandReset",
    "VecProgressReward",
    "check_learner",
    "make_progress_vec_env",
]


def make_progress_vec_env(
    env_id: str | Callable[..., gym.Env[Any, Any]],
    n_envs: int = 1,
    *,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] = DummyVecEnv,
    vec_env_kwargs: Mapping[str, Any] | None = None,
    monitor_file: str | None = None,
    latency: Latency = "blocking",
    max_lag_steps: int | None = None,
    config: RewardConfig | None = None,
    **settings: Any,
) -> VecEnvWrapper:
    """Make sub-environments, reward them by progress and record their episodes.

    Args:
        env_id: What ``gym.make`` takes, or what returns an environment (with its TimeLimit).
        n_envs: Number of sub-environments.
        seed: Seed of the first one's first episode, counting up; None leaves them unseeded.
        env_kwargs: Arguments of ``gym.make``, such as ``max_episode_steps`` and ``render_mode``.
        vec_env_cls: ``DummyVecEnv`` (this process) or ``SubprocVecEnv`` (one process each; use it
            under ``if __name__ == "__main__":``).
        vec_env_kwargs: Its arguments, such as ``start_method``.
        monitor_file: Where VecMonitor writes its CSV, or None.
        latency: ``"blocking"``, or ``"deferred"`` for a learner with :class:`DeferredRewards`.
        max_lag_steps: With ``"deferred"``, steps after which a query must have been answered, at
            least 1; None for twice ``every_k_steps``.
        config: All reward settings as one object.
        settings: Reward settings by name, the keywords of
            :class:`~procreward.wrapper.ProgressReward`; they override ``config``.

    Returns:
        ``VecMonitor(VecProgressReward(venv))``: ``rollout/ep_rew_mean`` is our reward. With
        ``latency="deferred"`` without the VecMonitor, whose work :class:`DeferredRewards` does.

    Raises:
        ConfigError: If a ``monitor_file`` is given with ``latency="deferred"``.
        WorkerError: If a worker process died.
        ProcrewardError: As :class:`VecProgressReward` does; the sub-environments are closed then.
    """
    if latency == "deferred" and monitor_file is not None:
        raise ConfigError(
            '`monitor_file` must be None with latency="deferred", got '
            f"{monitor_file!r}: give it to DeferredRewards, which knows the rewards."
        )
    kwargs = dict(env_kwargs or {})
    makers: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(_make_env, env_id, kwargs, seed, index) for index in range(n_envs)
    ]
    try:
        venv = vec_env_cls(makers, **(vec_env_kwargs or {}))
    except (EOFError, ConnectionError) as error:
        raise WorkerError(
            f"A worker of {vec_env_cls.__name__} has died while it made its sub-environment; its "
            "traceback is above."
        ) from error
    try:
        rewarded = VecProgressReward(
            venv, latency=latency, max_lag_steps=max_lag_steps, config=config, **settings
        )
    except Exception:
        venv.close()
        raise
    if seed is not None:
        rewarded.seed(seed)
    return rewarded if latency == "deferred" else VecMonitor(rewarded, monitor_file)


def check_learner(model: BaseAlgorithm) -> None:
    """Warn if a learner and the reward of its environment do not go together.

    Potential-based shaping leaves the best policy as it is only for the discount that it was made
    with; the other shaping modes use none. And it has to guide towards some other reward, see
    :attr:`~procreward.config.RewardConfig.sets_a_task`.

    Args:
        model: A learner with an environment.

    Raises:
        UnsupportedEnvError: If there is no :class:`VecProgressReward` in its environment.
    """
    venv = model.get_env()
    found = None if venv is None else unwrap_vec_wrapper(venv, VecProgressReward)
    if not isinstance(found, VecProgressReward):
        raise UnsupportedEnvError(
            f"`model` must have an environment with a VecProgressReward, got {venv}; make it with "
            "make_progress_vec_env()."
        )
    learner, config = float(getattr(model, "gamma", 0.0)), found.config
    if config.shaping == "pbrs" and learner != config.gamma:
        warnings.warn(
            f"The learner's gamma is {learner:g} and the shaping's is {config.gamma:g}: shaping "
            "keeps the best policy only where they are equal. Set `gamma` of both to one number.",
            stacklevel=2,
        )
    if not config.sets_a_task:
        warnings.warn(
            f"Nothing is to be learned: by shaping {config.shaping!r} alone all policies are "
            "equally good. Set `success_bonus` or `env_reward_weight`, or use shaping='delta'.",
            stacklevel=2,
        )


class LearnerCheck(BaseCallback):
    """Calls :func:`check_learner` when training starts.

    ``model.learn(n, callback=LearnerCheck())``.
    """

    def _on_training_start(self) -> None:
        check_learner(self.model)

    def _on_step(self) -> bool:
        return True


def _make_env(
    env_id: str | Callable[..., gym.Env[Any, Any]],
    kwargs: dict[str, Any],
    seed: int | None,
    index: int,
) -> gym.Env[Any, Any]:
    env = gym.make(env_id, **kwargs) if isinstance(env_id, str) else env_id(**kwargs)
    if seed is not None:
        env.action_space.seed(seed + index)
    return OnDemandReset(env)
