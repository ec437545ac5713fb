"""Everything that a run needs is checked and built before it starts.

* :func:`prepare` - checks, and gives a :class:`TrainSetup`.
* :class:`TrainPlan` - what will be done, in numbers; :func:`format_plan` says it.
* :func:`measure_query` - what a query costs here.
"""

from __future__ import annotations

import importlib.util
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from procreward.checks import check, check_folder
from procreward.environments import find_horizon
from procreward.errors import ConfigError
from procreward.instruction import InstructionSource
from procreward.registry import get_scorer, resolve
from procreward.training.checkpoints import (
    Checkpoint,
    RunState,
    clear_partial,
    newest_checkpoint,
    restore_learner,
)
from procreward.training.config import TrainConfig, config_mapping, read_mapping
from procreward.training.environments import (
    build_venv,
    find_normalise,
    find_reward,
    make_eval_env,
)
from procreward.training.evaluation import Evaluator
from procreward.training.film import scorer_name
from procreward.training.learner import build_learner

if TYPE_CHECKING:
    import gymnasium as gym
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

__all__ = ["TrainPlan", "TrainSetup", "format_plan", "measure_query", "prepare"]

# What may change when a run goes on: how long, where, and what is looked at, not what is learned.
_MAY_CHANGE: Final = (
    "total_steps",
    "checkpoint_every_steps",
    "eval.every_steps",
    "eval.video",
    "workers",
    "out",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """What a run will do.

    Attributes:
        config: The settings.
        start: Environment steps that are done already.
        steps: Environment steps at the end; PPO finishes its last rollout.
        rollout: Environment steps between two updates.
        horizon: Steps of an episode at most, or None if unknown.
        queries: Queries to the scorer, about, if episodes last their full time.
        notes: What the user should know, in sentences.
    """

    config: TrainConfig
    start: int
    steps: int
    rollout: int
    horizon: int | None
    queries: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSetup:
    """What :func:`prepare` made ready.

    Attributes:
        plan: What will be done.
        venv: What the learner acts in.
        model: The learner.
        evaluator: Runs evaluations.
        state: Counters and generators of the checkpoint that is gone on from, or None.
        monitor: CSV file of the episodes, or None.
    """

    plan: TrainPlan
    venv: VecEnv
    model: BaseAlgorithm
    evaluator: Evaluator
    state: RunState | None
    monitor: Path | None

    def close(self) -> None:
        """Close the environments."""
        self.evaluator.close()
        self.venv.close()


def prepare(config: TrainConfig, *, resume: bool = False, dry: bool = False) -> TrainSetup:
    """Check everything that a run needs, and build it.

    In this order: names of models, the output folder and what it holds, one environment with its
    instruction, the sub-environments with their views, the learner, the weights of the models.

    Args:
        config: The settings.
        resume: Whether to go on from the newest checkpoint in ``config.out``.
        dry: Whether nothing may be written.

    Raises:
        ConfigError: If a setting is wrong, the folder cannot be used, or there is nothing to go on
            from.
        ProcrewardError: As the environments, the models and
            :class:`~procreward.integrations.sb3.VecProgressReward` say.
    """
    config_mapping(config)
    reward = config.reward
    handles = [resolve(one) for one in (reward.scorer, reward.judge) if one is not None]
    fix = "Use `shaping: delta`, or set `success_bonus` or `env_reward_weight`."
    what = "a reward by which some policies are better than others"
    check(reward.sets_a_task, "reward", what, f"shaping {reward.shaping!r} alone", fix)
    _check_room(config.out, dry=dry)
    checkpoint = _find_start(config, resume=resume)
    if not dry:
        clear_partial(config.out)
    evaluator = Evaluator(
        lambda: make_eval_env(config),
        episodes=config.eval.episodes,
        seed=config.eval.seed,
        num_envs=1,
    )
    with ExitStack() as undo:
        undo.callback(evaluator.close)
        horizon = _check_env(config, evaluator.example())
        monitor = None if dry else config.out / _monitor_name(checkpoint)
        venv = build_venv(
            config,
            monitor=monitor,
            normalisation=None if checkpoint is None else checkpoint.normalisation,
        )
        undo.callback(venv.close)
        model, state = _learner(config, venv, checkpoint)
        for handle in handles:
            get_scorer(handle)
        undo.pop_all()
    plan = _plan(config, model, horizon, venv)
    return TrainSetup(
        plan=plan, venv=venv, model=model, evaluator=evaluator, state=state, monitor=monitor
    )


def _check_room(out: Path, *, dry: bool) -> None:
    if not dry:
        check_folder(out)
        return
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    ok = there.is_dir() and os.access(there, os.W_OK)
    check(ok, "out", "a folder that can be written to", str(out))


def _find_start(config: TrainConfig, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; a run is neither overwritten nor changed on the way."""
    newest = newest_checkpoint(config.out)
    if newest is None:
        if resume:
            raise ConfigError(
                f"`out` must hold a complete checkpoint to resume from, got {str(config.out)!r} "
                "without; leave out --resume to start."
            )
        return None
    if not resume:
        raise ConfigError(
            f"`out` must be a folder without a run, got {str(config.out)!r} with a checkpoint of "
            f"step {newest.steps}; pass --resume to go on, or another --out."
        )
    _check_same(config)
    ok, fix = config.total_steps > newest.steps, "The run has got there; raise --total-steps."
    check(ok, "total_steps", f"above {newest.steps}", config.total_steps, fix)
    return newest


def _check_same(config: TrainConfig) -> None:
    path = config.out / "config.yaml"
    before, now = _flat(read_mapping(path)), _flat(config_mapping(config))
    changed = [
        f"{name} (was {before.get(name)!r}, is {now.get(name)!r})"
        for name in sorted({*before, *now})
        if name not in _MAY_CHANGE and before.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"The config must be that of the run that is resumed, {str(path)!r}, got other values "
            f"of {'; '.join(changed)}. Only {', '.join(_MAY_CHANGE)} may change."
        )


def _flat(mapping: dict[str, Any]) -> dict[str, Any]:
    """Names with dots for one level of mappings, so that a message can name what differs."""
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _check_env(config: TrainConfig, env: gym.Env[Any, Any]) -> int | None:
    """See that an episode can begin; return its horizon."""
    obs, info = env.reset(seed=config.eval.seed)
    InstructionSource(config.reward.instruction).read(env, obs, info)
    return find_horizon(env)


def _monitor_name(checkpoint: Checkpoint | None) -> str:
    """A run that goes on writes a file of its own; SB3's ``load_results`` reads them together."""
    return "monitor.csv" if checkpoint is None else f"{checkpoint.steps:09d}.monitor.csv"


def _learner(
    config: TrainConfig, venv: VecEnv, checkpoint: Checkpoint | None
) -> tuple[BaseAlgorithm, RunState | None]:
    if checkpoint is None:
        return build_learner(config, venv, **_settled(config, venv)), None
    device = str(config.learner.get("device", "cpu"))
    model, state = restore_learner(checkpoint, config.algorithm, venv, device=device)
    # New episodes, not those that the run began with.
    venv.seed((config.seed + checkpoint.steps) % 2**31)
    normalise = find_normalise(venv)
    if normalise is not None:
        # The first observations have been counted already, or would not have come.
        normalise.training = False
    return model, state


def _settled(config: TrainConfig, venv: VecEnv) -> dict[str, Any]:
    """What the latency decides for the learner."""
    if config.latency == "blocking" or config.algorithm == "ppo":
        return {}
    from gymnasium.spaces import Dict

    from procreward.integrations.sb3 import DeferredDictReplayBuffer, DeferredReplayBuffer

    several = isinstance(venv.observation_space, Dict)
    return {"replay_buffer_class": DeferredDictReplayBuffer if several else DeferredReplayBuffer}


def _plan(
    config: TrainConfig, model: BaseAlgorithm, horizon: int | None, venv: VecEnv
) -> TrainPlan:
    start, rollout = model.num_timesteps, _rollout(model) * config.num_envs
    steps = start + math.ceil((config.total_steps - start) / rollout) * rollout
    notes = []
    if steps > config.total_steps:
        notes.append(f"{steps} steps, not {config.total_steps}: a rollout is {rollout} steps.")
    if getattr(model, "learning_starts", 0) >= steps:
        notes.append("nothing is learned: `learner.learning_starts` is not reached.")
    if horizon is None:
        notes.append(f"{config.env} names no time limit; an evaluation needs its episodes to end.")
    if importlib.util.find_spec("matplotlib") is None:
        notes.append("no pictures of curves without matplotlib: pip install 'procreward[report]'.")
    if importlib.util.find_spec("tensorboard") is None:
        notes.append("no TensorBoard files without tensorboard: pip install 'procreward[train]'.")
    every = find_reward(venv).config.every_k_steps
    share = 1 / every if horizon is None else (1 + math.ceil(horizon / every)) / horizon
    return TrainPlan(
        config=config,
        start=start,
        steps=steps,
        rollout=rollout,
        horizon=horizon,
        queries=round((steps - start) * share),
        notes=tuple(notes),
    )


def _rollout(model: Any) -> int:
    """Steps of one sub-environment between two updates."""
    frequency = getattr(model, "train_freq", None)
    if frequency is None:
        return int(model.n_steps)
    # Where SAC counts episodes, nobody knows how many steps they take.
    return int(frequency.frequency) if frequency.unit.value == "step" else 1


def format_plan(plan: TrainPlan) -> str:
    """Say what a run will do, in a few lines."""
    config, reward = plan.config, plan.config.reward
    where = "a process each" if config.workers else "this process"
    horizon = "unlimited" if plan.horizon is None else f"{plan.horizon} steps"
    seen = "never seen" if not reward.env_reward_weight else f"times {reward.env_reward_weight:g}"
    judge = "" if reward.judge is None else " and the judge as many"
    done = "" if not plan.start else f", from step {plan.start}"
    lines = {
        "environment": f"{config.env}, {config.num_envs} in {where}, episodes of {horizon}",
        "reward": f"{scorer_name(config)} every {reward.every_k_steps} steps, {reward.shaping}, "
        f"scale {reward.scale:g}, gamma {reward.gamma:g}; {config.latency}",
        "simulator's reward": seen,
        "learner": f"{config.algorithm.upper()}, {plan.steps} steps{done}, "
        f"an update every {plan.rollout}",
        "queries": f"about {plan.queries}{judge}",
        "evaluation": f"{config.eval.episodes} episodes every {config.eval.every_steps or 'last'} "
        f"steps; {config.eval.video} filmed at the end",
        "checkpoints": f"every {config.checkpoint_every_steps or 'last'} steps in {config.out}",
    }
    width = max(len(name) for name in lines)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines.items())


def measure_query(setup: TrainSetup) -> str:
    """Begin an episode everywhere and say what the first queries took.

    Args:
        setup: What was prepared; its environments are reset.

    Raises:
        ProcrewardError: If there is no picture, or the model breaks its contract.
    """
    reward = find_reward(setup.venv)
    counts = []
    for _ in range(2):  # the first one warms up
        setup.venv.reset()
        reward.collect(wait=True)
        counts.append(reward.stats)
    first, stats = counts
    each = (stats.waiting_s - first.waiting_s) / max(1, stats.queries - first.queries)
    return (
        f"{stats.queries} queries asked, {stats.failures} failed; {1000 * each:.1f} ms a query, "
        f"{each * setup.plan.queries / 60:.1f} minutes for the run's"
    )
