"""The reference engine: transformers' own ``generate`` and ``forward``, for audits and tests.

Slower than the others and with nothing of our own but preprocessing and prompt: what it answers is
what plain transformers answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from procreward.engine import EndTokens, Generation, LabelNLL, Prompt
from procreward.engine.inputs import PreparedPrompt, PromptReader, cut_at_stop, pad_left
from procreward.engine.loading import LoadedModel
from procreward.engine.prompt import Chat, VideoLayout

__all__ = ["ReferenceEngine"]


class ReferenceEngine:
    """Answers prompts through transformers; see :class:`procreward.engine.Engine`.

    Args:
        loaded: The model.
        video_layout: How videos are written into the prompt.
    """

    def __init__(self, loaded: LoadedModel, *, video_layout: VideoLayout = "4.57") -> None:
        self._loaded = loaded
        self._reader = PromptReader(loaded, video_layout=video_layout)

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: tuple[str, ...] = ()
    ) -> list[Generation]:
        """Answer every prompt greedily with ``model.generate``.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: Strings that end an answer as soon as it holds one of them.

        Returns:
            One answer per prompt, in order.
        """
        from transformers import GenerationConfig

        if not prompts:
            return []
        prepared = [self._reader.read(prompt) for prompt in prompts]
        inputs = self._inputs([prompt.chat for prompt in prepared], prepared)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._loaded.end_ids),
            pad_token_id=self._loaded.end_ids[-1],
            stop_strings=list(stop) or None,
        )
        with torch.inference_mode():
            output = self._loaded.model.generate(
                **inputs, generation_config=settings, tokenizer=self._loaded.tokenizer
            )
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._finish(tokens, stop) for tokens in answers]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score every label as the answer to every prompt: one ``model`` call for each pair.

        Args:
            prompts: The questions.
            labels: The candidate answers.
            end_tokens: What counts to a label besides its own words.

        Returns:
            The likelihoods.
        """
        tokens = self._reader.label_tokens(labels, end_tokens)
        nll = np.empty((len(prompts), len(labels)), dtype=np.float64)
        for row, prompt in enumerate(prompts):
            prepared = self._reader.read(prompt)
            for column, label in enumerate(tokens):
                inputs = self._inputs([prepared.chat.with_text(label)], [prepared])
                with torch.inference_mode():
                    logits = self._loaded.model(**inputs, logits_to_keep=len(label) + 1).logits
                loss = torch.nn.functional.cross_entropy(
                    logits[0, :-1].float(), inputs["input_ids"][0, -len(label) :], reduction="sum"
                )
                nll[row, column] = float(loss)
        return LabelNLL(nll=nll, tokens=tokens)

    def _inputs(
        self, chats: Sequence[Chat], prepared: Sequence[PreparedPrompt]
    ) -> dict[str, torch.Tensor]:
        device = self._loaded.device
        batch = pad_left(chats, self._loaded.end_ids[-1], device)
        inputs: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": torch.ones_like(batch.ids) if batch.mask is None else batch.mask,
            "mm_token_type_ids": batch.kinds,
        }
        for video, pixels, grid in (
            (False, "pixel_values", "image_grid_thw"),
            (True, "pixel_values_videos", "video_grid_thw"),
        ):
            patches = [
                patch
                for prompt in prepared
                for patch, is_video in zip(prompt.patches, prompt.videos, strict=True)
                if is_video == video
            ]
            if patches:
                inputs[pixels] = torch.cat([patch.pixel_values for patch in patches]).to(device)
                inputs[grid] = torch.cat([patch.grid_thw for patch in patches]).to(device)
        return inputs

    def _finish(self, tokens: list[int], stop: tuple[str, ...]) -> Generation:
        ends = [tokens.index(token) for token in self._loaded.end_ids if token in tokens]
        ended = bool(ends)
        if ended:
            tokens = tokens[: min(ends)]
        text = self._loaded.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        finished = ended or any(word in text for word in stop)
        return Generation(text=cut_at_stop(text, stop), tokens=tuple(tokens), finished=finished)
