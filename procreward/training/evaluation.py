"""How often a policy truly succeeds: episodes without reward model, pictures or exploration.

* :func:`evaluate` - one evaluation.
* :class:`Evaluator` - several, in environments that are kept.
* :class:`EvalResult` - what came out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np

from procreward.checks import check_int
from procreward.errors import UnsupportedEnvError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecNormalize

__all__ = [
    "EvalResult",
    "Evaluator",
    "MakeEnv",
    "Normalise",
    "evaluate",
    "normalise_function",
    "succeeded",
]

MakeEnv: TypeAlias = Callable[[], gym.Env[Any, Any]]
"""Makes an environment without reward model that ends its episodes."""

Normalise: TypeAlias = "VecNormalize | Callable[[Any], Any] | None"
"""What the policy's observations pass through; statistics are never changed here."""

MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """What a policy did in some episodes.

    Attributes:
        success_rate: Share of episodes in [0, 1] in which the environment reported success at any
            step, or None where it never says.
        mean_length: Mean number of steps.
        mean_return: Mean undiscounted sum of the environment's own rewards.
        mean_progress: Mean of the highest true progress in [0, 1] of each episode, or None where
            the environment does not know it.
        seeds: Seed of each episode's reset.
        successes: Success of each episode, or None where the environment never says.
        lengths: Steps of each episode.
        returns: The environment's return of each episode.
    """

    success_rate: float | None
    mean_length: float
    mean_return: float
    mean_progress: float | None
    seeds: tuple[int, ...]
    successes: tuple[bool | None, ...]
    lengths: tuple[int, ...]
    returns: tuple[float, ...]


@dataclass(slots=True)
class _Episode:
    """One episode that runs."""

    seed: int
    obs: Any
    steps: int = 0
    success: bool | None = None
    progress: float | None = None
    rewards: list[float] = field(default_factory=list)

    def look(self, env: gym.Env[Any, Any], info: Mapping[str, Any]) -> None:
        """Take down what the environment knows and no learner is told."""
        said = succeeded(info)
        if said is not None:
            self.success = bool(self.success) or said
        truth = getattr(env.unwrapped, "privileged_progress", None)
        if truth is not None:
            self.progress = max(float(truth()), self.progress or 0.0)


def succeeded(info: Mapping[str, Any]) -> bool | None:
    """Return what ``info`` says about success (``success``, ``is_success``); None if nothing."""
    for key in ("success", "is_success"):
        if key in info:
            return bool(info[key])
    return None


class Evaluator:
    """Runs evaluations in environments that are made once.

    Episode ``i`` of every evaluation starts from ``reset(seed=seed + i)``, so two evaluations see
    the same starts. Actions are the policy's deterministic ones; one policy call serves all
    environments. The learner's random numbers, statistics and environments are not touched.

    Args:
        make_env: Makes an environment.
        episodes: Episodes of an evaluation, at least 1.
        seed: Seed of the first one, at least 0.
        num_envs: Environments that run side by side, at most as many as there are episodes.
        max_steps: Steps after which an episode counts as one that does not end.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        *,
        episodes: int = 20,
        seed: int = 10_000,
        num_envs: int = 4,
        max_steps: int = MAX_STEPS,
    ) -> None:
        for name, value, least in (("episodes", episodes, 1), ("num_envs", num_envs, 1)):
            check_int(name, value, least=least)
        check_int("seed", seed, least=0)
        self._make, self._episodes, self._seed = make_env, episodes, seed
        self._num_envs, self._max_steps = min(num_envs, episodes), max_steps
        self._envs: list[gym.Env[Any, Any]] = []

    def __call__(self, model: BaseAlgorithm, normalise: Normalise = None) -> EvalResult:
        """Evaluate a policy.

        Args:
            model: What acts.
            normalise: What its observations pass through, such as the learner's ``VecNormalize``.

        Raises:
            UnsupportedEnvError: If an episode does not end.
        """
        self._fill(self._num_envs)
        prepare = normalise_function(normalise)
        seeds = iter(range(self._seed, self._seed + self._episodes))
        running = dict(_begin(enumerate(self._envs), seeds))
        done: list[_Episode] = []
        while running:
            obs = prepare(_stack([episode.obs for episode in running.values()]))
            actions, _ = model.predict(obs, deterministic=True)
            for (slot, episode), action in zip(list(running.items()), actions, strict=True):
                if self._step(self._envs[slot], episode, action):
                    done.append(running.pop(slot))
                    running.update(_begin([(slot, self._envs[slot])], seeds))
        return _result(sorted(done, key=lambda episode: episode.seed))

    def example(self) -> gym.Env[Any, Any]:
        """Return the first environment."""
        self._fill(1)
        return self._envs[0]

    def _fill(self, number: int) -> None:
        while len(self._envs) < number:
            self._envs.append(self._make())

    def close(self) -> None:
        """Close the environments; the next evaluation makes them anew."""
        while self._envs:
            self._envs.pop().close()

    def _step(self, env: gym.Env[Any, Any], episode: _Episode, action: Any) -> bool:
        episode.obs, reward, terminated, truncated, info = env.step(action)
        episode.steps += 1
        episode.rewards.append(float(reward))
        episode.look(env, info)
        if episode.steps >= self._max_steps and not (terminated or truncated):
            raise UnsupportedEnvError(
                f"`make_env` must make environments that end their episodes, got {env} whose "
                f"episode goes on after {episode.steps} steps; put a time limit on it, "
                "`env_kwargs: {max_episode_steps: ...}`."
            )
        return bool(terminated or truncated)


def evaluate(
    model: BaseAlgorithm,
    make_env: MakeEnv,
    *,
    episodes: int = 20,
    seed: int = 10_000,
    normalise: Normalise = None,
    num_envs: int = 4,
    max_steps: int = MAX_STEPS,
) -> EvalResult:
    """Evaluate a policy once; see :class:`Evaluator`.

    Args:
        model: What acts.
        make_env: Makes an environment.
        episodes: Episodes, at least 1.
        seed: Seed of the first one; the others count up.
        normalise: What observations pass through, such as the learner's ``VecNormalize``.
        num_envs: Environments that run side by side.
        max_steps: Steps after which an episode counts as one that does not end.

    Raises:
        UnsupportedEnvError: If an episode does not end.
    """
    evaluator = Evaluator(
        make_env, episodes=episodes, seed=seed, num_envs=num_envs, max_steps=max_steps
    )
    try:
        return evaluator(model, normalise)
    finally:
        evaluator.close()


def _begin(
    envs: Iterable[tuple[int, gym.Env[Any, Any]]], seeds: Iterator[int]
) -> Iterator[tuple[int, _Episode]]:
    """Start the next episodes, as long as there are any."""
    for slot, env in envs:
        seed = next(seeds, None)
        if seed is None:
            return
        obs, info = env.reset(seed=seed)
        episode = _Episode(seed, obs)
        episode.look(env, info)
        yield slot, episode


def normalise_function(normalise: Normalise) -> Callable[[Any], Any]:
    """Return what turns a batch of observations into what the policy takes."""
    if normalise is None:
        return lambda obs: obs
    found: Any = getattr(normalise, "normalize_obs", None)
    return normalise if found is None else found  # type: ignore[return-value]  # told apart above


def _stack(observations: Sequence[Any]) -> Any:
    first = observations[0]
    if isinstance(first, Mapping):
        return {key: np.stack([obs[key] for obs in observations]) for key in first}
    return np.stack([np.asarray(obs) for obs in observations])


def _result(episodes: Sequence[_Episode]) -> EvalResult:
    successes = tuple(episode.success for episode in episodes)
    progress = [episode.progress for episode in episodes if episode.progress is not None]
    known = [success for success in successes if success is not None]
    returns = tuple(math.fsum(episode.rewards) for episode in episodes)
    return EvalResult(
        success_rate=sum(known) / len(known) if known else None,
        mean_length=sum(episode.steps for episode in episodes) / len(episodes),
        mean_return=math.fsum(returns) / len(returns),
        mean_progress=math.fsum(progress) / len(progress) if progress else None,
        seeds=tuple(episode.seed for episode in episodes),
        successes=successes,
        lengths=tuple(episode.steps for episode in episodes),
        returns=returns,
    )
