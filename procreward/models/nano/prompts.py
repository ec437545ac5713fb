"""Token sequences for training, from the very prompt builder that inference uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from procreward.engine.reading.prompt import Chat, ChatBuilder, Image, Part
from procreward.models.nano.architecture import GRID, WINDOW_FRAMES
from procreward.models.nano.text import answer, direct_answer
from procreward.scorers.procvlm_text import DIRECT_PREFIX, procvlm_prompt

__all__ = ["PromptBank", "Sequences"]

DIGIT_WEIGHT = 3.0
UNITS_WEIGHT = 1.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """A padded batch of prompts with answers.

    Attributes:
        ids: ``(batch, length) int64``.
        positions: ``(3, batch, length) int64``.
        weights: ``(batch, length) float32``: loss weight of each token as a target.
        value_at: ``(batch,) int64``: where ``<progress>`` stands.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    value_at: torch.Tensor


class PromptBank:
    """Builds and remembers prompts and answers.

    Args:
        tokenizer: nano's tokenizer.
        frames: Frames per window.
    """

    def __init__(self, tokenizer: Any, *, frames: int = WINDOW_FRAMES) -> None:
        self._builder = ChatBuilder(tokenizer)
        self._tokenizer = tokenizer
        self._images = [Image(GRID[1] // 2, GRID[2] // 2)] * frames
        self._chats: dict[str, Chat] = {}
        self._answers: dict[tuple[object, ...], tuple[list[int], list[float]]] = {}
        self._end = self._builder.control_id("im_end")
        self._digits = {self._builder.encode(str(digit))[0] for digit in range(10)}
        self.prefix = self._builder.encode(DIRECT_PREFIX)
        self._pad = int(tokenizer.pad_token_id)

    def decode(self, token: int) -> str:
        """Return the text of one token."""
        return str(self._tokenizer.decode([token]))

    def chat(self, instruction: str) -> Chat:
        """Return the prompt for an instruction, up to the assistant's turn."""
        if instruction not in self._chats:
            parts: list[Part] = [*self._images, procvlm_prompt(instruction)]
            self._chats[instruction] = self._builder.build(parts)
        return self._chats[instruction]

    def reply(
        self, stages: Sequence[str], stage: int, percent: int, *, direct: bool
    ) -> tuple[list[int], list[float]]:
        """Return the tokens of an answer and their loss weights.

        A direct answer's prefix is given by the asker, so it carries no weight.
        """
        key = (tuple(stages), stage, percent, direct)
        if key not in self._answers:
            text = direct_answer(percent) if direct else answer(stages, stage, percent)
            ids = [*self._builder.encode(text), self._end]
            weights = [DIGIT_WEIGHT if i in self._digits else 1.0 for i in ids]
            tail = len(ids) - self._value_offset(ids)
            # Item numbers are digits too, but nothing to learn: only the percentage counts more.
            weights = [1.0 if len(ids) - n >= tail else w for n, w in enumerate(weights)]
            if percent > 9:
                # The last digit is mostly noise, and as heavy as the first it drowns the signal.
                weights[self._value_offset(ids) + len(str(percent))] = UNITS_WEIGHT
            if direct:
                weights[: len(self.prefix)] = [0.0] * len(self.prefix)
            self._answers[key] = (ids, weights)
        return self._answers[key]

    def _value_offset(self, ids: Sequence[int]) -> int:
        return len(ids) - 1 - list(reversed(ids)).index(self.prefix[-1])

    def pad(
        self, chats: Sequence[Chat], replies: Sequence[tuple[list[int], list[float]]]
    ) -> Sequences:
        """Put prompts and answers into one batch, padded on the right."""
        length = max(len(c) + len(r[0]) for c, r in zip(chats, replies, strict=True))
        count = len(chats)
        ids = np.full((count, length), self._pad, dtype=np.int64)
        positions = np.zeros((3, count, length), dtype=np.int64)
        weights = np.zeros((count, length), dtype=np.float32)
        value_at = np.zeros(count, dtype=np.int64)
        for row, (chat, (tokens, weight)) in enumerate(zip(chats, replies, strict=True)):
            begin, end = len(chat), len(chat) + len(tokens)
            ids[row, :begin], ids[row, begin:end] = chat.ids, tokens
            positions[:, row, :begin] = chat.positions
            positions[:, row, begin:] = chat.next_position + np.arange(length - begin)
            weights[row, begin:end] = weight
            value_at[row] = begin + self._value_offset(tokens)
        return Sequences(
            ids=torch.from_numpy(ids),
            positions=torch.from_numpy(positions),
            weights=torch.from_numpy(weights),
            value_at=torch.from_numpy(value_at),
        )
