"""A run that is killed and run again ends in the same bytes, and repeats no finished query."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.sample_data.episodes import draw_episodes
from scripts.sample_data.lerobot import write_v21
from tests.relabel.sets import ramp, write_frames, write_instructions, write_video


def write_source(kind: str, source: Path) -> None:
    """Twelve episodes, or seven of LeRobot's, the last one of which cannot be read."""
    if kind == "lerobot":
        drawn = draw_episodes((8, 10, 9, 12, 8, 11, 9), views=("front",), size=32)
        named = [replace(one, instruction=f"task {index}") for index, one in enumerate(drawn)]
        write_v21(named, source)
        video = next((source / "videos").rglob("episode_000006.mp4"))
        video.write_bytes(b"no video at all")
        return
    for index in range(11):
        greys = ramp(8 + index, 20 + index)
        if kind == "video":
            write_video(source / f"ep_{index}.mp4", greys)
        else:
            write_frames(source / f"ep_{index}", greys)
    if kind == "video":
        (source / "ep_11.mp4").write_bytes(b"no video at all")
    else:
        write_frames(source / "ep_11", ramp(3))
        (source / "ep_11" / "001.png").write_bytes(b"no picture at all")
    write_instructions(source, **{f"ep_{index}": f"task {index}" for index in range(12)})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("frames", 60), ("video", 10), ("lerobot", 20)])
def test_killed_at_random_moments(kind: str, kills: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(kind, source)
    command = [sys.executable, "-m", "tests.relabel.kill", str(source), str(tmp_path)]
    done = subprocess.run(
        [*command, str(kills), "7"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["kills"] == kills
    assert figures["queries"] > (30 if kind == "lerobot" else 60)
    assert figures["ended"] >= 1
    if kind == "frames":
        assert figures["most_published"] >= 8
    if kind == "lerobot":
        # Of runs that had begun to write the dataset some were killed.
        assert figures["killed_writing"] >= 2
