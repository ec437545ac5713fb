"""The demonstration: roll out policies in a wrapped environment, show what the reward model saw.

Checks come first (:func:`prepare`), so that what is missing is said before any work is done; then
:func:`run_demo` writes one overlay video per episode, ``progress.png`` and ``episodes.jsonl``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from procreward.checks import check, check_folder, check_int, check_names
from procreward.environments import find_horizon, make_env
from procreward.errors import (
    ConfigError,
    MissingDependencyError,
    UnknownNameError,
    UnsupportedEnvError,
)
from procreward.instruction import InstructionSource
from procreward.registry import get_scorer, resolve
from procreward.report.curves import write_progress_figure
from procreward.report.overlay import write_overlay_video
from procreward.report.records import EpisodeRecord, write_records
from procreward.report.table import format_table
from procreward.rollout import Policy, RandomPolicy, run_episode
from procreward.wrapper import ProgressReward

__all__ = [
    "DemoConfig",
    "make_policy",
    "prepare",
    "run_demo",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Roll out policies in an environment whose reward comes from a model, and show the result."""

    env: str = "procreward/Lift-v0"
    """Gymnasium id of the environment; "module:id" imports the module first."""
    scorer: str = "nano"
    """Reward model that gives progress: preset, registered scorer, model folder or hub id."""
    judge: str | None = None
    """A second model that decides completion; without it, progress decides."""
    policy: tuple[str, ...] = ("expert", "fail", "random")
    """Policies to roll out: "random", or kinds of scripted expert, where the environment has them:
    expert, retry, drop, miss, stall, backtrack, idle, fail."""
    episodes: int = 3
    """Episodes of each policy."""
    instruction: str | None = None
    """The task in words; without it, what the environment says."""
    every_k_steps: int = 8
    """Environment steps between two queries."""
    gamma: float = 1.0
    """Discount of the shaping; at 1.0 the return is the progress gained over the episode."""
    max_steps: int | None = None
    """Steps after which an episode is cut off; without it, the environment's own horizon."""
    seed: int = 0
    """Seed of the first episode of each policy; the following ones count up from it."""
    out: Path = Path("runs/demo")
    """Folder of the videos, the figure and the records; those of an earlier demo are removed."""
    fps: float = 10.0
    """Frames per second of the videos."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("every_k_steps", 1), ("seed", 0)):
            check_int(name, getattr(self, name), least=least)
        if self.max_steps is not None:
            check_int("max_steps", self.max_steps, least=1)
        if not self.policy:
            raise ConfigError('`policy` must name at least one policy, such as "random", got none.')
        check(self.fps > 0, "fps", "above 0", self.fps)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSetup:
    """What :func:`prepare` made ready.

    Attributes:
        env: The wrapped environment.
        policies: Kinds of policy to run, without repetition.
        horizon: Most steps of an episode.
        figures: Whether figures can be drawn.
        notes: What the user should know, in sentences.
    """

    env: gym.Env[Any, Any]
    policies: tuple[str, ...]
    horizon: int
    figures: bool
    notes: tuple[str, ...]


def prepare(config: DemoConfig) -> DemoSetup:
    """Check everything that a run needs, and build it.

    In this order: the names of policies and models, the output folder, the environment with its
    instruction and a first picture (which needs an OpenGL context where there is a simulator), the
    weights of the models.

    Args:
        config: The settings.

    Returns:
        What the run needs.

    Raises:
        ConfigError: If the folder cannot be written to or a setting is wrong.
        UnknownNameError: If there is no such environment, scorer or policy.
        MissingDependencyError: If a simulator or a system library is not installed.
        ModelError: If weights cannot be loaded.
        UnsupportedEnvError: If the environment gives no pictures.
        InstructionError: If there is no instruction.
    """
    policies, notes = choose_policies(config.env, config.policy)
    names = [config.scorer] if config.judge is None else [config.scorer, config.judge]
    handles = [resolve(name) for name in names]
    check_folder(config.out)
    env = make_env(config.env, max_steps=config.max_steps)
    try:
        horizon = find_horizon(env)
        if horizon is None:
            raise ConfigError(
                f"`max_steps` must be given, got None: {config.env} has no time limit of its own."
            )
        _check_start(env, config)
        for handle in handles:
            get_scorer(handle)
        wrapped = ProgressReward(
            env,
            scorer=config.scorer,
            judge=config.judge,
            instruction=config.instruction,
            every_k_steps=config.every_k_steps,
            gamma=config.gamma,
        )
    except BaseException:
        env.close()
        raise
    figures = importlib.util.find_spec("matplotlib") is not None
    if not figures:
        notes = (*notes, "no progress.png without matplotlib: pip install 'procreward[report]'.")
    return DemoSetup(env=wrapped, policies=policies, horizon=horizon, figures=figures, notes=notes)


def _check_start(env: gym.Env[Any, Any], config: DemoConfig) -> None:
    obs, info = env.reset(seed=config.seed)
    InstructionSource(config.instruction).read(env, obs, info)
    try:
        picture = env.render()
    except gym.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"{config.env} cannot be rendered: {error}") from error
    if picture is None:
        raise UnsupportedEnvError(
            f"{config.env} gives no pictures in mode 'rgb_array'; choose an environment that does."
        )


def choose_policies(env_id: str, wanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Decide which kinds of policy can run in an environment.

    Args:
        env_id: The environment.
        wanted: Kinds of policy.

    Returns:
        The kinds without repetition, scripted ones replaced by "random" where the environment has
        no experts; and sentences that say so.

    Raises:
        UnknownNameError: If there is no such kind.
    """
    from procreward.envs.experts import KINDS

    check_names("policy", wanted, KINDS)
    scripted = [kind for kind in wanted if kind != "random"]
    if not scripted or _has_experts(env_id):
        return tuple(dict.fromkeys(wanted)), ()
    note = f"{env_id} has no scripted experts ({', '.join(scripted)}): actions are random."
    return ("random",), (note,)


def _has_experts(env_id: str) -> bool:
    from procreward.envs.experts import make_expert

    try:
        make_expert(env_id, "expert", 0)
    except UnknownNameError:
        return False
    return True


def make_policy(env_id: str, kind: str, seed: int) -> Policy:
    """Make a policy of a kind.

    Args:
        env_id: The environment it acts in.
        kind: "random" for uniform actions, else a kind of scripted expert.
        seed: Seed of what the policy draws.

    Raises:
        UnknownNameError: If there is no such kind, or no expert for the environment.
    """
    if kind == "random":
        return RandomPolicy(seed)
    from procreward.envs.experts import make_expert

    expert: Policy = make_expert(env_id, kind, seed)
    return expert


def run_demo(config: DemoConfig, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Run the demonstration.

    Args:
        config: The settings.
        say: Takes every line or block of text meant for the user.

    Returns:
        The files written.

    Raises:
        ProcrewardError: As :func:`prepare` says.
    """
    setup = prepare(config)
    for note in setup.notes:
        say(f"note: {note}")
    try:
        _remove_earlier(config.out)
        records, videos = _run_all(config, setup)
    finally:
        setup.env.close()
    files = [*videos, config.out / "episodes.jsonl"]
    write_records(records, files[-1])
    if setup.figures:
        files.append(config.out / "progress.png")
        write_progress_figure(records, files[-1])
    say(format_table(records))
    say("\nwritten:\n" + "\n".join(f"  {path}" for path in files))
    return tuple(files)


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier demo, finished or not, has written: a folder shows one run."""
    from procreward.envs.experts import KINDS

    for path in folder.iterdir():
        kind, _, number = path.stem.rpartition("-")
        video = path.suffix == ".mp4" and kind in KINDS and number.isdecimal()
        if video or path.name in ("episodes.jsonl", "progress.png"):
            path.unlink()


def _run_all(config: DemoConfig, setup: DemoSetup) -> tuple[list[EpisodeRecord], list[Path]]:
    """Roll out every policy; each video is written as soon as its episode is over."""
    from tqdm import tqdm

    def advance(_: int) -> None:
        bar.update(1)

    records: list[EpisodeRecord] = []
    videos: list[Path] = []
    total = len(setup.policies) * config.episodes * setup.horizon
    with tqdm(total=total, unit="step", mininterval=0.5) as bar:
        for kind in setup.policies:
            for number in range(config.episodes):
                bar.set_description(f"{kind} {number}")
                seed = config.seed + number
                rollout = run_episode(
                    setup.env,
                    make_policy(config.env, kind, seed),
                    seed=seed,
                    env_id=config.env,
                    policy_name=kind,
                    scorer_name=config.scorer,
                    episode=number,
                    on_step=advance,
                )
                record = rollout.record
                path = config.out / f"{record.name}.mp4"
                write_overlay_video(
                    record, rollout.frames, path, frame_steps=rollout.frame_steps, fps=config.fps
                )
                bar.update(setup.horizon - record.steps)
                records.append(record)
                videos.append(path)
    return records, videos
