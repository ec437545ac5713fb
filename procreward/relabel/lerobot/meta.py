"""The files under ``meta/`` of the new dataset: lists of episodes, statistics, ``info.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from procreward.optional import ARROW, need
from procreward.relabel.lerobot.files import (
    read_json,
    read_lines,
    unreadable,
    write_json,
    write_lines,
)
from procreward.relabel.lerobot.plan import RewritePlan, WrittenEpisode
from procreward.relabel.lerobot.stats import ALL_NAMES, PLAIN_NAMES, merge, shift

__all__ = ["write_info", "write_lists_v21", "write_lists_v30"]

_STATS = "stats/"


def write_lists_v21(plan: RewritePlan, staged: Path) -> None:
    """Write ``episodes.jsonl``, ``episodes_stats.jsonl`` and, where there was one, ``stats.json``.

    Raises:
        DatasetError: If the old ones are damaged.
    """
    old, new = plan.source.root / "meta", staged / "meta"
    by_index = {row["episode_index"]: row for row in read_lines(old / "episodes.jsonl")}
    write_lines(
        new / "episodes.jsonl",
        [
            {**by_index[episode.files.index], "episode_index": episode.index}
            for episode in plan.episodes
        ],
    )
    described: list[Mapping[str, Any]] = []
    if (old / "episodes_stats.jsonl").is_file():
        rows = {row["episode_index"]: row for row in read_lines(old / "episodes_stats.jsonl")}
        for episode in plan.episodes:
            stats = rows.get(episode.files.index, {}).get("stats", {})
            described.append(_episode_stats(plan, episode, stats, PLAIN_NAMES))
        write_lines(
            new / "episodes_stats.jsonl",
            [
                {"episode_index": episode.index, "stats": stats}
                for episode, stats in zip(plan.episodes, described, strict=True)
            ],
        )
    _write_stats(plan, staged, described)


def write_lists_v30(plan: RewritePlan, staged: Path) -> None:
    """Write ``meta/episodes`` and, where there was one, ``stats.json``.

    Raises:
        DatasetError: If the old ones are damaged.
    """
    written = {episode.files.index: episode for episode in plan.episodes}
    folder = plan.source.root / "meta" / "episodes"
    described: list[Mapping[str, Any]] = []
    for path in sorted(folder.glob("*/*.parquet")):
        try:
            table = need(ARROW).read_table(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        keep = [
            place
            for place, index in enumerate(table.column("episode_index").to_pylist())
            if index in written
        ]
        if not keep:
            continue
        table = table.take(keep)
        episodes = [written[index] for index in table.column("episode_index").to_pylist()]
        described += _write_episodes(
            plan, table, episodes, staged / path.relative_to(plan.source.root)
        )
    _write_stats(plan, staged, described)


def _write_episodes(
    plan: RewritePlan, table: Any, episodes: list[WrittenEpisode], target: Path
) -> list[dict[str, Any]]:
    """Write a file of the list of episodes; returns their statistics by feature."""
    import pyarrow as pa

    names = _stat_names(
        column.rpartition("/")[2] for column in table.column_names if column.startswith(_STATS)
    )
    old = [_nested(row) for row in table.to_pylist()]
    described = [
        _episode_stats(plan, episode, stats, names)
        for episode, stats in zip(episodes, old, strict=True)
    ]
    numbers = {
        "episode_index": [episode.index for episode in episodes],
        "dataset_from_index": [episode.first_index for episode in episodes],
        "dataset_to_index": [episode.first_index + episode.files.length for episode in episodes],
    }
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in numbers:
            columns[name] = pa.array(numbers[name], column.type)
        elif not name.startswith(_STATS):
            columns[name] = column
        else:
            feature, _, stat = name.removeprefix(_STATS).rpartition("/")
            if feature in plan.dropped:
                continue
            feature = plan.renamed.get(feature, feature)
            values = [stats.get(feature, {}).get(stat) for stats in described]
            columns[f"{_STATS}{feature}/{stat}"] = pa.array(values, column.type)
    for feature in plan.columns():
        for stat in names:
            values = [stats.get(feature, {}).get(stat) for stats in described]
            kind = pa.list_(_kind(plan, feature, stat))
            columns[f"{_STATS}{feature}/{stat}"] = pa.array(values, kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    need(ARROW).write_table(pa.table(columns), target, compression="snappy")
    return described


def _kind(plan: RewritePlan, feature: str, stat: str) -> Any:
    """Return the type of the values of a statistic."""
    import pyarrow as pa

    if stat == "count":
        return pa.int64()
    truth = plan.features[feature]["dtype"] == "bool" and stat in ("min", "max")
    return pa.bool_() if truth else pa.float64()


def _nested(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the statistics of an episode by feature, from its row of columns."""
    stats: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        if name.startswith(_STATS) and value is not None:
            feature, _, stat = name.removeprefix(_STATS).rpartition("/")
            stats.setdefault(feature, {})[stat] = value
    return stats


def _stat_names(found: Iterable[str]) -> tuple[str, ...]:
    """Return the statistics that a dataset has, or all where it has none."""
    known = set(found)
    return tuple(name for name in ALL_NAMES if name in known) or ALL_NAMES


def _episode_stats(
    plan: RewritePlan, episode: WrittenEpisode, old: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    stats = {**plan.kept(old), **episode.stats(names)}
    moved = {
        "episode_index": episode.index - episode.files.index,
        "index": episode.first_index - episode.files.first_index,
    }
    for key, by in moved.items():
        if by and key in stats:
            stats[key] = shift(stats[key], by)
    return stats


def _write_stats(plan: RewritePlan, staged: Path, described: list[Mapping[str, Any]]) -> None:
    """Write ``stats.json`` with the statistics that the old one has of its features."""
    path = plan.source.root / "meta" / "stats.json"
    if not path.is_file():
        return
    old = plan.kept(read_json(path))
    if not plan.complete:
        for key, stats in old.items():
            parts = [part[key] for part in described if "count" in part.get(key, {})]
            if parts and isinstance(stats, dict):
                merged = merge(parts)
                old[key] = {name: merged.get(name, value) for name, value in stats.items()}
    names = _stat_names(name for stats in old.values() if isinstance(stats, dict) for name in stats)
    write_json(staged / "meta" / "stats.json", {**old, **plan.stats(names)})


def write_info(plan: RewritePlan, staged: Path) -> None:
    """Write ``info.json`` with the new features and, when episodes went, the new totals."""
    info = {**plan.source.info.raw, "features": dict(plan.features)}
    if not plan.complete:
        episodes = len(plan.episodes)
        info |= {
            "total_episodes": episodes,
            "total_frames": plan.total_frames,
            "splits": {"train": f"0:{episodes}"},
        }
        if "total_videos" in info:
            info["total_videos"] = episodes * len(plan.source.info.videos)
        if "total_chunks" in info:
            info["total_chunks"] = -(-episodes // plan.source.info.chunks_size())
    write_json(staged / "meta" / "info.json", info)
