"""Pictures that move, without a simulator, and the questions that slide over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from procreward.types import Frames, Query

__all__ = ["Clips", "Episode", "moving_frames", "sliding"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """Recorded frames.

    Attributes:
        name: Unlike that of every other episode.
        frames: View name to ``(steps, height, width, 3) uint8``, one frame per step.
        instruction: The task in words.
        fps: Steps per second.
    """

    name: str
    frames: Mapping[str, Frames]
    instruction: str
    fps: float

    def __len__(self) -> int:
        return min(map(len, self.frames.values()))

    def query(self, end: int, window: int, stride: int = 1) -> Query:
        """Return the question about one moment.

        Args:
            end: Step of the newest frame.
            window: Frames in the window; the first ones repeat the episode's first if needed.
            stride: Steps between them.
        """
        steps = tuple(max(end - stride * back, 0) for back in range(window - 1, -1, -1))
        whole = steps[0] == end - stride * (window - 1)
        # A slice shares the memory; a list of steps would copy the frames.
        rows = slice(steps[0], end + 1, stride) if whole else list(steps)
        return Query(
            frames={view: frames[rows] for view, frames in self.frames.items()},
            instruction=self.instruction,
            frame_steps=steps,
            stream=self.name,
            fps=self.fps,
        )


Clips = Sequence[Sequence[Episode]]
"""For each environment the episodes that it runs through, one after the other."""


def sliding(clips: Clips, *, window: int, stride: int = 1, every: int = 1) -> Iterator[list[Query]]:
    """Slide a full window over the episodes of all environments at once.

    Args:
        clips: The episodes of each environment.
        window: Frames in a window.
        stride: Steps between them.
        every: Steps between two questions.

    Yields:
        The questions of one moment, one per environment, until an environment has none left.
    """
    first = (window - 1) * stride

    def ends(episodes: Sequence[Episode]) -> Iterator[Query]:
        for episode in episodes:
            for end in range(first, len(episode), every):
                yield episode.query(end, window, stride)

    yield from map(list, zip(*map(ends, clips), strict=False))


def moving_frames(count: int, size: tuple[int, int], *, seed: int = 0, start: int = 0) -> Frames:
    """Draw two boxes that wander over a shaded background with a little noise.

    Args:
        count: Frames.
        size: ``(width, height)`` in pixels.
        seed: Another seed, another scene.
        start: Number of the first frame: the same scene at a later time.

    Returns:
        ``(count, height, width, 3) uint8``; no two frames are equal.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    shade = rng.uniform(60, 180, 3)
    slope = rng.uniform(-40, 40, (2, 3))
    rows, columns = np.mgrid[0:height, 0:width]
    background = (
        shade
        + slope[0] * (rows / height)[..., None]
        + slope[1] * (columns / width)[..., None]
        + rng.normal(0.0, 6.0, (height, width, 1))
    )
    still = np.clip(background, 0, 255).astype(np.uint8)
    frames = np.repeat(still[None], count, axis=0)
    boxes = [
        (rng.integers(0, 256, 3), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.02, 0.07, 2))
        for _ in range(2)
    ]
    side = (max(height // 6, 1), max(width // 6, 1))
    for index, frame in enumerate(frames):
        for colour, phase, speed in boxes:
            place = 0.5 + 0.5 * np.sin(phase + speed * (start + index))
            top, left = (int(p * (n - s)) for p, n, s in zip(place, size[::-1], side, strict=True))
            frame[top : top + side[0], left : left + side[1]] = colour
        # A box may rest for a frame; this pixel never does.
        frame[0, 0] = [(start + index) % 256, (start + index) // 256 % 256, seed % 256]
    return frames
