"""What a folder of results holds, whichever command wrote it.

* :func:`open_run` - reads the folder of ``relabel``, ``demo`` or ``train``.
* :class:`Run`, :class:`Entry` - what was found: settings, episodes, the models' answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from procreward.errors import ConfigError
from procreward.relabel.cache import portable
from procreward.relabel.readings import Reading, read_readings
from procreward.report.records import EpisodeRecord, read_records

__all__ = ["Entry", "Run", "open_run"]

EPISODES = "episodes.jsonl"
RELABEL_JSON = "relabel.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An episode of a run.

    Attributes:
        place: Its place among the run's episodes, from 0.
        number: What it is chosen by: the dataset's own number of it, or its place.
        key: What links name it by; unique in the run.
        name: What people call it.
        record: Its steps.
        readings: Step to all that the models said there, where the run kept it.
    """

    place: int
    number: int
    key: str
    name: str
    record: EpisodeRecord
    readings: Mapping[int, Reading] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a command left behind.

    Attributes:
        kind: The command.
        folder: Where.
        title: What the run is about: the dataset or the environment.
        entries: Its episodes, in order.
        account: ``relabel.json``, or the settings of a training run; empty for a demo.
        skipped: Name of every episode that has no labels, and why.
        notes: What is missing, in sentences.
    """

    kind: Literal["relabel", "demo", "train"]
    folder: Path
    title: str
    entries: tuple[Entry, ...]
    account: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_run(folder: Path) -> Run:
    """Read a folder of results.

    Args:
        folder: What was ``--out`` of ``relabel``, ``demo`` or ``train``.

    Raises:
        ConfigError: If it is none, is not finished, or has no episodes.
        DatasetError: If what the models answered is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"`run` must be a folder that procreward relabel, demo or train wrote, got "
            f"{str(folder)!r}: {'a file' if folder.exists() else 'no such folder'}."
        )
    if (folder / RELABEL_JSON).is_file():
        return _relabelled(folder)
    if (folder / EPISODES).is_file():
        return _played(folder)
    raise ConfigError(_what_is_missing(folder))


def _what_is_missing(folder: Path) -> str:
    start = f"`run` must be a finished run, got {str(folder)!r}"
    if (folder / "cache").is_dir():
        return f"{start}, which is relabelled in part; give the relabel command once more."
    if (folder / "evaluations.jsonl").is_file():
        return (
            f"{start}, a training run without filmed episodes; they come with `eval: {{video: 3}}` "
            "at the end of a run."
        )
    return (
        f"{start}, which has neither {RELABEL_JSON} (procreward relabel) nor {EPISODES} "
        "(procreward demo, train)."
    )


def _records(folder: Path) -> list[EpisodeRecord]:
    try:
        records = read_records(folder / EPISODES)
    except FileNotFoundError as error:
        raise ConfigError(
            f"`run` must have {EPISODES}, got {str(folder)!r} without; give the command that made "
            "it once more."
        ) from error
    records = [record for record in records if record.trace]
    if not records:
        raise ConfigError(
            f"`run` must have at least one episode, got {str(folder / EPISODES)!r} without."
        )
    return records


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found["settings"], dict):
            return found
        raise ValueError("`settings` must be a mapping")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error!r}); give the relabel command once more, with "
            "--overwrite."
        ) from error


def _relabelled(folder: Path) -> Run:
    account = _read_json(folder / RELABEL_JSON)
    records = _records(folder)
    said = {number: (name, readings) for number, name, readings in _said(folder, account)}
    notes = []
    if any(record.episode not in said for record in records):
        notes.append(
            "The cache of answers is not in the folder: why an answer was invalid, and what a "
            "judge said, is not known."
        )
    entries = []
    for place, record in enumerate(records):
        name, readings = said.get(record.episode, (f"episode {record.episode}", {}))
        entries.append(
            Entry(
                place=place,
                number=record.episode,
                key=str(record.episode),
                name=name,
                record=record,
                readings=readings,
            )
        )
    return Run(
        kind="relabel",
        folder=folder,
        title=str(account.get("source", {}).get("name", records[0].env_id)),
        entries=tuple(entries),
        account=account,
        skipped=dict(account.get("skipped", {})),
        notes=tuple(notes),
    )


def _said(
    folder: Path, account: Mapping[str, Any]
) -> Iterator[tuple[int, str, Mapping[int, Reading]]]:
    """Number, name and readings of every episode, as far as the cache is there."""
    cache = folder / "cache" / str(account.get("cache", ""))
    for path in sorted(cache.glob("group-*.jsonl")):
        for one in read_readings(path):
            yield one.index, one.name, {reading.frame: reading for reading in one.readings}


def _played(folder: Path) -> Run:
    """Read the folder of a demo, or of a training run."""
    records = _records(folder)
    names = Counter(record.name for record in records)
    entries = tuple(
        Entry(
            place=place,
            number=place,
            # Names repeat only in files that were put together by hand.
            key=record.name if names[record.name] == 1 else f"{record.name}-{place}",
            name=record.name,
            record=record,
        )
        for place, record in enumerate(records)
    )
    config = folder / "config.yaml"
    trained = (folder / "evaluations.jsonl").is_file() and config.is_file()
    return Run(
        kind="train" if trained else "demo",
        folder=folder,
        title=records[0].env_id.rpartition(":")[2],
        entries=entries,
        account=_read_yaml(config) if trained else {},
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error}).") from error
    return dict(portable(found)) if isinstance(found, dict) else {}
