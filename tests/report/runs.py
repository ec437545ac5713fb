"""Finished runs in temporary folders, with real videos."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from procreward.config import ScorerConfig
from procreward.registry import register_scorer
from procreward.relabel import RelabelConfig, relabel
from procreward.report.config import ReportConfig
from procreward.report.overlay import write_overlay_video
from procreward.report.records import EpisodeRecord, write_records
from procreward.report.run import ReportResult, report
from procreward.types import Frame, Query, Score
from procreward.video import VideoReader
from tests.relabel.scorers import Grey
from tests.relabel.sets import ramp, write_frames, write_instructions, write_video
from tests.report.helpers import episode

HOSTILE = 'Stack "it" </script><script>window.hacked=1</script> <img src=x onerror=hacked=1> 積み木'


class Moody(Grey):
    """Reads the grey, but gives no usable answer about dark pictures; its words are HTML."""

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Moody:
        return cls()

    def _answer(self, query: Query) -> Score:
        clip = next(iter(query.frames.values()))
        value = float(clip[-1].mean()) / 255.0
        text = f"<b>grey</b> {round(value, 2)} </script><script>window.hacked=1</script>"
        if value < 0.2:
            return Score(text=text, reason="too <i>dark</i>")
        return Score(progress=round(value, 3), text=text)


register_scorer("moody", "tests.report.runs:Moody")


def relabelled(folder: Path, *, videos: bool = True) -> Path:
    """A relabelled set of three videos: one that rises, one that falls, one of a single answer."""
    source, out = folder / "source set", folder / "run"
    greys = {"rises": ramp(24), "falls": [*ramp(9, 40, 20), *([70] * 15)], "short": ramp(2, 90)}
    for name, values in greys.items():
        if videos:
            write_video(source / f"{name}.mp4", values)
        else:
            write_frames(source / name, values)
    write_instructions(source, **{"*": HOSTILE, "short": "Lift $the$ cube."})
    config = RelabelConfig(
        source=source, out=out, scorer="moody", every_k_frames=2, window_frames=2
    )
    assert relabel(config, lambda _: None).exit_status == 0
    return out


def played(folder: Path, records: Iterable[EpisodeRecord] | None = None) -> Path:
    """A folder as ``procreward demo`` leaves it."""
    records = [episode(), episode("fail", 1)] if records is None else list(records)
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        frames = [np.full((30, 40, 3), 30 + 40 * step, np.uint8) for step in range(5)]
        write_overlay_video(record, frames[: len(record.trace)], folder / f"{record.name}.mp4")
    write_records(records, folder / "episodes.jsonl")
    return folder


def made(run: Path, **settings: Any) -> tuple[str, ReportResult, list[str]]:
    """Make a report; its page, its result and what was said."""
    said: list[str] = []
    say: Callable[[str], object] = said.append
    result = report(ReportConfig(run=run, **settings), say)
    return result.files[0].read_text(encoding="utf-8"), result, said


def film(page: str, place: int, path: Path) -> tuple[float, list[Frame]]:
    """Rate and pictures of the video of an episode in a page."""
    path.write_bytes(base64.b64decode(block(page, f"clip-{place}")))
    with VideoReader(path) as video:
        return video.fps, list(video)


def block(page: str, name: str) -> Any:
    """What a script element of data holds."""
    text = page.split(f'id="{name}">', 1)[1].split("</script>", 1)[0]
    return json.loads(text) if name.startswith(("data", "trace")) else text
