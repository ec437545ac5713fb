"""Stable-Baselines3: one question to the reward model for all sub-environments of a ``VecEnv``.

* :func:`make_progress_vec_env` - sub-environments, reward and monitor in the right order.
* :class:`VecProgressReward` - the reward, as a ``VecEnvWrapper``.
* :class:`OnDemandReset` - what its sub-environments have to be wrapped in.
* :func:`check_gamma`, :class:`GammaCheck` - does the learner discount as the shaping does?

Needs ``pip install "procreward[sb3]"``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from procreward._stream_batch import Ask, StreamBatch, first_entries
from procreward.config import RewardConfig
from procreward.errors import UnsupportedEnvError
from procreward.instruction import InstructionSource, check_instruction
from procreward.integrations._sb3_base import OnDemandReset, SubEnvs, check_vec_env, row
from procreward.runner import QueryStats
from procreward.session import Outcome, StreamPlan
from procreward.views import plan_sources
from procreward.wrapping import INFO_KEY, info_entry, merge_settings, split_options, step_reward

# Says how to install it where it is missing, so it comes after that.
from stable_baselines3.common.base_class import BaseAlgorithm  # isort: skip
from stable_baselines3.common.callbacks import BaseCallback  # isort: skip
from stable_baselines3.common.vec_env import (  # isort: skip
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    unwrap_vec_wrapper,
)

__all__ = [
    "GammaCheck",
    "OnDemandReset",
    "VecProgressReward",
    "check_gamma",
    "make_progress_vec_env",
]

TRUNCATED = "TimeLimit.truncated"
TERMINAL_OBS = "terminal_observation"

VecStep = tuple[Any, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]


class VecProgressReward(VecEnvWrapper):
    """Replaces the rewards of a ``VecEnv`` as ``ProgressReward`` does a single environment's.

    Every sub-environment has an episode, a frame window and a potential of its own, and is paid
    step for step what :class:`~procreward.wrapper.ProgressReward` around it would pay; but the
    model is asked about all of them in one ``score`` call a step. (A second one is made in a step
    in which the model itself ends an episode, for the first frame of the next.) The model is in
    this process, and the sub-environments may be in others (``SubprocVecEnv``).

    The sub-environments must be wrapped in :class:`OnDemandReset`, which
    :func:`make_progress_vec_env` does. So frames can be drawn by any camera, the final frame is
    the old episode's, and ``on_complete="terminate"`` and ``"truncate"`` really end the
    sub-episode: it is reset, and its last observation is in ``info["terminal_observation"]``, with
    ``info["TimeLimit.truncated"]`` True only where it was cut off. Learners therefore bootstrap
    where they should.

    ``info["procreward"]`` is as :class:`~procreward.wrapper.ProgressReward` has it; that of the
    first observation is in ``reset_infos``. Rewards are float32, as everywhere in
    Stable-Baselines3.

    Put ``VecMonitor``, ``VecNormalize`` and ``VecFrameStack`` above it, in this order. A
    ``VecMonitor`` above it records our rewards; a ``Monitor`` in the sub-environments would record
    the environment's own, and is refused where the model ends episodes, since it would not notice.

    Example:
        >>> scorer = {"name": "scripted", "options": {"progress": [0.0, 0.25, 0.75, 1.0]}}
        >>> venv = make_progress_vec_env(
        ...     "procreward.envs:procreward/Toy-v0", 2, scorer=scorer, every_k_steps=1, gamma=1.0,
        ...     confirm_queries=1, on_complete="terminate",
        ... )
        >>> obs = venv.reset()
        >>> for _ in range(3):
        ...     obs, rewards, dones, infos = venv.step(np.zeros((2, 2), np.float32))
        ...     print(rewards, dones)
        [0.25 0.25] [False False]
        [0.5 0.5] [False False]
        [-0.75 -0.75] [ True  True]
        >>> infos[0]["procreward"]["progress"], infos[0]["terminal_observation"].shape
        (1.0, (4,))
        >>> infos[0]["episode"]["r"], infos[0]["episode"]["l"]
        (0.0, 3)
        >>> venv.close()

    Change logs:
     * v0.1.0 - Added
    """

    def __init__(
        self, venv: VecEnv, *, config: RewardConfig | None = None, **settings: Any
    ) -> None:
        """Check the settings and find the views and the scorers; build and load nothing.

        Args:
            venv: A ``DummyVecEnv`` or ``SubprocVecEnv`` of sub-environments in
                :class:`OnDemandReset`, without wrappers above it.
            config: All settings as one object.
            settings: Settings by name, the keywords of
                :class:`~procreward.wrapper.ProgressReward`; they override ``config``. An
                ``instruction`` that is a ``callable(env, obs, info)`` is given the
                sub-environment, or outside a DummyVecEnv what stands in for it
                (``has_wrapper_attr`` and ``get_wrapper_attr`` only).

        Raises:
            ConfigError: If a setting is out of range, or a Monitor would miss ends of episodes.
            UnknownNameError: If a setting, scorer, camera, key or attribute does not exist.
            UnsupportedEnvError: If ``venv`` cannot be wrapped, or cannot show the views.
            InstructionError: If the instruction is an empty sentence.
        """
        merged = merge_settings(config, settings)
        check_vec_env(venv, merged.on_complete)
        plan = StreamPlan.from_config(merged)
        envs, instruction = SubEnvs(venv), InstructionSource(merged.instruction)
        instruction.check(envs.example())
        sources = plan_sources(envs.example(), plan)
        super().__init__(venv)
        self._plan, self._envs = plan, envs
        self._instruction, self._sources = instruction, sources
        self._batch = StreamBatch(plan, venv.num_envs, fps=envs.fps)
        self._given: list[str | None] = [None] * venv.num_envs

    @property
    def config(self) -> RewardConfig:
        """The settings, keywords and config object merged."""
        return self._plan.config

    @property
    def instructions(self) -> tuple[str, ...]:
        """The running episodes' instructions, empty before the first reset."""
        return self._batch.instructions

    @property
    def stats(self) -> QueryStats:
        """How the queries of all sub-environments have gone so far; a snapshot."""
        return self._batch.runner.stats

    @property
    def outcomes(self) -> tuple[Outcome | None, ...]:
        """What the latest step or reset came to, verdicts included; None before the first reset.

        Of an episode that ended in a step it is that end.
        """
        return tuple(self._batch.outcomes)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Keep options for the next reset.

        Args:
            options: One for all sub-environments, or a list of one each; passed on without the
                entry ``"procreward"``, a mapping that may hold the episode's ``"instruction"``.

        Raises:
            ConfigError: If our entry is no mapping.
            UnknownNameError: If it holds an unknown name.
            InstructionError: If the instruction is empty.
        """
        each = options if isinstance(options, list) else [options or {}] * self.num_envs
        rest, given = [], []
        for one in each:
            theirs, own = split_options(one)
            rest.append(dict(theirs or {}))
            given.append(_given_instruction(own))
        self._given = given
        self.venv.set_options(rest)

    def reset(self) -> Any:
        """Reset all sub-environments and read the potentials of their first states.

        Returns:
            The batch of observations; the infos are in ``reset_infos``.

        Raises:
            InstructionError: If there is no instruction.
            FrameError: If a view shows no picture.
            ScorerError: If a scorer breaks its contract, or fails too often.
            ModelError: If a scorer cannot be loaded.
            WorkerError: If a worker process died.
        """
        with self._envs.watched():
            obs = self.venv.reset()
            self._batch.release(self._batch.streams)
            infos = list(self.venv.reset_infos)
            asks = self._begin(range(self.num_envs), obs, infos, self._given)
        self._given = [None] * self.num_envs
        outcomes = self._batch.settle(asks)
        self._batch.outcomes = list(outcomes)
        self._note_first(asks, outcomes)
        return obs

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Tell the sub-environments to step.

        Args:
            actions: Passed on.

        Raises:
            gymnasium.error.ResetNeeded: If there was no reset.
            WorkerError: If a worker process died.
        """
        if None in self._batch.streams:
            raise gym.error.ResetNeeded(
                "VecProgressReward.step() needs an episode in every sub-environment; call reset()."
            )
        with self._envs.watched():
            self.venv.step_async(actions)

    def step_wait(self) -> VecStep:
        """Wait for the step and replace its rewards.

        Returns:
            Observations, our rewards ``(num_envs,) float32``, dones ``(num_envs,) bool`` and a
            list of infos with our entry.

        Raises:
            FrameError: If a view shows no picture.
            ScorerError: If a scorer breaks its contract, or fails too often.
            WorkerError: If a worker process died.
        """
        with self._envs.watched():
            return self._step_wait()

    def close(self) -> None:
        """Close the environment. Scorers are shared and stay, but forget the episodes."""
        try:
            self._batch.release(self._batch.streams)
        finally:
            super().close()

    def _step_wait(self) -> VecStep:
        obs, _, given, theirs = self.venv.step_wait()
        infos = [dict(info) for info in theirs]
        env_rewards = [info.pop(INFO_KEY) for info in infos]
        ended = np.asarray(given, bool)
        asks = self._advance(obs, ended, np.array([info[TRUNCATED] for info in infos], bool))
        obs, started = self._start_anew(obs, ended)
        outcomes = self._batch.settle([*asks, *started])
        finals, firsts = outcomes[: len(asks)], outcomes[len(asks) :]
        self._batch.outcomes = list(finals)
        over = np.array([outcome.terminated or outcome.truncated for outcome in finals])
        rewards = np.zeros(self.num_envs, np.float32)
        weight = self._plan.config.env_reward_weight
        for index, (outcome, env_reward) in enumerate(zip(finals, env_rewards, strict=True)):
            rewards[index] = step_reward(outcome, env_reward, weight)
            infos[index][INFO_KEY] = info_entry(outcome, env_reward=env_reward)
            infos[index][TRUNCATED] = outcome.truncated and not outcome.terminated
        self._batch.release(ask.stream for ask in asks if over[ask.index])
        self._note_first(started, firsts)
        declared = over & ~ended
        for index in np.flatnonzero(declared).tolist():
            infos[index][TERMINAL_OBS] = deepcopy(row(obs, index))
        obs, started = self._start_anew(obs, declared)
        self._note_first(started, self._batch.settle(started))
        return obs, rewards, over, infos

    def _advance(
        self, obs: Any, ended: npt.NDArray[np.bool_], truncated: npt.NDArray[np.bool_]
    ) -> list[Ask]:
        """Go on with the episodes; those that have ended still show their last frame."""
        running = np.ones(self.num_envs, bool)
        wanted = self._batch.wanted(running, ended)
        frames = self._envs.frames(self._sources, wanted, obs)
        return self._batch.advance(
            running, frames, terminated=ended & ~truncated, truncated=truncated
        )

    def _start_anew(self, obs: Any, who: npt.NDArray[np.bool_]) -> tuple[Any, list[Ask]]:
        """Reset some sub-environments and begin their next episodes."""
        indices: list[int] = np.flatnonzero(who).tolist()
        if not indices:
            return obs, []
        obs, infos = self._envs.begin(indices, obs)
        return obs, self._begin(indices, obs, infos, [None] * len(indices))

    def _begin(
        self,
        indices: Sequence[int],
        obs: Any,
        infos: Sequence[dict[str, Any]],
        given: Sequence[str | None],
    ) -> list[Ask]:
        frames = self._envs.frames(self._sources, indices, obs)
        asks = []
        for index, info, instruction in zip(indices, infos, given, strict=True):
            self.reset_infos[index] = info
            found = instruction or self._instruction.read(self._envs[index], row(obs, index), info)
            asks.append(self._batch.begin(index, frames[index], found))
        return asks

    def _note_first(self, asks: Sequence[Ask], outcomes: Sequence[Outcome]) -> None:
        for index, entry in first_entries(asks, outcomes).items():
            self.reset_infos[index] = {**self.reset_infos[index], INFO_KEY: entry}


def make_progress_vec_env(
    env_id: str | Callable[..., gym.Env[Any, Any]],
    n_envs: int = 1,
    *,
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] = DummyVecEnv,
    vec_env_kwargs: Mapping[str, Any] | None = None,
    monitor_file: str | None = None,
    config: RewardConfig | None = None,
    **settings: Any,
) -> VecMonitor:
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
        config: All reward settings as one object.
        settings: Reward settings by name, the keywords of
            :class:`~procreward.wrapper.ProgressReward`; they override ``config``.

    Returns:
        ``VecMonitor(VecProgressReward(venv))``: ``rollout/ep_rew_mean`` is our reward.

    Raises:
        ProcrewardError: As :class:`VecProgressReward` does; the sub-environments are closed then.
    """
    kwargs = dict(env_kwargs or {})
    makers: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(_make_env, env_id, kwargs, seed, index) for index in range(n_envs)
    ]
    venv = vec_env_cls(makers, **(vec_env_kwargs or {}))
    try:
        rewarded = VecProgressReward(venv, config=config, **settings)
    except Exception:
        venv.close()
        raise
    if seed is not None:
        rewarded.seed(seed)
    return VecMonitor(rewarded, monitor_file)


def check_gamma(model: BaseAlgorithm) -> None:
    """Warn if a learner discounts otherwise than the shaping of its environment.

    Potential-based shaping leaves the best policy as it is only for the discount that it was made
    with. The other shaping modes use none.

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


class GammaCheck(BaseCallback):
    """Calls :func:`check_gamma` when training starts: ``model.learn(n, callback=GammaCheck())``."""

    def _on_training_start(self) -> None:
        check_gamma(self.model)

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


def _given_instruction(own: Mapping[str, Any]) -> str | None:
    if "instruction" not in own:
        return None
    return check_instruction(own["instruction"], "the reset option 'instruction'")
