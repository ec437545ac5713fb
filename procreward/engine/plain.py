"""The plain engine: our own prefill, decoding loop and label scoring, without shortcuts.

It stays on the part of transformers that has not moved since Qwen3-VL appeared: the vision tower,
the language model called with embeddings and explicit positions, and the output layer. It never
touches the model's mutable position state, so one model can serve several engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

from procreward.checks import check_int
from procreward.engine import EndTokens, Generation, LabelNLL, NumberReading, Prompt, Stop
from procreward.engine.answer import AnswerRow, AnswerText, check_stop
from procreward.engine.inputs import Batch, PreparedPrompt, PromptReader, pad_left
from procreward.engine.loading import LoadedModel
from procreward.engine.prompt import VideoLayout
from procreward.errors import ConfigError, ModelError

__all__ = ["DecodeStep", "PlainEngine", "Visual", "decode_positions"]

Visual: TypeAlias = tuple[torch.Tensor, list[torch.Tensor]]
"""Embeddings ``(tokens, hidden)`` and deepstack features, each ``(tokens, hidden)``."""

DecodeStep: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""The newest tokens ``(batch,)`` and their place in the answer to ``(batch, hidden)``."""


class PlainEngine:
    """Answers prompts with a Qwen3-VL model; see :class:`procreward.engine.Engine`.

    Args:
        loaded: The model.
        video_layout: How videos are written into the prompt.
    """

    def __init__(self, loaded: LoadedModel, *, video_layout: VideoLayout = "4.57") -> None:
        self._loaded = loaded
        self._reader = PromptReader(loaded, video_layout=video_layout)
        self._pad_id = loaded.end_ids[-1]
        self._language_model = loaded.model.model.language_model
        self._embed = self._language_model.embed_tokens
        self._head = loaded.model.lm_head
        self._text = AnswerText(loaded.tokenizer)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily, all in one batch.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: ASCII strings and patterns that end an answer as soon as it holds one of them.

        Returns:
            One answer per prompt, in order.

        Raises:
            ConfigError: If ``max_new_tokens`` is below 1 or ``stop`` holds something else.
            ModelError: If the device runs out of memory.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        check_stop(stop)
        if not prompts:
            return []
        prepared = [self._reader.read(prompt) for prompt in prompts]
        with torch.inference_mode(), _memory_guard(self._loaded.device):
            rows = self._decode(prepared, max_new_tokens, stop)
        return [self._text.finish(row, stop) for row in rows]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score every label as the answer to every prompt: one full forward pass per label.

        Args:
            prompts: The questions.
            labels: The candidate answers.
            end_tokens: What counts to a label besides its own words.

        Returns:
            The likelihoods.

        Raises:
            ConfigError: If the labels cannot be told apart by their tokens.
            ModelError: If the device runs out of memory.
        """
        tokens = self._reader.label_tokens(labels, end_tokens)
        nll = np.empty((len(prompts), len(labels)), dtype=np.float64)
        if not prompts:
            return LabelNLL(nll=nll, tokens=tokens)
        prepared = [self._reader.read(prompt) for prompt in prompts]
        with torch.inference_mode(), _memory_guard(self._loaded.device):
            visual = self._encode(prepared)
            for column, label in enumerate(tokens):
                nll[:, column] = self._nll(prepared, visual, label)
        return LabelNLL(nll=nll, tokens=tokens)

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Refuse: this engine reads no numbers."""
        raise ConfigError("This engine reads no numbers; choose `engine: reference`.")

    def release(self, streams: Iterable[str]) -> None:
        """Do nothing: nothing is kept."""

    def _pad(self, prepared: Sequence[PreparedPrompt]) -> Batch:
        return pad_left([prompt.chat for prompt in prepared], self._pad_id, self._loaded.device)

    def _encode(self, prepared: Sequence[PreparedPrompt]) -> Visual:
        """Run the vision tower; returns the embeddings and the deepstack features of all clips."""
        patches = [patch for prompt in prepared for patch in prompt.patches]
        if not patches:
            return torch.empty(0), []
        device = self._loaded.device
        pixels = torch.cat([patch.pixel_values for patch in patches])
        grids = torch.cat([patch.grid_thw for patch in patches])
        output = self._loaded.model.model.visual(
            pixels.to(device, self._loaded.dtype), grid_thw=grids.to(device)
        )
        if isinstance(output, tuple):
            return output[0], list(output[1])
        return output.pooler_output, list(output.deepstack_features)

    def _prefill(self, batch: Batch, visual: Visual, cache: Any) -> torch.Tensor:
        """Read the prompts; returns ``(batch, length, hidden)``."""
        embeds, deepstack = visual
        inputs = self._embed(batch.ids)
        mask = None
        if deepstack:
            mask = batch.kinds != 0
            inputs[mask] = embeds.to(inputs.dtype)
        hidden: torch.Tensor = self._language_model(
            inputs_embeds=inputs,
            position_ids=batch.positions,
            attention_mask=batch.mask,
            past_key_values=cache,
            use_cache=cache is not None,
            visual_pos_masks=mask,
            deepstack_visual_embeds=deepstack or None,
        ).last_hidden_state
        return hidden

    def _decode(
        self, prepared: Sequence[PreparedPrompt], max_new_tokens: int, stop: Stop
    ) -> list[AnswerRow]:
        from transformers import DynamicCache

        batch = self._pad(prepared)
        cache = DynamicCache(config=self._language_model.config)
        hidden = self._prefill(batch, self._encode(prepared), cache)[:, -1]
        rows = [AnswerRow(self._loaded.end_ids, stop) for _ in prepared]
        decode_step: DecodeStep | None = None
        for step in range(max_new_tokens):
            chosen = self._head(hidden).argmax(dim=-1)
            running = False
            for row, token in zip(rows, chosen.tolist(), strict=True):
                running |= row.push(token, self._text.piece(token) if stop else "")
            if not running or step + 1 == max_new_tokens:
                break
            if decode_step is None:
                decode_step = self._decoder(batch, cache, max_new_tokens)
            hidden = decode_step(chosen, step)
        return rows

    def _decoder(self, batch: Batch, cache: Any, max_new_tokens: int) -> DecodeStep:
        """Get ready to decode behind the prompts whose keys and values are in the cache."""
        positions, mask = decode_positions(batch, max_new_tokens)
        length = batch.ids.shape[1]

        def decode_step(chosen: torch.Tensor, step: int) -> torch.Tensor:
            hidden: torch.Tensor = self._language_model(
                inputs_embeds=self._embed(chosen[:, None]),
                position_ids=positions[:, :, step : step + 1],
                attention_mask=None if mask is None else mask[:, : length + step + 1],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return hidden[:, -1]

        return decode_step

    def _nll(
        self,
        prepared: Sequence[PreparedPrompt],
        visual: Visual,
        label: tuple[int, ...],
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        chats = [prompt.chat.with_text(label) for prompt in prepared]
        batch = pad_left(chats, self._pad_id, self._loaded.device)
        hidden = self._prefill(batch, visual, None)
        # Left padding lines the labels up in the last columns.
        logits = self._head(hidden[:, -len(label) - 1 : -1]).float()
        target = torch.tensor(label, device=logits.device).expand(len(chats), -1)
        scores = torch.log_softmax(logits, dim=-1).gather(-1, target[..., None])[..., 0]
        result: np.ndarray[tuple[int], np.dtype[np.float64]] = (
            scores.double().sum(dim=-1).neg().cpu().numpy()
        )
        return result


@contextmanager
def _memory_guard(device: torch.device) -> Iterator[None]:
    """Turn running out of device memory into our own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"Not enough memory on {device} for this batch: {error}. Ask with fewer or smaller "
            "frames, or a smaller `batch_size`."
        ) from error


def decode_positions(batch: Batch, steps: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Lay out the columns that an answer may take.

    Args:
        batch: The prompts.
        steps: Limit of the answer in tokens.

    Returns:
        Positions ``(3, batch, steps)``, and the mask ``(batch, length + steps)`` or None when no
        prompt is padded.
    """
    ahead = batch.next_position[:, None] + torch.arange(steps, device=batch.ids.device)
    positions = ahead.expand(3, -1, -1)
    if batch.mask is None:
        return positions, None
    mask = torch.cat((batch.mask, batch.mask.new_ones(len(batch.ids), steps)), dim=1)
    return positions, mask
