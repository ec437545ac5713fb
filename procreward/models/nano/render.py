"""Render scripted episodes with true progress labels: the first of nano's two training steps.

::

    python -m procreward.models.nano.render --task lift --episodes 700 --out data/nano

writes shards of 50 episodes. A shard that exists is skipped, so a killed run goes on where it was;
an episode depends on its seed alone. Seeds from 1,000,000 on are for testing only.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from procreward.models.nano.shards import STATE_WIDTHS, Shard, write_shard
from procreward.models.nano.tasks import TASKS, Task, get_task

__all__ = ["TEST_SEEDS", "Episode", "main", "render_episode", "render_shards"]

TEST_SEEDS = 1_000_000
"""First seed that training must not see."""

FRAME_STRIDE = 4
"""Control steps between stored frames."""

_MIX: Mapping[str, float] = MappingProxyType(
    {
        "expert": 0.35,
        "retry": 0.12,
        "drop": 0.10,
        "miss": 0.25,
        "stall": 0.04,
        "backtrack": 0.04,
        "random": 0.06,
        "idle": 0.04,
    }
)
_TEST_MIX: Mapping[str, float] = MappingProxyType(
    {
        "expert": 0.20,
        "retry": 0.14,
        "drop": 0.14,
        "miss": 0.24,
        "stall": 0.08,
        "backtrack": 0.08,
        "random": 0.07,
        "idle": 0.05,
    }
)
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Episode:
    """One rendered episode; every list has one entry per stored frame.

    Attributes:
        kind: Behaviour.
        seed: Seed of the scene and of the behaviour.
        frames: ``(128, 128, 3) uint8`` each.
        steps: Control step of each frame.
        progress: True progress in [0, 1].
        stage: Index of the stage under way.
        success: The environment's own success flag.
        state: ``(12,) float32`` each: the entries of ``STATE_WIDTHS``, concatenated.
    """

    kind: str
    seed: int
    frames: list[Any] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    stage: list[int] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)
    state: list[Any] = field(default_factory=list)

    def record(self, env: Any, step: int, success: bool) -> None:
        """Store the present frame of an unwrapped environment with its labels."""
        state = env.privileged_state()
        self.frames.append(env.render_camera(env.default_views[0], 128, 128))
        self.steps.append(step)
        self.progress.append(env.privileged_progress())
        self.stage.append(int(state["stage"]))
        self.success.append(success)
        self.state.append(
            np.concatenate([np.ravel(state[name]) for name in STATE_WIDTHS]).astype(np.float32)
        )


def render_episode(env: Any, env_id: str, kind: str, seed: int) -> Episode:
    """Run one scripted episode and keep every fourth frame and the last.

    Failing behaviours run to the horizon. The others end a random while after their success, to
    save time.

    Args:
        env: The environment, wrapped by its time limit.
        env_id: Its id, for the expert.
        kind: Behaviour, one of ``procreward.envs.experts.KINDS``.
        seed: Seed of scene and behaviour.
    """
    from procreward.envs.experts import make_expert

    rng = np.random.default_rng([seed, 7])
    expert = make_expert(env_id, kind, seed)
    _, info = env.reset(seed=seed)
    expert.reset(env)
    bare = env.unwrapped
    episode = Episode(kind=kind, seed=seed)
    success, step, truncated = bool(info["success"]), 0, False
    episode.record(bare, step, success)
    wait = _wait_after_success(kind, rng)
    patience = wait
    while not truncated and patience > 0:
        _, _, terminated, truncated, info = env.step(expert.act(env))
        truncated = truncated or terminated
        step, success = step + 1, bool(info["success"])
        patience = patience - 1 if success else wait
        if step % FRAME_STRIDE == 0 or truncated or patience <= 0:
            episode.record(bare, step, success)
    return episode


def _wait_after_success(kind: str, rng: np.random.Generator) -> int:
    """Return how many successful steps in a row end an episode."""
    if kind not in ("expert", "retry") or rng.random() < 0.15:
        return 10_000
    # A retrying expert may succeed for a moment before it drops the object.
    return int(rng.integers(4, 28)) if kind == "expert" else int(rng.integers(36, 60))


def kinds_for(seeds: Sequence[int], *, known: Sequence[str], test: bool) -> list[str]:
    """Return a behaviour for every seed, in the shares of the training or the test mix.

    Shares hold exactly up to rounding in every hundred seeds; kinds that a task does not know are
    left out.
    """
    mix = {k: w for k, w in (_TEST_MIX if test else _MIX).items() if k in known}
    names = list(mix)
    edges = np.cumsum([mix[name] for name in names]) / sum(mix.values())
    # A golden-ratio walk visits all shares evenly, whatever the shard's size.
    places = [(seed * 0.6180339887498949) % 1.0 for seed in seeds]
    return [names[min(int(np.searchsorted(edges, place)), len(names) - 1)] for place in places]


def render_shards(
    task: Task, *, episodes: int, seed_start: int, out: Path, shard_size: int = 50
) -> list[Path]:
    """Render ``episodes`` episodes of a task into shards under ``out``.

    Args:
        task: The task.
        episodes: How many.
        seed_start: Seed of the first; the others follow.
        out: Folder of the shards.
        shard_size: Episodes in one file.

    Returns:
        The shards' paths, new ones and those that were there.
    """
    from procreward.envs.experts import KINDS

    def play(env: Any, seeds: range) -> list[Episode]:
        kinds = kinds_for(seeds, known=KINDS, test=seed_start >= TEST_SEEDS)
        return [render_episode(env, task.env_id, k, s) for k, s in zip(kinds, seeds, strict=True)]

    return write_shards(
        task, play, episodes=episodes, seed_start=seed_start, out=out, shard_size=shard_size
    )


def write_shards(
    task: Task,
    play: Callable[[Any, range], list[Episode]],
    *,
    episodes: int,
    seed_start: int,
    out: Path,
    shard_size: int,
) -> list[Path]:
    """Play episodes of a task into shards under ``out``; shards that exist are skipped.

    Args:
        task: The task.
        play: Plays the episodes of some seeds in an environment.
        episodes: How many.
        seed_start: Seed of the first; the others follow.
        out: Folder of the shards.
        shard_size: Episodes in one file.

    Returns:
        The shards' paths, new ones and those that were there.
    """
    import gymnasium as gym

    env: Any = None
    paths = []
    for first in range(seed_start, seed_start + episodes, shard_size):
        count = min(shard_size, seed_start + episodes - first)
        path = out / f"{task.name}-{first:07d}-{count}.npz"
        paths.append(path)
        if path.exists():
            continue
        env = env or gym.make(task.env_id)
        began = time.perf_counter()
        runs = play(env, range(first, first + count))
        write_shard(path, collect(task, env.unwrapped, runs))
        _log.info(
            "%s: %d episodes, %.2f s each, success %s",
            path.name,
            count,
            (time.perf_counter() - began) / count,
            _success_by_kind(runs),
        )
    if env is not None:
        env.close()
    return paths


def collect(task: Task, env: Any, runs: Sequence[Episode]) -> Shard:
    def flat(name: str, dtype: Any) -> Any:
        return np.asarray([value for run in runs for value in getattr(run, name)], dtype=dtype)

    return Shard(
        task=task.name,
        instruction=env.instruction,
        stage_names=tuple(env.stage_names),
        kinds=tuple(run.kind for run in runs),
        seeds=np.asarray([run.seed for run in runs], dtype=np.int64),
        lengths=np.asarray([len(run.frames) for run in runs], dtype=np.int64),
        frames=flat("frames", np.uint8),
        steps=flat("steps", np.int32),
        progress=flat("progress", np.float32),
        stage=flat("stage", np.int8),
        success=flat("success", np.bool_),
        state=flat("state", np.float32),
    )


def _success_by_kind(runs: Sequence[Episode]) -> str:
    words = []
    for kind in sorted({run.kind for run in runs}):
        ends = [run.success[-1] for run in runs if run.kind == kind]
        words.append(f"{kind} {sum(ends)}/{len(ends)}")
    return ", ".join(words)


def shards_of(play: Callable[[Any, Task, int], Episode]) -> Callable[..., list[Path]]:
    """Return what renders one kind of episodes into shards, to be called as :func:`render_shards`.

    Args:
        play: Plays the episode of a seed in an environment of a task.
    """

    def render(
        task: Task, *, episodes: int, seed_start: int, out: Path, shard_size: int = 50
    ) -> list[Path]:
        return write_shards(
            task,
            lambda env, seeds: [play(env, task, seed) for seed in seeds],
            episodes=episodes,
            seed_start=seed_start,
            out=out,
            shard_size=shard_size,
        )

    return render


def rendering_command(
    argv: Sequence[str] | None,
    render: Callable[..., list[Path]],
    *,
    description: str,
    tasks: Sequence[str],
    episodes: int,
    seed_start: int = 0,
) -> None:
    """Run the command line of a module that renders shards.

    Args:
        argv: What the user wrote; None for the process's own arguments.
        render: Called for every task that is asked for, as :func:`render_shards` is.
        description: What the command does.
        tasks: Names that ``--task`` takes, beside ``"all"``.
        episodes: How many, where the user does not say.
        seed_start: Seed of the first, likewise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", choices=[*tasks, "all"], required=True)
    parser.add_argument("--episodes", type=int, default=episodes)
    parser.add_argument("--seed-start", type=int, default=seed_start)
    parser.add_argument("--out", type=Path, default=Path("data/nano"))
    parser.add_argument("--shard-size", type=int, default=50)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in tasks if args.task == "all" else (args.task,):
        render(
            get_task(name),
            episodes=args.episodes,
            seed_start=args.seed_start,
            out=args.out,
            shard_size=args.shard_size,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    rendering_command(
        argv,
        render_shards,
        description="Render labelled episodes for nano.",
        tasks=tuple(TASKS),
        episodes=300,
    )


if __name__ == "__main__":
    main()
