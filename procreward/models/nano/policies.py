"""Render what learning policies do, with true progress labels: more episodes for nano's training.

::

    python -m procreward.models.nano.policies --task window_open --reward truth --seed 0
    python -m procreward.models.nano.policies --task window_open --reward nano --seed 1

Scripted experts fail in a few ways; a policy that learns goes to all the places between, and one
that learns from nano goes where nano is wrong. This trains PPO on a Meta-World task, and every few
thousand steps renders episodes of the policy as it is then, into a shard as
:mod:`procreward.models.nano.render` writes them. Its settings are those of
``benchmarks/learning.py``, whose seeds of policies and scenes are others.

Needs ``pip install "procreward[sb3,metaworld]"``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from procreward.models.nano.render import FRAME_STRIDE, Episode, collect
from procreward.models.nano.shards import write_shard
from procreward.models.nano.tasks import TASKS, Task, get_task

__all__ = ["PolicyConfig", "main", "render_policies"]

_log = logging.getLogger(__name__)

_FIRST_SEED = 500_000
_SEEDS_A_RUN = 1_000
_SCALE = 10.0
_GAMMA = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Settings of a run.

    Attributes:
        task: Short name of a Meta-World task.
        reward: ``"truth"`` for the simulator's progress, ``"nano"``, or the folder of other weights
            of it.
        seed: Seed of the policy, below 400; the scenes' seeds follow from it.
        steps: Environment steps of PPO.
        every_steps: Steps between renderings.
        episodes: Episodes of a rendering. Every third one is without exploration.
        every_k_steps: Steps between queries where nano pays.
        out: Folder of the shards.
    """

    task: str
    reward: str = "truth"
    seed: int = 0
    steps: int = 60_000
    every_steps: int = 5_000
    episodes: int = 10
    every_k_steps: int = 8
    out: Path = Path("data/nano")

    envs: ClassVar[int] = 4

    @property
    def first_seed(self) -> int:
        """Seed of the first rendered scene."""
        return _FIRST_SEED + _SEEDS_A_RUN * self.seed


class _TrueDelta(gym.Wrapper[Any, Any, Any, Any]):
    """Pays the rise of the simulator's own progress."""

    def reset(self, **kwargs: Any) -> Any:
        """Reset, and note the progress."""
        found = self.env.reset(**kwargs)
        self._before = float(self.unwrapped.privileged_progress())  # type: ignore[attr-defined]  # procreward.envs
        return found

    def step(self, action: Any) -> Any:
        """Step, and pay."""
        obs, _, terminated, truncated, info = self.env.step(action)
        before = self._before
        self._before = float(self.unwrapped.privileged_progress())  # type: ignore[attr-defined]  # procreward.envs
        return obs, _SCALE * (self._before - before), terminated, truncated, info


def render_policies(config: PolicyConfig) -> Path:
    """Train a policy and render it while it learns.

    Args:
        config: The settings.

    Returns:
        The shard; one that exists is left as it is.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecNormalize

    task = get_task(config.task)
    count = config.steps // config.every_steps * config.episodes
    path = config.out / f"{task.name}-{config.first_seed:07d}-{count}.npz"
    if path.exists():
        return path
    venv = VecNormalize(_vec_env(task, config), norm_reward=False)
    stage = gym.make(task.env_id)
    runs: list[Episode] = []

    class Render(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % config.every_steps < config.envs:
                for _ in range(config.episodes):
                    if len(runs) < count:
                        seed = config.first_seed + len(runs)
                        act = partial(_act, self.model, venv, deterministic=len(runs) % 3 == 0)
                        runs.append(_play(stage, act, seed))
            return True

    model = PPO(
        "MlpPolicy",
        venv,
        n_steps=256,
        batch_size=256,
        n_epochs=10,
        learning_rate=3e-4,
        gamma=_GAMMA,
        seed=700 + config.seed,
        device="cpu",
    )
    model.learn(config.steps, callback=Render())
    write_shard(path, collect(task, stage.unwrapped, runs))
    solved = [run.success[-1] for run in runs[-3 * config.episodes :]]
    _log.info("%s: %d episodes, success at the end %.2f", path.name, len(runs), np.mean(solved))
    venv.close()
    stage.close()
    return path


def _vec_env(task: Task, config: PolicyConfig) -> Any:
    from stable_baselines3.common.env_util import make_vec_env

    from procreward.integrations.sb3 import make_progress_vec_env

    seed = config.first_seed + _SEEDS_A_RUN // 2
    if config.reward == "truth":
        return make_vec_env(
            lambda: _TrueDelta(gym.make(task.env_id, render_mode=None)), config.envs, seed=seed
        )
    return make_progress_vec_env(
        task.env_id,
        config.envs,
        seed=seed,
        scorer={"preset": "nano", "model": config.reward},
        shaping="delta",
        scale=_SCALE,
        gamma=_GAMMA,
        every_k_steps=config.every_k_steps,
    )


def _act(model: Any, venv: Any, obs: Any, *, deterministic: bool) -> Any:
    action, _ = model.predict(venv.normalize_obs(obs), deterministic=deterministic)
    return action


def _play(env: Any, act: Any, seed: int) -> Episode:
    obs, info = env.reset(seed=seed)
    episode, step, over = Episode(kind="policy", seed=seed), 0, False
    episode.record(env.unwrapped, 0, bool(info["success"]))
    while not over:
        obs, _, terminated, truncated, info = env.step(act(obs))
        step, over = step + 1, terminated or truncated
        if step % FRAME_STRIDE == 0 or over:
            episode.record(env.unwrapped, step, bool(info["success"]))
    return episode


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Render policies that learn, for nano.")
    parser.add_argument("--task", choices=list(TASKS), required=True)
    for name in ("reward", "seed", "steps", "every_steps", "episodes", "every_k_steps", "out"):
        default = PolicyConfig.__dataclass_fields__[name].default
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    render_policies(PolicyConfig(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
