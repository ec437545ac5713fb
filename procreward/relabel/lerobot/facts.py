"""What the parquet files say about episodes: the instruction, and whether the task was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.errors import DatasetError
from procreward.relabel.lerobot.files import read_columns
from procreward.relabel.lerobot.info import Info
from procreward.relabel.lerobot.layout import EpisodeFiles, Layout

__all__ = ["Facts", "read_facts"]

# RoboCasa and GR00T: the row of the tasks that describes this episode in words.
_DESCRIPTION = "annotation.human.task_description"
_COLUMNS = (
    "episode_index",
    "index",
    "task_index",
    _DESCRIPTION,
    "next.success",
    "next.done",
    "next.truncated",
    "next.reward",
    "next.reward_env",  # what was next.reward before we wrote ours
)

_Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rows of an episode say.

    Attributes:
        instruction: The task in words.
        terminated: Whether the last action led to a terminal state.
    """

    instruction: str
    terminated: bool


def read_facts(info: Info, layout: Layout) -> tuple[Facts, ...]:
    """Read the small columns of every data file.

    The instruction is the task of the first frame: the row that RoboCasa's
    ``annotation.human.task_description`` points to, else ``task_index``, else the list of
    episodes. RoboCasa lists names of tasks (``PnPCounterToCab``) beside the sentences, so that
    the first of these that is more than one word is taken.

    An episode terminated if ``next.success`` of the last frame says so. Without that column:
    if ``next.done`` is set and ``next.truncated``, which must be there, is not; or if
    ``next.reward`` (``next.reward_env`` where there is one) is 0 at first, 1 at last and nothing
    else between. ``next.done`` alone marks
    the last frame of every episode and says nothing.

    Raises:
        DatasetError: If a file is damaged, or its rows are not those of the episodes.
    """
    facts: list[Facts] = []
    path: Path | None = None
    columns: _Columns = {}
    for episode in layout.episodes:
        if episode.data != path:
            path, columns = episode.data, read_columns(episode.data, _COLUMNS)
        part = slice(episode.row, episode.row + episode.length)
        rows = {name: values[part] for name, values in columns.items()}
        _check_rows(episode, rows)
        facts.append(
            Facts(
                instruction=_instruction(episode, rows, layout.tasks),
                terminated=_terminated(rows),
            )
        )
    return tuple(facts)


def _check_rows(episode: EpisodeFiles, rows: _Columns) -> None:
    first = episode.first_index
    expected = {
        "episode_index": np.full(episode.length, episode.index),
        "index": np.arange(first, first + episode.length),
    }
    for name, values in expected.items():
        if not np.array_equal(rows[name], values):
            raise DatasetError(
                f"The rows of episode {episode.index} in {str(episode.data)!r} must have the "
                f"`{name}` {values[0]} to {values[-1]}, got {rows[name].min()} to "
                f"{rows[name].max()}."
            )


def _instruction(episode: EpisodeFiles, rows: _Columns, tasks: Mapping[int, str]) -> str:
    indices = [int(rows[name][0]) for name in (_DESCRIPTION, "task_index") if name in rows]
    found = [tasks[index] for index in indices if index in tasks]
    found = [text.strip() for text in (*found, *episode.tasks) if text.strip()]
    sentences = [text for text in found if " " in text]
    return (sentences or found or [""])[0]


def _terminated(rows: _Columns) -> bool:
    if "next.success" in rows:
        return bool(rows["next.success"][-1])
    if "next.done" in rows and "next.truncated" in rows:
        return bool(rows["next.done"][-1]) and not rows["next.truncated"][-1]
    rewards = rows.get("next.reward_env", rows.get("next.reward"))
    return rewards is not None and _is_sparse_success(rewards)


def _is_sparse_success(rewards: npt.NDArray[Any]) -> bool:
    return bool(rewards[0] == 0 and rewards[-1] == 1 and np.isin(rewards, (0, 1)).all())
