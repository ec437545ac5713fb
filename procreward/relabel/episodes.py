"""What a dataset is to the relabeller, and what it becomes.

* :class:`Episode` - one recorded episode, without its pictures.
* :class:`Source` - a dataset that can be read, whatever its format.
* :class:`EpisodeLabels` - what the reward model made of an episode, in numbers per frame and step.
* :class:`Writer` - puts labels into a copy of a dataset, whatever its format.

**Alignment.** An episode of ``length`` T has actions ``a_0 .. a_{T-1}`` and pictures of the states
``s_0 .. s_{frames-1}``. Where the dataset keeps the state after the last action, ``frames`` is
T + 1; else it is T, and the last state counts as looking like the one before. ``reward[t]`` always
belongs to ``(s_t, a_t, s_{t+1})``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from procreward.types import Frame

__all__ = ["Episode", "EpisodeLabels", "Source", "Writer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One recorded episode, without its pictures.

    Attributes:
        index: Place in the dataset, from 0, as the format itself counts (LeRobot's
            ``episode_index``; robomimic's demos by the number in their name).
        name: Name that is unique in the dataset and fit for a file name, such as
            ``"episode_000012"`` or ``"demo_3"``.
        length: Actions, T.
        frames: Pictures of each view, T or T + 1; see the module.
        instruction: The task in words, empty where the dataset has none.
        terminated: Whether the dataset says that the last action led to a terminal state (a
            success). False means cut off.
        fps: Pictures per second, or None when unknown.
    """

    index: int
    name: str
    length: int
    frames: int
    instruction: str
    terminated: bool
    fps: float | None


class Source(Protocol):
    """A dataset that can be read.

    Opening one reads its metadata only; what is inconsistent in it raises
    :class:`~procreward.errors.DatasetError` there, before any picture is decoded. A source that
    sees by then that pictures of an episode cannot be read has a method ``check(episode, views)``,
    which raises that. One that is told that its pictures are upside down has an attribute
    ``upside_down``, which is true.

    Attributes:
        format: Name of the format, such as ``"lerobot-v3.0"``, ``"robomimic"``, ``"minari"``,
            ``"video"`` or ``"frames"``.
        root: The folder or file.
        views: Names of the cameras that it has pictures of.
        episodes: All episodes, in order of their index.
    """

    format: str
    root: Path
    views: tuple[str, ...]
    episodes: tuple[Episode, ...]

    def fingerprint(self, episode: Episode) -> str:
        """Return a text that changes when the pictures or the instruction of an episode do.

        It is made of metadata (sizes, counts, times of change), not of the pictures themselves.
        """
        ...

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of an episode in order, ``episode.frames`` of them.

        A generator; closing it early frees what it holds. Several may be open at once.

        Args:
            episode: One of :attr:`episodes`.
            views: Which cameras, of :attr:`views`.

        Yields:
            View name to RGB picture, ``(height, width, 3) uint8``, as it is in the dataset.

        Raises:
            DatasetError: If pictures are missing or damaged; it names the episode and the file.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpisodeLabels:
    """What the reward model made of an episode.

    With T actions and F pictures (see the module):

    Attributes:
        episode: Which one.
        reward: ``(T,) float64``, of ``(s_t, a_t, s_{t+1})``.
        potential: ``(T + 1,) float64``, what the shaping used for ``s_0 .. s_T``.
        progress: ``(F,) float64`` in [0, 1] per picture, held or interpolated between queries; NaN
            where nothing is known.
        success_prob: ``(F,) float64`` in [0, 1], likewise; NaN where the model gives none.
        complete: ``(F,) bool``, whether the task counts as done.
        queried: ``(F,) bool``, whether the model was asked about this picture.
        valid: ``(F,) bool``, whether the latest query was answered.
        text: What the model said, per picture; empty where it was not asked.
        terminated: Whether the last reward is that of a terminal state.
    """

    episode: Episode
    reward: npt.NDArray[np.float64]
    potential: npt.NDArray[np.float64]
    progress: npt.NDArray[np.float64]
    success_prob: npt.NDArray[np.float64]
    complete: npt.NDArray[np.bool_]
    queried: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]
    text: tuple[str, ...]
    terminated: bool


class Writer(Protocol):
    """Puts labels into a copy of a dataset.

    The relabeller calls it with a fresh, empty folder beside the target (same file system), then
    checks that nothing is missing, flushes it and renames it, so that a writer need not care about
    interruptions. The same labels must give the same bytes.
    """

    def write(
        self,
        source: Source,
        labels: Iterable[EpisodeLabels],
        staged: Path,
        provenance: Mapping[str, Any],
    ) -> None:
        """Write the dataset with rewards in it.

        Args:
            source: The dataset as it is.
            labels: Of every episode that is written, in order of their index.
            staged: An empty folder to write into.
            provenance: Where the rewards come from; JSON values, to be kept in the dataset.

        Raises:
            DatasetError: If the dataset cannot be written so.
        """
        ...

    def validate(self, source: Source, staged: Path) -> None:
        """Reopen what was written and compare it with what it came from.

        Raises:
            DatasetError: If rows, types, shapes or finiteness are not as they must be.
        """
        ...
