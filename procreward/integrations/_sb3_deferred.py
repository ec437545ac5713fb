"""The callback that tells learners of Stable-Baselines3 their rewards later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from stable_baselines3.her import HerReplayBuffer

from procreward.deferred import LateReward
from procreward.errors import ConfigError, UnsupportedEnvError
from procreward.integrations._sb3_buffers import DeferredReplayBuffer
from procreward.integrations._sb3_env import VecProgressReward

__all__ = ["DeferredRewards"]


class DeferredRewards(BaseCallback):
    """Fills in the rewards of ``latency="deferred"`` before a learner reads them.

    **On-policy** (PPO, A2C): at the end of a rollout all outstanding answers are waited for, the
    rewards are added into the rollout buffer, where bootstrap values may be already, and returns
    and advantages are computed again. The learner ends up with the same numbers as with
    ``latency="blocking"``, bit for bit.

    **Off-policy** (SAC, TD3, DQN), with ``replay_buffer_class=DeferredReplayBuffer``: transitions
    enter the replay buffer ``max_lag_steps`` steps late, when all that they depend on is known. So
    no update ever samples a placeholder, and what it samples from does not depend on how fast the
    model answered. With ``flush_rollouts=True`` answers are waited for at the end of every rollout
    (``train_freq`` steps), and updates sample just what those of a blocking run do; the trained
    policy is then the same, bit for bit. That is worth it where a rollout is many steps. Without
    it updates see the newest ``max_lag_steps`` steps later than in a blocking run, and the policies
    differ.

    It does the work of ``VecMonitor``: ``rollout/ep_rew_mean`` is our reward, and ``monitor_file``
    is written as VecMonitor writes it. Put it before other callbacks that look at rewards. Above an
    environment with ``latency="blocking"`` it does nothing.

    Not for ``HerReplayBuffer``, which makes up rewards of its own.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from procreward.integrations.sb3 import make_progress_vec_env
        >>> scorer = {"name": "scripted", "options": {"progress": [0.0, 0.5]}}
        >>> venv = make_progress_vec_env(
        ...     "procreward.envs:procreward/Toy-v0", 2, env_kwargs={"max_episode_steps": 8},
        ...     scorer=scorer, latency="deferred",
        ... )
        >>> model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
        >>> model = model.learn(16, callback=DeferredRewards())
        >>> [round(float(episode["r"]), 3) for episode in model.ep_info_buffer]
        [0.495, 0.495]
        >>> venv.close()
    """

    def __init__(
        self,
        *,
        monitor_file: str | None = None,
        flush_rollouts: bool = False,
        verbose: int = 0,
    ) -> None:
        """Keep the settings.

        Args:
            monitor_file: Where episodes are recorded as CSV, or None. Its name ends in
                ``monitor.csv``, or is made to.
            flush_rollouts: Whether an off-policy learner waits for all answers at the end of every
                rollout. On-policy ones always do.
            verbose: As in other callbacks.
        """
        super().__init__(verbose)
        self.flush_rollouts = flush_rollouts
        self._venv: VecProgressReward | None = None
        self._replay: DeferredReplayBuffer | None = None
        self._rows: dict[int, int] = {}
        self._late: list[LateReward] = []
        self._episodes = _Episodes(monitor_file)

    def _on_training_start(self) -> None:
        """Look at the learner and its environment, and refuse what cannot be right.

        Raises:
            UnsupportedEnvError: If there is no VecProgressReward.
            ConfigError: If rewards would be read before they are told.
        """
        venv = _rewarded(self.model)
        if venv.latency == "blocking":
            self._episodes.refuse_file()
            return
        _check_above(self.model.get_env())
        self._replay = _checked_replay(self.model)
        # What was outstanding before is of no learner's interest.
        venv.collect(wait=True)
        if self._replay is not None:
            self._replay.hold()
        self._episodes.start(venv.num_envs, anew=bool(self.locals.get("reset_num_timesteps", True)))
        self._rows, self._late = {}, []
        self._venv = venv
        venv.attach()

    def _on_rollout_start(self) -> None:
        self._rows, self._late = {}, []

    def _on_step(self) -> bool:
        if self._venv is None:
            return True
        step = self._venv.num_steps - 1
        self._episodes.step(step, self.locals["dones"])
        if self._replay is None:
            # Where the step will be put after this call.
            self._rows[step] = cast(OnPolicyAlgorithm, self.model).rollout_buffer.pos
        else:
            self._replay.expect(step)
        self._take(self._venv.collect())
        if self._replay is not None:
            self._replay.admit(step - cast(int, self._venv.max_lag_steps))
        return True

    def _on_rollout_end(self) -> None:
        if self._venv is None:
            return
        if self._replay is None:
            self._take(self._venv.collect(wait=True))
            self._fill_in(cast(OnPolicyAlgorithm, self.model))
        elif self.flush_rollouts or not self._replay.size():
            # From an empty buffer nothing can be sampled.
            self._flush(self._venv, self._replay)

    def _on_training_end(self) -> None:
        if self._venv is None:
            return
        if self._replay is None:
            self._take(self._venv.collect(wait=True))
        else:
            self._flush(self._venv, self._replay)
            self._replay.let_go()
        self._episodes.close()
        self._venv.detach()
        self._venv = None

    def _take(self, late: Sequence[LateReward]) -> None:
        for one in late:
            if self._replay is None:
                self._late.append(one)
            else:
                self._replay.pay(one)
        episodes = self._episodes.pay(late)
        assert self.model.ep_info_buffer is not None  # made before training starts
        self.model.ep_info_buffer.extend(episodes)

    def _flush(self, venv: VecProgressReward, replay: DeferredReplayBuffer) -> None:
        self._take(venv.collect(wait=True))
        replay.admit(venv.num_steps - 1)

    def _fill_in(self, model: OnPolicyAlgorithm) -> None:
        buffer = model.rollout_buffer
        for late in self._late:
            if late.step in self._rows:
                buffer.rewards[self._rows[late.step], late.index] += np.float32(late.reward)
        # Once more: it was called just before, without the rewards.
        buffer.compute_returns_and_advantage(
            last_values=self.locals["values"], dones=self.locals["dones"]
        )


class _Episodes:
    """Returns and lengths of episodes, as VecMonitor records them."""

    def __init__(self, file: str | None) -> None:
        self._file = file
        self._writer: ResultsWriter | None = None
        self._opened = False
        self._started = time.time()
        self._dones: dict[int, npt.NDArray[np.bool_]] = {}
        self._returns = np.zeros(0, np.float32)
        self._lengths = np.zeros(0, np.int32)

    def refuse_file(self) -> None:
        """Say who writes the file when rewards are not deferred."""
        if self._file is not None:
            raise ConfigError(
                '`monitor_file` must be None with latency="blocking", got '
                f"{self._file!r}: a VecMonitor above VecProgressReward writes it."
            )

    def start(self, num_envs: int, *, anew: bool) -> None:
        """Begin or go on with training."""
        if anew or len(self._returns) != num_envs:
            self._returns = np.zeros(num_envs, np.float32)
            self._lengths = np.zeros(num_envs, np.int32)
        self._dones = {}
        if self._file is not None:
            header: dict[str, float | str] = {"t_start": self._started, "env_id": "None"}
            self._writer = ResultsWriter(
                self._file, header=header, override_existing=not self._opened
            )
            self._opened = True

    def step(self, step: int, dones: npt.NDArray[np.bool_]) -> None:
        """Note which episodes end with a step."""
        self._dones[step] = np.array(dones)

    def pay(self, late: Sequence[LateReward]) -> list[dict[str, Any]]:
        """Add rewards, in order of their steps; return the episodes that end with them."""
        ended = []
        for one in late:
            self._returns[one.index] += np.float32(one.reward)
            self._lengths[one.index] += 1
            if one.step in self._dones and self._dones[one.step][one.index]:
                ended.append(self._end(one.index))
        if late:
            oldest = late[-1].step
            self._dones = {step: dones for step, dones in self._dones.items() if step >= oldest}
        return ended

    def _end(self, index: int) -> dict[str, Any]:
        episode: dict[str, Any] = {
            "r": self._returns[index],
            "l": self._lengths[index],
            "t": round(time.time() - self._started, 6),
        }
        self._returns[index], self._lengths[index] = 0.0, 0
        if self._writer is not None:
            self._writer.write_row(episode)
        return episode

    def close(self) -> None:
        """Close the file; a further start goes on in it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _rewarded(model: BaseAlgorithm) -> VecProgressReward:
    env: VecEnv | None = model.get_env()
    while isinstance(env, VecEnvWrapper) and not isinstance(env, VecProgressReward):
        env = env.venv
    if not isinstance(env, VecProgressReward):
        raise UnsupportedEnvError(
            f"`model` must have an environment with a VecProgressReward, got {model.get_env()}; "
            "make it with make_progress_vec_env()."
        )
    return env


def _check_above(env: VecEnv | None) -> None:
    """Refuse wrappers that read rewards before they are told."""
    while isinstance(env, VecEnvWrapper) and not isinstance(env, VecProgressReward):
        if isinstance(env, VecMonitor):
            raise ConfigError(
                'no VecMonitor must be above a VecProgressReward with latency="deferred", got one: '
                "it would record placeholders. Leave it out; DeferredRewards(monitor_file=...) "
                "does its work."
            )
        if isinstance(env, VecNormalize) and env.norm_reward:
            raise ConfigError(
                '`norm_reward` must be False with latency="deferred", got a VecNormalize with '
                "True: it would normalise placeholders. Normalise observations only, and set "
                "`scale` of the reward instead."
            )
        env = env.venv


def _checked_replay(model: BaseAlgorithm) -> DeferredReplayBuffer | None:
    """The replay buffer, or None for a learner without."""
    if isinstance(model, OnPolicyAlgorithm):
        return None
    if not isinstance(model, OffPolicyAlgorithm):
        raise ConfigError(
            'with latency="deferred" the learner must be an OnPolicyAlgorithm or an '
            f'OffPolicyAlgorithm, got {type(model).__name__}; use latency="blocking".'
        )
    buffer = model.replay_buffer
    if isinstance(buffer, HerReplayBuffer):
        raise ConfigError(
            '`replay_buffer_class` must not be HerReplayBuffer with latency="deferred": it makes '
            "up rewards for other goals, of which a model was never asked. Use another buffer."
        )
    if not isinstance(buffer, DeferredReplayBuffer):
        raise ConfigError(
            '`replay_buffer_class` must be DeferredReplayBuffer with latency="deferred", or '
            "DeferredDictReplayBuffer for dictionary observations, got "
            f"{type(buffer).__name__}, from which placeholders would be sampled."
        )
    return buffer
