"""Sample episodes as plain videos: a folder per episode with a video per view."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from scripts.sample_data.episodes import SampleEpisode

__all__ = ["write_videos"]


def write_videos(episodes: Sequence[SampleEpisode], path: Path) -> None:
    """Write the pictures of all T + 1 states, and the instructions.

    Args:
        episodes: What to write.
        path: A new folder.
    """
    instructions = {}
    for number, episode in enumerate(episodes):
        name = f"{number:03d}_{episode.task.lower()}_{episode.kind}"
        instructions[name] = episode.instruction
        for view, pictures in episode.frames.items():
            _write_video(path / name / f"{view}.mp4", pictures, episode.fps)
    text = json.dumps(instructions, indent=2, ensure_ascii=False)
    (path / "instructions.json").write_text(text + "\n", encoding="utf-8")


def _write_video(path: Path, pictures: npt.NDArray[np.uint8], fps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pictures.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, macro_block_size=2, output_params=["-crf", "18"]
    )
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture))
    writer.close()
