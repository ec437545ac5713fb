"""Inference engines for Qwen-VL reward models.

The seam between scorers and engines is here and imports no torch: a scorer writes
:class:`Prompt` objects out of frames and words, an :class:`Engine` answers them. Engines do the
preprocessing and tokenising, so that each may cache what it likes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from procreward.errors import ConfigError
from procreward.types import Frames

__all__ = ["Clip", "EndTokens", "Engine", "Generation", "LabelNLL", "Prompt"]

EndTokens: TypeAlias = Literal["template", "eos", "none"]
"""What follows a label: all that the chat template puts there, the end token only, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """Frames in a prompt.

    Attributes:
        frames: ``(num_frames, height, width, 3) uint8``, oldest first.
        video: Whether the model sees one video with timestamps instead of separate pictures.
        frame_indices: For a video, number of each frame in its source.
        fps: For a video, frames per second of its source.
        keys: For each frame a name that no other picture has, so that an engine may reuse what it
            computed for it; None when there is none.
    """

    frames: Frames
    video: bool = False
    frame_indices: tuple[int, ...] | None = None
    fps: float | None = None
    keys: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        if not self.video:
            return
        if self.fps is None or not self.fps > 0:
            raise ConfigError(
                f"A video clip needs the `fps` of its source (timestamps are part of the prompt), "
                f"got {self.fps!r}. Set the environment's frame rate or the scorer's `fps` option."
            )
        if self.frame_indices is None or len(self.frame_indices) != len(self.frames):
            raise ConfigError(
                "A video clip needs one frame index per frame, got "
                f"{None if self.frame_indices is None else len(self.frame_indices)} for "
                f"{len(self.frames)} frames."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """One user turn and, optionally, the first words of the answer.

    Attributes:
        parts: Clips and texts in their order.
        assistant_prefix: Words put in the assistant's mouth before it goes on.
    """

    parts: tuple[Clip | str, ...]
    assistant_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A greedy answer.

    Attributes:
        text: The words, up to and including the stop string if one was met.
        tokens: The token ids generated, without the end token.
        finished: Whether the answer ended by itself (end token or stop string) rather than at the
            limit of tokens.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelNLL:
    """Negative log-likelihoods of candidate answers.

    Attributes:
        nll: ``(num_prompts, num_labels) float64``, summed over each label's tokens, in nats.
        tokens: Token ids of each label, end tokens included.
    """

    nll: npt.NDArray[np.float64]
    tokens: tuple[tuple[int, ...], ...]


class Engine(Protocol):
    """Runs a model: prompts in, answers out, in the same order."""

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: tuple[str, ...] = ()
    ) -> list[Generation]:
        """Answer every prompt greedily.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: ASCII strings that end an answer as soon as it holds one of them.

        Returns:
            One answer per prompt, in order.
        """
        ...

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score every label as the answer to every prompt.

        Args:
            prompts: The questions.
            labels: The candidate answers.
            end_tokens: What counts to a label besides its own words.

        Returns:
            The likelihoods.
        """
        ...
