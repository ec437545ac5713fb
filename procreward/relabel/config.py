"""``RelabelConfig``: what is relabelled, by which model, into which rewards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from procreward.checks import check, check_choice, check_int, is_number
from procreward.config import RewardConfig, ShapingMode
from procreward.errors import ConfigError
from procreward.scorers.building import ENGINES

__all__ = ["RelabelConfig", "parse_options", "select"]

_REWARD = (
    "judge",
    "frame_size",
    "window_frames",
    "pad",
    "shaping",
    "gamma",
    "scale",
    "ratchet",
    "smooth_alpha",
    "offset",
    "success_bonus",
    "complete_threshold",
    "confirm_queries",
    "confirm_window",
    "release_threshold",
    "min_progress",
    "max_consecutive_failures",
)

# A served model has an address too, which a preset file gives.
_ENGINES = tuple(name for name in ENGINES if name != "served")


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelConfig:
    """Put dense rewards into a recorded dataset: LeRobot, robomimic, Minari, videos, pictures.

    Exit status: 0 when all went well; 1 when it is done but episodes were skipped, or none of the
    queries about an episode was answered; 2 on an error; 130 when interrupted. A run that was
    interrupted or killed goes on where it was when the same command is given again.
    """

    source: tyro.conf.Positional[Path]
    """The dataset: a folder or a file."""
    out: Path
    """Folder for everything that is written; a folder of an earlier run is gone on with."""
    format: str = "auto"
    """lerobot-v2.1, lerobot-v3.0, robomimic, minari, video, frames; or auto, to look."""
    scorer: str = "nano"
    """Reward model that gives progress: preset, registered scorer, model folder or hub id."""
    engine: str | None = None
    """What runs the scorer's model: auto, fast, strict, reference, plain or vllm; without it, what
    the scorer's preset says."""
    judge: str | None = None
    """A second model that decides completion; without it, progress decides."""
    instruction: str | None = None
    """The task in words, of all episodes; without it, what the dataset says."""
    views: tuple[str, ...] = ()
    """Cameras that the models are shown, or the ends of their names; without it, the first one.
    flip:NAME turns pictures that are upside down in the dataset."""
    frame_size: tuple[int, int] | None = None
    """Width and height in pixels that frames are resized to; without it, what suits the scorer."""
    fps: float | None = None
    """Frames per second, where the dataset does not say."""
    every_k_frames: int = 8
    """Frames from one query to the next; the last frame is always asked about."""
    window_frames: int | None = None
    """Frames in a query; without it, what suits the scorer."""
    frame_stride_frames: int | None = None
    """Frames between neighbouring frames of a query; without it, what suits the scorer."""
    pad: bool | None = None
    """Whether the first queries repeat the first frame; without it, what suits the scorer."""
    shaping: ShapingMode = "pbrs"
    """How potentials become rewards: pbrs (policy-invariant), delta, raw or sparse."""
    gamma: float = 0.99
    """The learner's own discount."""
    scale: float = 1.0
    """Factor on the potential."""
    ratchet: bool = False
    """Take the best progress so far as the potential."""
    smooth_alpha: float | None = None
    """Weight of a new reading in an exponential average; without it, no smoothing."""
    offset: bool = False
    """Subtract an episode's first reading from the potential."""
    success_bonus: float = 0.0
    """Reward that is paid once an episode, when the task begins to count as complete."""
    complete_threshold: float | None = None
    """Reading that votes for completion; without it, what suits the model."""
    confirm_queries: int = 2
    """Votes that completion needs among the last --confirm-window ones."""
    confirm_window: int = 3
    """Votes that are counted."""
    release_threshold: float | None = None
    """Reading under which completion is given up; without it, the votes decide."""
    min_progress: float | None = None
    """Least progress at which a vote for completion counts."""
    fill: Literal["hold", "interpolate"] = "hold"
    """What progress is between two queries: the last reading, or a line to the next one (which
    knows of later actions). Rewards are of held readings always."""
    limit: int | None = None
    """Relabel only the first so many of the episodes."""
    episodes: str | None = None
    """Relabel only these, such as 0,3,5-9."""
    rewrite: bool = False
    """Write a new dataset with the rewards in it, to OUT/dataset; not for videos and pictures."""
    rewrite_option: tuple[str, ...] = ()
    """Settings of the format's writer, as NAME=VALUE."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an episode that cannot be read does: stop the run, or be left out and reported."""
    group_episodes: int = 16
    """Episodes that are asked about together, and published together."""
    batch_queries: int = 64
    """Queries that are put to the model in one call, about."""
    max_consecutive_failures: int = 10
    """Calls in a row without any answer after which the run stops."""
    dry_run: bool = False
    """Check everything, say what would be done and what it takes, and write nothing."""
    estimate: bool = True
    """With --dry-run: load the models and time a few queries, to say how long it would take."""
    overwrite: bool = False
    """Replace labels in OUT that were made with other settings; readings are kept and used."""

    def __post_init__(self) -> None:
        for name in ("every_k_frames", "group_episodes", "batch_queries"):
            check_int(name, getattr(self, name), least=1)
        if self.limit is not None:
            check_int("limit", self.limit, least=1)
        if self.fps is not None:
            check(is_number(self.fps) and self.fps > 0, "fps", "above 0", self.fps)
        check_choice("on_error", self.on_error, ("stop", "skip"))
        check_choice("fill", self.fill, ("hold", "interpolate"))
        if self.engine is not None:
            check_choice("engine", self.engine, _ENGINES)
        if self.rewrite_option and not self.rewrite:
            raise ConfigError("`rewrite_option` belongs to `rewrite`, which was not given.")
        parse_options(self.rewrite_option)
        self.reward_config()

    def reward_config(self) -> RewardConfig:
        """Return the settings of the stream and of the rewards.

        Raises:
            ConfigError: If one is out of range.
        """
        # As a preset with another engine, so that the engine is part of what the cache goes by.
        scorer: str | dict[str, Any] = self.scorer
        if self.engine is not None:
            scorer = {"preset": self.scorer, "options": {"engine": self.engine}}
        return RewardConfig.for_frames(
            scorer,
            every_k_frames=self.every_k_frames,
            frame_stride_frames=self.frame_stride_frames,
            **{name: getattr(self, name) for name in _REWARD},
        )

    def replace(self, **changes: Any) -> RelabelConfig:
        """Return a copy with some settings changed."""
        return dataclasses.replace(self, **changes)


def parse_options(given: Sequence[str]) -> Mapping[str, str]:
    """Split ``NAME=VALUE`` texts.

    Raises:
        ConfigError: If one has another form.
    """
    options = {}
    for item in given:
        name, equals, value = item.partition("=")
        check(bool(name and equals), "rewrite_option", "NAME=VALUE", item)
        options[name] = value
    return options


def select(indices: Sequence[int], episodes: str | None, limit: int | None) -> list[int]:
    """Choose episodes.

    Args:
        indices: Those that there are, in order.
        episodes: Such as ``"0,3,5-9"``, or None for all.
        limit: At most so many of them, or None.

    Returns:
        Indices in the dataset's order.

    Raises:
        ConfigError: If the text has another form, or names an episode that there is not.

    Example:
        >>> select(range(20), "0,3,5-7", 4)
        [0, 3, 5, 6]
    """
    chosen = list(indices)
    if episodes is not None:
        wanted = _wanted(episodes, max(indices))
        missing = sorted(wanted - set(indices))
        if missing:
            raise ConfigError(
                f"`episodes` must be of the dataset's {len(indices)} episodes "
                f"({min(indices)} to {max(indices)}), got {missing[0]}."
            )
        chosen = [index for index in indices if index in wanted]
    return chosen[:limit]


def _wanted(text: str, last_index: int) -> set[int]:
    """Numbers that a text names; of those of a range that there are not, the first one."""
    wanted: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        ok = all(end.strip().isdecimal() for end in ends) and int(ends[0]) <= int(ends[1])
        check(ok, "episodes", "numbers and ranges such as 0,3,5-9", text)
        begin, end = map(int, ends)
        wanted.update(range(begin, max(begin, min(end, last_index + 1)) + 1))
    return wanted
