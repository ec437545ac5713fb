"""The loop that one writes without this package: for every frame decode, preprocess, generate."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from procreward.bench.imposed import ImposedModel
from procreward.bench.twins import image_settings
from procreward.engine import Clip, Prompt
from procreward.engine.loading import LoadedModel
from procreward.engine.reading.inputs import PromptReader
from procreward.engine.sources import resolve_source
from procreward.relabel.ahead import resize
from procreward.scorers.procvlm_text import procvlm_prompt, read_progress
from procreward.types import Frame, Frames

__all__ = ["Naive", "NaiveTimes", "Window", "decoder_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which frames a query shows, oldest first, padded with the first frame."""

    frames: int
    stride: int
    size: tuple[int, int]

    def steps(self, newest: int) -> list[int]:
        """Return the frames' numbers."""
        return [max(newest - self.stride * back, 0) for back in reversed(range(self.frames))]


@dataclass(slots=True)
class NaiveTimes:
    """Seconds of each stage, all queries together."""

    decode: float = 0.0
    preprocess: float = 0.0
    generate: float = 0.0
    queries: int = 0

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return self.decode + self.preprocess + self.generate


def decoder_name() -> str:
    """Return what decodes windows: OpenCV where it is installed, else an ffmpeg for each."""
    try:
        import cv2  # noqa: F401  whether it is there
    except ImportError:
        return "ffmpeg"
    return "opencv"


class _Seeking:
    """Frames of a video by their numbers; seeks once a window and reads on from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture: Any = None
        if decoder_name() == "opencv":
            import cv2

            self._capture = cv2.VideoCapture(str(path))

    def window(self, steps: Sequence[int]) -> list[Frame]:
        """Return frames in increasing order, repeated ones too."""
        wanted = sorted(set(steps))
        read = self._read_cv2 if self._capture is not None else self._read_ffmpeg
        found = dict(zip(wanted, read(wanted), strict=True))
        return [found[step] for step in steps]

    def _read_cv2(self, wanted: Sequence[int]) -> Iterator[Frame]:
        import cv2

        capture = self._capture
        capture.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
        position = wanted[0]
        for step in wanted:
            while position < step:
                capture.grab()
                position += 1
            _, picture = capture.read()
            position += 1
            yield cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def _read_ffmpeg(self, wanted: Sequence[int]) -> Iterator[Frame]:
        from procreward.video import VideoReader, VideoSpan

        first, last = wanted[0], wanted[-1]
        span = VideoSpan(start=first, count=last - first + 1, fps=20.0)
        with VideoReader(self._path, span=span) as reader:
            for number, picture in enumerate(reader, start=first):
                if number in wanted:
                    yield picture


@dataclass(slots=True)
class Naive:
    """Asks about one frame after the other; every window from its video to its number.

    The model is transformers' own, one query a call, and every answer is written to its end. It is
    given our prompt, which favours it.

    Args:
        loaded: The model, its tokenizer and where it runs.
        videos: Name of an episode to its video.
        instructions: Name of an episode to the task in words.
        window: What a query shows.
        max_new_tokens: Limit of an answer.
        imposed: What the model is told to write, where its weights are random.
    """

    loaded: LoadedModel
    videos: dict[str, Path]
    instructions: dict[str, str]
    window: Window
    max_new_tokens: int
    imposed: dict[tuple[str, int], list[int]] | None = None
    _seeking: dict[str, _Seeking] = field(default_factory=dict)
    _processor: Any = None
    _reader: Any = None
    _model: Any = None

    def __post_init__(self) -> None:
        self._reader = PromptReader(self.loaded)
        self._processor = _image_processor(self.loaded)
        self._model = self.loaded.model
        if self.imposed is not None:
            self._model = ImposedModel(self.loaded.model, self.loaded.end_ids[0])

    def ask(self, episode: str, frame: int, times: NaiveTimes) -> float | None:
        """Return the progress at a frame, and add up what it took."""
        began = time.perf_counter()
        if episode not in self._seeking:
            self._seeking[episode] = _Seeking(self.videos[episode])
        pictures = self._seeking[episode].window(self.window.steps(frame))
        decoded = time.perf_counter()
        shown = np.stack([resize(picture, self.window.size) for picture in pictures])
        inputs = self._inputs(shown, self.instructions[episode])
        prepared = time.perf_counter()
        progress = self._generate(inputs, episode, frame)
        times.decode += decoded - began
        times.preprocess += prepared - decoded
        times.generate += time.perf_counter() - prepared
        times.queries += 1
        return progress

    def _inputs(self, pictures: Frames, instruction: str) -> dict[str, torch.Tensor]:
        import inspect

        device = self.loaded.device
        processed = self._processor(images=list(self._cut(pictures)), return_tensors="pt")
        prompt = Prompt(parts=(Clip(frames=pictures), procvlm_prompt(instruction)))
        chat = self._reader.layout(prompt)
        ids = torch.tensor(np.array(chat.ids))[None].to(device)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": processed["pixel_values"].to(device),
            "image_grid_thw": processed["image_grid_thw"].to(device),
        }
        if "mm_token_type_ids" in inspect.signature(self.loaded.model.forward).parameters:
            inputs["mm_token_type_ids"] = torch.tensor(np.array(chat.kinds))[None].to(device)
        return inputs

    def _cut(self, pictures: Frames) -> Frames:
        """The part of pictures that the model looks at."""
        crop = self.loaded.image_config.crop
        if crop is None:
            return pictures
        top, left, height, width = crop
        return pictures[:, top : top + height, left : left + width]

    def _generate(self, inputs: dict[str, torch.Tensor], episode: str, frame: int) -> float | None:
        from transformers import GenerationConfig

        ends = self.loaded.end_ids
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(ends),
            pad_token_id=ends[-1],
        )
        if self.imposed is not None:
            self._model.impose([self.imposed[episode, frame]])
        with torch.inference_mode():
            output = self._model.generate(**inputs, generation_config=settings)
        answer = output[0, inputs["input_ids"].shape[1] :].tolist()
        text = self.loaded.tokenizer.decode(answer, skip_special_tokens=True)
        return read_progress(text, finished=answer[-1] in ends).progress


def _image_processor(loaded: LoadedModel) -> Any:
    from transformers import AutoImageProcessor

    if loaded.source == "nano":
        return AutoImageProcessor.from_pretrained(resolve_source("nano").folder)
    with tempfile.TemporaryDirectory() as folder:
        settings = image_settings("qwen3_vl", min_pixels=1024)
        settings["image_processor_type"] = "Qwen2VLImageProcessor"
        Path(folder, "preprocessor_config.json").write_text(json.dumps(settings))
        return AutoImageProcessor.from_pretrained(folder)
