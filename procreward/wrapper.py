"""``ProgressReward``: a Gymnasium environment that is rewarded by what it looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, SupportsFloat, TypeVar

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from procreward.config import (
    DEFAULT,
    CompleteMode,
    InstructionSpec,
    RewardConfig,
    ScorerSpec,
    ShapingMode,
    ViewsSpec,
    as_json,
    given_settings,
)
from procreward.errors import UnsupportedEnvError
from procreward.instruction import InstructionSource, check_instruction
from procreward.runner import DueQuery, QueryStats
from procreward.session import EpisodeStream, Outcome, StreamPlan
from procreward.types import Frame, Score
from procreward.views import plan_sources
from procreward.wrapping import (
    INFO_KEY,
    info_entry,
    merge_settings,
    render_fps,
    split_options,
    step_reward,
)

__all__ = ["INFO_KEY", "ProgressReward"]

ObsType = TypeVar("ObsType")
ActType = TypeVar("ActType")


class ProgressReward(
    gym.Wrapper[ObsType, ActType, ObsType, ActType],
    RecordConstructorArgs,
):
    """Replaces the reward by shaping on a reward model's progress readings.

    At the reset, every ``every_k_steps`` steps and at the end of an episode the recent camera
    frames and the instruction are put to the scorer. Its progress is the potential; the reward of a
    step is ``env_reward_weight * env_reward + shaping + success_bonus`` (the bonus once an episode,
    when the model begins to count the task as complete). Between queries, and when a query fails,
    the potential is held. Nothing is loaded before the first reset, and all wrappers of a process
    that name the same scorer share one.

    Put it above the TimeLimit (where ``gym.make(..., max_episode_steps=...)`` has it, and where
    ``gym.make(env.spec)`` puts it) and below RecordEpisodeStatistics and NormalizeReward. A
    TimeLimit above it would cut episodes off unseen, without the final query; a ClipReward above it
    breaks the shaping. The wrapper cannot look outwards:
    :func:`procreward.testing.check_wrapper` does.

    ``info["procreward"]`` has, at the reset and every step: ``progress`` (float in [0, 1], the
    latest reading; 0.0 before the first), ``potential`` (float, what the shaping used; 0.0 at a
    terminal state in mode ``"pbrs"``), ``shaping`` (float), ``env_reward`` (float), ``queried``
    (bool, whether the scorer was asked at this step), ``complete`` (bool), ``age_steps`` (int,
    steps since the frame that was last read) and ``valid`` (bool, whether the latest query was
    answered).

    For a vector environment there is :class:`~procreward.vector.VectorProgressReward`, which asks
    about all sub-environments in one call; or wrap them one by one
    (``gym.make_vec(..., wrappers=[...])``).

    Example:
        >>> import gymnasium as gym
        >>> from procreward import ProgressReward
        >>> env = gym.make("procreward.envs:procreward/Toy-v0", render_mode="rgb_array")
        >>> scorer = {"name": "scripted", "options": {"progress": [0.0, 0.25, 0.5]}}
        >>> env = ProgressReward(env, scorer=scorer, every_k_steps=1, gamma=1.0)
        >>> _, info = env.reset(seed=0)
        >>> info["procreward"]["progress"]
        0.0
        >>> [env.step(env.action_space.sample())[1] for _ in range(2)]
        [0.25, 0.25]
        >>> env.close()

    Change logs:
     * v0.1.0 - Added
    """

    def __init__(
        self,
        env: gym.Env[ObsType, ActType],
        *,
        scorer: ScorerSpec = DEFAULT.scorer,
        judge: ScorerSpec | None = DEFAULT.judge,
        instruction: InstructionSpec | None = DEFAULT.instruction,
        views: ViewsSpec | None = DEFAULT.views,
        frame_size: tuple[int, int] | None = DEFAULT.frame_size,
        every_k_steps: int = DEFAULT.every_k_steps,
        window_frames: int | None = DEFAULT.window_frames,
        frame_stride_steps: int | None = DEFAULT.frame_stride_steps,
        pad: bool | None = DEFAULT.pad,
        skip_unchanged: float | None = DEFAULT.skip_unchanged,
        shaping: ShapingMode = DEFAULT.shaping,
        gamma: float = DEFAULT.gamma,
        scale: float = DEFAULT.scale,
        ratchet: bool = DEFAULT.ratchet,
        smooth_alpha: float | None = DEFAULT.smooth_alpha,
        offset: bool = DEFAULT.offset,
        success_bonus: float = DEFAULT.success_bonus,
        on_complete: CompleteMode = DEFAULT.on_complete,
        complete_threshold: float | None = DEFAULT.complete_threshold,
        confirm_queries: int = DEFAULT.confirm_queries,
        confirm_window: int = DEFAULT.confirm_window,
        release_threshold: float | None = DEFAULT.release_threshold,
        min_progress: float | None = DEFAULT.min_progress,
        stall_queries: int | None = DEFAULT.stall_queries,
        stall_delta: float = DEFAULT.stall_delta,
        regression_delta: float | None = DEFAULT.regression_delta,
        env_reward_weight: float = DEFAULT.env_reward_weight,
        max_consecutive_failures: int = DEFAULT.max_consecutive_failures,
        config: RewardConfig | None = None,
    ) -> None:
        """Check the settings and find the views and the scorers; build and load nothing.

        Args:
            env: A single environment whose episodes end by themselves or by a TimeLimit inside.
            scorer: Reward model that gives progress: the name of a preset or a scorer, a model
                folder or hub id, a mapping, a :class:`~procreward.config.ScorerConfig`, or a live
                :class:`~procreward.types.Scorer` (kept by the process, recorded by its key).
            judge: A second model that decides completion, or None to decide by progress. It is
                asked whenever the scorer is, with a window of its own preset's length.
            instruction: The task in words; ``"obs:KEY"``, ``"info:KEY"``, ``"attr:NAME"``; or
                ``callable(env, obs, info)``, with which the environment's spec cannot be written
                as JSON. None looks in the usual places. Read at every reset.
            views: ``"obs:KEY"`` (``"flip:KEY"`` if it is upside down there, as robosuite's are),
                ``"camera:NAME"``, ``"render"`` or bare names, one or several; None takes the
                environment's default views. A model that names its views in its options is shown
                those instead.
            frame_size: ``(width, height)`` in pixels of rendered cameras; None for what each
                model's preset says.
            every_k_steps: Environment steps between queries, at least 1.
            window_frames: Frames in the scorer's query; None for the preset's.
            frame_stride_steps: Steps between neighbouring frames; None for the preset's.
            pad: Whether windows at an episode's start repeat the first frame; None for the
                preset's.
            skip_unchanged: Mean absolute difference in grey levels [0, 255] under which a query is
                left out because the picture stands still; None never leaves one out.
            shaping: ``"pbrs"``, ``"delta"``, ``"raw"`` or ``"sparse"``; see
                :class:`~procreward.shaping.Shaper`.
            gamma: The learner's own discount, in (0, 1].
            scale: Factor on the potential, above 0.
            ratchet: Whether the potential is the best reading so far.
            smooth_alpha: Weight in (0, 1] of a new reading in an exponential average, or None.
            offset: Whether the episode's first reading is subtracted from the potential.
            success_bonus: Reward of at least 0 for completion, paid once an episode.
            on_complete: ``"info"`` reports completion, ``"terminate"`` and ``"truncate"`` end the
                episode.
            complete_threshold: Reading in (0, 1] that votes for completion; None for the preset's.
            confirm_queries: Votes that completion needs among the last ``confirm_window``.
            confirm_window: Votes that are counted.
            release_threshold: Reading in [0, threshold] under which completion is given up, or
                None.
            min_progress: Least progress in [0, 1] at which a vote for completion, the judge's
                too, counts; None for no guard.
            stall_queries: Queries without improvement that make a stall, or None.
            stall_delta: Rise of progress in (0, 1] that counts as improvement.
            regression_delta: Fall of progress in (0, 1] that counts as regression, or None.
            env_reward_weight: Factor on the environment's own reward.
            max_consecutive_failures: Failed queries in a row after which an error is raised.
            config: All of this as one object. Keywords that are given as well override it.

        Raises:
            ConfigError: If a setting is out of range, or ``config`` is no ``RewardConfig``.
            UnknownNameError: If a scorer, camera, key or attribute does not exist.
            UnsupportedEnvError: If ``env`` is a vector environment or cannot show the views.
            InstructionError: If the instruction is an empty sentence.
        """
        settings = merge_settings(config, given_settings(locals()))
        _check_env(env)
        plan = StreamPlan.from_config(settings)
        RecordConstructorArgs.__init__(self, **_record(settings, plan), config=None)
        gym.Wrapper.__init__(self, env)
        self._plan = plan
        self._instruction = InstructionSource(settings.instruction)
        self._instruction.check(env)
        self._sources = plan_sources(env, plan)
        self._stream = EpisodeStream(plan, fps=render_fps(env.metadata))
        self._runner = plan.runner()
        self._outcome: Outcome | None = None
        self._last_score: Score | None = None
        self._closed = False

    @property
    def config(self) -> RewardConfig:
        """The settings, keywords and config object merged."""
        return self._plan.config

    @property
    def instruction(self) -> str:
        """The running episode's instruction, empty before the first reset."""
        return self._stream.instruction

    @property
    def stats(self) -> QueryStats:
        """How the queries of all episodes have gone so far; a snapshot."""
        return self._runner.stats

    @property
    def outcome(self) -> Outcome | None:
        """What the latest step came to, verdict included; None until a reset has succeeded."""
        return self._outcome

    @property
    def last_score(self) -> Score | None:
        """The scorer's answer to the latest query, None if it raised or was never asked."""
        return self._last_score

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Reset the environment and read the potential of the first state.

        Args:
            seed: Passed on.
            options: Passed on, without the entry ``"procreward"``, a mapping that may hold the
                episode's ``"instruction"``.

        Returns:
            The environment's observation, and its info with our entry.

        Raises:
            InstructionError: If there is no instruction.
            FrameError: If a view shows no picture.
            ScorerError: If the scorer breaks its contract, or fails too often.
            ModelError: If the scorer cannot be loaded.
        """
        options, own = split_options(options)
        self._outcome = None  # if the reset fails, there is no episode to step
        obs, info = self.env.reset(seed=seed, options=options)
        if "instruction" in own:
            instruction = check_instruction(own["instruction"], "the reset option 'instruction'")
        else:
            instruction = self._instruction.read(self.env, obs, info)
        frames = self._frames(obs)
        self._runner.release(self._stream.end())
        dues = self._stream.begin(frames, instruction)
        outcome = self._settle(dues)
        return obs, {**info, INFO_KEY: info_entry(outcome, env_reward=0.0)}

    def step(self, action: ActType) -> tuple[ObsType, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and replace its reward.

        Args:
            action: Passed on.

        Returns:
            Observation, our reward (a float), terminated, truncated, and info with our entry.

        Raises:
            gymnasium.error.ResetNeeded: If there was no reset.
            FrameError: If a view shows no picture.
            ScorerError: If the scorer breaks its contract, or fails too often.
        """
        if self._outcome is None:
            raise gym.error.ResetNeeded("ProgressReward.step() needs an episode; call reset().")
        obs, given, terminated, truncated, info = self.env.step(action)
        env_reward = float(given)
        step = self._stream.step + 1
        wanted = self._stream.wants_frame(step, ended=bool(terminated or truncated))
        dues = self._stream.advance(
            self._frames(obs) if wanted else None,
            step,
            terminated=bool(terminated),
            truncated=bool(truncated),
        )
        outcome = self._settle(dues)
        reward = step_reward(outcome, env_reward, self._plan.config.env_reward_weight)
        info = {**info, INFO_KEY: info_entry(outcome, env_reward=env_reward)}
        return obs, reward, outcome.terminated, outcome.truncated, info

    def close(self) -> None:
        """Close the environment, once. Scorers are shared and stay, but forget the episode."""
        if self._closed:
            return
        self._closed = True
        try:
            self._runner.release(self._stream.end())
        finally:
            super().close()

    def _frames(self, obs: ObsType) -> dict[str, Frame]:
        return {view: source.frame(self.env, obs) for view, source in self._sources.items()}

    def _settle(self, dues: Sequence[DueQuery]) -> Outcome:
        self._outcome = self._stream.apply(self._runner.run(dues))
        if self._outcome.queried:
            self._last_score = self._outcome.score
        return self._outcome


def _check_env(env: object) -> None:
    if isinstance(env, gym.vector.VectorEnv):
        raise UnsupportedEnvError(
            f"`env` must be a single environment, got the vector environment {env}. Use "
            "VectorProgressReward, or wrap its sub-environments: gym.make_vec(..., "
            "wrappers=[ProgressReward])."
        )
    if not isinstance(env, gym.Env):
        raise UnsupportedEnvError(
            f"`env` must be a gymnasium.Env, got {type(env).__name__}; environments of the old "
            "gym need an adapter."
        )


def _record(config: RewardConfig, plan: StreamPlan) -> dict[str, Any]:
    """Constructor arguments as JSON has them, the scorers by description."""
    settings = {
        item.name: as_json(getattr(config, item.name)) for item in dataclasses.fields(config)
    }
    settings["scorer"] = plan.scorer.spec
    settings["judge"] = None if plan.judge is None else plan.judge.spec
    return settings
