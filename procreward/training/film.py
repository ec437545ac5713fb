"""Episodes of a learned policy with what the reward model saw: video, progress curve, records.

* :func:`film` - the files.
* :class:`LearnedPolicy` - a learner of Stable-Baselines3 as a
  :class:`~procreward.rollout.Policy`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from procreward.config import ScorerConfig
from procreward.report.curves import write_progress_figure
from procreward.report.overlay import write_overlay_video
from procreward.report.records import write_records
from procreward.rollout import run_episode
from procreward.training.config import TrainConfig
from procreward.training.environments import make_eval_env
from procreward.training.evaluation import Normalise, normalise_function
from procreward.wrapper import ProgressReward

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = ["KeepObservation", "LearnedPolicy", "film"]


class KeepObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the latest observation as ``latest_observation``, for policies that need it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.latest_observation: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset and keep."""
        self.latest_observation, info = self.env.reset(seed=seed, options=options)
        return self.latest_observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step and keep."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.latest_observation = obs
        return obs, reward, terminated, truncated, info


class LearnedPolicy:
    """Acts as a learner does without exploring, in an environment with :class:`KeepObservation`.

    Args:
        model: The learner.
        normalise: What observations pass through, such as the learner's ``VecNormalize``.
    """

    def __init__(self, model: BaseAlgorithm, normalise: Normalise = None) -> None:
        self._model, self._prepare = model, normalise_function(normalise)

    def reset(self, env: Any) -> None:
        """Do nothing: the policy has no memory."""

    def act(self, env: Any) -> Any:
        """Return the action for the latest observation."""
        obs = env.get_wrapper_attr("latest_observation")
        action, _ = self._model.predict(self._prepare(obs), deterministic=True)
        return action


def film(config: TrainConfig, model: BaseAlgorithm, normalise: Normalise) -> list[Path]:
    """Run the first episodes of an evaluation with the reward model, and write what it saw.

    Args:
        config: The settings; ``eval.video`` says how many episodes.
        model: The learner.
        normalise: What its observations pass through.

    Returns:
        Videos, ``episodes.jsonl`` and, where matplotlib is installed, ``progress.png``.

    Raises:
        ProcrewardError: As :class:`~procreward.wrapper.ProgressReward` does.
    """
    env = KeepObservation(ProgressReward(make_eval_env(config), config=config.reward))
    policy, records, files = LearnedPolicy(model, normalise), [], []
    try:
        for number in range(config.eval.video):
            rollout = run_episode(
                env,
                policy,
                seed=config.eval.seed + number,
                env_id=config.env.rpartition(":")[2],
                policy_name=f"{config.algorithm}-{model.num_timesteps}",
                scorer_name=scorer_name(config),
                episode=number,
            )
            records.append(rollout.record)
            files.append(config.out / "videos" / f"{rollout.record.name}.mp4")
            write_overlay_video(
                rollout.record, rollout.frames, files[-1], frame_steps=rollout.frame_steps
            )
    finally:
        env.close()
    files.append(config.out / "episodes.jsonl")
    write_records(records, files[-1])
    if importlib.util.find_spec("matplotlib") is not None:
        files.append(config.out / "progress.png")
        write_progress_figure(records, files[-1])
    return files


def scorer_name(config: TrainConfig) -> str:
    """Return what to call the reward model of a run."""
    scorer: Any = config.reward.scorer
    if isinstance(scorer, ScorerConfig):
        return scorer.name
    return scorer if isinstance(scorer, str) else str(scorer["name"])
