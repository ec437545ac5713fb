"""Run a policy in a wrapped environment and keep what happened.

* :class:`Policy` - what drives an episode; scripted experts are policies.
* :class:`RandomPolicy` - uniform actions.
* :class:`Rollout` - an :class:`~procreward.report.records.EpisodeRecord` and its pictures.
* :func:`run_episode` - one episode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym

from procreward.errors import UnsupportedEnvError
from procreward.frames import check_frame
from procreward.outcome import Outcome
from procreward.report.records import EpisodeRecord, StepTrace
from procreward.sources import RenderSource
from procreward.types import Frame
from procreward.wrapper import INFO_KEY

__all__ = ["Policy", "RandomPolicy", "Rollout", "run_episode"]


class Policy(Protocol):
    """Chooses actions; may look into the environment, as scripted experts do."""

    def reset(self, env: Any) -> None:
        """Get ready for the episode that ``env`` was just reset to."""
        ...

    def act(self, env: Any) -> Any:
        """Return the next action, an element of ``env.action_space``."""
        ...


class RandomPolicy:
    """Uniformly random actions, the same for the same seed.

    Args:
        seed: Seed of the actions, 0 or more; every episode starts from it anew.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._space: gym.Space[Any] | None = None

    def reset(self, env: Any) -> None:
        """Start the sequence of actions over."""
        # A copy, so that the environment's own space keeps its generator.
        self._space = copy.deepcopy(env.action_space)
        self._space.seed(self._seed)

    def act(self, env: Any) -> Any:
        """Return a sample of the action space."""
        if self._space is None:
            self.reset(env)
        assert self._space is not None
        return self._space.sample()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """An episode with its pictures.

    Attributes:
        record: What happened.
        frames: Pictures of ``env.render()``, each ``(height, width, 3) uint8``; the first is of the
            reset. Empty if none were asked for.
        frame_steps: Environment step of each picture.
    """

    record: EpisodeRecord
    frames: tuple[Frame, ...]
    frame_steps: tuple[int, ...]


@dataclass(slots=True)
class _Log:
    """What accumulates while an episode runs."""

    env: gym.Env[Any, Any]
    frames_wanted: bool
    trace: list[StepTrace] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    frame_steps: list[int] = field(default_factory=list)

    def add(self, reward: float, info: Mapping[str, Any]) -> None:
        """Take down the current step."""
        step = len(self.trace)
        self.trace.append(_trace(self.env, step, reward, info, self.trace))
        if self.frames_wanted:
            self.frames.append(_picture(self.env))
            self.frame_steps.append(step)


def run_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    *,
    seed: int,
    env_id: str,
    policy_name: str,
    scorer_name: str,
    episode: int = 0,
    record_frames: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Rollout:
    """Run one episode from a seeded reset to its end.

    Args:
        env: An environment with :class:`~procreward.wrapper.ProgressReward` around it, at any
            depth; it must end its episodes (a TimeLimit does).
        policy: What acts. It is reset after the environment.
        seed: Seed of the reset.
        env_id: Name of the environment for the record.
        policy_name: Name of the policy for the record.
        scorer_name: Name of the scorer for the record.
        episode: Number of the episode for the record.
        record_frames: Whether to render a picture at every step.
        on_step: Called after every step with its number, for a progress bar.

    Returns:
        The record and, if asked for, a picture of every step.

    Raises:
        UnsupportedEnvError: If ``info`` lacks the wrapper's entry, or a reward of the environment
            is not finite (records have no number for it).
        FrameError: If pictures are wanted and ``env.render()`` gives none.
    """
    log = _Log(env, record_frames)
    _, info = env.reset(seed=seed)
    policy.reset(env)
    log.add(0.0, info)
    terminated = truncated = False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(policy.act(env))
        log.add(float(reward), info)
        if on_step is not None:
            on_step(len(log.trace) - 1)
    trace = log.trace
    return Rollout(
        record=EpisodeRecord(
            env_id=env_id,
            policy=policy_name,
            episode=episode,
            seed=seed,
            instruction=_instruction(env),
            scorer=scorer_name,
            steps=len(trace) - 1,
            episode_return=math.fsum(entry.reward for entry in trace),
            env_return=math.fsum(entry.env_reward for entry in trace),
            final_progress=trace[-1].progress,
            complete=any(entry.complete for entry in trace),
            env_success=any(entry.success for entry in trace),
            queries=sum(entry.queried for entry in trace),
            invalid_answers=sum(entry.queried and not entry.valid for entry in trace),
            terminated=terminated,
            truncated=truncated,
            trace=tuple(trace),
        ),
        frames=tuple(log.frames),
        frame_steps=tuple(log.frame_steps),
    )


def _trace(
    env: gym.Env[Any, Any],
    step: int,
    reward: float,
    info: Mapping[str, Any],
    before: list[StepTrace],
) -> StepTrace:
    """Read one step out of the wrapper's info."""
    if INFO_KEY not in info:
        raise UnsupportedEnvError(
            f"`env` must have a ProgressReward wrapper, got {env} whose info lacks {INFO_KEY!r}."
        )
    ours = info[INFO_KEY]
    if not math.isfinite(ours["env_reward"]):
        raise UnsupportedEnvError(
            f"`env` must pay finite rewards, got {ours['env_reward']} at step {step} of {env}; "
            "look at what its step() returns."
        )
    answered = bool(ours["queried"] and ours["valid"])
    known = answered or bool(before and before[-1].progress is not None)
    outcome: Outcome = env.get_wrapper_attr("outcome")
    score = outcome.score
    truth = getattr(env.unwrapped, "privileged_progress", None)
    return StepTrace(
        step=step,
        reward=reward,
        env_reward=float(ours["env_reward"]),
        progress=float(ours["progress"]) if known else None,
        potential=float(ours["potential"]),
        queried=bool(ours["queried"]),
        valid=bool(ours["valid"]),
        complete=bool(ours["complete"]),
        success=bool(info.get("success", False)),
        true_progress=None if truth is None else float(truth()),
        text="" if score is None else score.text,
        reason=outcome.reason,
    )


def _instruction(env: gym.Env[Any, Any]) -> str:
    return str(env.get_wrapper_attr("instruction"))


def _picture(env: gym.Env[Any, Any]) -> Frame:
    """Render what a viewer would see."""
    picture = check_frame(RenderSource().frame(env, None), "env.render()")
    return picture.copy()  # an environment may draw into the same array again
