"""Keys and values of prompt heads that later prompts begin with, so that they are read only once.

A causal model's keys and values of a token depend on nothing behind it. Two prompts that begin
alike therefore share them exactly. Three cases are worth the memory:

* *shared heads*: everything in front of the first frame of the prompt's own stream, such as a
  demonstration or an instruction that stands before the frames. It is the same for every query of
  a task, whatever environment it comes from.
* *growing windows* at an episode's start, which begin with the same frames until the first one
  drops out. From then on little is shared, and nothing more is kept for that stream.
* *clips that only grow*, which is the second case without an end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from procreward.engine import Clip, FrameKey
from procreward.engine.reading.prompt import Chat

__all__ = ["LEAST_SHARED", "Content", "Prefix", "PrefixStore", "describe_content", "owned_by"]

LEAST_SHARED = 24
"""Tokens from which on a shared head is worth a pass of its own."""

_WIDEST_SHARE = 2
"""An entry may take this fraction of the memory, so that one cannot drive out all others."""

_STREAMS = 4096
"""Streams that are remembered; those that nobody releases would add up."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a prompt consists of, comparable token by token.

    Attributes:
        tokens: ``(length,) int64``: token ids, and for visual tokens a number that names their
            picture and place, below 0; 0-based ids never collide with them.
        head: Number of leading tokens in front of the first picture of the prompt's own stream.
        first_end: Number of leading tokens up to the end of that picture.
    """

    tokens: npt.NDArray[np.int64]
    head: int
    first_end: int

    def shared_with(self, other: npt.NDArray[np.int64]) -> int:
        """Return how many leading tokens equal those of ``other``."""
        length = min(len(self.tokens), len(other))
        differs = self.tokens[:length] != other[:length]
        return int(differs.argmax()) if differs.any() else length


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values of the first tokens of a prompt.

    Attributes:
        tokens: ``(length,) int64``, as in :attr:`Content.tokens`.
        keys: Per layer ``(kv_heads, length, head_dim)``.
        values: The same.
    """

    tokens: npt.NDArray[np.int64]
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values in bytes."""
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))


def describe_content(
    chat: Chat, clips: Sequence[Clip], tokens: Sequence[Sequence[int]], stream: str | None
) -> Content | None:
    """Say what a prompt consists of.

    Args:
        chat: The prompt.
        clips: Its clips in order.
        tokens: For each clip, the number of visual tokens of each of its pictures (for a video, of
            each group of frames).
        stream: The prompt's stream, or None.

    Returns:
        The content, or None if a picture has no name.
    """
    if any(clip.keys is None for clip in clips):
        return None
    content = chat.ids.copy()
    places = np.flatnonzero(chat.kinds)
    own, start = None, 0
    for clip, counts in zip(clips, tokens, strict=True):
        assert clip.keys is not None  # checked above
        for names, count in zip(_names(clip, len(counts)), counts, strict=True):
            block = places[start : start + count]
            content[block] = -1 - ((hash((names, count)) & ((1 << 48) - 1)) + np.arange(count))
            if own is None and (stream is None or owned_by(names[0][0], stream)):
                own = (int(block[0]), int(block[-1]) + 1)
            start += count
    head, first_end = own or (len(content), len(content))
    return Content(tokens=content, head=head, first_end=first_end)


def _names(clip: Clip, groups: int) -> list[tuple[FrameKey, ...]]:
    """The frames behind each block of visual tokens."""
    keys = clip.keys
    assert keys is not None
    size = -(-len(keys) // groups)
    return [tuple(keys[start : start + size]) for start in range(0, len(keys), size)]


def owned_by(name: str, stream: str) -> bool:
    """Whether a name is that of a stream or of one of its parts (``stream/view``), either way."""
    return name == stream or name.startswith(f"{stream}/") or stream.startswith(f"{name}/")


class PrefixStore:
    """Keeps heads of prompts within a budget of memory, dropping those not used for longest.

    Args:
        max_bytes: The budget; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._shared: OrderedDict[bytes, Prefix] = OrderedDict()
        self._streams: OrderedDict[str, Prefix | None] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return self._bytes

    def shared(self, content: Content) -> Prefix | None:
        """Return the head that a prompt shares with other streams, if it is kept."""
        name = content.tokens[: content.head].tobytes()
        prefix = self._shared.get(name)
        if prefix is not None:
            self._shared.move_to_end(name)
        return prefix

    def of_stream(self, stream: str, content: Content) -> tuple[Prefix | None, int]:
        """Return what is kept of a stream's last prompt and how many tokens of it fit this one."""
        prefix = self._streams.get(stream)
        if prefix is None:
            return None, 0
        self._streams.move_to_end(stream)
        return prefix, content.shared_with(prefix.tokens)

    def wants(self, stream: str, content: Content) -> bool:
        """Whether a stream's next prompt may begin as this one does.

        It may at a stream's first prompt, and as long as each prompt began with the frame that the
        last one began with.
        """
        if stream not in self._streams:
            return content.first_end < len(content.tokens)
        prefix = self._streams[stream]
        return prefix is not None and content.shared_with(prefix.tokens) >= content.first_end

    def takes(self, nbytes: int) -> bool:
        """Whether something of that size would be kept at all."""
        return 0 < nbytes * _WIDEST_SHARE <= self._max_bytes

    def keep_shared(self, prefix: Prefix) -> None:
        """Keep a head for all streams."""
        name = prefix.tokens.tobytes()
        if name not in self._shared and self.takes(prefix.nbytes):
            self._shared[name] = prefix
            self._bytes += prefix.nbytes
            self._trim()

    def keep_stream(self, stream: str, prefix: Prefix | None) -> None:
        """Keep a stream's last prompt in place of the one before; None says that it slides now."""
        self._drop_stream(stream)
        if prefix is not None and not self.takes(prefix.nbytes):
            prefix = None
        self._streams[stream] = prefix
        self._bytes += prefix.nbytes if prefix is not None else 0
        if len(self._streams) > _STREAMS:
            self._drop_stream(next(iter(self._streams)))
        self._trim()

    def release(self, streams: Iterable[str]) -> None:
        """Forget streams that have ended."""
        for stream in streams:
            for name in [name for name in self._streams if owned_by(name, stream)]:
                self._drop_stream(name)

    def clear(self) -> None:
        """Forget everything."""
        self._shared.clear()
        self._streams.clear()
        self._bytes = 0

    def _drop_stream(self, name: str) -> None:
        prefix = self._streams.pop(name, None)
        self._bytes -= prefix.nbytes if prefix is not None else 0

    def _trim(self) -> None:
        # Streams first: they come back within an episode or never, shared heads come back always.
        for kept in (self._streams, self._shared):
            while self._bytes > self._max_bytes and any(kept.values()):
                _, prefix = kept.popitem(last=False)
                self._bytes -= prefix.nbytes if prefix is not None else 0
