"""Datasets of flat pictures, for tests of the relabeller."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from procreward.errors import DatasetError
from procreward.relabel import Episode
from procreward.types import Frame

SIZE = 16
FPS = 10


def flat(value: int, size: int = SIZE) -> Frame:
    return np.full((size, size, 3), value, np.uint8)


def write_frames(folder: Path, greys: Sequence[int], size: int = SIZE) -> None:
    """A folder of pictures, each of one grey."""
    folder.mkdir(parents=True)
    for number, grey in enumerate(greys):
        Image.fromarray(flat(grey, size)).save(folder / f"{number:03d}.png")


def write_video(path: Path, greys: Sequence[int], size: int = 32, *, damage: bool = False) -> None:
    """A video of pictures, each of about one grey; with damage in the middle if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = ["-crf", "0", "-g", "4", "-preset", "ultrafast"]
    writer = imageio_ffmpeg.write_frames(
        str(path), (size, size), fps=FPS, macro_block_size=8, output_params=options
    )
    writer.send(None)
    # Flat pictures leave a codec next to nothing to write, and nothing to damage.
    noise = np.random.default_rng(0)
    for grey in greys:
        texture = noise.integers(-9, 10, (size, size, 3)).astype(np.int16)
        writer.send(np.clip(grey + texture, 0, 255).astype(np.uint8))
    writer.close()
    if damage:
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 200] = bytes(200)
        path.write_bytes(data)


def write_instructions(folder: Path, **instructions: str) -> None:
    (folder / "instructions.json").write_text(json.dumps(instructions), encoding="utf-8")


def ramp(count: int, start: int = 20, step: int = 9) -> list[int]:
    return [start + step * number for number in range(count)]


class InMemory:
    """A dataset of flat pictures that was never on a disk.

    Args:
        greys: The grey of every picture, by episode.
        last_picture: Whether the state after the last action has a picture.
        terminated: Whether episodes end in a terminal state.
        broken: Episode to the frame at which it cannot be read.
    """

    format = "video"

    def __init__(
        self,
        *greys: Sequence[int],
        last_picture: bool = True,
        terminated: bool = False,
        broken: Mapping[int, int] | None = None,
    ) -> None:
        self.root = Path("memory")
        self.views = ("front", "wrist")
        self.broken = broken or {}
        self.greys = greys
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.episodes = tuple(
            Episode(
                index=index,
                name=f"episode_{index}",
                length=len(one) - last_picture,
                frames=len(one),
                instruction=f"task {index}",
                terminated=terminated,
                fps=10.0,
            )
            for index, one in enumerate(greys)
        )

    def with_instruction(self, instruction: str) -> None:
        self.episodes = tuple(replace(one, instruction=instruction) for one in self.episodes)

    def fingerprint(self, episode: Episode) -> str:
        return f"{self.greys[episode.index]}"

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        self.opened.append(episode.index)
        try:
            for number, grey in enumerate(self.greys[episode.index]):
                if self.broken.get(episode.index) == number:
                    raise DatasetError(f"Episode {episode.name!r} is damaged.")
                yield {view: flat(grey + place) for place, view in enumerate(views)}
        finally:
            self.closed.append(episode.index)
