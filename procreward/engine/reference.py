"""The reference engine: transformers' own ``generate`` and ``forward``, for audits and tests.

Slower than the others and with nothing of our own but preprocessing and prompt: what it answers is
what plain transformers answers. Nothing is kept from one question to the next, and a number is read
by one full forward pass for every way in which it can begin.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from procreward.checks import check_int
from procreward.engine import EndTokens, Generation, LabelNLL, NumberReading, Prompt, Stop
from procreward.engine.answers.answer import check_stop
from procreward.engine.answers.numbers import Moments, NumberReader
from procreward.engine.answers.tree import TokenTree
from procreward.engine.loading import LoadedModel
from procreward.engine.loading.devices import computing
from procreward.engine.reading.batching import MicroBatcher, memory_guard
from procreward.engine.reading.inputs import PreparedPrompt, PromptReader, cut_at_stop, pad_left
from procreward.engine.reading.prompt import Chat, VideoLayout

__all__ = ["ReferenceEngine"]

_PATHS = 32
"""Paths of a number tree that are read in one forward pass."""


class ReferenceEngine:
    """Answers prompts through transformers; see :class:`procreward.engine.Engine`.

    Args:
        loaded: The model.
        video_layout: How videos are written into the prompt.
    """

    def __init__(self, loaded: LoadedModel, *, video_layout: VideoLayout = "4.57") -> None:
        self._loaded = loaded
        self._reader = PromptReader(loaded, video_layout=video_layout)
        # Absent before transformers 5, needed since.
        self._takes_kinds = (
            "mm_token_type_ids" in inspect.signature(loaded.model.forward).parameters
        )

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily with one call of ``model.generate``.

        Args:
            prompts: The questions; all are one batch.
            max_new_tokens: Limit per answer, at least 1.
            stop: What ends an answer as soon as it holds it; the text is cut behind it.

        Returns:
            One answer per prompt, in order.

        Raises:
            ConfigError: If ``max_new_tokens`` is below 1 or ``stop`` holds what is not ASCII.
            ModelError: If the device runs out of memory.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        check_stop(stop)
        if not prompts:
            return []
        prepared = [self._reader.read(prompt) for prompt in prompts]
        return self._generate(prepared, max_new_tokens, stop)

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

        Raises:
            ConfigError: If the labels cannot be told apart by their tokens.
            ModelError: If the device runs out of memory.
        """
        tokens = self._reader.labels_behind(prompts, labels, end_tokens)
        nll = np.empty((len(prompts), len(labels)), dtype=np.float64)
        for row, prompt in enumerate(prompts):
            prepared = self._reader.read(prompt)
            for column, label in enumerate(tokens):
                nll[row, column] = self._nll(prepared, label)
        return LabelNLL(nll=nll, tokens=tokens)

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Read numbers by one full pass for every way to begin them; see the protocol.

        Args:
            prompts: The questions.
            lead: ASCII words directly in front of the number.
            max_new_tokens: Limit of the words before the number, at least 1.
            largest: Larger numbers count as this one.

        Returns:
            One reading per prompt, in order.

        Raises:
            ConfigError: If the tokenizer does not write digits as single tokens, or a setting is
                out of its range.
            ModelError: If the device runs out of memory.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        check_stop((lead,))
        reader = NumberReader.from_tokenizer(self._loaded.tokenizer, largest, lead=lead)
        readings = []
        for prompt in prompts:
            prepared = self._reader.read(prompt)
            text, found = "", True
            tokens: tuple[int, ...] = ()
            if not prompt.assistant_prefix.endswith(lead):
                (answer,) = self._generate([prepared], max_new_tokens, (lead,))
                tokens, text = answer.tokens, self._decode(answer.tokens)
                found = text.endswith(lead)
            moments = Moments(value=None, spread=0.0, mass=0.0)
            if found:
                moments = self._read_number(prepared, tokens, reader)
            readings.append(
                NumberReading(
                    text=text,
                    tokens=len(tokens),
                    value=moments.value,
                    spread=moments.spread,
                    mass=moments.mass,
                    finished=found,
                )
            )
        return readings

    def release(self, streams: Iterable[str]) -> None:
        """Do nothing: nothing is kept.

        Args:
            streams: Names of streams that have ended.
        """

    def _generate(
        self, prepared: Sequence[PreparedPrompt], max_new_tokens: int, stop: Stop
    ) -> list[Generation]:
        from transformers import GenerationConfig

        inputs = self._inputs([prompt.chat for prompt in prepared], prepared)
        length = inputs["input_ids"].shape[1]
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._loaded.end_ids),
            pad_token_id=self._loaded.end_ids[-1],
        )
        with computing(self._loaded.device), memory_guard(self._loaded.device):
            output = self._loaded.model.generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=self._criteria(stop, length),
            )
        return [self._finish(tokens, stop) for tokens in output[:, length:].tolist()]

    def _criteria(self, stop: Stop, length: int) -> Any:
        """Have ``generate`` end rows whose answer holds a stop.

        Not by its own ``stop_strings``, which also finds them in the names of control tokens.
        """
        from transformers import StoppingCriteriaList

        def ends(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            rows = input_ids[:, length:].tolist()
            done = [_holds(self._decode(self._until_end(row)), stop) for row in rows]
            return torch.tensor(done, device=input_ids.device)

        return StoppingCriteriaList([ends] if stop else [])

    def _nll(self, prepared: PreparedPrompt, label: tuple[int, ...]) -> float:
        inputs = self._inputs([prepared.chat.with_text(label)], [prepared])
        with computing(self._loaded.device), memory_guard(self._loaded.device):
            logits = self._loaded.model(**inputs, logits_to_keep=len(label) + 1).logits
            loss = torch.nn.functional.cross_entropy(
                logits[0, :-1].float(), inputs["input_ids"][0, -len(label) :], reduction="sum"
            )
        return float(loss)

    def _read_number(
        self, prepared: PreparedPrompt, begun: tuple[int, ...], reader: NumberReader
    ) -> Moments:
        probs = self._tree_probs(prepared, begun, reader.integers, reader)
        tree = reader.plan_decimals(probs)
        if tree is None:
            return reader.expectation(probs)
        decimals = self._tree_probs(prepared, begun, tree, reader)
        return reader.expectation(probs, decimals, tree)

    def _tree_probs(
        self,
        prepared: PreparedPrompt,
        begun: tuple[int, ...],
        tree: TokenTree,
        reader: NumberReader,
    ) -> npt.NDArray[np.float64]:
        """``(1 + S, 11)`` probabilities behind the root and each node, every path by itself."""

        def read(chats: list[Chat]) -> list[npt.NDArray[np.float64]]:
            inputs = self._inputs(chats, [prepared] * len(chats))
            with computing(self._loaded.device):
                logits = self._loaded.model(**inputs, logits_to_keep=1).logits[:, -1]
                probs = logits.double().softmax(dim=-1)[:, reader.columns.tolist()]
            return list(probs.cpu().numpy())

        chats = [
            prepared.chat.with_text((*begun, *tree.path(node))) for node in range(-1, len(tree))
        ]
        batcher = MicroBatcher[Chat, npt.NDArray[np.float64]](self._loaded.device, limit=_PATHS)
        return np.stack(batcher.run(chats, [len(chat) for chat in chats], read))

    def _inputs(
        self, chats: Sequence[Chat], prepared: Sequence[PreparedPrompt]
    ) -> dict[str, torch.Tensor]:
        device = self._loaded.device
        batch = pad_left(chats, self._loaded.end_ids[-1], device)
        inputs: dict[str, Any] = {
            "input_ids": batch.ids,
            "attention_mask": torch.ones_like(batch.ids) if batch.mask is None else batch.mask,
        }
        if self._takes_kinds:
            inputs["mm_token_type_ids"] = batch.kinds
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

    def _until_end(self, tokens: Sequence[int]) -> list[int]:
        ends = [place for place, token in enumerate(tokens) if token in self._loaded.end_ids]
        return list(tokens[: ends[0]] if ends else tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._loaded.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _finish(self, tokens: list[int], stop: Stop) -> Generation:
        answer = self._until_end(tokens)
        finished = len(answer) < len(tokens)
        if _holds(self._decode(answer), stop):
            finished = True
            answer = next(part for part in _beginnings(answer) if _holds(self._decode(part), stop))
        return Generation(
            text=cut_at_stop(self._decode(answer), stop), tokens=tuple(answer), finished=finished
        )


def _beginnings(tokens: list[int]) -> Iterator[list[int]]:
    return (tokens[:length] for length in range(1, len(tokens) + 1))


def _holds(text: str, stop: Stop) -> bool:
    return any(word in text if isinstance(word, str) else word.search(text) for word in stop)
