"""Prompts of frames and words to the token ids, positions and patches that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from procreward.checks import check_choice
from procreward.engine import Clip, EndTokens, Prompt, Stop
from procreward.engine.loading import LoadedModel
from procreward.engine.reading.prompt import (
    ASSISTANT_HEAD,
    USER_HEAD,
    Chat,
    ChatBuilder,
    Image,
    Part,
    Video,
    VideoLayout,
)
from procreward.engine.vision.preprocess import (
    Patches,
    check_frames,
    preprocess_images,
    preprocess_video,
)
from procreward.errors import ConfigError

__all__ = ["Batch", "PreparedPrompt", "PromptReader", "cut_at_stop", "pad_left"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedPrompt:
    """A prompt as a model reads it.

    Attributes:
        chat: Tokens and positions.
        patches: One entry per clip, in the order of the prompt.
        videos: For each clip, whether it is a video.
    """

    chat: Chat
    patches: tuple[Patches, ...]
    videos: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Left-padded prompts.

    Attributes:
        ids: ``(batch, length) int64``.
        positions: ``(3, batch, length) int64``; 0 where padded.
        kinds: ``(batch, length) int64``: 0 text or padding, 1 image, 2 video.
        mask: ``(batch, length) int64``, 0 where padded, or None when nothing is padded.
        next_position: ``(batch,) int64``, position of the first token that follows.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    kinds: torch.Tensor
    mask: torch.Tensor | None
    next_position: torch.Tensor


class PromptReader:
    """Turns prompts into model inputs.

    Args:
        loaded: The model they are for.
        video_layout: How videos are written into the prompt.
    """

    def __init__(self, loaded: LoadedModel, *, video_layout: VideoLayout = "4.57") -> None:
        self._config = loaded.image_config
        self._takes_videos = getattr(loaded, "family", None) != "qwen2_5_vl"
        self._builder = ChatBuilder(
            loaded.tokenizer,
            video_layout=video_layout,
            default_system=getattr(loaded, "default_system", None),
        )

    def layout(self, prompt: Prompt) -> Chat:
        """Tokenise one prompt; the pixels of its frames are not touched.

        Args:
            prompt: The prompt.

        Returns:
            Its tokens and positions; read-only and shared by all prompts of the same layout.

        Raises:
            FrameError: If frames do not fit the model.
            InstructionError: If a text contains control tokens.
            ConfigError: If the model takes no videos and the prompt has one.
        """
        parts: list[Part] = []
        for part in prompt.parts:
            parts += [part] if isinstance(part, str) else self._clip_parts(part)
        return self._builder.build(
            parts,
            assistant_prefix=prompt.assistant_prefix,
            system=prompt.system,
            open_turn=prompt.open_turn,
        )

    def read(self, prompt: Prompt) -> PreparedPrompt:
        """Preprocess and tokenise one prompt.

        Args:
            prompt: The prompt.

        Returns:
            What the model reads.

        Raises:
            FrameError: If frames do not fit the model.
            InstructionError: If a text contains control tokens.
        """
        chat = self.layout(prompt)
        clips = [part for part in prompt.parts if isinstance(part, Clip)]
        return PreparedPrompt(
            chat=chat,
            patches=tuple(self._patches(clip) for clip in clips),
            videos=tuple(clip.video for clip in clips),
        )

    def open_text(self, prompt: Prompt) -> str | None:
        """Return the words that a label directly follows.

        Args:
            prompt: The prompt.

        Returns:
            For an open user turn, its text since the last picture or control token, as it is
            tokenised; None for a prompt that ends in the assistant's turn.
        """
        if not prompt.open_turn:
            return None
        text = ""
        for part in reversed(prompt.parts):
            if not isinstance(part, str):
                return text
            text = part + text
        return USER_HEAD + text

    def label_tokens(
        self,
        labels: Sequence[str],
        end_tokens: EndTokens,
        *,
        open_turn_text: str | None = None,
    ) -> tuple[tuple[int, ...], ...]:
        """Tokenise labels where they stand.

        That is right behind the head of the assistant's turn or, when the user's turn is left open,
        right behind its words.

        Args:
            labels: At least two different candidate answers, or one.
            end_tokens: What counts to a label besides its own words; behind an open turn there is
                no template, so ``"none"`` or ``"eos"``.
            open_turn_text: The words of the open turn, as :meth:`open_text` gives them.

        Returns:
            Token ids per label, end tokens included.

        Raises:
            ConfigError: If the labels cannot be told apart by their tokens, if a label is not
                tokenised apart from what it follows, or for the wrong ``end_tokens``.
        """
        is_open = open_turn_text is not None
        end = {"none": [], "eos": [self._builder.control_id("im_end")]}
        if not is_open:
            end["template"] = [*end["eos"], *self._builder.encode("\n")]
        check_choice("end_tokens", end_tokens, tuple(end))
        before = ASSISTANT_HEAD if open_turn_text is None else open_turn_text
        head = self._builder.encode(before)
        result = []
        for label in labels:
            ids = self._builder.encode(before + label)
            if not label or len(ids) == len(head) or ids[: len(head)] != head:
                raise ConfigError(
                    f"The label {label!r} must be words that are tokenised apart from "
                    f"{'the words' if is_open else 'the line'} before them. Choose another label"
                    f"{', or another end of the words before it' if is_open else ''}."
                )
            result.append((*ids[len(head) :], *end[end_tokens]))
        _check_distinct(labels, result)
        return tuple(result)

    def labels_behind(
        self, prompts: Sequence[Prompt], labels: Sequence[str], end_tokens: EndTokens
    ) -> tuple[tuple[int, ...], ...]:
        """Tokenise labels where they stand behind some prompts.

        Args:
            prompts: The prompts.
            labels: At least two different candidate answers, or one.
            end_tokens: As for :meth:`label_tokens`.

        Returns:
            Token ids per label, the same behind every prompt.

        Raises:
            ConfigError: As :meth:`label_tokens`, and if the prompts give different tokens.
        """
        texts = {self.open_text(prompt) for prompt in prompts} or {None}
        found = {self.label_tokens(labels, end_tokens, open_turn_text=text) for text in texts}
        if len(found) > 1:
            raise ConfigError(
                "The labels must be tokenised alike behind all prompts, got "
                f"{sorted(found)} for {list(labels)}. Ask in separate calls."
            )
        return found.pop()

    def _patches(self, clip: Clip) -> Patches:
        if clip.video:
            return preprocess_video(clip.frames, self._config)
        return preprocess_images(clip.frames, self._config)

    def _clip_parts(self, clip: Clip) -> list[Part]:
        check_frames(clip.frames, self._config)
        count, height, width = clip.frames.shape[:3]
        merge = self._config.merge
        if not clip.video:
            _, rows, columns = self._config.image_grid(height, width)
            return [Image(rows // merge, columns // merge)] * count
        if not self._takes_videos:
            raise ConfigError(
                "A prompt for Qwen2.5-VL must show its frames as pictures, got a video clip. "
                "Its video positions depend on the time between frames and are not supported."
            )
        _, rows, columns = self._config.video_grid(count, height, width)
        assert clip.frame_indices is not None  # Clip has checked both
        assert clip.fps is not None
        return [
            Video.from_frames(
                clip.frame_indices,
                clip.fps,
                rows // merge,
                columns // merge,
                temporal=self._config.temporal,
            )
        ]


def pad_left(chats: Sequence[Chat], pad_id: int, device: torch.device) -> Batch:
    """Stack prompts of different lengths so that all end in the same column.

    Args:
        chats: The prompts, at least one.
        pad_id: Token to pad with.
        device: Where the tensors go.

    Returns:
        The batch.
    """
    lengths = [len(chat) for chat in chats]
    longest = max(lengths)
    ids = np.full((len(chats), longest), pad_id, dtype=np.int64)
    positions = np.zeros((3, len(chats), longest), dtype=np.int64)
    kinds = np.zeros((len(chats), longest), dtype=np.int64)
    mask = np.zeros((len(chats), longest), dtype=np.int64)
    for row, (chat, length) in enumerate(zip(chats, lengths, strict=True)):
        ids[row, longest - length :] = chat.ids
        positions[:, row, longest - length :] = chat.positions
        kinds[row, longest - length :] = chat.kinds
        mask[row, longest - length :] = 1
    padded = min(lengths) < longest
    return Batch(
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        kinds=torch.from_numpy(kinds).to(device),
        mask=torch.from_numpy(mask).to(device) if padded else None,
        next_position=torch.tensor([chat.next_position for chat in chats], device=device),
    )


def cut_at_stop(text: str, stop: Stop) -> str:
    """Cut a text behind the first stop in it.

    Args:
        text: Any text.
        stop: Strings or patterns to look for.

    Returns:
        The text up to and including the stop that ends earliest, or all of it.
    """
    ends = [text.index(word) + len(word) for word in stop if isinstance(word, str) and word in text]
    patterns = [word for word in stop if not isinstance(word, str)]
    ends += [match.end() for pattern in patterns if (match := pattern.search(text))]
    return text[: min(ends)] if ends else text


def _check_distinct(labels: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    for one in range(len(labels)):
        for other in range(one + 1, len(labels)):
            pairs = zip(tokens[one], tokens[other], strict=False)
            if all(left == right for left, right in pairs):
                raise ConfigError(
                    f"The labels {labels[one]!r} and {labels[other]!r} must differ at a token both "
                    f"have, got {list(tokens[one])} and {list(tokens[other])}."
                )
