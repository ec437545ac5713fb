"""What is kept of an episode, and the file it is kept in.

* :class:`StepTrace` - one step: reward, progress, the model's answer.
* :class:`EpisodeRecord` - one episode: its totals and its steps.
* :func:`write_records` / :func:`read_records` - ``episodes.jsonl``, one episode a line.
* :func:`atomic_path` - a file appears complete or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from procreward.errors import ConfigError

__all__ = [
    "EpisodeRecord",
    "StepTrace",
    "atomic_path",
    "first_complete",
    "first_success",
    "read_records",
    "write_records",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """One step of an episode; step 0 is the reset.

    Attributes:
        step: Environment steps since the reset.
        reward: What the wrapper paid at this step (0.0 at the reset).
        env_reward: What the wrapped environment paid (0.0 at the reset).
        progress: Latest valid reading of the scorer in [0, 1], held between queries; None before
            the first one.
        potential: The potential the shaping used.
        queried: Whether the scorer was asked at this step.
        valid: Whether the latest query was answered.
        complete: Whether the completion tracker counts the task as done.
        success: What the environment itself says, ``info["success"]``.
        true_progress: True progress in [0, 1] from simulator state, or None where unknown.
        text: Raw output of the model at this step, empty where it was not asked.
        reason: Why the scorer gave no usable answer at this step; empty where it did or was not
            asked, and in relabelled datasets, which keep it with the answers.
    """

    step: int
    reward: float
    env_reward: float
    progress: float | None
    potential: float
    queried: bool
    valid: bool
    complete: bool
    success: bool
    true_progress: float | None = None
    text: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One episode of a policy in a wrapped environment.

    Attributes:
        env_id: Gymnasium id of the environment.
        policy: Kind of policy, such as ``"expert"``.
        episode: Number of the episode among those of its policy, from 0.
        seed: Seed given to the reset.
        instruction: The task in words.
        scorer: Name of the scorer.
        steps: Environment steps taken.
        episode_return: Undiscounted sum of the wrapper's rewards.
        env_return: Undiscounted sum of the environment's own rewards.
        final_progress: Last valid reading in [0, 1], or None if there was none.
        complete: Whether the task counted as done at any step, by the model.
        env_success: Whether the environment reported success at any step.
        queries: Queries sent to the scorer, the one at the reset included.
        invalid_answers: How many of them gave no usable answer.
        terminated: Whether the episode ended in a terminal state.
        truncated: Whether the episode was cut off by a limit.
        trace: The steps in order, the reset first: ``steps + 1`` entries.
    """

    env_id: str
    policy: str
    episode: int
    seed: int
    instruction: str
    scorer: str
    steps: int
    episode_return: float
    env_return: float
    final_progress: float | None
    complete: bool
    env_success: bool
    queries: int
    invalid_answers: int
    terminated: bool
    truncated: bool
    trace: tuple[StepTrace, ...]

    @property
    def name(self) -> str:
        """File stem of the episode, such as ``"expert-0"``."""
        return f"{self.policy}-{self.episode}"

    @property
    def success_step(self) -> int | None:
        """First step at which the environment reported success, or None."""
        return first_success(self.trace)

    @property
    def final_success(self) -> bool:
        """Whether the environment reported success at the last step."""
        return self.trace[-1].success

    @property
    def complete_step(self) -> int | None:
        """First step at which the model counted the task as done, or None."""
        return first_complete(self.trace)


def first_success(trace: Iterable[StepTrace]) -> int | None:
    """Return the first step at which the environment reported success, or None."""
    return next((entry.step for entry in trace if entry.success), None)


def first_complete(trace: Iterable[StepTrace]) -> int | None:
    """Return the first step at which the model counted the task as done, or None."""
    return next((entry.step for entry in trace if entry.complete), None)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; move it there when the block succeeds.

    The temporary file is flushed to disk first, and removed when the block raises, so a reader
    never sees half a file and a failed run leaves the old one in place.

    Args:
        path: Where the finished file belongs. Missing parent folders are made.

    Yields:
        The path to write to, with the same suffix as ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield staged
        with staged.open("rb") as handle:
            os.fsync(handle.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_records(records: Iterable[EpisodeRecord], path: Path) -> None:
    """Write episodes as JSON lines, atomically.

    Args:
        records: The episodes, in the order of the file.
        path: The file, usually ``episodes.jsonl``; replaced if it exists.

    Raises:
        ValueError: If a number is not finite (JSON has no NaN).
    """
    with (
        atomic_path(path) as staged,
        # Half a surrogate pair, which JSON can hold and UTF-8 cannot.
        staged.open("w", encoding="utf-8", errors="backslashreplace") as handle,
    ):
        for record in records:
            handle.write(json.dumps(asdict(record), allow_nan=False, ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[EpisodeRecord]:
    """Read what :func:`write_records` wrote.

    Args:
        path: The JSON-lines file.

    Returns:
        The episodes in the order of the file.

    Raises:
        ConfigError: If a line is not an episode record; the message names the line.
        FileNotFoundError: If there is no such file.
    """
    records = []
    # Not splitlines(), which takes more than JSON does for the end of a line.
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                records.append(_record(json.loads(line)))
            except (TypeError, KeyError, ValueError) as error:
                raise ConfigError(
                    f"`{path}` line {number} must be an episode record, got {line[:60]!r} "
                    f"({error}); write such files with procreward.report.records.write_records."
                ) from error
    return records


def _record(raw: dict[str, Any]) -> EpisodeRecord:
    """Build a record from its decoded JSON object, ignoring keys of later versions."""
    trace = tuple(StepTrace(**_known(StepTrace, entry)) for entry in raw["trace"])
    return EpisodeRecord(**{**_known(EpisodeRecord, raw), "trace": trace})


def _known(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {name: value for name, value in raw.items() if name in names}
