"""Checkpoints that are complete or not there, and how a run goes on from one.

::

    OUT/checkpoints/step-000020480/   policy.zip  normalisation.pkl  replay_buffer.pkl  state.json

A checkpoint is written beside its place, flushed to disk and renamed, so a run that is killed while
it writes one leaves the one before. The newest two are kept.

* :func:`save_checkpoint`, :func:`newest_checkpoint`, :func:`restore_learner`
* :func:`clear_partial` - removes what a run that was killed had half written.
* :class:`RunState` - counters, and the generators that a learner draws from.
* :func:`publish_folder` - a folder appears complete or not at all.
* :func:`save_best` - the policy of the best evaluation, ``OUT/best``.

Like all of Stable-Baselines3's, the files hold pickles: open only what you trust.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from procreward.errors import ConfigError
from procreward.training.environments import find_normalise
from procreward.training.learner import find_algorithm

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

__all__ = [
    "Checkpoint",
    "RunState",
    "clear_partial",
    "newest_checkpoint",
    "publish_folder",
    "restore_learner",
    "save_best",
    "save_checkpoint",
]

KEPT = 2
_NAME = re.compile(r"step-(\d{9,})")
_POLICY, _NORMALISATION, _REPLAY, _STATE = (
    "policy.zip",
    "normalisation.pkl",
    "replay_buffer.pkl",
    "state.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        steps: Environment steps that had been taken.
        folder: Where it is.
    """

    steps: int
    folder: Path

    @property
    def normalisation(self) -> Path | None:
        """The file of the observations' statistics, or None."""
        path = self.folder / _NORMALISATION
        return path if path.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a run needs beside its learner to go on.

    Attributes:
        queries: Queries put to the reward model so far.
        failures: How many of them got no usable answer.
        random: States of Python's, NumPy's and torch's generators and of the action space's, as
            JSON holds them.
    """

    queries: int
    failures: int
    random: Mapping[str, Any]

    @classmethod
    def capture(cls, model: BaseAlgorithm, *, queries: int, failures: int) -> RunState:
        """Take the counters and read the generators.

        Args:
            model: The learner whose action space is read.
            queries: Queries so far.
            failures: Failed ones so far.
        """
        import torch

        name, keys, *rest = np.random.get_state(legacy=True)
        random_states = {
            "python": random.getstate(),
            "numpy": [name, np.asarray(keys).tolist(), *rest],
            "torch": torch.get_rng_state().numpy().tobytes().hex(),
            "cuda": [state.numpy().tobytes().hex() for state in _cuda_states()],
            "action_space": model.action_space.np_random.bit_generator.state,
        }
        return cls(queries=queries, failures=failures, random=random_states)

    def restore_random(self, model: BaseAlgorithm) -> None:
        """Set the generators.

        Args:
            model: The learner whose action space is set.
        """
        import torch

        version, internal, gauss = self.random["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = self.random["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        torch.set_rng_state(_tensor(self.random["torch"]))
        states = self.random["cuda"]
        # A run may go on where there are other devices.
        if states and len(states) == len(_cuda_states()):
            torch.cuda.set_rng_state_all([_tensor(state) for state in states])
        model.action_space.np_random.bit_generator.state = self.random["action_space"]


def _cuda_states() -> list[Any]:
    import torch

    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _tensor(text: str) -> Any:
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


@contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``; move it there when the block succeeds.

    Args:
        folder: Where the finished folder belongs; replaced if it exists.

    Yields:
        The folder to write into.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        for path in (*sorted(staged.rglob("*")), staged):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    out: Path, model: BaseAlgorithm, *, queries: int = 0, failures: int = 0
) -> Checkpoint:
    """Write a checkpoint and remove those that are older than the newest two.

    Args:
        out: Folder of the run.
        model: The learner, between two updates.
        queries: Queries put to the reward model so far.
        failures: How many of them got no usable answer.
    """
    room, steps = out / "checkpoints", model.num_timesteps
    folder = room / f"step-{steps:09d}"
    with publish_folder(folder) as staged:
        _save_policy(model, staged)
        if getattr(model, "replay_buffer", None) is not None:
            model.save_replay_buffer(staged / _REPLAY)  # type: ignore[attr-defined]  # SAC's
        state = RunState.capture(model, queries=queries, failures=failures)
        (staged / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    for old in _complete(room)[:-KEPT]:
        shutil.rmtree(old.folder)
    return Checkpoint(steps=steps, folder=folder)


def _save_policy(model: BaseAlgorithm, folder: Path) -> None:
    model.save(folder / _POLICY)
    env = model.get_env()
    normalise = None if env is None else find_normalise(env)
    if normalise is not None:
        normalise.save(str(folder / _NORMALISATION))


def _complete(room: Path) -> list[Checkpoint]:
    """The complete checkpoints, oldest first."""
    found = []
    for folder in room.glob("step-*"):
        match = _NAME.fullmatch(folder.name)
        if match:
            found.append(Checkpoint(steps=int(match[1]), folder=folder))
    return sorted(found, key=lambda checkpoint: checkpoint.steps)


def newest_checkpoint(out: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or None.

    Args:
        out: Folder of the run.
    """
    found = _complete(out / "checkpoints")
    return found[-1] if found else None


def clear_partial(out: Path) -> None:
    """Remove what a run that was killed had half written; not while one goes on there.

    Args:
        out: Folder of the run.
    """
    for room in (out / "checkpoints", out / "policies"):
        for partial in room.glob(".step-*.partial"):
            shutil.rmtree(partial)
    for link in out.glob(".best.*"):
        link.unlink()


def restore_learner(
    checkpoint: Checkpoint, algorithm: str, venv: VecEnv, *, device: str = "cpu"
) -> tuple[BaseAlgorithm, RunState]:
    """Load a learner from a checkpoint.

    Args:
        checkpoint: What to go on from.
        algorithm: Name of the algorithm.
        venv: What it goes on learning in.
        device: Device of the learner.

    Returns:
        The learner, and the counters and generators to go on with.

    Raises:
        ConfigError: If the checkpoint cannot be read, or is for other spaces.
    """
    try:
        model = find_algorithm(algorithm).load(checkpoint.folder / _POLICY, env=venv, device=device)
        if (checkpoint.folder / _REPLAY).is_file():
            model.load_replay_buffer(  # type: ignore[attr-defined]  # SAC's
                checkpoint.folder / _REPLAY
            )
        state = json.loads((checkpoint.folder / _STATE).read_text(encoding="utf-8"))
        return model, RunState(**state)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise ConfigError(
            f"The checkpoint {str(checkpoint.folder)!r} cannot be used ({error}); remove that "
            "folder to go on from the one before it."
        ) from error


def save_best(out: Path, model: BaseAlgorithm, facts: Mapping[str, Any]) -> Path:
    """Keep a policy as the run's best: ``OUT/best`` then leads to its folder.

    Args:
        out: Folder of the run.
        model: The learner whose policy it is.
        facts: What ``best.json`` says of it.

    Returns:
        ``OUT/best``, a link that is moved only when the new folder is complete.
    """
    folder = out / "policies" / f"step-{model.num_timesteps:09d}"
    with publish_folder(folder) as staged:
        _save_policy(model, staged)
        (staged / "best.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    link, fresh = out / "best", out / f".best.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.relative_to(out), target_is_directory=True)
    fresh.replace(link)
    for old in _complete(folder.parent):
        if old.folder != folder:
            shutil.rmtree(old.folder)
    return link
