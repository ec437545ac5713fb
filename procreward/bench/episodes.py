"""Episodes of robosuite's Lift, rendered step by step from scripted experts and kept in a file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.bench.frames import Episode

__all__ = ["Recording", "lift_recordings", "record"]

ENV_ID = "procreward/Lift-v0"
KINDS = ("expert", "retry", "drop", "miss", "expert", "stall", "backtrack", "expert")
FIRST_SEED = 2_000_000
"""Neither trained on nor used to measure how good nano is."""

_FPS = 20.0
_STEPS_AFTER_SUCCESS = 6
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """An episode with what the simulator knows about it.

    Attributes:
        episode: The frames, 128x128, of the environment's default view.
        kind: What the scripted policy does.
        progress: ``(steps,) float32``, true progress in [0, 1].
        stage: ``(steps,) int64``, index of the stage under way.
        stage_names: The task's stages.
    """

    episode: Episode
    kind: str
    progress: npt.NDArray[np.float32]
    stage: npt.NDArray[np.int64]
    stage_names: tuple[str, ...]


def lift_recordings(count: int, steps: int, cache: Path) -> list[Recording]:
    """Render episodes, or read those that were rendered before.

    Args:
        count: How many; their kinds alternate.
        steps: Most steps of each.
        cache: Folder for the file.

    Returns:
        The episodes. They depend on nothing but ``count`` and ``steps``.
    """
    path = cache / f"lift-{FIRST_SEED}-{count}-{steps}.npz"
    if not path.exists():
        logger.info("rendering %d episodes of Lift", count)
        _write(path, _render(count, steps))
    return _read(path)


def _render(count: int, steps: int) -> list[Recording]:
    import gymnasium as gym

    env = gym.make(f"procreward.envs:{ENV_ID}")
    try:
        return [
            record(env, KINDS[index % len(KINDS)], FIRST_SEED + index, steps)
            for index in range(count)
        ]
    finally:
        env.close()


def record(env: Any, kind: str, seed: int, steps: int) -> Recording:
    """Run one scripted episode and keep every frame.

    Args:
        env: The environment, as ``gymnasium.make`` gives it.
        kind: Behaviour, one of ``procreward.envs.experts.KINDS``.
        seed: Seed of scene and behaviour.
        steps: Most steps; the episode ends soon after its success.
    """
    from procreward.envs.experts import make_expert

    expert = make_expert(ENV_ID, kind, seed)
    _, info = env.reset(seed=seed)
    expert.reset(env)
    bare = env.unwrapped
    frames, progress, stage = [], [], []
    patience = _STEPS_AFTER_SUCCESS
    while True:
        frames.append(bare.render_camera(bare.default_views[0], 128, 128))
        progress.append(bare.privileged_progress())
        stage.append(int(bare.privileged_state()["stage"]))
        patience -= bool(info["success"])
        if len(frames) == steps or patience <= 0:
            break
        _, _, terminated, truncated, info = env.step(expert.act(env))
        if terminated or truncated:
            break
    return Recording(
        episode=_episode(seed, np.stack(frames), bare.instruction),
        kind=kind,
        progress=np.asarray(progress, dtype=np.float32),
        stage=np.asarray(stage, dtype=np.int64),
        stage_names=tuple(bare.stage_names),
    )


def _episode(seed: int, frames: npt.NDArray[np.uint8], instruction: str) -> Episode:
    return Episode(name=f"lift-{seed}", frames={"front": frames}, instruction=instruction, fps=_FPS)


def _write(path: Path, recordings: Sequence[Recording]) -> None:
    first = recordings[0]
    meta = {
        "instruction": first.episode.instruction,
        "stage_names": list(first.stage_names),
        "kinds": [one.kind for one in recordings],
    }
    frames = [one.episode.frames["front"] for one in recordings]
    # Neighbouring frames differ little; differences compress to a tenth.
    deltas = [np.diff(clip, axis=0, prepend=np.zeros_like(clip[:1])) for clip in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            meta=json.dumps(meta),
            lengths=np.asarray([len(clip) for clip in frames]),
            deltas=np.concatenate(deltas),
            progress=np.concatenate([one.progress for one in recordings]),
            stage=np.concatenate([one.stage for one in recordings]),
        )
    partial.replace(path)


def _read(path: Path) -> list[Recording]:
    with np.load(path, allow_pickle=False) as archive:
        meta = json.loads(str(archive["meta"]))
        ends = np.cumsum(archive["lengths"])[:-1]
        parts = [np.split(archive[name], ends) for name in ("deltas", "progress", "stage")]
    return [
        Recording(
            episode=_episode(
                FIRST_SEED + index, np.cumsum(delta, axis=0, dtype=np.uint8), meta["instruction"]
            ),
            kind=kind,
            progress=progress,
            stage=stage,
            stage_names=tuple(meta["stage_names"]),
        )
        for index, (kind, delta, progress, stage) in enumerate(
            zip(meta["kinds"], *parts, strict=True)
        )
    ]
