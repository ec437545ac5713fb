"""Scorers that read the pictures, for tests of the relabeller; light to import."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from procreward.config import ScorerConfig
from procreward.types import Query, Score


class Grey:
    """Progress is the mean grey of the window, so an answer depends on the pictures alone.

    Every query is a line in a file if there is one: the instruction and the newest frame.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.batches: list[int] = []
        self.released: list[str] = []

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Grey:
        log: Any = config.options.get("log")
        return cls(None if log is None else Path(log))

    def score(self, queries: Sequence[Query]) -> list[Score]:
        self.batches.append(len(queries))
        if self.log is not None:
            lines = [f"{query.instruction}\t{query.frame_steps[-1]}\n" for query in queries]
            handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, "".join(lines).encode())
            os.close(handle)
        return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Score:
        clips = list(query.frames.values())
        value = sum(float(clip.mean()) for clip in clips) / len(clips) / 255.0
        return Score(progress=value, success_prob=value**2, text=f"grey {value!r}")

    def release(self, streams: Sequence[str]) -> None:
        self.released.extend(streams)

    def describe(self) -> Mapping[str, object]:
        return {"name": "grey"}


class Down(Grey):
    """Raises at every query."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        raise ConnectionError("no route")


class Mute(Grey):
    """Gives no usable answer."""

    def score(self, queries: Sequence[Query]) -> list[Score]:
        return [Score(reason="unparsable", text="hm") for _ in queries]


class Mortal(Grey):
    """Does what the files beside its log say: waits for others, or kills its own process.

    ``processes`` is a folder in which every process leaves what it is like; ``gather`` holds how
    many of them must be there before anything is answered; ``hold`` an instruction that is not
    answered while the file is there; ``kill`` one at which the process dies, as often as there are
    further lines.
    """

    def score(self, queries: Sequence[Query]) -> list[Score]:
        assert self.log is not None
        folder = self.log.parent
        processes, asked = folder / "processes", {query.instruction for query in queries}
        own = processes / str(os.getpid())
        if processes.is_dir() and not own.is_file():
            names = ("MUJOCO_GL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
            about = {name: os.environ.get(name) for name in names} | {"folder": os.getcwd()}
            (folder / own.name).write_text(json.dumps(about))
            (folder / own.name).rename(own)
        while (least := _read(folder / "gather")) and len(list(processes.iterdir())) < int(least):
            time.sleep(0.02)
        while _read(folder / "hold") in asked:
            time.sleep(0.02)
        victim, *times = _read(folder / "kill").splitlines() or [""]
        if times and victim in asked:
            (folder / "kill").write_text("\n".join([victim, *times[1:]]))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(queries)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
