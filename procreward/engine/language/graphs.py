"""Short chunks as CUDA graphs: hundreds of kernel launches become one.

A graph replays the same kernels on the same memory. So caches come from a small pool, the number
of tokens is rounded up to one of a few sizes, the whole capacity of the cache is read under a
mask, and where to write is a number on the device. Without CUDA the same steps run one by one,
which is how they are tested.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from procreward.engine.language.decoder import Decoder, ModuleDecoder, VisualTokens
from procreward.engine.language.kv import AttentionPlan, KVCache, seen_among
from procreward.engine.loading import LoadedModel

__all__ = ["GraphedDecoder", "ShortForward"]

logger = logging.getLogger(__name__)

_SIZES = (1, 4, 8, 16)
_COLUMNS = 256
_WARM_UPS = 2


@dataclass(frozen=True, slots=True, eq=False)
class CapturePlace:
    """Where the graphs of one device are captured.

    Attributes:
        pool: Memory pool that they share.
        stream: What they are captured on, a stream of that device: torch's own choice is one stream
            for the whole process, and of another device's work it captures nothing.
    """

    pool: Any
    stream: Any


class ShortForward:
    """A chunk of fixed size on one cache, captured on first use where there is CUDA.

    Args:
        decoder: Runs the chunk.
        cache: The cache, whose memory must stay where it is.
        tokens: Size of the chunk.
        place: Where it is captured, or None without CUDA.

    Raises:
        RuntimeError: From the first :meth:`run`, if the chunk cannot be captured.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, tokens: int, place: CapturePlace | None
    ) -> None:
        batch, device = cache.batch, cache.valid.device
        self._decoder = decoder
        # Not the caller's object, so that it can be told when the caller is done with it.
        self._cache = KVCache(keys=cache.keys, values=cache.values, valid=cache.valid)
        self._tokens = tokens
        self._place = place
        shape = (batch, tokens, decoder.hidden_size)
        self._embeds = torch.zeros(shape, dtype=decoder.dtype, device=device)
        self._positions = torch.zeros(3, batch, tokens, dtype=torch.int64, device=device)
        self._first = torch.zeros(1, dtype=torch.int64, device=device)
        self._order = torch.arange(cache.capacity, device=device)
        self._chain = seen_among(tokens, valid=None, tree=None, device=device)
        self._among = self._chain.repeat(batch, 1, 1)
        self._is_chain = True
        self._graph: Any = None
        self._hidden = self._embeds

    def run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        first: int,
        among: torch.Tensor | None,
    ) -> torch.Tensor:
        """Read a chunk; the cache's record (``used``, ``valid``, ``full``) stays as it is.

        Args:
            embeds: ``(batch, n, hidden)`` with ``n`` up to the size of the chunk. What the columns
                of the others then hold is arbitrary.
            positions: ``(3, batch, n) int64``.
            first: Column of the first token.
            among: ``(batch or 1, n, n) bool``, what the tokens see of one another, or None when
                each sees those before it.

        Returns:
            ``(batch, n, hidden)``, a copy.
        """
        count = embeds.shape[1]
        self._embeds[:, :count].copy_(embeds)
        self._positions[..., :count].copy_(positions)
        self._first.fill_(first)
        if among is not None or not self._is_chain:
            self._among.copy_(self._chain.expand_as(self._among))
        if among is not None:
            self._among[:, :count, :count] = among
        self._is_chain = among is None
        self._replay()
        return self._hidden[:, :count].clone()

    def _replay(self) -> None:
        if self._embeds.device.type != "cuda":
            self._hidden = self._step()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _step(self) -> torch.Tensor:
        """The chunk on the buffers alone: every shape and address is fixed."""
        cache = self._cache
        earlier = cache.valid & (self._order < self._first)
        seen = earlier[:, None].repeat(1, self._tokens, 1)
        columns = self._first + self._order[: self._tokens]
        seen.index_copy_(2, columns, self._among)
        return self._decoder.forward_static(self._embeds, self._positions, cache, columns, seen)

    def _capture(self) -> Any:
        cuda: Any = torch.cuda  # parts of it carry no types
        device, place = self._embeds.device, self._place
        assert place is not None  # there is CUDA
        # A first run sets up libraries in ways that a graph must not contain.
        aside = place.stream
        aside.wait_stream(cuda.current_stream(device))
        with cuda.device(device), cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._step()
        cuda.current_stream(device).wait_stream(aside)
        graph = cuda.CUDAGraph()
        # What other threads allocate meanwhile is no part of the graph and must not end it.
        mode = "thread_local"
        capture = cuda.graph(graph, pool=place.pool, stream=aside, capture_error_mode=mode)
        # A capture that fails leaves its own stream current: the outer context goes back.
        with cuda.device(device), cuda.stream(cuda.current_stream(device)), capture:
            self._hidden = self._step()
        return graph


@dataclass(slots=True, eq=False)
class _Slot:
    """Memory of a cache that is handed out again and again, and the graphs that run on it.

    Attributes:
        cache: The memory.
        owner: The cache handed out last, while anybody holds it.
        chunks: Graphs by size.
    """

    cache: KVCache
    owner: weakref.ref[KVCache]
    chunks: dict[int, ShortForward] = field(default_factory=dict)


class GraphedDecoder(Decoder):
    """A decoder whose short chunks behind a prompt are CUDA graphs.

    Prompts, chunks of more than 16 tokens, chunks with visual tokens and caches that are not from
    its :meth:`new_cache` are read without graphs. If a graph cannot be captured, a warning is
    logged once and everything is.

    Args:
        loaded: The model.
        decoder: What reads the tokens. None means :class:`ModuleDecoder`.
        slots: How many caches stay in memory for reuse.
    """

    def __init__(
        self, loaded: LoadedModel, decoder: Decoder | None = None, *, slots: int = 4
    ) -> None:
        super().__init__(loaded)
        self._eager = ModuleDecoder(loaded) if decoder is None else decoder
        self._limit = slots
        self._slots: list[_Slot] = []  # least recently handed out first
        self._place: CapturePlace | None = None
        self._works = True

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Hand out an empty cache, in memory used before if there is one that nobody holds.

        Args:
            batch: Rows.
            capacity: Columns, one per token; rounded up to a multiple of 256.

        Returns:
            The cache.
        """
        room = -(-capacity // _COLUMNS) * _COLUMNS
        shape = (batch, room)
        free = [slot for slot in self._slots if slot.owner() is None]
        slot = next((slot for slot in free if slot.cache.valid.shape == shape), None)
        if slot is not None:
            self._slots.remove(slot)
        else:
            if len(self._slots) >= self._limit and free:
                self._slots.remove(free[0])
            memory = self._allocate(batch, room)
            if len(self._slots) >= self._limit:
                return memory
            slot = _Slot(cache=memory, owner=weakref.ref(memory))
        memory = slot.cache
        memory.valid.zero_()
        handed = KVCache(keys=memory.keys, values=memory.values, valid=memory.valid)
        slot.owner = weakref.ref(handed)
        self._slots.append(slot)
        return handed

    def _allocate(self, batch: int, room: int) -> KVCache:
        """Make a cache, in place of those that nobody holds if there is no memory left."""
        try:
            return self._eager.new_cache(batch, room)
        except torch.OutOfMemoryError:
            self.release()
        return self._eager.new_cache(batch, room)

    def release(self) -> None:
        """Give back the memory of all caches that nobody holds, and all graphs."""
        self._slots = [slot for slot in self._slots if slot.owner() is not None]
        for slot in self._slots:
            slot.chunks.clear()

    @torch.inference_mode()
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
        """Read a chunk of tokens; see :meth:`Decoder.forward`."""
        tokens = embeds.shape[1]
        chunk = self._chunk(cache, tokens) if visual is None else None
        hidden = None
        if chunk is not None:
            among = None
            if valid is not None or tree is not None:
                among = seen_among(tokens, valid=valid, tree=tree, device=embeds.device)
            hidden = self._try(chunk, embeds, positions, cache.used, among)
        if hidden is None:
            try:
                return self._eager.forward(
                    embeds, positions, cache, valid=valid, tree=tree, visual=visual, keep=keep
                )
            except torch.OutOfMemoryError:
                self.release()
                raise
        cache.valid[:, cache.used : cache.used + tokens] = True if valid is None else valid
        cache.full = cache.full and valid is None
        cache.used += tokens
        return hidden if keep is None else hidden[:, -keep:]

    def _chunk(self, cache: KVCache, tokens: int) -> ShortForward | None:
        """The graph for a chunk, if there can be one."""
        size = next((size for size in _SIZES if size >= tokens), None)
        slot = next((slot for slot in self._slots if slot.owner() is cache), None)
        if size is None or slot is None or not self._works or cache.used == 0:
            return None
        if cache.used + size > cache.capacity or cache.valid is not slot.cache.valid:
            return None
        if size not in slot.chunks:
            if self._place is None and self.device.type == "cuda":
                cuda: Any = torch.cuda  # parts of it carry no types
                self._place = CapturePlace(cuda.graph_pool_handle(), cuda.Stream(self.device))
            slot.chunks[size] = ShortForward(self._eager, slot.cache, size, self._place)
        return slot.chunks[size]

    def _try(
        self,
        chunk: ShortForward,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        first: int,
        among: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Run a chunk as a graph; None if that does not work."""
        try:
            return chunk.run(embeds, positions, first, among)
        except torch.OutOfMemoryError:
            self.release()
            raise
        except RuntimeError as error:
            logger.warning(
                "Short chunks are read without CUDA graphs from now on, which is slower: %s", error
            )
            self._works = False
            self._slots.clear()
            return None

    def _run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        visual: VisualTokens | None,
        keep: int,
    ) -> torch.Tensor:
        return self._eager._run(embeds, positions, cache, plan, visual, keep)
