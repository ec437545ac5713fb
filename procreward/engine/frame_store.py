"""Keeps what the vision tower made of each picture, so that no picture is encoded twice."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from procreward.checks import check_int
from procreward.engine import Clip, FrameKey
from procreward.engine.loading import LoadedModel
from procreward.engine.preprocess import (
    Patches,
    check_frames,
    preprocess_groups,
    preprocess_images,
)
from procreward.engine.vision import Features, VisionTower
from procreward.types import Frame

__all__ = ["EncoderStats", "FrameEncoder", "FrameStore", "StoreKey"]

logger = logging.getLogger(__name__)

StoreKey: TypeAlias = tuple[tuple[FrameKey, ...], tuple[int, int]]
"""The pictures that went into one entry (one, or a video's group) and its grid in patches."""


class FrameStore:
    """What was encoded last, up to a number of bytes.

    Args:
        max_bytes: Limit of all entries together; the ones not used for longest go first.
    """

    def __init__(self, max_bytes: int) -> None:
        check_int("max_bytes", max_bytes, least=0)
        self._max_bytes = max_bytes
        self._entries: OrderedDict[StoreKey, torch.Tensor] = OrderedDict()
        self._streams: dict[str, set[StoreKey]] = {}
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: StoreKey) -> torch.Tensor | None:
        """Look an entry up; it then counts as just used.

        Args:
            key: Its key.

        Returns:
            ``(levels, tokens, hidden)``, or None.
        """
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: StoreKey, entry: torch.Tensor) -> None:
        """Keep an entry; :meth:`trim` holds the limit.

        Args:
            key: Its key.
            entry: ``(levels, tokens, hidden)``; alone in its memory, or nothing would be freed
                when it goes.
        """
        self._drop(key)
        self._entries[key] = entry
        self._nbytes += entry.nbytes
        for stream in _streams(key):
            self._streams.setdefault(stream, set()).add(key)

    def trim(self) -> None:
        """Drop what was not used for longest until the limit holds."""
        while self._nbytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def release(self, streams: Iterable[str]) -> None:
        """Drop every entry of streams that have ended.

        Args:
            streams: Their names.
        """
        for stream in streams:
            for key in self._streams.pop(stream, ()):
                self._drop(key)

    def _drop(self, key: StoreKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._nbytes -= entry.nbytes
        for stream in _streams(key):
            keys = self._streams.get(stream)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._streams[stream]


def _streams(key: StoreKey) -> set[str]:
    return {stream for stream, _, _ in key[0]}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderStats:
    """What an encoder has done so far.

    Attributes:
        frames_encoded: Frames that went through the vision tower.
        frames_reused: Frames that did not have to, padding included.
        frames_kept: Pictures or groups of a video that are kept now.
        bytes_kept: Their size.
    """

    frames_encoded: int
    frames_reused: int
    frames_kept: int
    bytes_kept: int


@dataclass(slots=True)
class _Misses:
    """Pictures of one size that have to be encoded together.

    Attributes:
        names: What the result of each (or of each group) is called.
        frames: The pictures, group after group.
    """

    names: list[StoreKey | int] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


_Batch: TypeAlias = tuple[bool, tuple[int, ...], tuple[int, int]]
"""Whether they are groups of a video, the shape of a frame and the grid in patches."""


class FrameEncoder:
    """Turns clips into features, every picture once.

    A frame with a key is encoded when it is first seen and kept; a video is kept in its groups of
    frames, so that windows which move by whole groups find them again. Calls from several threads
    wait for each other.

    Args:
        loaded: The model.
        exact: As for :class:`~procreward.engine.vision.VisionTower`.
        max_bytes: Limit of what is kept; 0 keeps nothing.
    """

    def __init__(self, loaded: LoadedModel, *, exact: bool, max_bytes: int) -> None:
        self._config = loaded.image_config
        self._device = loaded.device
        self._tower = VisionTower(loaded, exact=exact)
        self._store = FrameStore(max_bytes)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._encoded = 0
        self._reused = 0
        self._warned = False

    @property
    def stats(self) -> EncoderStats:
        """What was encoded, reused and kept."""
        with self._lock:
            return EncoderStats(
                frames_encoded=self._encoded,
                frames_reused=self._reused,
                frames_kept=len(self._store),
                bytes_kept=self._store.nbytes,
            )

    def release(self, streams: Iterable[str]) -> None:
        """Forget the frames of streams that have ended.

        Args:
            streams: Their names, as in the frames' keys.
        """
        with self._lock:
            self._store.release(streams)

    def encode(self, clips: Sequence[Clip]) -> list[Features]:
        """Encode clips.

        Args:
            clips: The clips; those of one call are encoded together.

        Returns:
            The features of each clip, frames in order, on the model's device.

        Raises:
            FrameError: If frames do not fit the model.
        """
        if not clips:
            return []
        with self._lock:
            pieces, counts = self._encode(clips)
        # One copy for all clips; each is a view of it.
        return Features(torch.cat(pieces, dim=1)).split(counts)

    def encode_joined(self, clips: Sequence[Clip]) -> Features:
        """Encode clips whose features are wanted in one piece.

        Args:
            clips: As for :meth:`encode`, at least one.

        Returns:
            The features of all clips in order.

        Raises:
            FrameError: If frames do not fit the model.
        """
        with self._lock:
            pieces, _ = self._encode(clips)
        return Features(torch.cat(pieces, dim=1))

    def _encode(self, clips: Sequence[Clip]) -> tuple[list[torch.Tensor], list[int]]:
        """The features of every picture in order, and the tokens of every clip."""
        found: dict[StoreKey | int, torch.Tensor | None] = {}
        order: list[StoreKey | int] = []
        counts: list[int] = []
        misses: dict[_Batch, _Misses] = {}
        shown = encoded = 0
        for clip in clips:
            check_frames(clip.frames, self._config)
            grid = self._grid(clip)
            before = len(order)
            for indices in self._groups(clip):
                name = -len(order) - 1 if clip.keys is None else _key(clip.keys, indices, grid)
                order.append(name)
                shown += len(set(indices))
                if name in found:
                    continue
                entry = None if isinstance(name, int) else self._store.get(name)
                found[name] = entry
                if entry is None:
                    batch = misses.setdefault((clip.video, clip.frames.shape[1:], grid), _Misses())
                    batch.names.append(name)
                    batch.frames += [clip.frames[index] for index in indices]
                    encoded += len(set(indices))
            tokens = grid[0] * grid[1] // self._config.merge**2
            counts.append((len(order) - before) * tokens)
        self._run(misses, found)
        self._encoded += encoded
        self._reused += shown - encoded
        pieces = [entry for name in order if (entry := found[name]) is not None]
        return pieces, counts

    def _grid(self, clip: Clip) -> tuple[int, int]:
        count, height, width = clip.frames.shape[:3]
        if clip.video:
            return self._config.video_grid(count, height, width)[1:]
        return self._config.image_grid(height, width)[1:]

    def _groups(self, clip: Clip) -> Iterator[tuple[int, ...]]:
        """The numbers of the frames that make up each entry; an odd last one is repeated."""
        count = len(clip.frames)
        if not clip.video:
            return ((index,) for index in range(count))
        temporal = self._config.temporal
        return (
            tuple(min(start + step, count - 1) for step in range(temporal))
            for start in range(0, count, temporal)
        )

    def _run(
        self,
        misses: dict[_Batch, _Misses],
        found: dict[StoreKey | int, torch.Tensor | None],
    ) -> None:
        """Encode what is missing, keep what has a key."""
        if not misses:
            return
        patches = [self._patches(batch, content) for batch, content in misses.items()]
        for content, features in zip(misses.values(), self._tower.encode(patches), strict=True):
            levels, count = features.levels, len(content.names)
            apart = levels.view(levels.shape[0], count, -1, levels.shape[2])
            # Copies, so that a dropped entry frees its memory although others of its batch stay.
            entries: Any = torch.unbind_copy(apart, 1)  # type: ignore[func-returns-value]
            for name, entry in zip(content.names, entries, strict=True):
                found[name] = entry
                if not isinstance(name, int):
                    self._store.put(name, entry)
        self._warn(found)
        self._store.trim()

    def _patches(self, batch: _Batch, content: _Misses) -> Patches:
        is_video, _, grid = batch
        frames = np.stack(content.frames)
        if is_video:
            return preprocess_groups(frames, *grid, self._config, device=self._device)
        return preprocess_images(frames, self._config, device=self._device)

    def _warn(self, found: dict[StoreKey | int, torch.Tensor | None]) -> None:
        if self._warned or not self._max_bytes:
            return
        needed = sum(
            entry.nbytes
            for name, entry in found.items()
            if entry is not None and not isinstance(name, int)
        )
        if needed > self._max_bytes:
            self._warned = True
            logger.warning(
                "The frames of one call need %.0f MiB, but at most %.0f MiB are kept: none will be "
                "found again. Allow the engine more memory for its cache.",
                needed / 2**20,
                self._max_bytes / 2**20,
            )


def _key(keys: Sequence[FrameKey], indices: Sequence[int], grid: tuple[int, int]) -> StoreKey:
    return tuple(keys[index] for index in indices), grid
