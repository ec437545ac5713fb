"""The engine: what it computed for a frame, a demonstration or the last answer it does not redo.

* Every frame is encoded once (:mod:`procreward.engine.vision.frame_store`).
* Heads that prompts share are read once (:mod:`procreward.engine.reading.prefixes`).
* Prompts, labels and numbers of many streams are read in one pass
  (:mod:`procreward.engine.reading.rows`, :mod:`procreward.engine.answers.tree`).
* The last answer is tried as the next one (:mod:`procreward.engine.answers.drafts`).
* Batches are as large as memory allows (:mod:`procreward.engine.reading.batching`).

Greedy answers are those of plain transformers, likelihoods differ by rounding. In float32 tests
hold it to that; in bfloat16 another number of tokens in a pass rounds differently, which can turn
a tie.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from procreward.checks import check_int
from procreward.engine import (
    Clip,
    EndTokens,
    Generation,
    LabelNLL,
    NumberReading,
    Prompt,
    Stop,
)
from procreward.engine.answers.answer import AnswerRow, AnswerText, check_stop
from procreward.engine.answers.decoding import Answering, decode
from procreward.engine.answers.drafts import Draft, DraftBook
from procreward.engine.answers.numbers import Moments, NumberReader
from procreward.engine.answers.tree import LabelTree, TokenTree, label_tree
from procreward.engine.language.decoder import make_decoder
from procreward.engine.language.kv import KVCache
from procreward.engine.loading import LoadedModel
from procreward.engine.loading.devices import computing
from procreward.engine.reading.batching import MicroBatcher, memory_guard
from procreward.engine.reading.inputs import PromptReader
from procreward.engine.reading.prefixes import PrefixStore, describe_content
from procreward.engine.reading.prompt import Chat, VideoLayout
from procreward.engine.reading.recall import Recall
from procreward.engine.reading.rows import Reading, Row, ensure_room, read_trees
from procreward.engine.vision.frame_store import FrameEncoder
from procreward.engine.vision.tower import Features

__all__ = ["EngineStats", "FastEngine"]

_Result = TypeVar("_Result")

_LONGEST_GUESS = 64
_ROOM = {"cpu": 48, "cuda": 256}
"""Columns left behind prompts for an answer. A longer one makes the cache grow, and CUDA graphs are
of no use on the copy."""
_HEAD_TOKENS = 512
"""Tokens whose logits are in memory at a time while numbers are read."""
_PREFIX_SHARE = 0.5
"""Of the memory for what is kept, the share for heads of prompts; the rest is for frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What an engine did and what it was spared; a snapshot.

    Attributes:
        frames_encoded: Frames that went through the vision tower.
        frames_reused: Frames that were taken from the cache.
        tokens_read: Tokens of prompts that went through the language model.
        tokens_reused: Tokens of prompts whose keys and values were taken from the cache.
        prompts: Prompts answered.
        passes: Forward passes of the language model.
        drafts_offered: Tokens of earlier answers that were tried.
        drafts_accepted: Tokens of earlier answers that were right.
    """

    frames_encoded: int = 0
    frames_reused: int = 0
    tokens_read: int = 0
    tokens_reused: int = 0
    prompts: int = 0
    passes: int = 0
    drafts_offered: int = 0
    drafts_accepted: int = 0


class FastEngine:
    """Answers prompts with a Qwen-VL model; see :class:`procreward.engine.Engine`.

    One call at a time: calls from several threads wait for each other.

    Args:
        loaded: The model.
        exact: Whether to use transformers' own operators and no drafts (``engine="strict"``).
        video_layout: How videos are written into the prompt.
        cache_bytes: Memory for what is kept between calls, in bytes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        exact: bool = False,
        video_layout: VideoLayout = "4.57",
        cache_bytes: int = 2 * 1024**3,
    ) -> None:
        self._loaded = loaded
        self._exact = exact
        self._pad_id = loaded.end_ids[-1]
        self._room = _ROOM[loaded.device.type]
        self._reader = PromptReader(loaded, video_layout=video_layout)
        self._text = AnswerText(loaded.tokenizer)
        prefix_bytes = int(cache_bytes * _PREFIX_SHARE)
        self._frames = FrameEncoder(loaded, exact=exact, max_bytes=cache_bytes - prefix_bytes)
        self._decoder = make_decoder(loaded, exact=exact)
        self._recall = Recall(
            self._decoder, PrefixStore(prefix_bytes), pad_id=self._pad_id, whole=exact
        )
        self._drafts = DraftBook(_digit_tokens(loaded))
        self._batchers = _batchers(loaded.device)
        self._numbers: dict[tuple[str, float], NumberReader] = {}
        self._counts = EngineStats()
        self._lock = threading.RLock()

    @property
    def stats(self) -> EngineStats:
        """What was done so far."""
        frames, read = self._frames.stats, self._recall.stats
        return replace(
            self._counts,
            frames_encoded=frames.frames_encoded,
            frames_reused=frames.frames_reused,
            tokens_read=read.tokens_read,
            tokens_reused=read.tokens_reused,
            passes=self._counts.passes + read.passes,
        )

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

        Raises:
            ConfigError: If ``max_new_tokens`` is below 1 or a stop is empty or not ASCII.
            ModelError: If one prompt alone does not fit into memory.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        check_stop(stop)

        def answer(rows: list[Row]) -> list[Generation]:
            answers, _ = self._write(rows, max_new_tokens, stop)
            return [self._text.finish(one, stop) for one in answers]

        return self._run("generate", prompts, answer)

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score every label as the answer to every prompt, all in one pass.

        Args:
            prompts: The questions.
            labels: The candidate answers; tokenised alike behind every prompt.
            end_tokens: What counts to a label besides its own words.

        Returns:
            The likelihoods.

        Raises:
            ConfigError: If the labels cannot be told apart by their tokens.
            ModelError: If one prompt alone does not fit into memory.
        """
        tokens = self._reader.labels_behind(prompts, labels, end_tokens)
        tree = label_tree(tokens)
        rows = self._run("labels", prompts, lambda rows: self._score(rows, tree))
        nll = -tree.sum_paths(np.asarray(rows).reshape(len(rows), len(tree.nodes)))
        return LabelNLL(nll=nll, tokens=tokens)

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Read the number that follows ``lead``; see :meth:`procreward.engine.Engine.read_number`.

        Args:
            prompts: The questions.
            lead: ASCII words directly in front of the number.
            max_new_tokens: Limit of the words before the number, at least 1.
            largest: Larger numbers count as this one.

        Returns:
            One reading per prompt, in order.

        Raises:
            ConfigError: If the model does not write numbers digit by digit.
            ModelError: If one prompt alone does not fit into memory.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        check_stop((lead,))
        reader = self._number_reader(lead, largest)
        begun = [prompt.assistant_prefix.endswith(lead) for prompt in prompts]
        results: dict[int, NumberReading] = {}
        for at_once in (True, False):
            places = [place for place, one in enumerate(begun) if one == at_once]

            def read(rows: list[Row], at_once: bool = at_once) -> list[NumberReading]:
                if at_once:
                    return self._read_now(rows, reader)
                return self._read_later(rows, reader, lead, max_new_tokens)

            found = self._run("numbers", [prompts[place] for place in places], read)
            results.update(zip(places, found, strict=True))
        return [results[place] for place in range(len(prompts))]

    def release(self, streams: Iterable[str]) -> None:
        """Forget what was kept for streams that have ended.

        Args:
            streams: Their names.
        """
        names = list(streams)
        with self._lock:
            self._frames.release(names)
            self._recall.release(names)
            self._drafts.release(names)

    def announce(self, prompts: Iterable[Prompt]) -> None:
        """Say what is asked next, so that its frames are encoded while the next call answers.

        On the CPU with one thread; elsewhere nothing happens.

        Args:
            prompts: The questions of the call after the next one.
        """
        parts = (part for prompt in prompts for part in prompt.parts)
        self._frames.announce(part for part in parts if isinstance(part, Clip))

    def forget(self) -> None:
        """Forget all that was kept or learnt, so that answers depend on no earlier question.

        They do by rounding alone: by what is read together with what.
        """
        with self._lock:
            self._frames.forget()
            self._recall.forget()
            self._drafts = DraftBook(_digit_tokens(self._loaded))
            self._batchers = _batchers(self._loaded.device)

    # From prompts to rows, in batches that fit.

    def _run(
        self, verb: str, prompts: Sequence[Prompt], call: Callable[[list[Row]], list[_Result]]
    ) -> list[_Result]:
        if not prompts:
            return []
        with self._lock, computing(self._loaded.device):
            chats = [self._reader.layout(prompt) for prompt in prompts]
            with memory_guard(self._loaded.device):
                rows = self._rows(prompts, chats)
            with self._frames.ahead():
                results: list[_Result] = self._batchers[verb].run(
                    rows, [len(chat) for chat in chats], call
                )
            self._count(prompts=len(prompts))
        return results

    def _rows(self, prompts: Sequence[Prompt], chats: Sequence[Chat]) -> list[Row]:
        """Encode the frames of all prompts and look up what is known of them."""
        clips = [[part for part in prompt.parts if isinstance(part, Clip)] for prompt in prompts]
        encoded = iter(self._frames.encode([clip for one in clips for clip in one]))
        rows = []
        for prompt, chat, own in zip(prompts, chats, clips, strict=True):
            features = [next(encoded) for _ in own]
            counts = [_per_picture(clip, part) for clip, part in zip(own, features, strict=True)]
            rows.append(
                Row(
                    chat=chat,
                    features=Features.cat(features) if features else None,
                    stream=prompt.stream,
                    content=describe_content(chat, own, counts, prompt.stream),
                )
            )
        return rows

    # From rows to results: what one batch runs.

    def _write(
        self, rows: list[Row], limit: int, stop: Stop, *, keep_rows: bool = False
    ) -> tuple[list[AnswerRow], Answering]:
        """Answer the prompts of one batch greedily."""
        drafts = [Draft() if self._exact else self._drafts.draft(row.stream) for row in rows]
        guesses = [draft.guess(min(_LONGEST_GUESS, limit - 1)) for draft in drafts]
        reading = self._read(rows, guesses=guesses, room=self._room)
        answering = decode(
            self._decoder,
            reading,
            [AnswerRow(self._loaded.end_ids, stop) for _ in rows],
            drafts,
            guesses,
            self._text,
            max_new_tokens=limit,
            pad_id=self._pad_id,
            keep_rows=keep_rows,
        )
        if not self._exact:
            for row, answer in zip(rows, answering.rows, strict=True):
                self._drafts.keep(row.stream, answer.tokens)
        self._count(
            passes=answering.passes,
            drafts_offered=answering.offered,
            drafts_accepted=answering.accepted,
        )
        return answering.rows, answering

    def _score(self, rows: list[Row], labels: LabelTree) -> list[npt.NDArray[np.float64]]:
        """Log-probabilities of every pair of node and token of the labels, per prompt."""
        hidden = self._read(rows, tree=labels.tree).hidden
        log_probs = torch.log_softmax(self._decoder.head(hidden).float(), dim=-1)
        nodes = torch.tensor(labels.nodes, device=hidden.device)
        targets = torch.tensor(labels.targets, device=hidden.device)
        found: npt.NDArray[np.float64] = log_probs[:, nodes, targets].double().cpu().numpy()
        return list(found)

    def _read_now(self, rows: list[Row], reader: NumberReader) -> list[NumberReading]:
        """Read numbers that follow the prompts directly."""
        reading = self._read(rows, tree=reader.integers, room=self._room)
        reading.cache.crop(reading.end)
        probs = self._digit_probs(reading.hidden, reader)
        moments = self._decimals(reading.cache, reader, probs, reading.next_positions)
        return [_reading(one, "", 0) for one in moments]

    def _read_later(
        self, rows: list[Row], reader: NumberReader, lead: str, limit: int
    ) -> list[NumberReading]:
        """Let the model write up to the lead, then read the number."""
        answers, answering = self._write(rows, limit, (lead,), keep_rows=True)
        texts = [self._text.decode(answer.tokens) for answer in answers]
        ready = [
            place
            for place, (answer, text) in enumerate(zip(answers, texts, strict=True))
            if answer.finished and text.endswith(lead)
        ]
        readings = [
            NumberReading(
                text=text,
                tokens=len(answer.tokens),
                value=None,
                spread=0.0,
                mass=0.0,
                finished=False,
            )
            for text, answer in zip(texts, answers, strict=True)
        ]
        if not ready:
            return readings
        cache = answering.cache
        if len(ready) < len(rows):
            cache = cache.take(torch.tensor(ready, device=self._decoder.device))
        tree = reader.integers
        cache = ensure_room(cache, 1 + len(tree))
        last = [answers[place].tokens[-1] for place in ready]
        ends = np.asarray(
            [rows[place].chat.next_position + len(answers[place].tokens) for place in ready]
        )
        trees = [tree] * len(ready)
        hidden = read_trees(self._decoder, cache, trees, ends - 1, pad_id=self._pad_id, last=last)
        self._count(passes=1)
        probs = self._digit_probs(hidden, reader)
        for place, one in zip(
            ready, self._decimals(cache, reader, probs, ends, last=last), strict=True
        ):
            readings[place] = _reading(one, texts[place], len(answers[place].tokens))
        return readings

    def _decimals(
        self,
        cache: KVCache,
        reader: NumberReader,
        probs: npt.NDArray[np.float64],
        ends: npt.NDArray[np.int64],
        *,
        last: Sequence[int] | None = None,
    ) -> list[Moments]:
        """Read the decimals where a point is likely, and put the numbers together."""
        plans = [reader.plan_decimals(one) for one in probs]
        found: dict[int, npt.NDArray[np.float64]] = {}
        wanted = [place for place, plan in enumerate(plans) if plan is not None]
        if wanted:
            trees = [plan or TokenTree.empty() for plan in plans]
            lead = 0 if last is None else 1
            cache = ensure_room(cache, lead + max(map(len, trees)))
            hidden = read_trees(
                self._decoder, cache, trees, ends - lead, pad_id=self._pad_id, last=last
            )
            self._count(passes=1)
            if not lead:
                # The root's own probabilities are known; its row only keeps the numbering.
                hidden = torch.cat((hidden[:, :1], hidden), dim=1)
            for place in wanted:
                nodes = hidden[place : place + 1, : 1 + len(trees[place])]
                found[place] = self._digit_probs(nodes, reader)[0]
        return [
            reader.expectation(one, found.get(place), plan)
            for place, (one, plan) in enumerate(zip(probs, plans, strict=True))
        ]

    def _digit_probs(self, hidden: torch.Tensor, reader: NumberReader) -> npt.NDArray[np.float64]:
        """Probabilities of the digits and the point behind each of some tokens."""
        columns = torch.tensor(reader.columns, device=hidden.device)
        parts = []
        # A tree has a hundred nodes and more: with a large vocabulary their logits fill gigabytes.
        for part in torch.split(hidden.flatten(0, 1), _HEAD_TOKENS):
            logits = self._decoder.head(part).float()
            parts.append(logits[:, columns] - logits.logsumexp(dim=-1, keepdim=True))
        chosen = torch.cat(parts).view(*hidden.shape[:2], -1)
        probs: npt.NDArray[np.float64] = chosen.double().exp().cpu().numpy()
        return probs

    def _read(
        self,
        rows: list[Row],
        *,
        guesses: Sequence[Sequence[int]] | None = None,
        tree: TokenTree | None = None,
        room: int = 0,
    ) -> Reading:
        return self._recall.read(rows, guesses=guesses, tree=tree, room=room)

    def _number_reader(self, lead: str, largest: float) -> NumberReader:
        reader = self._numbers.get((lead, largest))
        if reader is None:
            tokenizer = self._loaded.tokenizer
            reader = NumberReader.from_tokenizer(tokenizer, largest, lead=lead)
            self._numbers[lead, largest] = reader
        return reader

    def _count(self, **more: int) -> None:
        counts = self._counts
        self._counts = replace(
            counts, **{name: getattr(counts, name) + number for name, number in more.items()}
        )


def _reading(moments: Moments, text: str, tokens: int) -> NumberReading:
    return NumberReading(
        text=text,
        tokens=tokens,
        value=moments.value,
        spread=moments.spread,
        mass=moments.mass,
        finished=True,
    )


def _per_picture(clip: Clip, features: Features) -> list[int]:
    """Visual tokens of each picture, or of each group of frames of a video."""
    count = -(-len(clip.frames) // 2) if clip.video else len(clip.frames)
    return [len(features) // count] * count


def _batchers(device: torch.device) -> dict[str, MicroBatcher[Row, Any]]:
    """One for each verb: a token costs another amount of memory in each of them."""
    return {verb: MicroBatcher(device) for verb in ("generate", "labels", "numbers")}


def _digit_tokens(loaded: LoadedModel) -> list[int]:
    """Tokens that are a digit."""
    ids = loaded.tokenizer.convert_tokens_to_ids(list("0123456789"))
    return [token for token in ids if token is not None]
