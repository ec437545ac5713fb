"""What our engine is compared with: transformers' own ``generate`` and forward passes.

* :class:`OneByOne` - the documented path: one question at a time.
* :class:`Batched` - all questions of a moment in one call, labels in one batched forward pass.

Both read our prompts and our preprocessing, which favours them: the processors that come with
transformers give the same numbers in more time. Neither is told a stream or keeps anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from procreward.engine import EndTokens, Generation, LabelNLL, NumberReading, Prompt, Stop
from procreward.engine.reading.batching import memory_guard
from procreward.engine.reference import ReferenceEngine

__all__ = ["Batched", "OneByOne"]


class OneByOne:
    """Asks a :class:`~procreward.engine.reference.ReferenceEngine` one question after the other.

    Args:
        engine: The reference engine.
    """

    def __init__(self, engine: ReferenceEngine) -> None:
        self._engine = engine

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt by a ``generate`` of its own; see the protocol.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer.
            stop: What ends an answer.

        Returns:
            One answer per prompt, in order.
        """
        return [
            answer
            for prompt in prompts
            for answer in self._engine.generate([prompt], max_new_tokens=max_new_tokens, stop=stop)
        ]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score labels by one forward pass for each pair of prompt and label; see the protocol.

        Args:
            prompts: The questions.
            labels: The candidate answers.
            end_tokens: What counts to a label besides its words.

        Returns:
            The likelihoods.
        """
        return self._engine.label_nll(prompts, labels, end_tokens=end_tokens)

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Read numbers as the reference engine does; see the protocol.

        Args:
            prompts: The questions.
            lead: Words in front of the number.
            max_new_tokens: Limit of the words before it.
            largest: Larger numbers count as this one.

        Returns:
            One reading per prompt, in order.
        """
        return self._engine.read_number(
            prompts, lead=lead, max_new_tokens=max_new_tokens, largest=largest
        )

    def release(self, streams: Iterable[str]) -> None:
        """Do nothing: nothing is kept.

        Args:
            streams: Names of streams that have ended.
        """


class Batched(ReferenceEngine):
    """The reference engine with labels scored in one batch: views x labels, left-padded.

    Its ``generate`` already answers all prompts of a call in one batch.
    """

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score all pairs of prompt and label in one forward pass; see the protocol.

        Args:
            prompts: The questions.
            labels: The candidate answers.
            end_tokens: What counts to a label besides its words.

        Returns:
            The likelihoods.
        """
        tokens = self._reader.labels_behind(prompts, labels, end_tokens)
        if not prompts:
            return LabelNLL(nll=np.empty((0, len(labels))), tokens=tokens)
        read = [self._reader.read(prompt) for prompt in prompts]
        prepared = [one for one in read for _ in tokens]
        behind = [label for _ in prompts for label in tokens]
        chats = [one.chat.with_text(label) for one, label in zip(prepared, behind, strict=True)]
        inputs = self._inputs(chats, prepared)
        longest = max(map(len, tokens))
        with torch.inference_mode(), memory_guard(self._loaded.device):
            logits = self._loaded.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
            log_probs = torch.log_softmax(logits.float(), dim=-1)
            targets = inputs["input_ids"][:, -longest:, None]
            found = log_probs.gather(-1, targets)[..., 0].double().cpu().numpy()
        nll = [-row[-len(label) :].sum() for row, label in zip(found, behind, strict=True)]
        return LabelNLL(nll=np.reshape(nll, (len(prompts), len(labels))), tokens=tokens)
