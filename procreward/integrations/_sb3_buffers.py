"""Replay buffers that hold transitions back until it is known what they paid.

* :class:`DeferredReplayBuffer` - for one array as observation.
* :class:`DeferredDictReplayBuffer` - for dictionary observations.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from procreward.deferred import LateReward
from procreward.errors import ConfigError

__all__ = ["DeferredDictReplayBuffer", "DeferredReplayBuffer"]


class _Held:
    """The transitions of one step of all sub-environments."""

    def __init__(self, step: int, num_envs: int) -> None:
        self.step, self.missing = step, num_envs
        self.rewards = np.zeros(num_envs, np.float32)
        self.transition: tuple[Any, ...] | None = None


class DeferredReplayBuffer(ReplayBuffer):
    """A ``ReplayBuffer`` that never holds a transition whose reward is not known.

    Pass it as ``replay_buffer_class`` to an off-policy learner that trains with ``latency=
    "deferred"`` and the callback :class:`~procreward.integrations.sb3.DeferredRewards`, which tells
    it the rewards. :meth:`add` keeps transitions aside, :meth:`admit` puts those in whose rewards
    are all there, in the order in which they were added; so :meth:`sample` and ``size()`` know of
    no others. Those that are kept aside are not pickled.

    Without that callback it is a plain ``ReplayBuffer``.
    """

    _held: deque[_Held] | None = None

    def hold(self) -> None:
        """From now on keep transitions aside until their rewards are there."""
        self._held = deque()

    def let_go(self) -> None:
        """Be a plain buffer again; what is still kept aside is dropped."""
        self._held = None

    def expect(self, step: int) -> None:
        """Say which step the next transitions belong to.

        Args:
            step: The step, as :class:`~procreward.deferred.LateReward` counts them.
        """
        self._kept().append(_Held(step, self.n_envs))

    def pay(self, late: LateReward) -> None:
        """Take in what a step of a sub-environment has paid.

        Args:
            late: The reward; one of a step that was not expected is of no interest.
        """
        for held in self._kept():
            if held.step == late.step:
                held.rewards[late.index] = late.reward
                held.missing -= 1

    def admit(self, up_to: int) -> None:
        """Let in what is complete.

        Args:
            up_to: Newest step to let in.

        Raises:
            ConfigError: If a reward is missing.
        """
        kept = self._kept()
        while kept and kept[0].step <= up_to:
            held = kept.popleft()
            if held.missing:
                raise ConfigError(
                    f"`up_to` must be a step whose rewards are all known, got {up_to}: "
                    f"{held.missing} of step {held.step} are missing; collect them first."
                )
            if held.transition is not None:  # else training was stopped in that step
                obs, next_obs, action, done, infos = held.transition
                super().add(obs, next_obs, action, held.rewards, done, infos)

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Keep the transitions of one step aside.

        Args:
            obs: Observations, one per sub-environment.
            next_obs: Those after the step.
            action: Actions.
            reward: Rewards; of no interest while they are told later.
            done: Whether episodes ended.
            infos: Infos.
        """
        if self._held is None:
            super().add(obs, next_obs, action, reward, done, infos)
        elif self._held:
            copies = deepcopy((obs, next_obs, action, done))
            self._held[-1].transition = (*copies, infos)

    def _kept(self) -> deque[_Held]:
        if self._held is None:
            raise ConfigError("hold() must be called first.")
        return self._held

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_held"}


class DeferredDictReplayBuffer(DeferredReplayBuffer, DictReplayBuffer):
    """:class:`DeferredReplayBuffer` for dictionary observations."""
