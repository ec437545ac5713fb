"""One run of ``benchmarks/learning.py``: what it is, and how it is trained and evaluated.

* :class:`Task`, :class:`Run` - what is trained on what.
* :func:`perform` - train, evaluate along the way, return a record that JSON can hold.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from _learning_record import fingerprint, query_record, rounded, training_record, versions
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

import procreward.envs  # noqa: F401  registers
from procreward.config import RewardConfig
from procreward.integrations.sb3 import make_progress_vec_env
from procreward.models.nano import WEIGHTS
from procreward.schedule import QuerySchedule
from procreward.shaping import Potential, Shaper
from procreward.training.evaluation import Evaluator
from procreward.training.learner import build_learner

Floats = npt.NDArray[np.float64]

GAMMA: Final = 0.98
SCALE: Final = 10.0
DENSE_FACTOR: Final = 0.1
EVAL_EPISODES: Final = 20
EVAL_SEED: Final = 10_000

PPO: Final[dict[str, Any]] = {
    "n_steps": 256,
    "batch_size": 256,
    "n_epochs": 10,
    "learning_rate": 3e-4,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
}
"""Settings of the learner, fixed before the first run and the same for every reward and task."""

NANO: Final[dict[str, dict[str, Any]]] = {
    "nano-delta": {"shaping": "delta", "scale": SCALE},
    # Without a task reward every policy is as good as any other under PBRS, so the model pays the
    # task reward too: once an episode, when its own readings say that the task is complete.
    "nano-pbrs": {"shaping": "pbrs", "scale": SCALE, "success_bonus": SCALE},
    # A reward a step in [0, 1], as the dense one.
    "nano-raw": {"shaping": "raw", "scale": 1.0},
}
"""Rewards that the model gives, by the settings of the wrapper."""

OTHERS: Final = ("truth-delta", "truth-pbrs", "clock", "sparse", "dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task with the budget of a run.

    Attributes:
        env_id: What ``gym.make`` takes.
        horizon: Steps after which an episode is cut off.
        steps: Environment steps of a run, all sub-environments together.
        eval_every: Steps between evaluations.
        every_k_steps: Steps between queries.
        num_envs: Sub-environments.
        env_kwargs: Further arguments of ``gym.make``.
    """

    env_id: str
    horizon: int
    steps: int
    eval_every: int
    every_k_steps: int
    num_envs: int = 4
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


TASKS: Final[dict[str, Task]] = {
    "drawer-close": Task(
        env_id="procreward/DrawerClose-v0",
        horizon=100,
        steps=20_000,
        eval_every=5_000,
        every_k_steps=8,
    ),
    "window-open": Task(
        env_id="procreward/WindowOpen-v0",
        horizon=120,
        steps=80_000,
        eval_every=10_000,
        every_k_steps=8,
    ),
    "button-press-topdown": Task(
        env_id="procreward/ButtonPressTopdown-v0",
        horizon=100,
        steps=60_000,
        eval_every=10_000,
        every_k_steps=4,
    ),
    "lift": Task(
        env_id="procreward/Lift-v0",
        horizon=100,
        steps=100_000,
        eval_every=20_000,
        every_k_steps=4,
        num_envs=8,
        env_kwargs={"rotate": False},
    ),
    "toy": Task(env_id="procreward/Toy-v0", horizon=25, steps=512, eval_every=256, every_k_steps=4),
}
"""What can be trained; ``toy`` is there for the tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        task: Name of a task.
        reward: Name of a reward.
        every_k_steps: Steps between queries; of no meaning for ``sparse`` and ``dense``.
        seed: Seed of the run.
        latency: ``"blocking"`` or ``"deferred"``.
        settings: Further settings of the wrapper, ``(name, value)`` pairs.
        scorer: The reward model.
        steps: Environment steps.
    """

    task: str
    reward: str
    every_k_steps: int
    seed: int
    latency: str = "blocking"
    settings: tuple[tuple[str, Any], ...] = ()
    scorer: str = "nano"
    steps: int = 0

    @property
    def key(self) -> str:
        """What tells it from all other runs."""
        parts = [self.task, self.reward, f"k{self.every_k_steps}", f"s{self.seed}"]
        parts += [f"{name}={value}" for name, value in self.settings]
        parts += [self.latency] if self.latency != "blocking" else []
        return "/".join(parts)


class TruthInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Puts the true progress into ``info["truth"]``, for the record; no learner sees it."""

    def step(self, action: Any) -> Any:
        """Step and read."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        truth = float(self.get_wrapper_attr("privileged_progress")())
        return obs, reward, terminated, truncated, {**info, "truth": truth}


class ReadingReward(gym.Wrapper[Any, Any, Any, Any]):
    """What ``ProgressReward`` does, for a reading that needs no picture.

    The same schedule, potential and shaping as in the product, so that nothing but the reading
    tells it from a run with a model.

    Args:
        env: The environment, TimeLimit included.
        reading: Progress in [0, 1], given the environment and the step of the episode.
        shaping: As in the wrapper.
        every_k_steps: Steps between readings.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        reading: Callable[[gym.Env[Any, Any], int], float],
        shaping: Any,
        every_k_steps: int,
    ) -> None:
        super().__init__(env)
        self._reading = reading
        self._schedule = QuerySchedule(every_k_steps, window_frames=1)
        self._potential = Potential()
        self._shaper = Shaper(shaping, gamma=GAMMA, scale=SCALE)
        self._step = 0

    def reset(self, **kwargs: Any) -> Any:
        """Reset and take the first reading."""
        obs, info = self.env.reset(**kwargs)
        self._step = 0
        self._potential.reset()
        self._shaper.reset(self._potential.update(self._reading(self.env, 0)))
        return obs, info

    def step(self, action: Any) -> Any:
        """Step, and take a reading where one is due."""
        obs, _, terminated, truncated, info = self.env.step(action)
        self._step += 1
        if self._schedule.due(self._step, ended=terminated or truncated):
            self._potential.update(self._reading(self.env, self._step))
        reward = self._shaper.step(self._potential.value, terminated=terminated)
        return obs, reward, terminated, truncated, info


def true_reading(env: gym.Env[Any, Any], step: int) -> float:
    """Return the true progress."""
    return float(env.get_wrapper_attr("privileged_progress")())


def clock_reading(env: gym.Env[Any, Any], step: int) -> float:
    """Return the share of the episode that has passed."""
    horizon: int = env.get_wrapper_attr("spec").max_episode_steps
    return step / horizon


def make_env(task: Task, *, reward: str | None = None, frames: bool = False) -> gym.Env[Any, Any]:
    """Make the environment with a time limit; no success ends an episode.

    Args:
        task: The task.
        reward: The environment's own reward, where it has several.
        frames: Whether frames will be drawn.
    """
    kwargs = dict(task.env_kwargs) | ({} if reward is None else {"reward": reward})
    mode = "rgb_array" if frames else None
    env = gym.make(task.env_id, max_episode_steps=task.horizon, render_mode=mode, **kwargs)
    return TruthInInfo(env)


def make_other_env(run: Run) -> gym.Env[Any, Any]:
    """Make an environment whose reward comes from the simulator or the clock."""
    task = TASKS[run.task]
    if run.reward == "sparse":
        return make_env(task)
    if run.reward == "dense":
        env = make_env(task, reward="dense")
        return gym.wrappers.TransformReward(env, lambda reward: DENSE_FACTOR * float(reward))
    return ReadingReward(
        make_env(task),
        reading=clock_reading if run.reward == "clock" else true_reading,
        shaping="pbrs" if run.reward.endswith("pbrs") else "delta",
        every_k_steps=run.every_k_steps,
    )


def make_venv(run: Run, num_envs: int) -> VecEnv:
    """Make the sub-environments with their reward."""
    if run.reward not in NANO:
        return DummyVecEnv([partial(make_other_env, run) for _ in range(num_envs)])
    settings: dict[str, Any] = {**NANO[run.reward], **dict(run.settings)}
    if run.latency != "blocking":
        settings["latency"] = run.latency
    return make_progress_vec_env(
        partial(make_env, TASKS[run.task], frames=True),
        num_envs,
        scorer=run.scorer,
        every_k_steps=run.every_k_steps,
        gamma=GAMMA,
        **settings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a learner is built from."""

    algorithm: str
    seed: int
    learner: dict[str, Any]
    reward: RewardConfig


def make_learner(run: Run, venv: VecEnv) -> BaseAlgorithm:
    """Make the learner; its settings are the same for every reward."""
    settings = Learner(
        algorithm="ppo",
        # Sub-environments are seeded counting up from the learner's seed; no two runs share any.
        seed=100 * run.seed,
        learner=PPO,
        reward=RewardConfig(gamma=GAMMA),
    )
    return build_learner(settings, venv)


class Watch(BaseCallback):
    """Evaluates along the way, and notes what the model read where the truth was another."""

    def __init__(self, task: Task, normalise: VecNormalize, steps: int) -> None:
        super().__init__()
        self._every = min(task.eval_every, steps)
        self._normalise = normalise
        self._evaluate = Evaluator(partial(make_env, task), episodes=EVAL_EPISODES, seed=EVAL_SEED)
        self._last = 0
        self.steps: list[int] = []
        self.success: list[float] = []
        self.progress: list[float] = []
        self.readings: list[tuple[int, float, float, bool]] = []
        self.episodes: list[tuple[int, bool, float, float]] = []
        self._running: dict[int, list[float]] = {}

    def _on_step(self) -> bool:
        for index, info in enumerate(self.locals["infos"]):
            self._note(index, info, bool(self.locals["dones"][index]))
        if self.num_timesteps // self._every > self._last:
            self._last = self.num_timesteps // self._every
            result = self._evaluate(self.model, self._normalise)
            self.steps.append(self.num_timesteps)
            self.success.append(result.success_rate or 0.0)
            self.progress.append(result.mean_progress or 0.0)
        return True

    def _note(self, index: int, info: dict[str, Any], done: bool) -> None:
        truth = float(info["truth"])
        entry = info.get("procreward")
        # Success, highest reading, highest truth.
        best = self._running.setdefault(index, [0.0, 0.0, 0.0])
        best[0] = max(best[0], float(info["success"]))
        best[2] = max(best[2], truth)
        if entry is not None and entry["queried"]:
            self.readings.append((self.num_timesteps, entry["progress"], truth, entry["valid"]))
            best[1] = max(best[1], entry["progress"])
        if done:
            self.episodes.append((self.num_timesteps, best[0] > 0.0, best[1], best[2]))
            del self._running[index]

    def close(self) -> None:
        """Close the evaluation's environments."""
        self._evaluate.close()


def weights_digest(run: Run) -> str | None:
    """Return a digest of the embedded model's weights, None where another or no model was asked."""
    if run.reward not in NANO or run.scorer != "nano":
        return None
    return hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()


def callbacks(run: Run, watch: Watch) -> list[BaseCallback]:
    """Return what has to be told of every step."""
    if run.latency == "blocking":
        return [watch]
    from procreward.integrations.sb3 import DeferredRewards

    return [watch, DeferredRewards()]


def perform(run: Run, raw: Path | None = None) -> dict[str, Any]:
    """Train and evaluate.

    Args:
        run: What to train.
        raw: Folder for every single reading, ``.npz``; None keeps their summary only.

    Returns:
        A record that JSON can hold.
    """
    torch.set_num_threads(1)
    task = TASKS[run.task]
    steps = run.steps or task.steps
    began, cpu = time.perf_counter(), time.process_time()
    venv = VecNormalize(make_venv(run, task.num_envs), norm_reward=False)
    model = make_learner(run, venv)
    watch = Watch(task, venv, steps)
    model.learn(steps, callback=callbacks(run, watch))
    record: dict[str, Any] = {
        "key": run.key,
        **asdict(run),
        "steps": watch.steps,
        "budget": steps,
        "success": watch.success,
        "progress": watch.progress,
        "final_success": float(np.mean(watch.success[-2:])),
        "scorer_sha256": weights_digest(run),
        **query_record(venv),
        **training_record(watch.episodes, watch.readings, watch.steps, min(task.eval_every, steps)),
        "policy_sha256": fingerprint(model),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "versions": versions(),
    }
    if raw is not None:
        raw.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            raw / f"{run.key.replace('/', '_')}.npz",
            readings=np.array(watch.readings, np.float64),
            episodes=np.array(watch.episodes, np.float64),
        )
        model.save(raw / f"{run.key.replace('/', '_')}.zip")
        venv.save(str(raw / f"{run.key.replace('/', '_')}.pkl"))
    watch.close()
    venv.close()
    result: dict[str, Any] = rounded(record)
    return result
