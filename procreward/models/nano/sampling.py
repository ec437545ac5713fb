"""Which windows a training step sees, and how their pictures are disturbed.

A step takes a few *chunks*: eight frames of one episode that make five overlapping windows, so
that frames are encoded once and used several times. What is drawn matters more than how long one
trains: progress is far from uniform, misses are rare and cost most, and time must not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from procreward.models.nano.architecture import CROP, WINDOW_FRAMES
from procreward.models.nano.corpus import MARGIN_BOX, Corpus

__all__ = ["CHUNK_FRAMES", "Batch", "Sampler", "augment"]

CHUNK_FRAMES = 8
"""Frames in a chunk."""

_WINDOWS = CHUNK_FRAMES - WINDOW_FRAMES + 1
_STRIDES = (1, 2, 3)
_STRIDE_SHARES = (0.55, 0.35, 0.10)
_REVERSED = 0.20
_STATIC = 0.05
_WRONG = 0.08
_TASK_WEIGHTS = {
    "lift": 1.5,
    "stack": 1.3,
    "can": 1.3,
    "window_open": 5.0,
    "button_press": 2.2,
    "drawer_close": 1.3,
}
_KIND_WEIGHTS = {
    "miss": 3.0,
    "drop": 1.5,
    "retry": 1.5,
    "backtrack": 1.5,
    "stall": 1.5,
    "policy": 2.0,
    "wander": 1.5,
    "loose": 1.5,
    "apart": 2.5,
}
_HARD = 0.15
_BY_DECILE = 0.50

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One step's frames and windows.

    Attributes:
        frames: ``(chunks * 8,)`` indices into the corpus.
        windows: ``(batch, 4)`` indices into ``frames``.
        focus: ``(batch,)`` corpus index of the frame that each window ends with.
        instructed: ``(batch,)`` task whose instruction is given; another than the frame's own in a
            few windows.
    """

    frames: Ints
    windows: Ints
    focus: Ints
    instructed: Ints


class Sampler:
    """Draws batches from a corpus.

    Args:
        corpus: The episodes.
        seed: Seed of every draw.
    """

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._corpus = corpus
        self.error = np.full(len(corpus), 0.1, dtype=np.float32)
        weights = np.array([_TASK_WEIGHTS.get(name, 1.0) for name in corpus.names])
        self._task_shares = weights / weights.sum()
        decile = np.minimum((corpus.progress * 10).astype(np.int64), 9)
        kinds = np.array(corpus.kinds)[corpus.episode]
        tasks = range(len(corpus.names))
        self._by_decile = [
            [
                rows
                for d in range(10)
                if len(rows := np.flatnonzero((corpus.task == t) & (decile == d)))
            ]
            for t in tasks
        ]
        self._by_kind = [
            {
                str(kind): np.flatnonzero((corpus.task == t) & (kinds == kind))
                for kind in np.unique(kinds[corpus.task == t])
            }
            for t in tasks
        ]
        self._by_task = [np.flatnonzero(corpus.task == t) for t in tasks]

    def draw_frames(self, count: int) -> Ints:
        """Return corpus indices: half spread over progress, some hard ones, the rest by kind."""
        tasks = self.rng.choice(len(self._task_shares), size=count, p=self._task_shares)
        return np.array([self._draw(int(task)) for task in tasks], dtype=np.int64)

    def draw_batch(self, chunks: int) -> Batch:
        """Return the frames and windows of one step."""
        focus = self.draw_frames(chunks)
        frames = np.stack([self._chunk(int(index)) for index in focus])
        windows, ends = [], []
        for row in range(chunks):
            for start in range(_WINDOWS):
                places = np.arange(start, start + WINDOW_FRAMES)
                if self.rng.random() < _STATIC:
                    places[:] = places[-1]
                windows.append(places + row * CHUNK_FRAMES)
                ends.append(frames[row, places[-1]])
        ends_array = np.array(ends, dtype=np.int64)
        own = self._corpus.task[ends_array]
        wrong = self.rng.random(len(own)) < _WRONG
        shift = self.rng.integers(1, max(2, len(self._corpus.names)), size=len(own))
        other = (own + shift) % len(self._corpus.names)
        return Batch(
            frames=frames.reshape(-1),
            windows=np.stack(windows),
            focus=ends_array,
            instructed=np.where(wrong, other, own),
        )

    def note_errors(self, frames: Ints, errors: npt.NDArray[np.float32]) -> None:
        """Remember how wrong the network was on frames, so that hard ones come again."""
        self.error[frames] = 0.7 * self.error[frames] + 0.3 * errors

    def _draw(self, task: int) -> int:
        lot = self.rng.random()
        if lot < _HARD:
            # Of sixty frames, the one with the largest remembered error.
            rows = self._by_task[task]
            some = rows[self.rng.integers(len(rows), size=60)]
            return int(some[np.argmax(self.error[some])])
        if lot < _HARD + _BY_DECILE:
            groups = self._by_decile[task]
            rows = groups[int(self.rng.integers(len(groups)))]
        else:
            kinds = self._by_kind[task]
            weights = np.array([_KIND_WEIGHTS.get(k, 1.0) * len(r) for k, r in kinds.items()])
            pick = int(self.rng.choice(len(weights), p=weights / weights.sum()))
            rows = list(kinds.values())[pick]
        return int(rows[self.rng.integers(len(rows))])

    def _chunk(self, focus: int) -> Ints:
        """Return eight frames of one episode, one of the last five being ``focus``."""
        stride = int(self.rng.choice(_STRIDES, p=_STRIDE_SHARES))
        if self.rng.random() < _REVERSED:
            stride = -stride
        first, last = int(self._corpus.first[focus]), int(self._corpus.last[focus])
        place = int(self.rng.integers(WINDOW_FRAMES - 1, CHUNK_FRAMES))
        ending = focus + stride * (CHUNK_FRAMES - 1 - place)
        if not first <= ending <= last:
            place = CHUNK_FRAMES - 1
        # Before the episode's start its first frame is repeated, as at inference.
        rows = focus + stride * (np.arange(CHUNK_FRAMES) - place)
        return np.clip(rows, first, last).astype(np.int64)


def augment(
    images: npt.NDArray[np.uint8], groups: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Disturb frames alike within each chunk: shift, contrast, brightness, tint, noise.

    Args:
        images: ``(groups * n, 104, 128, 3) uint8``, chunk after chunk.
        groups: Number of chunks.
        rng: Source of the draws.

    Returns:
        ``(groups * n, 96, 128, 3) uint8``.
    """
    each = len(images) // groups
    top, left = CROP[0] - MARGIN_BOX[0], CROP[1] - MARGIN_BOX[1]
    height, width = CROP[2], CROP[3]
    out = np.empty((len(images), height, width, 3), dtype=np.uint8)
    for group in range(groups):
        part = slice(group * each, (group + 1) * each)
        down, right = 0, 0
        if rng.random() < 0.65:
            down, right = int(rng.integers(0, 6)), int(rng.integers(-5, 6))
        rows = slice(top + down, top + down + height)
        # What a sideways shift uncovers repeats the frame's edge.
        columns = np.clip(np.arange(left, left + width) + right, 0, images.shape[2] - 1)
        cut = images[part, rows][:, :, columns]
        out[part] = _recolour(cut, rng) if rng.random() < 0.8 else cut
    return out


def _recolour(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    gain = np.float32(rng.uniform(0.8, 1.2))
    offset = (rng.uniform(-20, 20) + rng.uniform(-10, 10, size=3)).astype(np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    pixels = (pixels - 127.5) * float(gain) + torch.from_numpy(offset + 127.5)
    if rng.random() < 0.5:
        # One noise picture for the chunk: repeated frames must stay equal.
        noise = rng.standard_normal(images.shape[1:], dtype=np.float32) * rng.uniform(0, 6)
        pixels += torch.from_numpy(noise)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).numpy()
