"""``VectorProgressReward``: many sub-environments, one question to the reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from procreward._stream_batch import Ask, BatchRewarded, StreamBatch, first_entries
from procreward._vector_base import SubEnvs, autoreset_modes, check_vector_env
from procreward._vector_infos import (
    Mask,
    Turn,
    add_entries,
    merge_infos,
    select_infos,
    single_info,
)
from procreward.config import RewardConfig
from procreward.deferred import Latency, LateReward, lag_steps
from procreward.errors import ConfigError, UnsupportedEnvError
from procreward.instruction import InstructionSource, check_instruction
from procreward.session import Outcome, StreamPlan
from procreward.types import Frame
from procreward.views import plan_sources
from procreward.wrapping import info_entry, merge_settings, render_fps, split_options, step_reward

__all__ = ["VectorProgressReward"]

if TYPE_CHECKING:
    _Wrapper = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
else:  # Gymnasium 1.1 gives it no type parameters.
    _Wrapper = gym.vector.VectorWrapper

RESET_MASK = "reset_mask"
NAN = float("nan")


class VectorProgressReward(BatchRewarded, _Wrapper):
    """Replaces the rewards of a vector environment as ``ProgressReward`` does a single one's.

    Every sub-environment has an episode, a frame window and a potential of its own, and is paid
    step for step what :class:`~procreward.wrapper.ProgressReward` would pay it. The difference is
    that a model is asked about all of them at once: one ``score`` call a step, with the queries
    that are due in it, however many sub-environments there are. (A second one is made in a step in
    which the model itself ends an episode under same-step autoreset, for the first frame of the
    next; it cannot be known before the first.) If that call raises, all its queries have failed.

    **Autoreset.** A wrapper cannot end a sub-episode by returning a flag: the sub-environment has
    to be reset as well. So ``on_complete="terminate"`` and ``"truncate"`` need a base that resets
    on demand, and ``"info"`` works above any:

    ===================  =====================================================================
    base                 shown to the outside
    ===================  =====================================================================
    ``DISABLED``         ``SAME_STEP`` (the default) or ``DISABLED``
    ``NEXT_STEP``        ``NEXT_STEP``. A sub-environment that the model ends is stepped once
                         more, unseen, before it is reset
    ``SAME_STEP``        ``SAME_STEP``; ``on_complete="info"`` and views in the observation only
    ===================  =====================================================================

    Above a ``DISABLED`` base use ``gym.make_vec(..., vector_kwargs={"autoreset_mode":
    gym.vector.AutoresetMode.DISABLED})``. ``metadata["autoreset_mode"]`` is what is shown. With
    ``SAME_STEP`` the end of an episode is in ``infos["final_obs"]`` and ``infos["final_info"]``,
    our entry included, as in Gymnasium. The final frame belongs to the old episode in every mode.

    **Frames** come from the batched observation, or are drawn where the sub-environments live, at
    the steps whose frames some query shows: in a SyncVectorEnv those sub-environments that need
    one, in an AsyncVectorEnv all workers at once. The **instruction** is read per sub-environment
    and episode.

    **Latency.** With ``latency="deferred"`` the models are asked on a thread of their own while the
    sub-environments step on, and :meth:`step` returns NaN as rewards: what was paid is told by
    :meth:`collect`, one :class:`~procreward.deferred.LateReward` for every step of every
    sub-environment, and is what ``latency="blocking"`` would have paid for the same actions, bit
    for bit (as far as a model answers a query alike whatever it is asked beside it). A step waits
    for the answers to queries that are ``max_lag_steps`` old by then, and for the first potential
    of an episode, since every step is asked about until there is one.

    Completion then ends an episode later: a query at step ``t`` whose answer makes the task count
    as complete ends it at exactly step ``t + max_lag_steps``, if the environment does not end it
    before. Until then the episode is paid as any other. It ends as a blocking one does, with a
    query about its last frame and, where terminated, with a potential of zero.

    ``infos["procreward"]`` of a deferred step has the same keys: ``queried`` and ``env_reward`` are
    the step's own, ``shaping`` is 0.0, and the others are as of the latest answer, so they depend
    on how fast it came. What was outstanding at a :meth:`reset` is paid nonetheless; at
    :meth:`close` it is dropped. Models are asked first in, first out, with all that waits in one
    call. An error of theirs is raised once, by the next :meth:`step` or :meth:`collect`; what was
    outstanding is lost then, and all sub-environments need a reset.

    ``infos["procreward"]`` has the wrapper's entries as arrays, ``(num_envs,)`` of float64, bool
    and int64, with Gymnasium's masks (``_progress`` and so on) beside them. Rewards are float64.

    Put it below vector wrappers that count or normalise rewards. As Gymnasium has it, vector
    wrappers are no part of the environment's ``spec``.

    Example:
        >>> import gymnasium as gym
        >>> from procreward import VectorProgressReward
        >>> envs = gym.make_vec(
        ...     "procreward.envs:procreward/Toy-v0",
        ...     num_envs=3,
        ...     vectorization_mode="sync",
        ...     vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.DISABLED},
        ... )
        >>> scorer = {"name": "scripted", "options": {"progress": [0.0, 0.25, 0.75, 1.0]}}
        >>> envs = VectorProgressReward(
        ...     envs, scorer=scorer, every_k_steps=1, gamma=1.0, confirm_queries=1,
        ...     on_complete="terminate",
        ... )
        >>> _, infos = envs.reset(seed=0)
        >>> infos["procreward"]["progress"]
        array([0., 0., 0.])
        >>> for _ in range(3):
        ...     _, rewards, terminations, _, infos = envs.step(envs.action_space.sample())
        ...     print(rewards, terminations)
        [0.25 0.25 0.25] [False False False]
        [0.5 0.5 0.5] [False False False]
        [-0.75 -0.75 -0.75] [ True  True  True]
        >>> infos["final_info"]["procreward"]["progress"], infos["procreward"]["progress"]
        (array([1., 1., 1.]), array([0., 0., 0.]))
        >>> envs.close()

    Change logs:
     * v0.1.0 - Added
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        *,
        autoreset_mode: AutoresetMode | str | None = None,
        latency: Latency = "blocking",
        max_lag_steps: int | None = None,
        config: RewardConfig | None = None,
        **settings: Any,
    ) -> None:
        """Check the settings and find the views and the scorers; build and load nothing.

        Args:
            env: A vector environment whose sub-episodes end by themselves or by a TimeLimit inside
                the sub-environments.
            autoreset_mode: What is shown to the outside; ``"NextStep"``, ``"SameStep"`` and
                ``"Disabled"`` will do. None shows the base's own mode, and ``SAME_STEP`` above a
                ``DISABLED`` base.
            latency: ``"blocking"``, or ``"deferred"`` to be told rewards by :meth:`collect`.
            max_lag_steps: With ``"deferred"``, steps after which a query must have been answered,
                at least 1; None for twice ``every_k_steps``.
            config: All settings as one object.
            settings: Settings by name, the keywords of
                :class:`~procreward.wrapper.ProgressReward`; they override ``config``. An
                ``instruction`` that is a ``callable(env, obs, info)`` is given the
                sub-environment, or outside a SyncVectorEnv what stands in for it
                (``has_wrapper_attr`` and ``get_wrapper_attr`` only), and its own part of ``obs``
                and ``info``.

        Raises:
            ConfigError: If a setting is out of range, or the base's autoreset mode does not allow
                what was asked for.
            UnknownNameError: If a setting, scorer, camera, key or attribute does not exist.
            UnsupportedEnvError: If ``env`` is no vector environment or cannot show the views.
            InstructionError: If the instruction is an empty sentence.
        """
        merged = merge_settings(config, settings)
        check_vector_env(env)
        max_lag = lag_steps(latency, max_lag_steps, merged)
        plan = StreamPlan.from_config(merged)
        envs, instruction = SubEnvs(env), InstructionSource(merged.instruction)
        instruction.check(envs.example())
        sources = plan_sources(envs.example(), plan)
        modes = autoreset_modes(env, autoreset_mode, merged.on_complete, sources)
        # Not before the checks: where they fail, older versions would close the base.
        super().__init__(env)
        self._plan, self._envs, self._instruction = plan, envs, instruction
        self._sources = sources
        self._base_mode, self._mode = modes
        self.metadata = {**env.metadata, "autoreset_mode": self._mode}
        self._batch = StreamBatch(
            plan, self.num_envs, fps=render_fps(env.metadata), max_lag_steps=max_lag
        )
        self._over = np.zeros(self.num_envs, bool)
        self._over_below = np.zeros(self.num_envs, bool)

    @property
    def outcomes(self) -> tuple[Outcome | None, ...]:
        """What the latest step or reset came to, verdicts included; None before the first reset.

        Of an episode that ended in a step it is that end, in every autoreset mode. With
        ``latency="deferred"`` it is as of the latest answer and not paid.
        """
        return tuple(self._batch.outcomes)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset sub-environments and read the potentials of their first states.

        Args:
            seed: Passed on.
            options: Passed on in a copy. ``"reset_mask"``, ``(num_envs,) bool``, resets some
                sub-environments only, above a ``DISABLED`` base. Our entry ``"procreward"``, a
                mapping that may hold the ``"instruction"`` of all episodes or a list of one each,
                is taken out.

        Returns:
            The batch of observations, and infos with our entry for what was reset.

        Raises:
            ConfigError: If there is a mask and the base cannot be reset by it.
            InstructionError: If there is no instruction.
            FrameError: If a view shows no picture.
            ScorerError: If a scorer breaks its contract, or fails too often.
            ModelError: If a scorer cannot be loaded.
            WorkerError: If a worker process died.
        """
        options, own = split_options(options)
        instructions = self._given_instructions(own)
        who = np.ones(self.num_envs, bool)
        if options is not None and RESET_MASK in options:
            who = self._checked_mask(options[RESET_MASK])
            # Gymnasium takes the mask out of the dictionary that it is given.
            options = {**options, RESET_MASK: who.copy()}
        with self._envs.workers.watched():
            obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]  # seeds may hold None
            streams = zip(self._batch.streams, who, strict=True)
            self._batch.release(stream for stream, new in streams if new)
            self._over, self._over_below = self._over & ~who, self._over_below & ~who
            asks = self._begin(who, obs, infos, instructions)
        outcomes = self._batch.settle(asks)
        for ask, outcome in zip(asks, outcomes, strict=True):
            self._batch.outcomes[ask.index] = outcome
        return obs, add_entries(infos, first_entries(asks, outcomes), self.num_envs)

    def step(self, actions: Any) -> tuple[Any, npt.NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """Step the sub-environments and replace their rewards.

        Args:
            actions: Passed on.

        Returns:
            Observations, our rewards ``(num_envs,) float64`` (NaN with ``latency="deferred"``),
            terminations and truncations ``(num_envs,) bool``, and infos with our entry.

        Raises:
            gymnasium.error.ResetNeeded: If there was no reset, or an episode is over and the mode
                that is shown is ``DISABLED``.
            FrameError: If a view shows no picture.
            ScorerError: If a scorer breaks its contract, or fails too often.
            WorkerError: If a worker process died.
        """
        self._batch.settle_ready()
        self._check_running()
        with self._envs.workers.watched():
            return self._step(actions)

    def collect(self, *, wait: bool = False) -> list[LateReward]:
        """Tell what steps have paid, each once; for ``latency="deferred"``.

        Args:
            wait: Whether to wait for all that is outstanding, so that nothing is pending.

        Returns:
            What has become known since the last call, in order of ``step`` and then ``index``, and
            so over all calls. Nothing when blocking.

        Raises:
            ScorerError: If a scorer broke its contract, or failed too often.
            ModelError: If a scorer could not be loaded.
        """
        return self._batch.collect(wait=wait)

    def close(self, **kwargs: Any) -> None:
        """Close the environment. Scorers are shared and stay, but forget the episodes.

        Rewards that were not collected are dropped. A model that is being asked is waited for, for
        a few seconds at most. Worker processes are ended without being asked where one has died or
        Ctrl-C has interrupted a step.

        Args:
            kwargs: Passed on.
        """
        try:
            self._batch.close()
        finally:
            self._envs.workers.end_if_lost()
            super().close(**kwargs)

    def _step(
        self, actions: Any
    ) -> tuple[Any, npt.NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        obs, given, terminated, truncated, infos = self.env.step(actions)
        # Those whose episode ended a step ago; with next-step autoreset only.
        new = self._over
        ended = (terminated | truncated) & ~new
        turn = self._turn(obs, infos, new, ended)
        terminated, truncated = self._with_declared(terminated & ended, truncated & ended, new)
        asks = self._advance(turn, terminated, truncated, new)
        asks += self._begin(new, turn.obs, turn.infos)
        same_step = self._mode is AutoresetMode.SAME_STEP
        known = terminated | truncated
        started = self._start_anew(turn, known) if same_step else []
        # The step of an autoreset is none, and pays nothing.
        paid = {ask.index: float(given[ask.index]) if ask.stream.step else 0.0 for ask in asks}
        outcomes = self._batch.settle(asks, started, paid)
        self._take(turn, asks, outcomes, paid)
        over = turn.terminated | turn.truncated
        self._batch.release(ask.stream for ask in asks if over[ask.index])
        if same_step:
            turn.first |= first_entries(started, outcomes[len(asks) :])
            started = self._start_anew(turn, over & ~known)
            turn.first |= first_entries(started, self._batch.settle(started))
        else:
            self._over, self._over_below = over, ended
        return turn.obs, turn.rewards, turn.terminated, turn.truncated, turn.shown_infos()

    def _with_declared(self, terminated: Mask, truncated: Mask, new: Mask) -> tuple[Mask, Mask]:
        """Add the ends that completion has declared some steps ago."""
        declared_terminated, declared_truncated = self._batch.ends(~new)
        return terminated | declared_terminated, truncated | declared_truncated

    def _check_running(self) -> None:
        if None in self._batch.streams:
            raise gym.error.ResetNeeded(
                "VectorProgressReward.step() needs an episode in every sub-environment; call "
                "reset()."
            )
        if self._mode is AutoresetMode.DISABLED and self._over.any():
            raise gym.error.ResetNeeded(
                f"The episodes of sub-environments {np.flatnonzero(self._over).tolist()} are over; "
                f"call reset(options={{{RESET_MASK!r}: terminations | truncations}}) before the "
                "next step."
            )

    def _checked_mask(self, mask: object) -> Mask:
        if self._base_mode is not AutoresetMode.DISABLED:
            raise ConfigError(
                f"`options[{RESET_MASK!r}]` needs a base of {AutoresetMode.DISABLED}, got one of "
                f"{self._base_mode}; reset all sub-environments or make the base anew."
            )
        shape = (self.num_envs,)
        ok = isinstance(mask, np.ndarray) and mask.shape == shape and mask.dtype == np.bool_
        if not ok or not np.any(mask):  # type: ignore[call-overload]  # any mask
            raise ConfigError(
                f"`options[{RESET_MASK!r}]` must be a bool array of shape {shape} with a True in "
                f"it, got {mask!r}."
            )
        return np.array(mask)

    def _given_instructions(self, own: Mapping[str, Any]) -> list[str | None]:
        place = "the reset option 'instruction'"
        given = own.get("instruction", [None] * self.num_envs)
        if not isinstance(given, list | tuple):
            return [check_instruction(given, place)] * self.num_envs
        if len(given) != self.num_envs:
            raise ConfigError(
                f"{place} must be a sentence or one (or None) for each of {self.num_envs} "
                f"sub-environments, got {len(given)}."
            )
        return [None if one is None else check_instruction(one, place) for one in given]

    def _turn(self, obs: Any, infos: dict[str, Any], new: Mask, ended: Mask) -> Turn:
        """Take over what the base returned; reset what the model ended a step ago."""
        late = new & ~self._over_below
        if late.any():
            obs, theirs = self.env.reset(options={RESET_MASK: late.copy()})
            infos = merge_infos(select_infos(infos, ~late), theirs)
        turn = Turn(self.num_envs, obs, dict(infos))
        if self._base_mode is AutoresetMode.SAME_STEP and ended.any():
            if "final_obs" not in infos:
                raise UnsupportedEnvError(
                    f"{self.env} must put the last observation of an episode into "
                    f"`infos['final_obs']`, got only {sorted(infos)}."
                )
            turn.final_obs = turn.infos.pop("final_obs")
            turn.final_infos = turn.infos.pop("final_info", {})
            turn.infos.pop("_final_obs", None)
            turn.infos.pop("_final_info", None)
        return turn

    def _advance(self, turn: Turn, terminated: Mask, truncated: Mask, new: Mask) -> list[Ask]:
        """Go on with the running episodes."""
        ended = terminated | truncated
        frames = self._frames(self._batch.wanted(~new, ended), turn, ended)
        return self._batch.advance(~new, frames, terminated=terminated, truncated=truncated)

    def _frames(
        self, wanted: Sequence[int], turn: Turn, ended: Mask
    ) -> dict[int, dict[str, Frame]]:
        frames = self._envs.frames(self._sources, wanted, turn.obs)
        if self._base_mode is AutoresetMode.SAME_STEP:
            # The base has begun the next episode; the views are in the observation, as checked.
            for index in np.flatnonzero(ended).tolist():
                frames[index] = self._envs.observed(self._sources, turn.final_obs[index])
        return frames

    def _begin(
        self,
        who: Mask,
        obs: Any,
        infos: Mapping[str, Any],
        instructions: Sequence[str | None] | None = None,
    ) -> list[Ask]:
        """Begin the episodes of some sub-environments, which have just been reset."""
        indices: list[int] = np.flatnonzero(who).tolist()
        if not indices:
            return []
        self._envs.forget()
        frames = self._envs.frames(self._sources, indices, obs)
        observations = self._envs.observations(obs)
        asks = []
        for index in indices:
            given = None if instructions is None else instructions[index]
            instruction = given or self._instruction.read(
                self._envs[index], observations[index], single_info(infos, index)
            )
            asks.append(self._batch.begin(index, frames[index], instruction))
        return asks

    def _start_anew(self, turn: Turn, who: Mask) -> list[Ask]:
        """With same-step autoreset: keep the ends of episodes and begin the next ones."""
        if not who.any():
            return []
        if self._base_mode is AutoresetMode.DISABLED:
            turn.final_obs[who] = self._envs.kept(turn.obs, who)[who]
            turn.final_infos = merge_infos(turn.final_infos, select_infos(turn.infos, who))
            turn.obs, theirs = self.env.reset(options={RESET_MASK: who.copy()})
            turn.infos = merge_infos(select_infos(turn.infos, ~who), theirs)
        return self._begin(who, turn.obs, turn.infos)

    def _take(
        self,
        turn: Turn,
        asks: Sequence[Ask],
        outcomes: Sequence[Outcome],
        env_rewards: Mapping[int, float],
    ) -> None:
        """Pay the steps, and note how they ended."""
        weight = self._plan.config.env_reward_weight
        deferred = self._batch.max_lag_steps is not None
        for ask, outcome in zip(asks, outcomes, strict=False):
            index, env_reward = ask.index, env_rewards[ask.index]
            # Whoever trains on a reward that is not known yet is to see it at once.
            turn.rewards[index] = NAN if deferred else step_reward(outcome, env_reward, weight)
            turn.terminated[index] = outcome.terminated
            turn.truncated[index] = outcome.truncated
            turn.entries[index] = info_entry(outcome, env_reward=env_reward)
            self._batch.outcomes[index] = outcome
