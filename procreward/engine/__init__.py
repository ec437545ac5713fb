"""Inference engines for vision-language reward models.

The seam between scorers and engines is here and imports no torch: a scorer writes
:class:`Prompt` objects out of frames and words, an :class:`Engine` answers them. Engines do the
preprocessing and tokenising, so that each may cache what it likes.

* :mod:`procreward.engine.fast`, :mod:`procreward.engine.reference` - for Qwen-VL models.
* :mod:`procreward.engine.generic` - for any other image-text-to-text model.
* :mod:`procreward.engine.remote` - for models behind a server, and in vLLM.
* :mod:`procreward.engine.sources` - finds and checks a model's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from procreward.errors import ConfigError, ModelError
from procreward.types import Frames

__all__ = [
    "NOT_FINITE",
    "Clip",
    "EndTokens",
    "Engine",
    "FrameKey",
    "Generation",
    "LabelNLL",
    "NumberReading",
    "Prompt",
    "Stop",
]

EndTokens: TypeAlias = Literal["template", "eos", "none"]
"""What follows a label: all that the chat template puts there, the end token only, or nothing."""

NOT_FINITE = (
    "the model's logits are not finite. Use another `dtype`: float16 overflows where bfloat16 and "
    "float32 do not."
)
"""How an error ends whose reason is that numbers overflowed inside the model."""

FrameKey: TypeAlias = tuple[str, str, int]
"""Names one picture for good: its stream, its view and its step. Equal keys, equal pictures."""

Stop: TypeAlias = Sequence[str | re.Pattern[str]]
"""What ends an answer as soon as it holds it: ASCII strings, or patterns that match ASCII text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """Frames in a prompt.

    Attributes:
        frames: ``(num_frames, height, width, 3) uint8``, oldest first.
        video: Whether the model sees one video with timestamps instead of separate pictures.
        frame_indices: For a video, number of each frame in its source.
        fps: For a video, frames per second of its source.
        keys: For each frame a name that no other picture has, so that an engine may reuse what it
            computed for it; None when there is none. Padding repeats a key.
    """

    frames: Frames
    video: bool = False
    frame_indices: tuple[int, ...] | None = None
    fps: float | None = None
    keys: tuple[FrameKey, ...] | None = None

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
    """One user turn and, optionally, what stands around it.

    Attributes:
        parts: Clips and texts in their order; neighbouring texts are joined without a separator.
        assistant_prefix: Words put in the assistant's mouth before it goes on.
        system: The system turn, or None for what the model's chat template puts there by itself.
        open_turn: Whether the user's turn is left open, so that the answer continues its words;
            then there is no assistant turn and no ``assistant_prefix``.
        stream: Names the series of questions this one belongs to, so that an engine may start from
            the last answer and from what it read before; None when it stands alone.
    """

    parts: tuple[Clip | str, ...]
    assistant_prefix: str = ""
    system: str | None = None
    open_turn: bool = False
    stream: str | None = None

    def __post_init__(self) -> None:
        if self.open_turn and self.assistant_prefix:
            raise ConfigError(
                "A prompt with an open user turn has no assistant turn to begin, got "
                f"assistant_prefix={self.assistant_prefix!r}. Put the words into `parts`."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A greedy answer.

    Attributes:
        text: The words, up to and including what stopped them, if anything did.
        tokens: The token ids generated, without the end token.
        finished: Whether the answer ended by itself (end token or stop) rather than at the
            limit of tokens.
        error: Why there is no answer, in a word such as ``"timeout"``; empty when there is one.
            Only engines that ask somebody else set it; ``text`` is empty then.
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelNLL:
    """Negative log-likelihoods of candidate answers.

    Attributes:
        nll: ``(num_prompts, num_labels) float64``, summed over each label's tokens, in nats.
        tokens: Token ids of each label, end tokens included.

    Raises:
        ModelError: If a likelihood is not finite.
    """

    nll: npt.NDArray[np.float64]
    tokens: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not np.isfinite(self.nll).all():
            raise ModelError(f"Likelihoods must be finite, got {self.nll.tolist()}: {NOT_FINITE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberReading:
    """A number read off the model's probabilities instead of its words.

    Attributes:
        text: What the model wrote before the number, the words that lead up to it included.
        tokens: How many tokens it took to write that.
        value: Expected value of the number, in the unit it is written in and clamped to the largest
            allowed; None when the model did not come to a number.
        spread: Standard deviation of the number, in the same unit; 0 when there is none.
        mass: Probability in [0, 1] that a number follows the lead; 0 when the lead never came.
        finished: Whether the lead was reached before the limit of tokens.
    """

    text: str
    tokens: int
    value: float | None
    spread: float
    mass: float
    finished: bool


class Engine(Protocol):
    """Runs a model: prompts in, answers out, in the same order.

    An engine that cannot do one of these (a server gives no likelihoods) raises
    :class:`~procreward.errors.ConfigError` and says what can.
    """

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: What ends an answer as soon as it holds it; the text is cut behind it.

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

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Read the number that follows ``lead`` as an expectation over all ways of writing it.

        A prompt whose ``assistant_prefix`` ends in ``lead`` is read at once; otherwise the model
        first answers greedily until it has written ``lead``.

        Args:
            prompts: The questions.
            lead: ASCII words directly in front of the number, such as ``"<progress>"``.
            max_new_tokens: Limit of the words before the number, at least 1.
            largest: Larger numbers count as this one.

        Returns:
            One reading per prompt, in order.
        """
        ...

    def release(self, streams: Iterable[str]) -> None:
        """Forget what was kept for streams that have ended.

        Args:
            streams: Their names, as in :attr:`Prompt.stream` and in the keys of clips.
        """
        ...
