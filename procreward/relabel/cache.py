"""The readings of a run, kept so that no picture is asked about twice.

::

    OUT/cache/<key>/scorer.json                      what answered, and what it was shown
    OUT/cache/<key>/every-8-<episodes>/group-00000.jsonl

``<key>`` stands for the models, their windows, the views and the frame size; ``<episodes>`` for
which episodes there are (their fingerprints and instructions) and how they are grouped. A group's
file is moved into place at once, complete. A run takes over what other runs have in the folder of
the same key: readings about the same picture with the same windows, or those of a run that asked
more often, at every k-th picture of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from procreward.plan import StreamPlan
from procreward.registry import LIVE_PREFIX, ScorerHandle, get_scorer
from procreward.relabel.publishing import publish
from procreward.relabel.readings import EpisodeReadings, Reading, read_readings, write_readings
from procreward.relabel.showing import Showing

__all__ = ["Cache", "Known", "cache_key", "is_cache", "portable"]

_KEY = re.compile(r"[0-9a-f]{12}")
_RUN = re.compile(r"every-(\d+)-[0-9a-f]+")
_WHOLE_FILE_BYTES = 1 << 20
_END_BYTES = 1 << 16


def portable(value: Any) -> Any:
    """Shorten absolute paths to their last part, so that an account says nothing of the machine."""
    if isinstance(value, Mapping):
        return {str(key): portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value


def cache_key(plan: StreamPlan, showing: Showing) -> tuple[str, dict[str, Any]]:
    """Name what decides a reading, apart from the episode.

    Args:
        plan: The settings; live scorers are asked to describe themselves, nothing else is built.
        showing: What the models are shown.

    Returns:
        A short text, and the values it stands for, as JSON has them.
    """
    judge_window = None if plan.judge_window is None else asdict(plan.judge_window)
    account = {
        "scorer": _account(plan.scorer),
        "judge": None if plan.judge is None else _account(plan.judge),
        "window": asdict(plan.window),
        "judge_window": judge_window,
        "shown": [asdict(one) for one in showing.shown],
    }
    return _digest(account), json.loads(json.dumps(account))


def is_cache(folder: Path) -> bool:
    """Say whether a folder holds readings, named by :func:`cache_key`, and nothing else."""
    names = [child.name for child in folder.iterdir() if not child.name.startswith(".")]
    return bool(names) and all(map(_KEY.fullmatch, names))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _account(handle: ScorerHandle) -> dict[str, Any]:
    if handle.key.startswith(LIVE_PREFIX):
        return portable(dict(get_scorer(handle).describe()))  # type: ignore[no-any-return]  # JSON values
    account: dict[str, Any] = portable(handle.config.to_dict())
    for name in ("model", "adapter"):
        folder = _local_folder(getattr(handle.config, name))
        if folder is not None:
            account[f"{name}_sha256"] = _folder_digest(folder)
    return account


def _local_folder(name: str | None) -> Path | None:
    """Folder of a model that is on this machine by its own name; hub ids have a revision."""
    if name is None:
        return None
    if name == "nano":
        from procreward.engine.sources import resolve_source

        return resolve_source(name).folder
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _folder_digest(folder: Path) -> str:
    """Digest of a model's files: small ones whole, of large ones the size and both ends."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as handle:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(handle.read())
                continue
            digest.update(handle.read(_END_BYTES))
            handle.seek(-_END_BYTES, 2)
            digest.update(handle.read())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Known:
    """What earlier runs leave to be taken over, of one episode.

    Attributes:
        same: Readings that stand for a query with the same windows.
        denser: Those of runs that asked more often, which stand for any about the same picture.
    """

    same: tuple[Reading, ...] = ()
    denser: tuple[Reading, ...] = ()


class Cache:
    """The readings of one run, and what it can take over from others.

    Attributes:
        key: Text of :func:`cache_key`.
        folder: Where the run's groups are.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        every_k_frames: int,
        groups: Sequence[Sequence[tuple[int, str, str]]],
    ) -> None:
        """Name the folder; reads and writes nothing.

        Args:
            root: ``OUT/cache``.
            key: Text of :func:`cache_key`.
            every_k_frames: Frames from one query to the next.
            groups: Index, fingerprint and instruction of every episode, by group.
        """
        self.key = key
        self._root, self._every = root / key, every_k_frames
        self._groups = groups
        self.folder = self._root / f"every-{every_k_frames}-{_digest([list(g) for g in groups])}"

    @property
    def account_path(self) -> Path:
        """Where it is written what answered."""
        return self._root / "scorer.json"

    def path(self, group: int) -> Path:
        """Return where a group's readings belong."""
        return self.folder / f"group-{group:05d}.jsonl"

    def load(self, group: int) -> tuple[EpisodeReadings, ...] | None:
        """Return a group's readings, or None if they have not been published.

        Raises:
            DatasetError: If the file is damaged.
        """
        path = self.path(group)
        if not path.is_file():
            return None
        found = read_readings(path)
        asked = [(one.index, one.fingerprint, one.instruction) for one in found]
        return found if asked == list(self._groups[group]) else None

    def save(self, group: int, episodes: Iterable[EpisodeReadings], staging: Path) -> None:
        """Publish a group's readings.

        Args:
            group: Its number.
            episodes: The readings.
            staging: A folder on the same file system.
        """
        staged = staging / f"group-{group:05d}.jsonl"
        write_readings(episodes, staged)
        read_readings(staged)
        publish(staged, self.path(group))

    def known(self, retried: Collection[int]) -> dict[tuple[int, str, str], Known]:
        """Look through all that was published under the key.

        Args:
            retried: Groups of this run that are published and to be asked about again.

        Returns:
            Index, fingerprint and instruction of an episode to what is known of it; episodes that
            were skipped are not among them.

        Raises:
            DatasetError: If a file is damaged.
        """
        found: dict[tuple[int, str, str], Known] = {}
        for folder in sorted(self._root.glob("every-*")):
            match = _RUN.fullmatch(folder.name)
            if match is None:
                continue
            denser = self._every % int(match[1]) == 0
            own = {self.path(number) for number in retried} if folder == self.folder else None
            for path in sorted(folder.glob("group-*.jsonl")):
                if own is not None and path not in own:
                    continue
                for one in read_readings(path):
                    if one.error:
                        continue
                    name = (one.index, one.fingerprint, one.instruction)
                    before = found.get(name, Known())
                    # A model that raised may answer next time.
                    kept = tuple(each for each in one.readings if not each.raised)
                    found[name] = Known(
                        before.same + kept, before.denser + kept if denser else before.denser
                    )
        return found
