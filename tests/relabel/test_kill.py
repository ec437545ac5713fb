"""A run that is killed and run again ends in the same bytes, and repeats no finished query."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.relabel.sets import ramp, write_frames, write_instructions, write_video


def write_source(kind: str, source: Path) -> None:
    """Twelve episodes, the last one of which cannot be read."""
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
@pytest.mark.parametrize(("kind", "kills"), [("frames", 60), ("video", 10)])
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
    assert figures["queries"] > 60
    assert figures["ended"] >= 1
    if kind == "frames":
        assert figures["most_published"] >= 8
