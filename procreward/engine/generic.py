"""The plain engine for models of any architecture: processor, chat template and ``generate``.

Nothing is reused from query to query and nothing is known about the model beyond its processor, so
this is the slowest engine and the one that refuses the fewest models.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from procreward.checks import check_choice, check_int
from procreward.engine import Clip, EndTokens, Generation, LabelNLL, NumberReading, Prompt, Stop
from procreward.engine.answers.answer import check_stop
from procreward.engine.loading.devices import computing
from procreward.engine.loading.generic import LoadedGeneric
from procreward.engine.reading.batching import MicroBatcher, memory_guard
from procreward.engine.reading.inputs import cut_at_stop
from procreward.engine.remote.outside import VideoNotice, clips_of
from procreward.errors import ConfigError, FrameError, InstructionError

__all__ = ["GenericEngine"]

_TOKENS_PER_FRAME = 256
_CHARACTERS_PER_TOKEN = 4


class GenericEngine:
    """Answers prompts through transformers' processors; see :class:`procreward.engine.Engine`.

    A prompt becomes chat messages: a system turn if it has one, and a user turn of pictures and
    texts in their order. The frames of a video clip are shown as pictures. The words of
    ``assistant_prefix`` stand behind the head that the chat template gives the assistant's turn.

    Args:
        loaded: The model.
        batch_size: Most prompts answered in one batch.

    Raises:
        ConfigError: If ``batch_size`` is below 1.
    """

    def __init__(self, loaded: LoadedGeneric, *, batch_size: int = 64) -> None:
        self._loaded = loaded
        self._videos = VideoNotice(loaded.source)
        self._tokenizer = loaded.tokenizer
        self._batcher: MicroBatcher[Prompt, Generation] = MicroBatcher(
            loaded.device, limit=batch_size
        )
        self._control_ids = frozenset(self._tokenizer.all_special_ids) | {
            int(index)
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
        }
        self._picture_token: str | None = getattr(loaded.processor, "image_token", None)
        self._slices_logits = "logits_to_keep" in inspect.signature(loaded.model.forward).parameters

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily with ``model.generate``.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: What ends an answer as soon as it holds it.

        Returns:
            One answer per prompt, in order.

        Raises:
            ConfigError: If ``max_new_tokens`` or ``stop`` cannot be right, a prompt leaves the
                user's turn open, or the chat template refuses a prompt.
            InstructionError: If a text contains control tokens.
            FrameError: If the processor refuses the frames.
            ModelError: If the device runs out of memory.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        check_stop(stop)
        heads = {id(prompt): self._head(prompt) for prompt in prompts}

        def call(batch: list[Prompt]) -> list[Generation]:
            texts = [heads[id(prompt)] for prompt in batch]
            return self._generate(texts, batch, max_new_tokens, stop)

        results: dict[int, Generation] = {}
        for with_pictures in (True, False):  # processors want pictures in all texts or in none
            chosen = [i for i, one in enumerate(prompts) if bool(_count(one)) == with_pictures]
            batch = [prompts[i] for i in chosen]
            costs = [self._cost(prompt, heads[id(prompt)]) for prompt in batch]
            results.update(zip(chosen, self._batcher.run(batch, costs, call), strict=True))
        return [results[index] for index in range(len(prompts))]

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
            labels: The candidate answers, at least one.
            end_tokens: What counts to a label besides its own words.

        Returns:
            The likelihoods.

        Raises:
            ConfigError: If labels are not tokenised apart from the prompt, alike behind all
                prompts and unlike each other, or the chat template does not keep them verbatim.
            InstructionError: If a text or a label contains control tokens.
            FrameError: If the processor refuses the frames.
            ModelError: If the device runs out of memory.
        """
        check_choice("end_tokens", end_tokens, ("template", "eos", "none"))
        if not labels or isinstance(labels, str):
            raise ConfigError(f"`labels` must be a sequence of answers, got {labels!r}.")
        nll = np.empty((len(prompts), len(labels)), dtype=np.float64)
        tokens: tuple[tuple[int, ...], ...] | None = None
        for row, prompt in enumerate(prompts):
            head = self._head(prompt)
            start = self._inputs([head], [prompt])["input_ids"][0].tolist()
            found = []
            for column, label in enumerate(labels):
                inputs = self._inputs(
                    [head + self._tail(prompt, head, label, end_tokens)], [prompt]
                )
                if end_tokens == "eos":
                    _append(inputs, self._loaded.end_ids[0])
                ids = inputs["input_ids"][0].tolist()
                _check_apart(label, start, ids)
                found.append(tuple(ids[len(start) :]))
                nll[row, column] = self._nll(inputs, len(found[-1]))
            if tokens is not None and tokens != tuple(found):
                raise ConfigError(
                    f"The labels {list(labels)} must be tokenised alike behind all prompts. Ask "
                    "in separate calls."
                )
            tokens = tuple(found)
            _check_distinct(labels, tokens)
        return LabelNLL(nll=nll, tokens=tokens or ())

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Refuse: the numbers' tokens are not known for models of any architecture.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "Numbers must be read from words with `engine: plain`, which gives no expectations. "
            "Use `mode: reasoning`, or a Qwen-VL model with `engine: fast`."
        )

    def release(self, streams: Iterable[str]) -> None:
        """Do nothing: this engine keeps nothing."""

    def _head(self, prompt: Prompt) -> str:
        """Write a prompt up to the first word of the answer."""
        if prompt.open_turn:
            raise ConfigError(
                "A prompt must not leave the user's turn open with `engine: plain`: chat templates "
                "close it. Use a Qwen-VL model with `engine: fast`."
            )
        return self._render(self._messages(prompt), generate=True) + self._plain(
            prompt.assistant_prefix
        )

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        content: list[dict[str, str]] = []
        for part in prompt.parts:
            if isinstance(part, Clip):
                content += [{"type": "image"}] * len(part.frames)
            elif content and content[-1]["type"] == "text":
                content[-1] = {"type": "text", "text": content[-1]["text"] + self._plain(part)}
            else:
                content.append({"type": "text", "text": self._plain(part)})
        messages = [_message("user", content)]
        if prompt.system is not None:
            system = [{"type": "text", "text": self._plain(prompt.system)}]
            messages.insert(0, _message("system", system))
        return messages

    def _plain(self, text: str) -> str:
        """Refuse control tokens in what should be words."""
        ids = self._tokenizer.encode(text, add_special_tokens=False) if text else []
        picture = self._picture_token is not None and self._picture_token in text
        if picture or not self._control_ids.isdisjoint(ids):
            raise InstructionError(
                f"A prompt text must not contain control tokens of the model, got {text!r}."
            )
        return text

    def _render(self, messages: list[dict[str, Any]], *, generate: bool) -> str:
        try:
            text: str = self._loaded.processor.apply_chat_template(
                messages, add_generation_prompt=generate, tokenize=False
            )
        except Exception as error:  # templates raise what they like, jinja its own types
            raise ConfigError(
                f"The chat template of {self._loaded.source} must take turns of "
                f"{[message['role'] for message in messages]}, but refuses them: {error}"
            ) from error
        return text

    def _tail(self, prompt: Prompt, head: str, label: str, end_tokens: EndTokens) -> str:
        """Write a label and what follows it."""
        if end_tokens != "template":
            return self._plain(label)
        answer = [{"type": "text", "text": prompt.assistant_prefix + self._plain(label)}]
        messages = [*self._messages(prompt), _message("assistant", answer)]
        whole = self._render(messages, generate=False)
        if not whole.startswith(head + label):
            raise ConfigError(
                f"The chat template of {self._loaded.source} writes an answer otherwise than it "
                "begins one, so `end_tokens` must be 'eos' or 'none', got 'template'."
            )
        return whole[len(head) :]

    def _inputs(self, texts: Sequence[str], prompts: Sequence[Prompt]) -> Any:
        """Run the processor."""
        begin = self._tokenizer.bos_token
        options: dict[str, Any] = {"return_tensors": "pt", "padding": len(texts) > 1}
        if len(texts) > 1:
            options["padding_side"] = "left"
        if begin and texts[0].startswith(begin):
            options["add_special_tokens"] = False  # the template has put it there already
        self._videos.look(clip for prompt in prompts for clip in clips_of(prompt))
        pictures = [_pictures(prompt) for prompt in prompts]
        try:
            inputs = self._loaded.processor(
                text=list(texts), images=pictures if pictures[0] else None, **options
            )
        except (ValueError, TypeError, IndexError) as error:
            raise FrameError(
                f"The processor of {self._loaded.source} refuses "
                f"{[len(one) for one in pictures]} pictures: {error}"
            ) from error
        return inputs.to(self._loaded.device, self._loaded.dtype)

    def _generate(
        self, texts: Sequence[str], prompts: Sequence[Prompt], max_new_tokens: int, stop: Stop
    ) -> list[Generation]:
        from transformers import GenerationConfig, StoppingCriteriaList

        inputs = self._inputs(texts, prompts)
        length = inputs["input_ids"].shape[1]
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self._loaded.end_ids),
            pad_token_id=self._tokenizer.pad_token_id,
        )

        def stopped(ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
            words = [self._decode(row) for row in ids[:, length:].tolist()]
            return torch.tensor([_holds(text, stop) for text in words], device=ids.device)

        with computing(self._loaded.device):
            output = self._loaded.model.generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([stopped] if stop else []),
            )
        return [self._finish(tokens, stop) for tokens in output[:, length:].tolist()]

    def _finish(self, tokens: list[int], stop: Stop) -> Generation:
        ends = [index for index, token in enumerate(tokens) if token in self._loaded.end_ids]
        if ends:
            tokens = tokens[: ends[0]]
        text = self._decode(tokens)
        return Generation(
            text=cut_at_stop(text, stop),
            tokens=tuple(tokens),
            finished=bool(ends) or _holds(text, stop),
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _nll(self, inputs: Any, count: int) -> float:
        """Score the last tokens of a text."""
        keep = {"logits_to_keep": count + 1} if self._slices_logits else {}
        with computing(self._loaded.device), memory_guard(self._loaded.device):
            logits = self._loaded.model(**inputs, **keep).logits[0, -count - 1 : -1]
            target = inputs["input_ids"][0, -count:]
            loss = torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum")
        return float(loss)

    def _cost(self, prompt: Prompt, head: str) -> int:
        return _count(prompt) * _TOKENS_PER_FRAME + len(head) // _CHARACTERS_PER_TOKEN


def _message(role: str, content: list[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": content}


def _count(prompt: Prompt) -> int:
    return sum(len(part.frames) for part in prompt.parts if isinstance(part, Clip))


def _pictures(prompt: Prompt) -> list[Any]:
    from PIL import Image

    clips = (part for part in prompt.parts if isinstance(part, Clip))
    return [Image.fromarray(frame) for clip in clips for frame in clip.frames]


def _holds(text: str, stop: Stop) -> bool:
    return any(one in text if isinstance(one, str) else one.search(text) for one in stop)


def _append(inputs: Any, token: int) -> None:
    """Put a text token behind one prompt."""
    for name, value in (("input_ids", token), ("attention_mask", 1), ("token_type_ids", 0)):
        if name in inputs:
            tail = torch.full_like(inputs[name][:, :1], value)
            inputs[name] = torch.cat((inputs[name], tail), dim=1)


def _check_apart(label: str, start: Sequence[int], ids: Sequence[int]) -> None:
    if not label or len(ids) <= len(start) or list(ids[: len(start)]) != list(start):
        raise ConfigError(
            f"The label {label!r} must be words that are tokenised apart from what stands before "
            "them. Choose another label."
        )


def _check_distinct(labels: Sequence[str], tokens: Sequence[tuple[int, ...]]) -> None:
    ordered = sorted(zip(tokens, labels, strict=True))
    for (one, label), (other, longer) in pairwise(ordered):
        if other[: len(one)] == one:
            raise ConfigError(
                f"The labels {label!r} and {longer!r} must differ at a token both have, got "
                f"{list(one)} and {list(other)}."
            )
