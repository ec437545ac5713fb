"""Imposes what a model writes, in transformers' ``generate`` and in our engine alike.

The logits of the token that is to come next are raised far above all others, behind the model's own
head; everything before is the model's own arithmetic. Without it random weights would write random
text, to which no stop and no draft applies.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from procreward.bench.clock import Stopwatch
from procreward.bench.flops import (
    behind_flops,
    kv_bytes_per_token,
    language_weights,
    prefill_flops,
)
from procreward.engine.answers.numbers import NumberReader
from procreward.engine.answers.tree import TokenTree
from procreward.engine.fast import FastEngine
from procreward.engine.language.decoder import Decoder, VisualTokens
from procreward.engine.language.kv import KVCache
from procreward.engine.loading import LoadedModel
from procreward.engine.reading.rows import Reading, Row
from procreward.engine.vision.tower import Features

__all__ = ["Answer", "ImposedEngine", "ImposedModel", "Work", "number_bonus"]

_BONUS = 1e4
_NUMBER_BONUS, _DIGIT_STEP = 20.0, 5.0
_SHORT = 17
"""Tokens of a pass from which on it is no decoding pass: one more than a chunk of a draft."""


Answer: TypeAlias = "Sequence[int] | float"
"""Token ids without the end token, or the likeliest percentage, in [0, 100)."""


class ImposedModel:
    """A model whose ``generate`` writes what it is told; in all else the model itself.

    Args:
        model: The model.
        end_id: Token that ends an answer.
    """

    def __init__(self, model: Any, end_id: int) -> None:
        self._model = model
        self._end_id = end_id
        self._queue: list[Sequence[int]] = []

    def impose(self, answers: Iterable[Sequence[int]]) -> None:
        """Say what the next questions are to be answered, in their order.

        Args:
            answers: Token ids of each, without the end token.
        """
        self._queue = list(answers)

    def generate(self, **inputs: Any) -> Any:
        """Generate under the next answers of the queue; without any, freely."""
        from transformers import LogitsProcessorList

        count = len(inputs["input_ids"])
        answers, self._queue = self._queue[:count], self._queue[count:]
        if answers:
            table = _table(answers, self._end_id, inputs["input_ids"].device)
            prompt = inputs["input_ids"].shape[1]

            def raise_next(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                place = min(ids.shape[1] - prompt, table.shape[1] - 1)
                bonus = torch.full_like(scores[:, :1], _BONUS)
                return scores.scatter_add(1, table[:, place : place + 1], bonus)

            inputs["logits_processor"] = LogitsProcessorList([raise_next])
        return self._model.generate(**inputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model itself."""
        return self._model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _table(answers: Sequence[Sequence[int]], end_id: int, device: torch.device) -> torch.Tensor:
    """``(answers, longest + 1) int64``, end tokens behind each."""
    longest = max(map(len, answers)) + 1
    rows = [[*answer, *[end_id] * (longest - len(answer))] for answer in answers]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def number_bonus(percent: float) -> npt.NDArray[np.float64]:
    """Return what is added to the logits of digits and point for a peaked distribution.

    That of a trained model is peaked as well, and how much is read of a number depends on it. A
    digit that is off by one is 150 times less likely, by two 22 000 times.

    Args:
        percent: The likeliest number, in [0, 100).

    Returns:
        ``(5, 11)``: for each place of the number as written with two digits and two decimals, the
        ten digits and the point.
    """
    wanted = f"{percent:05.2f}"
    bonus = np.full((len(wanted), 11), -_NUMBER_BONUS)
    for place, character in enumerate(wanted):
        if character == ".":
            bonus[place, 10] = _NUMBER_BONUS
        else:
            gaps = np.abs(np.arange(10) - int(character))
            bonus[place, :10] = _NUMBER_BONUS - _DIGIT_STEP * gaps
    return bonus


class Work:
    """What had to be done, counted; to be set against the time it took.

    Attributes:
        prefill_flops: Operations over prompts and over guesses and numbers behind them.
        decode_seconds: Least time of the decoding passes, for the ceilings given.
        decode_passes: How many there were.
    """

    def __init__(self, flops: float, bandwidth: float) -> None:
        self._flops = flops
        self._bandwidth = bandwidth
        self.prefill_flops = 0.0
        self.decode_seconds = 0.0
        self.decode_passes = 0

    def decode(self, config: Any, rows: int, tokens: int, columns: int, width: int) -> None:
        """Count a pass: weights and keys are read once, and every token is multiplied.

        Args:
            config: The model's configuration.
            rows: Rows of the batch.
            tokens: Tokens of each that are read.
            columns: Tokens before them.
            width: Bytes of a number.
        """
        weights = language_weights(config)
        moved = weights * width + rows * columns * kv_bytes_per_token(config, width)
        flops = 2.0 * weights * rows * tokens
        self.decode_seconds += max(moved / self._bandwidth, flops / self._flops)
        self.decode_passes += 1


class _NamedCache(KVCache):
    """A cache that knows whose rows it holds, also after rows have been picked out of it."""

    __slots__ = ()

    def take(self, rows: torch.Tensor, *, capacity: int | None = None) -> KVCache:
        """Copy some rows; see :meth:`KVCache.take`."""
        names = _NAMES[self]
        return _name(super().take(rows, capacity=capacity), [names[row] for row in rows.tolist()])


_NAMES: weakref.WeakKeyDictionary[KVCache, list[Row]] = weakref.WeakKeyDictionary()


def _name(cache: KVCache, rows: list[Row]) -> KVCache:
    # The very object is kept: decoders recognise the caches they handed out.
    cache.__class__ = _NamedCache
    _NAMES[cache] = rows
    return cache


class _ImposedDecoder(Decoder):
    """A decoder whose head is told the next tokens; it also times and counts passes."""

    def __init__(self, inner: Decoder, loaded: LoadedModel, watch: Stopwatch, work: Work) -> None:
        super().__init__(loaded)
        self._inner = inner
        self._config = loaded.model.config
        self._end_id = loaded.end_ids[0]
        self._watch = watch
        self._work = work
        self._targets: torch.Tensor | None = None
        self._part = ""
        self.rows: list[Row] = []
        self.answers: Mapping[str, Answer] = {}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up embeddings; see the base class."""
        return self._inner.embed(ids)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Make a cache for the rows that are about to be read."""
        cache = self._inner.new_cache(batch, capacity)
        return _name(cache, self.rows) if batch == len(self.rows) else cache

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        *,
        valid: torch.Tensor | None = None,
        tree: torch.Tensor | None = None,
        visual: VisualTokens | None = None,
        keep: int | None = None,
    ) -> torch.Tensor:
        """Read a chunk; see the base class."""
        rows, tokens, width = *embeds.shape[:2], embeds.element_size()
        short = visual is None and tokens < _SHORT
        self._part = "decode" if short else "prefill"
        if short:
            self._work.decode(self._config, rows, tokens, cache.used, width)
        elif visual is None:
            self._work.prefill_flops += rows * behind_flops(self._config, tokens, cache.used)
        self._targets = None if tree is not None else self._next_tokens(positions, cache)
        self._watch.start(self._part)
        return self._inner.forward(
            embeds, positions, cache, valid=valid, tree=tree, visual=visual, keep=keep
        )

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score the vocabulary; what is to come next is raised."""
        logits = self._inner.head(hidden)
        if self._targets is not None:
            targets = self._targets[:, -hidden.shape[1] :, None]
            bonus = _BONUS * (targets >= 0).to(logits.dtype)
            logits.scatter_add_(2, targets.clamp(min=0), bonus)
        self._watch.stop(self._part)
        return logits

    def _next_tokens(self, positions: torch.Tensor, cache: KVCache) -> torch.Tensor | None:
        """``(batch, tokens) int64``, what follows each token; -1 within the prompt."""
        rows = _NAMES.get(cache, ())
        answers = [self.answers.get(row.stream or "", 0.0) for row in rows]
        words = [answer for answer in answers if not isinstance(answer, float)]
        if not words or len(words) < len(rows):
            return None
        device = positions.device
        table = _table(words, self._end_id, device)
        starts = torch.tensor([row.chat.next_position - 1 for row in rows], device=device)
        places = positions[0] - starts[:, None]
        found = table.gather(1, places.clamp(0, table.shape[1] - 1))
        return torch.where(places >= 0, found, -1)

    def _run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._inner._run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _TimedFrames:
    """The engine's encoder of frames under a stopwatch."""

    def __init__(self, inner: Any, watch: Stopwatch) -> None:
        self._inner = inner
        self._watch = watch

    def encode(self, clips: Any) -> list[Features]:
        with self._watch.part("vision"):
            found: list[Features] = self._inner.encode(clips)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class ImposedEngine(FastEngine):
    """Our engine, told what to write, with a stopwatch in it and its work counted.

    Args:
        loaded: The model.
        work: Where to count.
        cache_bytes: As for the engine.
        exact: As for the engine.
    """

    def __init__(
        self, loaded: LoadedModel, work: Work, *, cache_bytes: int, exact: bool = False
    ) -> None:
        super().__init__(loaded, exact=exact, cache_bytes=cache_bytes)
        self.loaded = loaded
        self.watch = Stopwatch(loaded.device)
        self.work = work
        self._config = loaded.model.config
        self._read_rows: list[Row] = []
        self._imposed = _ImposedDecoder(self._decoder, loaded, self.watch, work)
        self._decoder = self._imposed
        self._recall._decoder = self._imposed
        self._frames: Any = _TimedFrames(self._frames, self.watch)

    def impose(self, answers: Mapping[str, Answer]) -> None:
        """Say what every stream's next question is to be answered.

        Args:
            answers: Stream, as in :attr:`procreward.engine.Prompt.stream`, to its answer. A batch
                with other streams is answered freely.
        """
        self._imposed.answers = answers

    def _read(
        self,
        rows: list[Row],
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        tree: TokenTree | None = None,
        room: int = 0,
    ) -> Reading:
        self._imposed.rows = rows
        for index, row in enumerate(rows):
            behind = len(guesses[index]) if guesses is not None else len(tree or ())
            tokens = row.length + behind
            self.work.prefill_flops += prefill_flops(self._config, tokens, scored=1 + behind)
        reading = super()._read(rows, guesses=guesses, tree=tree, room=room)
        self._imposed.rows = []
        self._read_rows = rows
        return reading

    def _digit_probs(self, hidden: torch.Tensor, reader: NumberReader) -> npt.NDArray[np.float64]:
        probs = super()._digit_probs(hidden, reader)
        rows, self._read_rows = self._read_rows, []
        for index, row in enumerate(rows):
            percent = self._imposed.answers.get(row.stream or "")
            if isinstance(percent, float):
                places = np.concatenate(([0], 1 + reader.integers.depths))
                probs[index] = _raised(probs[index], number_bonus(percent)[places])
        return probs


def _raised(
    probs: npt.NDArray[np.float64], bonus: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Probabilities after something has been added to the logits they come from."""
    chosen = probs * np.exp(bonus)
    others = 1.0 - probs.sum(-1, keepdims=True)
    raised: npt.NDArray[np.float64] = chosen / (chosen.sum(-1, keepdims=True) + others)
    return raised
