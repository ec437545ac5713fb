"""Everything that a run needs, checked before a model is loaded or a file is written.

* :func:`prepare` - looks at the dataset, the settings and the folder.
* :class:`RelabelPlan` - what it found: episodes, groups, what is asked, what it takes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from procreward.checks import check
from procreward.config import as_json
from procreward.errors import ConfigError, DatasetError, InstructionError
from procreward.instruction import check_instruction
from procreward.optional import ARROW, need
from procreward.plan import StreamPlan
from procreward.relabel.cache import Cache, Known, cache_key, is_cache
from procreward.relabel.config import RelabelConfig, parse_options, select
from procreward.relabel.episodes import Episode, Source, Writer
from procreward.relabel.formats import VIDEO_SUFFIXES, open_source, open_writer
from procreward.relabel.scoring import EpisodeJob, GroupJob
from procreward.relabel.showing import FLIP, Showing

__all__ = ["RELABEL_JSON", "STAGING", "RelabelPlan", "check_out", "prepare"]

RELABEL_JSON = "relabel.json"
"""The file that is written last: what is in the folder, and where it comes from."""

STAGING = ".staged"
"""The folder in which files are made before they appear."""

logger = logging.getLogger(__name__)

_CACHE = "cache"

# Bytes that a query and a frame take in all files together, about.
_QUERY_BYTES = 2000
_FRAME_BYTES = 500


@dataclass(frozen=True, kw_only=True)
class RelabelPlan:
    """A run that can begin.

    Attributes:
        config: The settings.
        source: The dataset.
        stream: The settings of the stream, with nothing left open.
        showing: What the models are shown.
        episodes: What is relabelled, with the instruction that is asked.
        identities: Index to what an episode is known by in the cache.
        groups: The episodes in groups.
        cache: Where the readings are.
        account: What the cache's key stands for.
        writer: What writes the new dataset, or None.
    """

    config: RelabelConfig
    source: Source
    stream: StreamPlan
    showing: Showing
    episodes: tuple[Episode, ...]
    identities: Mapping[int, tuple[int, str, str]]
    groups: tuple[tuple[Episode, ...], ...]
    cache: Cache
    account: Mapping[str, Any]
    writer: Writer | None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides what is written, as JSON has it; no paths of this machine."""
        config = self.config
        reward = config.reward_config()
        names = ("shaping", "gamma", "scale", "ratchet", "smooth_alpha", "offset", "success_bonus")
        completion = ("confirm_queries", "confirm_window", "release_threshold", "min_progress")
        values = {name: getattr(reward, name) for name in (*names, *completion)}
        return {
            **self.account,
            "every_k_frames": config.every_k_frames,
            "fps": config.fps,
            "reward": as_json(values | {"complete_threshold": self.stream.complete_threshold}),
            "fill": config.fill,
            "rewrite": config.rewrite,
            "rewrite_options": dict(parse_options(config.rewrite_option)),
            "group_episodes": config.group_episodes,
            "episodes": self.cache.folder.name.rpartition("-")[2],
        }

    @cached_property
    def unfinished(self) -> tuple[int, ...]:
        """Numbers of the groups that have to be asked about; skipped episodes are tried again."""
        return tuple(
            number
            for number in range(len(self.groups))
            if (found := self.cache.load(number)) is None or any(one.error for one in found)
        )

    @cached_property
    def known(self) -> Mapping[tuple[int, str, str], Known]:
        """What other runs left, by index, fingerprint and instruction."""
        return self.cache.known(retried=self.unfinished)

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(episode.frames for episode in self.episodes)

    @property
    def frames_left(self) -> int:
        """Frames of the groups that have to be asked about."""
        return sum(one.frames for number in self.unfinished for one in self.groups[number])

    def job(self, number: int) -> GroupJob:
        """Return what is asked about a group."""
        config = self.config
        return GroupJob(
            source=str(self.source.root),
            format=self.source.format,
            config=config.reward_config(),
            views=config.views,
            fps=config.fps,
            batch_queries=config.batch_queries,
            skip_broken=config.on_error == "skip",
            episodes=tuple(self._episode_job(episode) for episode in self.groups[number]),
        )

    def _episode_job(self, episode: Episode) -> EpisodeJob:
        known = self.known.get(self.identities[episode.index], Known())
        return EpisodeJob(
            index=episode.index,
            instruction=episode.instruction,
            known=known.same,
            denser=known.denser,
        )

    def queries_left(self) -> int:
        """Return how many queries are to be asked, if all are answered."""
        return sum(
            self._queries(episode) for number in self.unfinished for episode in self.groups[number]
        )

    def _queries(self, episode: Episode) -> int:
        last, every = episode.frames - 1, self.config.every_k_frames
        asked = {*range(0, episode.frames, every), last} if last >= 0 else set()
        known = self.known.get(self.identities[episode.index], Known())
        models = 1 if self.stream.judge is None else 2
        return models * len(asked - {one.frame for one in known.same + known.denser})

    def bytes_needed(self) -> int:
        """Return about how many bytes are going to be written."""
        queries = self.frames // self.config.every_k_frames + 2 * len(self.episodes)
        needed = queries * _QUERY_BYTES + self.frames * _FRAME_BYTES
        if self.writer is None:
            return needed
        estimate = getattr(self.writer, "disk_bytes", None)
        return needed + (int(estimate(self.source)) if estimate else _data_bytes(self.source.root))


def _identities(source: Source, episodes: Sequence[Episode]) -> dict[int, tuple[int, str, str]]:
    """Index to what an episode is known by in the cache."""
    chosen = {one.index for one in episodes}
    prints = {one.index: source.fingerprint(one) for one in source.episodes if one.index in chosen}
    return {one.index: (one.index, prints[one.index], one.instruction) for one in episodes}


def prepare(config: RelabelConfig) -> RelabelPlan:
    """Check the dataset, the settings and the folder.

    Args:
        config: The settings.

    Raises:
        DatasetError: If the dataset is none, is inconsistent, or has no place for rewards.
        UnknownNameError: If there is no such format, scorer or view.
        InstructionError: If an episode has no instruction; it is named.
        ConfigError: If the folder holds something else, or labels of other settings, or a view is
            named twice.
        MissingDependencyError: If a package for the format is not installed.
    """
    need(ARROW)
    source = open_source(config.source, config.format)
    writer = (
        open_writer(source.format, parse_options(config.rewrite_option)) if config.rewrite else None
    )
    stream = StreamPlan.from_config(config.reward_config())
    showing = Showing.of(stream, source.views, config.views)
    episodes = _episodes(config, source)
    size = config.group_episodes
    groups = tuple(episodes[start : start + size] for start in range(0, len(episodes), size))
    key, account = cache_key(stream, showing)
    identities = _identities(source, episodes)
    cache = Cache(
        config.out / _CACHE,
        key,
        config.every_k_frames,
        [[identities[one.index] for one in group] for group in groups],
    )
    plan = RelabelPlan(
        config=config,
        source=source,
        stream=stream,
        showing=showing,
        episodes=episodes,
        identities=identities,
        groups=groups,
        cache=cache,
        account=account,
        writer=writer,
    )
    check_out(plan)
    _check_pictures(plan)
    return plan


def _episodes(config: RelabelConfig, source: Source) -> tuple[Episode, ...]:
    check(len(source.episodes) > 0, "source", "a dataset with episodes", str(config.source))
    chosen = set(select([one.index for one in source.episodes], config.episodes, config.limit))
    episodes = tuple(
        replace(one, instruction=_instruction(config, one))
        for one in source.episodes
        if one.index in chosen
    )
    return episodes


def _check_pictures(plan: RelabelPlan) -> None:
    """Say what is known to be broken now and not after hours."""
    source, shown = plan.source, plan.showing.views
    as_stored = [one.view for one in plan.showing.shown if not one.view.startswith(FLIP)]
    if as_stored and getattr(source, "upside_down", False):
        logger.warning(
            "The pictures of %r are upside down (its macros_image_convention is 'opengl'), which "
            "no model will say; use the view %r (--views), unless they have been turned already.",
            str(source.root),
            FLIP + as_stored[0],
        )
    look = getattr(source, "check", None)
    for episode in plan.episodes:
        if plan.config.on_error == "stop":
            if look is not None:
                look(episode, shown)
            if episode.frames == 0:
                raise DatasetError(f"Episode {episode.name!r} must have frames, got none.")
        if plan.writer is not None and look is not None:
            # Those are no part of what is asked, but of the new dataset.
            look(episode, [view for view in source.views if view not in shown])


def _instruction(config: RelabelConfig, episode: Episode) -> str:
    try:
        return check_instruction(
            episode.instruction if config.instruction is None else config.instruction
        )
    except InstructionError as error:
        raise InstructionError(
            f"Episode {episode.name!r} has no instruction; give one for all with `instruction` "
            "(--instruction), or name it in the dataset (for videos and pictures in "
            "instructions.json)."
        ) from error


def check_out(plan: RelabelPlan) -> None:
    """Refuse a folder that is not for this run.

    Raises:
        ConfigError: If it holds something else, or labels of other settings.
    """
    out, root = plan.config.out.resolve(), plan.source.root.resolve()
    fix = "A dataset is never changed in place."
    rule = "a folder outside of the dataset"
    check(not out.is_relative_to(root), "out", rule, str(plan.config.out), fix)
    # What a run replaces in its folder would be the dataset itself.
    rule = f"a folder without the dataset {str(plan.source.root)!r} in it"
    check(not root.is_relative_to(out), "out", rule, str(plan.config.out), fix)
    if not out.exists():
        return
    check(out.is_dir(), "out", "a folder", str(plan.config.out))
    names = {child.name for child in out.iterdir()}
    fix = "Give another folder."
    check(_is_ours(out, names), "out", "empty or of an earlier run", str(plan.config.out), fix)
    if RELABEL_JSON in names and not plan.config.overwrite:
        _check_settings(plan, out / RELABEL_JSON)


def _is_ours(out: Path, names: Collection[str]) -> bool:
    """Whether a run may replace what is in a folder; many have something called `cache`."""
    if RELABEL_JSON in names:
        return True
    cache = out / _CACHE
    if cache.is_dir() and any(cache.iterdir()):
        return is_cache(cache)
    return set(names) <= {_CACHE, STAGING, ".lock"}


def _check_settings(plan: RelabelPlan, path: Path) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error!r}); give another `out`, or `overwrite`."
        ) from error
    differ = sorted(
        name for name in {*before, *plan.settings} if before.get(name) != plan.settings.get(name)
    )
    if differ:
        raise ConfigError(
            f"`out` must be of a run with the same settings, but in {str(path)!r} differ: "
            f"{', '.join(differ)}. Give `overwrite` (--overwrite) to replace the labels (the "
            "readings are kept and used again), or another `out`."
        )


def _data_bytes(root: Path) -> int:
    """Bytes of a dataset without its videos, which are linked."""
    files: Sequence[Path] = [root] if root.is_file() else list(root.rglob("*"))
    return sum(
        path.stat().st_size
        for path in files
        if path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES
    )
