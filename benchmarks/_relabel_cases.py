"""The videos and the models that relabelling is measured on.

* :func:`nano_case` - the shipped nano on rendered episodes of Lift.
* :func:`random_case` - a Qwen3-VL with random weights on drawn pictures; its answers are imposed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from _relabel_naive import Window

from procreward.bench.answers import INSTRUCTION, AnswerScript, answer_corpus
from procreward.bench.episodes import lift_recordings
from procreward.bench.frames import moving_frames
from procreward.bench.imposed import ImposedEngine, Work
from procreward.bench.sizes import SIZES
from procreward.bench.twins import (
    loaded_twin,
    make_tokenizer,
    qwen3_config,
    random_model,
    train_tokenizer,
)
from procreward.engine import Clip, Prompt
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel, load_model
from procreward.engine.reading.rows import Row
from procreward.relabel.ahead import resize
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.types import Frames, Query, Score, Scorer

__all__ = ["Case", "WithoutAhead", "nano_case", "random_case"]

FPS = 20
_RECORDED = (24, 120)
_CACHE_GIB = 8.0

Engines = Callable[[bool], Scorer]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """What is measured.

    Attributes:
        loaded: The model, for the naive loop.
        window: What a query shows.
        max_new_tokens: Limit of an answer.
        videos: Name of an episode to its video; all are in one folder.
        lengths: Name of an episode to its frames.
        instructions: Name of an episode to the task in words.
        scorer: Makes our scorer; with True on the engine that uses transformers' own operators and
            no earlier answers.
        imposed: Episode and frame to the answer's tokens, where weights are random.
    """

    loaded: LoadedModel
    window: Window
    max_new_tokens: int
    videos: dict[str, Path]
    lengths: dict[str, int]
    instructions: dict[str, str]
    scorer: Engines
    imposed: dict[tuple[str, int], list[int]] | None = None


class WithoutAhead:
    """A scorer that is not told what comes next."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Answer every query."""
        scores: list[Score] = self._scorer.score(queries)
        return scores

    def release(self, streams: Iterable[str]) -> None:
        """Forget episodes that are over."""
        self._scorer.release(streams)

    def describe(self) -> Mapping[str, object]:
        """Say what answers."""
        account: Mapping[str, object] = self._scorer.describe()
        return account


def write_videos(
    clips: Mapping[str, Frames], instructions: Mapping[str, str], folder: Path, size: int
) -> dict[str, Path]:
    """Write a video for each episode, of square pictures, and the tasks."""
    folder.mkdir(parents=True)
    paths = {}
    for name, frames in clips.items():
        paths[name] = folder / f"{name}.mp4"
        writer = imageio_ffmpeg.write_frames(str(paths[name]), (size, size), fps=FPS, quality=8)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(resize(frame, (size, size))))
        writer.close()
    (folder / "instructions.json").write_text(json.dumps(dict(instructions)), encoding="utf-8")
    return paths


def nano_case(folder: Path, cache: Path, *, episodes: int, size: int, most_frames: int) -> Case:
    """Build the case of the shipped nano, on the CPU.

    Args:
        folder: New folder for the videos.
        cache: Where rendered episodes are kept.
        episodes: How many.
        size: Side of the videos' pictures in pixels; nano is shown 128x128.
        most_frames: Frames of an episode that are used.
    """
    recordings = lift_recordings(*_RECORDED, cache)
    clips = {
        f"episode_{number:03d}": recordings[number % len(recordings)].episode.frames["front"][
            :most_frames
        ]
        for number in range(episodes)
    }
    instructions = dict.fromkeys(clips, recordings[0].episode.instruction)
    loaded = load_model("nano", device="cpu", threads=1)
    options = ProcVLMOptions(max_new_tokens=48)
    return Case(
        loaded=loaded,
        window=Window(frames=4, stride=4, size=(128, 128)),
        max_new_tokens=48,
        videos=write_videos(clips, instructions, folder, size),
        lengths={name: len(frames) for name, frames in clips.items()},
        instructions=instructions,
        scorer=lambda exact: ProcVLM(FastEngine(loaded, exact=exact), options),
    )


def random_case(
    folder: Path, *, device: str, model: str, episodes: int, size: int, most_frames: int, every: int
) -> Case:
    """Build the case of random weights: ProcVLM's window of 8 neighbouring frames.

    Args:
        folder: New folder for the videos.
        device: Where the model runs.
        model: ``"full"`` (2 billion weights) or ``"tiny"``.
        episodes: How many.
        size: Side of the pictures in pixels.
        most_frames: Frames of an episode.
        every: Frames from one query to the next.
    """
    names = [f"episode_{number:03d}" for number in range(episodes)]
    clips = {
        name: moving_frames(most_frames, (size, size), seed=seed) for seed, name in enumerate(names)
    }
    # Told apart by their words, so that each is told its own answers.
    instructions = {name: f"{INSTRUCTION}, {name}" for name in names}
    tokenizer = make_tokenizer(
        train_tokenizer([*answer_corpus(), *instructions.values()] * 4, 1500)
    )
    dimensions, _, rows = SIZES[model]
    config = qwen3_config(tokenizer, dimensions, vocabulary=rows)
    tiny_cpu = device == "cpu" and model == "tiny"
    dtype = torch.float32 if tiny_cpu else torch.bfloat16
    loaded = loaded_twin(random_model(config, seed=0, device=device, dtype=dtype), tokenizer)
    told: dict[tuple[str, int], list[int]] = {}
    for seed, name in enumerate(names):
        script = AnswerScript(seed)
        asked = {*range(0, most_frames, every), most_frames - 1}
        for frame in sorted(asked):
            told[name, frame] = tokenizer.encode(script.next()[0], add_special_tokens=False)
    by_words = {instructions[name]: name for name in names}
    options = ProcVLMOptions(max_new_tokens=256)
    return Case(
        loaded=loaded,
        window=Window(frames=8, stride=1, size=(size, size)),
        max_new_tokens=256,
        videos=write_videos(clips, instructions, folder, size),
        lengths=dict.fromkeys(names, most_frames),
        instructions=instructions,
        scorer=lambda exact: ProcVLM(_ToldEngine(loaded, told, by_words, exact=exact), options),
        imposed=told,
    )


class _Told(str):
    """A stream's name with the answer to one of its questions."""

    answer: Any = 0.0


class _Answers(dict[str, Any]):
    """Looks an answer up where :class:`_Told` has it."""

    def get(self, name: Any, default: Any = None) -> Any:
        """Return the answer that comes with a name."""
        return getattr(name, "answer", default)


class _ToldEngine(ImposedEngine):
    """Is told what to write for every query, whichever are put together."""

    def __init__(
        self,
        loaded: LoadedModel,
        told: Mapping[tuple[str, int], list[int]],
        by_words: Mapping[str, str],
        *,
        exact: bool,
    ) -> None:
        super().__init__(loaded, Work(1.0, 1.0), cache_bytes=int(_CACHE_GIB * 1024**3), exact=exact)
        self._told, self._by_words = told, by_words
        self.impose(_Answers())

    def _rows(self, prompts: Sequence[Prompt], chats: Any) -> list[Row]:
        rows = super()._rows(prompts, chats)
        for row, prompt in zip(rows, prompts, strict=True):
            clip, words = prompt.parts
            assert isinstance(clip, Clip)
            assert isinstance(words, str)
            assert clip.keys is not None
            assert row.stream is not None
            name = next(name for task, name in self._by_words.items() if task in words)
            row.stream = _Told(row.stream)
            row.stream.answer = self._told[name, clip.keys[-1][2]]
        return rows
