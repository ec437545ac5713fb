"""Keeps the frames of an engine that knows no limits of ours within a scorer's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from procreward.engine import (
    Clip,
    EndTokens,
    Engine,
    Generation,
    LabelNLL,
    NumberReading,
    Prompt,
    Stop,
)

if TYPE_CHECKING:
    from procreward.engine.vision.preprocess import PreprocessConfig
    from procreward.types import Frames

__all__ = ["FittingEngine", "FrameLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """What a scorer demands of frames beyond the checkpoint's own image settings.

    Attributes:
        min_pixels: Least area of an image, or None for the checkpoint's own.
        max_pixels: Largest area of an image, or None for the checkpoint's own.
        frame_size: ``(width, height)`` every frame must have, or None for the checkpoint's own.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    frame_size: tuple[int, int] | None = None

    def apply(self, config: PreprocessConfig) -> PreprocessConfig:
        """Narrow a checkpoint's image settings.

        Args:
            config: The checkpoint's own.

        Returns:
            The settings with these limits; the largest area never falls below the least.
        """
        if self.min_pixels is not None:
            largest = max(config.max_pixels, self.min_pixels)
            config = replace(config, min_pixels=self.min_pixels, max_pixels=largest)
        if self.max_pixels is not None:
            largest = max(min(config.max_pixels, self.max_pixels), config.min_pixels)
            config = replace(config, max_pixels=largest)
        if self.frame_size is not None:
            config = replace(config, frame_size=self.frame_size)
        return config

    def fit(self, frames: Frames) -> Frames:
        """Check frames, and enlarge or reduce those whose area is out of bounds.

        Args:
            frames: ``(num_frames, height, width, 3) uint8``.

        Returns:
            The frames themselves if their area is within bounds, else resized copies.

        Raises:
            FrameError: If they have another size than demanded.
        """
        from procreward.engine.remote.outside import fit_frames
        from procreward.engine.vision.preprocess import PreprocessConfig, check_frames

        config = self.apply(PreprocessConfig(min_pixels=1))
        check_frames(frames, config)
        area = frames.shape[1] * frames.shape[2]
        return (
            frames if config.min_pixels <= area <= config.max_pixels else fit_frames(frames, config)
        )


class FittingEngine:
    """Hands prompts on with frames that are within limits; see :class:`procreward.engine.Engine`.

    Args:
        engine: What runs the model.
        limits: The limits.
    """

    def __init__(self, engine: Engine, limits: FrameLimits) -> None:
        self._engine = engine
        self._limits = limits

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily, as the engine does."""
        return self._engine.generate(self._fit(prompts), max_new_tokens=max_new_tokens, stop=stop)

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score every label as the answer to every prompt, as the engine does."""
        return self._engine.label_nll(self._fit(prompts), labels, end_tokens=end_tokens)

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Read the number that follows ``lead``, as the engine does."""
        return self._engine.read_number(
            self._fit(prompts), lead=lead, max_new_tokens=max_new_tokens, largest=largest
        )

    def release(self, streams: Iterable[str]) -> None:
        """Forget streams that have ended, as the engine does."""
        self._engine.release(streams)

    def _fit(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return [replace(prompt, parts=tuple(map(self._part, prompt.parts))) for prompt in prompts]

    def _part(self, part: Clip | str) -> Clip | str:
        if isinstance(part, str):
            return part
        return replace(part, frames=self._limits.fit(part.frames))
