"""Keys and values of the tokens read so far, and what new tokens may see of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from procreward.errors import ConfigError

__all__ = ["AttentionPlan", "KVCache", "masked_columns", "plan_attention", "score_bias"]


@dataclass(slots=True, kw_only=True, eq=False)
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
        keys: One tensor ``(batch, kv_heads, capacity, head_dim)`` per layer.
        values: As ``keys``.
        valid: ``(batch, capacity) bool``, columns that later tokens may attend to.
        used: How many columns are written.
        full: Whether every written column of every row is valid, so that no mask is needed. Known
            without asking the device.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    valid: torch.Tensor
    used: int = 0
    full: bool = True

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.valid.shape[0]

    @property
    def capacity(self) -> int:
        """Number of columns there is room for."""
        return self.valid.shape[1]

    def crop(self, used: int) -> None:
        """Forget the newest columns.

        Args:
            used: How many columns stay, at most the columns now used.
        """
        if not 0 <= used <= self.used:
            raise ConfigError(f"`used` must be between 0 and {self.used}, got {used}.")
        self.valid[:, used:] = False
        self.used = used

    def take(self, rows: torch.Tensor, *, capacity: int | None = None) -> KVCache:
        """Copy some rows into a cache of their own.

        Args:
            rows: ``(n,) int64``, rows in the order wanted; one may occur several times.
            capacity: Columns of the new cache, at least the columns used. None keeps the capacity.

        Returns:
            The new cache.

        Raises:
            ConfigError: If the capacity is too small.
        """
        room = self.capacity if capacity is None else capacity
        if room < self.used:
            raise ConfigError(f"`capacity` must be at least {self.used}, got {room}.")

        def copy(source: torch.Tensor) -> torch.Tensor:
            size = (len(rows), source.shape[1], room, source.shape[3])
            target = source.new_zeros(size)
            target[:, :, : self.used] = source[rows, :, : self.used]
            return target

        valid = self.valid.new_zeros(len(rows), room)
        valid[:, : self.used] = self.valid[rows, : self.used]
        return KVCache(
            keys=[copy(key) for key in self.keys],
            values=[copy(value) for value in self.values],
            valid=valid,
            used=self.used,
            full=self.full,
        )


def masked_columns(cache: KVCache, rows: torch.Tensor, columns: torch.Tensor) -> None:
    """Switch single columns off, such as the slots of rejected draft tokens.

    Args:
        cache: The cache, changed in place.
        rows: ``(n,) int64``, one row per slot.
        columns: ``(n,) int64``, the column of each slot.
    """
    if len(rows):
        cache.valid[rows, columns] = False
        cache.full = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionPlan:
    """What the tokens of one call see, the same for every layer.

    Attributes:
        start: Column of the first token.
        end: Column behind the last token; keys up to there are read.
        causal: How many leading tokens are attended causally without a mask (empty cache only).
        bias: Added to the scores of the other tokens, ``(batch or 1, 1, others, end)``: 0 where
            seen, minus infinity elsewhere. None when they see every column.
        packed: Whether the query heads that share a key head are rows of one matrix, and ``bias``
            is repeated for them: nothing of a long cache is copied then.
        columns: ``(tokens,) int64``, where keys are written, when that is only known on the
            device; None for ``start`` to ``end``.
    """

    start: int
    end: int
    causal: int = 0
    bias: torch.Tensor | None = None
    packed: bool = False
    columns: torch.Tensor | None = None


def plan_attention(
    cache: KVCache,
    tokens: int,
    *,
    valid: torch.Tensor | None,
    tree: torch.Tensor | None,
    groups: int,
    dtype: torch.dtype,
) -> AttentionPlan:
    """Decide which masks a call needs; as few as possible, because masks are slow.

    Args:
        cache: The cache before the call.
        tokens: Tokens of the call.
        valid: ``(batch, tokens) bool``, False where padded, or None.
        tree: ``(nodes, nodes)`` or ``(batch, nodes, nodes) bool``, what each of the last tokens
            sees of them, or None.
        groups: Query heads per key head.
        dtype: Precision of the scores.

    Returns:
        The plan.
    """
    start, end = cache.used, cache.used + tokens
    nodes = 0 if tree is None else tree.shape[-1]
    plain = cache.full and valid is None
    if plain and not nodes and (start == 0 or tokens == 1):
        return AttentionPlan(start=start, end=end, causal=0 if start else tokens)
    # Behind an empty, unpadded cache, only the nodes of a tree need a mask.
    causal = tokens - nodes if plain and start == 0 else 0
    seen = _seen(cache, tokens, valid, tree)[:, None, causal:]
    packed = groups > 1 and (start > 0 or nodes > 0)
    if packed:
        seen = seen.repeat(1, 1, groups, 1)
    return AttentionPlan(
        start=start, end=end, causal=causal, bias=score_bias(seen, dtype), packed=packed
    )


def _seen(
    cache: KVCache, tokens: int, valid: torch.Tensor | None, tree: torch.Tensor | None
) -> torch.Tensor:
    """What each token sees, ``(batch or 1, tokens, used + tokens) bool``."""
    device = cache.valid.device
    among = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril_()[None]
    if tree is not None:
        before = tokens - tree.shape[-1]
        among = among.repeat(tree.shape[0] if tree.ndim == 3 else 1, 1, 1)
        among[:, before:, before:] = tree
    if valid is not None:
        # A padded token sees itself, because a softmax over nothing is not a number.
        itself = torch.eye(tokens, dtype=torch.bool, device=device)
        among = (among & valid[:, None]) | itself
    if cache.used == 0:
        return among
    if cache.full:
        past = torch.ones(1, tokens, cache.used, dtype=torch.bool, device=device)
    else:
        past = cache.valid[:, None, : cache.used].expand(-1, tokens, -1)
    rows = max(len(past), len(among))
    return torch.cat((past.expand(rows, -1, -1), among.expand(rows, -1, -1)), dim=-1)


def score_bias(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn what is seen into a term added to attention scores.

    Args:
        seen: Any shape, boolean.
        dtype: Precision of the scores.

    Returns:
        The same shape: 0 where seen, minus infinity elsewhere. On CUDA the rows lie in memory as
        the fused kernels want them, which would copy the mask in every layer otherwise.
    """
    columns = seen.shape[-1]
    room = -(-columns // 16) * 16 if seen.device.type == "cuda" else columns
    bias = torch.zeros(*seen.shape[:-1], room, dtype=dtype, device=seen.device)[..., :columns]
    return bias.masked_fill_(~seen, float("-inf"))
