"""Keeps what the vision tower made of each picture, so that no picture is encoded twice."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from procreward.checks import check, check_int
from procreward.engine import Clip, FrameKey
from procreward.engine.loading import LoadedModel
from procreward.engine.vision.preprocess import (
    Patches,
    check_frames,
    preprocess_groups,
    preprocess_images,
)
from procreward.engine.vision.tower import Features, VisionTower
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


_Name: TypeAlias = StoreKey | int
"""What a result is called within one call; a number where the pictures have no keys."""

_Batch: TypeAlias = tuple[bool, tuple[int, ...], tuple[int, int]]
"""Whether they are groups of a video, the shape of a frame and the grid in patches."""


@dataclass(slots=True)
class _Misses:
    """Pictures of one size that have to be encoded together.

    Attributes:
        names: What the result of each (or of each group) is called.
        frames: The pictures, group after group.
    """

    names: list[_Name] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


@dataclass(slots=True)
class _Plan:
    """What one call has to give and what is missing for it.

    Attributes:
        order: The results in their order.
        counts: Tokens of each clip.
        found: The results that are known.
        misses: The ones that are not.
        pending: Their names.
        shown: Frames in all clips.
        encoded: Frames among the misses.
    """

    order: list[_Name] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    found: dict[_Name, torch.Tensor] = field(default_factory=dict)
    misses: dict[_Batch, _Misses] = field(default_factory=dict)
    pending: set[_Name] = field(default_factory=set)
    shown: int = 0
    encoded: int = 0

    def miss(self, name: _Name, batch: _Batch, frames: Sequence[Frame]) -> None:
        """Have pictures encoded."""
        self.pending.add(name)
        misses = self.misses.setdefault(batch, _Misses())
        misses.names.append(name)
        misses.frames += frames

    def result(self) -> torch.Tensor:
        """All results in their order, copied once."""
        return torch.cat([self.found[name] for name in self.order], dim=1)


class FrameEncoder:
    """Turns clips into features, every picture once.

    A frame with a key is encoded when it is first seen and kept; a video is kept in its groups of
    frames, so that windows which move by whole groups find them again. Calls from several threads
    wait for each other.

    Args:
        loaded: The model.
        exact: As for :class:`~procreward.engine.vision.tower.VisionTower`.
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
        self._announced: list[Clip] = []

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

    def forget(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._store = FrameStore(self._max_bytes)
            self._announced = []

    def announce(self, clips: Iterable[Clip]) -> None:
        """Say which clips are encoded next; those whose frames have keys are encoded ahead.

        Args:
            clips: In the order in which they will be given to :meth:`encode`.
        """
        # With several threads for a product, two products at a time take longer than one after the
        # other; on an accelerator they would share memory that is measured meanwhile.
        if self._device.type == "cpu" and torch.get_num_threads() == 1 and self._max_bytes:
            self._announced += [clip for clip in clips if clip.keys is not None]

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Encode what was announced on a thread, while something else runs in the context."""
        clips, self._announced = self._announced, []
        if not clips:
            yield
            return
        thread = threading.Thread(target=self._encode_ahead, args=(clips,), name="encode-ahead")
        thread.start()
        try:
            yield
        finally:
            thread.join()

    @torch.inference_mode()
    def _encode_ahead(self, clips: Sequence[Clip]) -> None:
        try:
            with self._lock:
                plan = self._plan(clips)
                if plan.misses:
                    self._encode_misses(plan)
                self._encoded += plan.encoded
                # They count as reused when they are asked for.
                self._reused -= plan.encoded
        except Exception as error:
            # It comes again where somebody waits for the frames.
            logger.debug("encoding ahead failed: %r", error)

    def encode(self, clips: Sequence[Clip]) -> list[Features]:
        """Encode clips.

        Args:
            clips: The clips; those of one call are encoded together.

        Returns:
            The features of each clip, frames in order, on the model's device.

        Raises:
            FrameError: If frames do not fit the model.
            ConfigError: If a clip has keys, but not one per frame.
        """
        if not clips:
            return []
        plan = self._run(clips)
        # Each clip is a view of the same memory.
        return Features(plan.result()).split(plan.counts)

    def encode_joined(self, clips: Sequence[Clip]) -> Features:
        """Encode clips whose features are wanted in one piece.

        Args:
            clips: As for :meth:`encode`, at least one.

        Returns:
            The features of all clips in order.

        Raises:
            FrameError: If frames do not fit the model.
            ConfigError: If a clip has keys, but not one per frame.
        """
        return Features(self._run(clips).result())

    def _run(self, clips: Sequence[Clip]) -> _Plan:
        """Find or encode every picture."""
        with self._lock:
            plan = self._plan(clips)
            if plan.misses:
                self._encode_misses(plan)
            self._encoded += plan.encoded
            self._reused += plan.shown - plan.encoded
        return plan

    def _plan(self, clips: Sequence[Clip]) -> _Plan:
        plan = _Plan()
        for clip in clips:
            check_frames(clip.frames, self._config)
            keys, grid = clip.keys, self._grid(clip)
            check(
                keys is None or len(keys) == len(clip.frames),
                "keys",
                f"one per frame ({len(clip.frames)})",
                keys,
            )
            batch = (clip.video, clip.frames.shape[1:], grid)
            groups = self._groups(clip)
            for indices in groups:
                name: _Name = len(plan.order)
                if keys is not None:
                    name = (tuple([keys[index] for index in indices]), grid)
                plan.order.append(name)
                if name in plan.found or name in plan.pending:
                    continue
                entry = None if isinstance(name, int) else self._store.get(name)
                if entry is not None:
                    plan.found[name] = entry
                    continue
                plan.miss(name, batch, [clip.frames[index] for index in indices])
                plan.encoded += len(set(indices))
            plan.counts.append(len(groups) * grid[0] * grid[1] // self._config.merge**2)
            plan.shown += len(clip.frames)
        return plan

    def _grid(self, clip: Clip) -> tuple[int, int]:
        count, height, width = clip.frames.shape[:3]
        if clip.video:
            return self._config.video_grid(count, height, width)[1:]
        return self._config.image_grid(height, width)[1:]

    def _groups(self, clip: Clip) -> list[tuple[int, ...]]:
        """The numbers of the frames that make up each entry; an odd last one is repeated."""
        count = len(clip.frames)
        if not clip.video:
            return [(index,) for index in range(count)]
        temporal = self._config.temporal
        return [
            tuple(min(start + step, count - 1) for step in range(temporal))
            for start in range(0, count, temporal)
        ]

    def _encode_misses(self, plan: _Plan) -> None:
        """Encode what is missing; keep what has a key."""
        patches = [self._patches(batch, misses) for batch, misses in plan.misses.items()]
        encoded = self._tower.encode(patches)
        for misses, features in zip(plan.misses.values(), encoded, strict=True):
            levels = features.levels
            apart = levels.view(len(levels), len(misses.names), -1, levels.shape[-1])
            # Copies, so that a dropped entry frees its memory although others of its batch stay.
            entries: Any = torch.unbind_copy(apart, 1)  # type: ignore[func-returns-value]  # typed wrongly in torch
            for name, entry in zip(misses.names, entries, strict=True):
                plan.found[name] = entry
                if not isinstance(name, int):
                    self._store.put(name, entry)
        if self._store.nbytes > self._max_bytes:
            self._warn(plan)
            self._store.trim()

    def _patches(self, batch: _Batch, misses: _Misses) -> Patches:
        is_video, _, grid = batch
        frames = np.stack(misses.frames)
        if is_video:
            return preprocess_groups(frames, *grid, self._config, device=self._device)
        return preprocess_images(frames, self._config, device=self._device)

    def _warn(self, plan: _Plan) -> None:
        """Say once that the limit is too low for a single call."""
        needed = sum(e.nbytes for name, e in plan.found.items() if not isinstance(name, int))
        if self._warned or not self._max_bytes or needed <= self._max_bytes:
            return
        self._warned = True
        logger.warning(
            "The frames of one call need %.1f MiB, but at most %.1f MiB are kept: most of them "
            "will be encoded again. Allow the engine more memory for its cache.",
            needed / 2**20,
            self._max_bytes / 2**20,
        )
