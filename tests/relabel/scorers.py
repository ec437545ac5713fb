"""Scorers that read the pictures, for tests of the relabeller; light to import."""

from __future__ import annotations

import os
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
