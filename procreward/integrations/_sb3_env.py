"""The reward of :mod:`procreward.integrations.sb3`, as a ``VecEnvWrapper``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from procreward._stream_batch import Ask, BatchRewarded, StreamBatch, first_entries
from procreward.config import RewardConfig
from procreward.deferred import Latency, LateReward, lag_steps
from procreward.errors import ConfigError
from procreward.instruction import InstructionSource, check_instruction
from procreward.integrations._sb3_base import SubEnvs, check_vec_env, row
from procreward.session import Outcome, StreamPlan
from procreward.views import plan_sources
from procreward.wrapping import INFO_KEY, info_entry, merge_settings, split_options, step_reward

__all__ = ["VecProgressReward"]

TRUNCATED = "TimeLimit.truncated"
TERMINAL_OBS = "terminal_observation"
MONITOR = "episode"
SUCCESS = "success"
IS_SUCCESS = "is_success"

VecStep = tuple[Any, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]


class VecProgressReward(BatchRewarded, VecEnvWrapper):
    """Replaces the rewards of a ``VecEnv`` as ``ProgressReward`` does a single environment's.

    Every sub-environment has an episode, a frame window and a potential of its own, and is paid
    step for step what :class:`~procreward.wrapper.ProgressReward` around it would pay; but the
    model is asked about all of them in one ``score`` call a step. (A second one is made in a step
    in which the model itself ends an episode, for the first frame of the next.) The model is in
    this process, and the sub-environments may be in others (``SubprocVecEnv``).

    The sub-environments must be wrapped in
    :class:`~procreward.integrations.sb3.OnDemandReset`, which
    :func:`~procreward.integrations.sb3.make_progress_vec_env` does. So frames can be drawn by any
    camera, the final frame is the old episode's, and ``on_complete="terminate"`` and ``"truncate"``
    really end the sub-episode: it is reset, and its last observation is in
    ``info["terminal_observation"]``, with ``info["TimeLimit.truncated"]`` True only where it was
    cut off. Learners therefore bootstrap where they should.

    ``info["procreward"]`` is as :class:`~procreward.wrapper.ProgressReward` has it; that of the
    first observation is in ``reset_infos``. Rewards are float32, as everywhere in
    Stable-Baselines3.

    Put ``VecMonitor``, ``VecNormalize`` and ``VecFrameStack`` above it, in this order. A
    ``VecMonitor`` above it records our rewards; a ``Monitor`` in the sub-environments would record
    the environment's own, and is refused where the model ends episodes, since it would not notice.

    Where sub-environments tell ``info["success"]``, ``info["is_success"]`` is added at an episode's
    end: whether there was success at any step of it. Stable-Baselines3 logs it as
    ``rollout/success_rate``.

    **Latency.** With ``latency="deferred"`` the models are asked on a thread of their own while the
    sub-environments and the learner go on: see
    :class:`~procreward.vector.VectorProgressReward`, what it says about latency holds here too.
    Rewards are 0.0 then and mean nothing; what was paid is told by :meth:`collect`. The callback
    :class:`~procreward.integrations.sb3.DeferredRewards` does that for learners; without it
    stepping is refused, so that nobody learns from zeros. No ``VecMonitor`` and no ``VecNormalize``
    of rewards may be above.

    Example:
        >>> from procreward.integrations.sb3 import make_progress_vec_env
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
        self,
        venv: VecEnv,
        *,
        latency: Latency = "blocking",
        max_lag_steps: int | None = None,
        config: RewardConfig | None = None,
        **settings: Any,
    ) -> None:
        """Check the settings and find the views and the scorers; build and load nothing.

        Args:
            venv: A ``DummyVecEnv`` or ``SubprocVecEnv`` of sub-environments in
                :class:`~procreward.integrations.sb3.OnDemandReset`, without wrappers above it.
            latency: ``"blocking"``, or ``"deferred"`` to be told rewards by :meth:`collect`.
            max_lag_steps: With ``"deferred"``, steps after which a query must have been answered,
                at least 1; None for twice ``every_k_steps``.
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
            WorkerError: If a worker process died.
        """
        merged = merge_settings(config, settings)
        envs, instruction = SubEnvs(venv), InstructionSource(merged.instruction)
        with envs.workers.watched():
            check_vec_env(venv, merged.on_complete)
            max_lag = lag_steps(latency, max_lag_steps, merged)
            plan = StreamPlan.from_config(merged)
            instruction.check(envs.example())
            sources = plan_sources(envs.example(), plan)
        super().__init__(venv)
        self._plan, self._envs = plan, envs
        self._instruction, self._sources = instruction, sources
        self._batch = StreamBatch(plan, venv.num_envs, fps=envs.fps, max_lag_steps=max_lag)
        self._attached = False
        self._succeeded: list[bool | None] = [None] * venv.num_envs
        self._given: list[str | None] = [None] * venv.num_envs

    @property
    def num_steps(self) -> int:
        """Calls of :meth:`step_wait` so far that are paid later; 0 when blocking."""
        return self._batch.num_steps

    @property
    def outcomes(self) -> tuple[Outcome | None, ...]:
        """What the latest step or reset came to, verdicts included; None before the first reset.

        Of an episode that ended in a step it is that end. With ``latency="deferred"`` it is as of
        the latest answer and not paid.
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
        # Training that an exception has ended takes nothing back, and this begins other training.
        self._attached = False
        with self._envs.workers.watched():
            obs = self.venv.reset()
            self._batch.release(self._batch.streams)
            infos = list(self.venv.reset_infos)
            asks = self._begin(range(self.num_envs), obs, infos, self._given)
        self._given = [None] * self.num_envs
        outcomes = self._batch.settle(asks)
        self._batch.outcomes = list(outcomes)
        self._note_first(asks, outcomes)
        self._succeeded = [None] * self.num_envs
        return obs

    def attach(self) -> None:
        """Allow stepping with ``latency="deferred"``: the caller sees to :meth:`collect`.

        Until :meth:`detach` or the next :meth:`reset`.
        """
        self._attached = True

    def detach(self) -> None:
        """Take back :meth:`attach`."""
        self._attached = False

    def collect(self, *, wait: bool = False) -> list[LateReward]:
        """Tell what steps have paid, each once; for ``latency="deferred"``.

        Args:
            wait: Whether to wait for all that is outstanding, so that nothing is pending.

        Returns:
            What has become known since the last call, in order of ``step`` and then ``index``, and
            so over all calls. Rewards are not rounded to float32. Nothing when blocking.

        Raises:
            ScorerError: If a scorer broke its contract, or failed too often.
            ModelError: If a scorer could not be loaded.
        """
        return self._batch.collect(wait=wait)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Tell the sub-environments to step.

        Args:
            actions: Passed on.

        Raises:
            ConfigError: If rewards are deferred and nobody is attached who would collect them.
            gymnasium.error.ResetNeeded: If there was no reset.
            ScorerError: If rewards are deferred and a scorer broke its contract, or failed too
                often.
            WorkerError: If a worker process died.
        """
        if self._batch.max_lag_steps is not None and not self._attached:
            raise ConfigError(
                '`latency` must be "blocking" where nobody is told the rewards later, got '
                '"deferred": call learn(..., callback=DeferredRewards()).'
            )
        self._batch.settle_ready()
        if None in self._batch.streams:
            raise gym.error.ResetNeeded(
                "VecProgressReward.step() needs an episode in every sub-environment; call reset()."
            )
        with self._envs.workers.watched():
            self.venv.step_async(actions)

    def step_wait(self) -> VecStep:
        """Wait for the step and replace its rewards.

        Returns:
            Observations, our rewards ``(num_envs,) float32`` (0.0 with ``latency="deferred"``),
            dones ``(num_envs,) bool`` and a list of infos with our entry.

        Raises:
            FrameError: If a view shows no picture.
            ScorerError: If a scorer breaks its contract, or fails too often.
            WorkerError: If a worker process died.
        """
        with self._envs.workers.watched():
            return self._step_wait()

    def close(self) -> None:
        """Close the environment. Scorers are shared and stay, but forget the episodes.

        Rewards that were not collected are dropped. A model that is being asked is waited for, for
        a few seconds at most. Worker processes are ended without being asked where one has died or
        Ctrl-C has interrupted a step.
        """
        try:
            self._batch.close()
        finally:
            self._envs.workers.end_if_lost()
            super().close()

    def _step_wait(self) -> VecStep:
        obs, _, given, theirs = self.venv.step_wait()
        infos = [dict(info) for info in theirs]
        env_rewards = [info.pop(INFO_KEY) for info in infos]
        ended = np.asarray(given, bool)
        truncated = np.array([info[TRUNCATED] for info in infos], bool)
        stopped, cut_off = self._batch.ends(np.ones(self.num_envs, bool))
        known = ended | stopped | cut_off
        asks = self._advance(obs, (ended & ~truncated) | stopped, truncated | cut_off)
        obs, started = self._start_anew(obs, infos, known, ended)
        paid = dict(enumerate(env_rewards))
        outcomes = self._batch.settle(asks, started, paid)
        finals, firsts = outcomes[: len(asks)], outcomes[len(asks) :]
        self._batch.outcomes = list(finals)
        rewards, over = self._take(finals, env_rewards, infos)
        self._batch.release(ask.stream for ask in asks if over[ask.index])
        self._note_first(started, firsts)
        obs, started = self._start_anew(obs, infos, over & ~known, ended)
        self._note_first(started, self._batch.settle(started))
        return obs, rewards, over, infos

    def _take(
        self, outcomes: Sequence[Outcome], env_rewards: Sequence[float], infos: list[dict[str, Any]]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Pay the steps; write into ``infos`` what they came to and how they ended."""
        rewards, over = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        deferred = self._batch.max_lag_steps is not None
        weight = self._plan.config.env_reward_weight
        for index, (outcome, env_reward) in enumerate(zip(outcomes, env_rewards, strict=True)):
            info = infos[index]
            if deferred:
                # A Monitor's below; ours is told later, and they are not to be mixed.
                info.pop(MONITOR, None)
            else:
                rewards[index] = step_reward(outcome, env_reward, weight)
            over[index] = outcome.terminated or outcome.truncated
            info[INFO_KEY] = info_entry(outcome, env_reward=env_reward)
            info[TRUNCATED] = outcome.truncated and not outcome.terminated
            self._note_success(index, info, over=bool(over[index]))
        return rewards, over

    def _note_success(self, index: int, info: dict[str, Any], *, over: bool) -> None:
        if SUCCESS in info:
            self._succeeded[index] = bool(info[SUCCESS]) or bool(self._succeeded[index])
        if over:
            succeeded, self._succeeded[index] = self._succeeded[index], None
            if succeeded is not None:
                info.setdefault(IS_SUCCESS, succeeded)

    def _advance(
        self, obs: Any, terminated: npt.NDArray[np.bool_], truncated: npt.NDArray[np.bool_]
    ) -> list[Ask]:
        """Go on with the episodes; those that have ended still show their last frame."""
        running = np.ones(self.num_envs, bool)
        wanted = self._batch.wanted(running, terminated | truncated)
        frames = self._envs.frames(self._sources, wanted, obs)
        return self._batch.advance(running, frames, terminated=terminated, truncated=truncated)

    def _start_anew(
        self,
        obs: Any,
        infos: list[dict[str, Any]],
        who: npt.NDArray[np.bool_],
        ended: npt.NDArray[np.bool_],
    ) -> tuple[Any, list[Ask]]:
        """Reset some sub-environments and begin their next episodes.

        Of those that have not ended by themselves the last observation is kept.
        """
        indices: list[int] = np.flatnonzero(who).tolist()
        if not indices:
            return obs, []
        for index in np.flatnonzero(who & ~ended).tolist():
            infos[index][TERMINAL_OBS] = deepcopy(row(obs, index))
        obs, firsts = self._envs.begin(indices, obs)
        return obs, self._begin(indices, obs, firsts, [None] * len(indices))

    def _begin(
        self,
        indices: Sequence[int],
        obs: Any,
        infos: Sequence[dict[str, Any]],
        given: Sequence[str | None],
    ) -> list[Ask]:
        frames = self._envs.frames(self._sources, indices, obs)
        self._envs.ask_together(indices)
        asks = []
        for index, info, instruction in zip(indices, infos, given, strict=True):
            self.reset_infos[index] = info
            found = instruction or self._instruction.read(self._envs[index], row(obs, index), info)
            asks.append(self._batch.begin(index, frames[index], found))
        return asks

    def _note_first(self, asks: Sequence[Ask], outcomes: Sequence[Outcome]) -> None:
        for index, entry in first_entries(asks, outcomes).items():
            self.reset_infos[index] = {**self.reset_infos[index], INFO_KEY: entry}


def _given_instruction(own: Mapping[str, Any]) -> str | None:
    if "instruction" not in own:
        return None
    return check_instruction(own["instruction"], "the reset option 'instruction'")
