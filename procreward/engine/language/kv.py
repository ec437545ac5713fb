"""Keys and values of the tokens read so far, and what new tokens may see of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from procreward.errors import ConfigError

__all__ = [
    "AttentionPart",
    "AttentionPlan",
    "KVCache",
    "masked_columns",
    "plan_attention",
    "plan_static",
    "score_bias",
    "seen_among",
    "write_columns",
]


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
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
        size = (len(rows), self.keys[0].shape[1], room, self.keys[0].shape[3])
        target = KVCache(
            keys=[key.new_zeros(size) for key in self.keys],
            values=[value.new_zeros(size) for value in self.values],
            valid=self.valid.new_zeros(len(rows), room),
        )
        self.copy_to(target, rows)
        return target

    def copy_to(self, target: KVCache, rows: torch.Tensor) -> None:
        """Copy some rows over what another cache holds.

        Args:
            target: The cache to fill, of as many rows as are copied and of the same decoder.
            rows: ``(n,) int64``, rows in the order wanted; one may occur several times.

        Raises:
            ConfigError: If the target has no room for the columns used.
        """
        if target.capacity < self.used:
            raise ConfigError(f"`capacity` must be at least {self.used}, got {target.capacity}.")
        used = self.used
        for ours, theirs in ((self.keys, target.keys), (self.values, target.values)):
            for source, place in zip(ours, theirs, strict=True):
                place[:, :, :used] = source[rows, :, :used]
        target.valid[:, :used] = self.valid[rows, :used]
        target.valid[:, used:] = False
        target.used, target.full = used, self.full


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
class AttentionPart:
    """What some neighbouring tokens of a call see.

    Attributes:
        tokens: How many tokens.
        end: Columns of the cache that are read for them, from the first on.
        causal: Whether token ``i`` sees columns 0 to ``i``; ``bias`` is None then.
        bias: Added to the scores, ``(batch or 1, 1, tokens, end)``: 0 where seen, minus infinity
            elsewhere. None when all of the columns are seen.
        packed: Whether the query heads that share a key head are to be rows of one matrix, for
            which ``bias`` holds the tokens' rows once per head: nothing of a long cache is copied
            for them then.
    """

    tokens: int
    end: int
    causal: bool = False
    bias: torch.Tensor | None = None
    packed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionPlan:
    """What the tokens of one call see, the same for every layer.

    Attributes:
        start: Column of the first token.
        end: Column behind the last token.
        parts: The tokens in order.
        columns: ``(tokens,) int64``, where keys are written, when that is only known on the
            device; None for ``start`` to ``end``.
    """

    start: int
    end: int
    parts: tuple[AttentionPart, ...]
    columns: torch.Tensor | None = None

    def last(self, keep: int, *, groups: int, like: torch.Tensor) -> AttentionPlan:
        """The plan for the last tokens alone, when all keys are written already.

        Args:
            keep: How many tokens.
            groups: Query heads per key head.
            like: A tensor of the precision and on the device of the scores.

        Returns:
            The plan.
        """
        parts: list[AttentionPart] = []
        for part in reversed(self.parts):
            if keep:
                parts.append(_last(part, min(keep, part.tokens), groups, like))
                keep -= parts[-1].tokens
        return AttentionPlan(start=self.start, end=self.end, parts=tuple(parts[::-1]))


def _last(part: AttentionPart, keep: int, groups: int, like: torch.Tensor) -> AttentionPart:
    if keep == part.tokens:
        return part
    if not part.causal:
        bias = part.bias
        if bias is not None:
            heads = bias.view(len(bias), 1, -1, part.tokens, part.end)
            bias = heads[..., -keep:, :].flatten(2, 3)
        return AttentionPart(tokens=keep, end=part.end, bias=bias, packed=part.packed)
    if keep == 1:
        return AttentionPart(tokens=1, end=part.end)
    ones = torch.ones(1, keep, part.end, dtype=torch.bool, device=like.device)
    return _masked(ones.tril_(part.end - keep), groups, like.dtype)


def _masked(seen: torch.Tensor, groups: int, dtype: torch.dtype) -> AttentionPart:
    """A part with a mask ``(batch or 1, tokens, end) bool``; packed if heads share keys."""
    _, tokens, end = seen.shape
    rows = seen.repeat(1, groups, 1) if groups > 1 else seen
    bias = score_bias(rows[:, None], dtype)
    return AttentionPart(tokens=tokens, end=end, bias=bias, packed=groups > 1)


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
    if not cache.full or valid is not None:
        # A whole padded prompt is masked the way transformers does it: bit-equal, but copying.
        prompt = start == 0 and nodes == 0
        seen = _seen(cache, tokens, valid, tree)
        part = _masked(seen, 1 if prompt else groups, dtype)
        return AttentionPlan(start=start, end=end, parts=(part,))
    if start == 0:
        # Only the nodes of a tree need a mask.
        causal = tokens - nodes
        parts = [AttentionPart(tokens=causal, end=causal, causal=causal > 1)] if causal else []
        if nodes:
            parts.append(_masked(_seen(cache, tokens, None, tree)[:, causal:], groups, dtype))
        return AttentionPlan(start=start, end=end, parts=tuple(parts))
    if tokens == 1:
        return AttentionPlan(start=start, end=end, parts=(AttentionPart(tokens=1, end=end),))
    part = _masked(_seen(cache, tokens, None, tree), groups, dtype)
    return AttentionPlan(start=start, end=end, parts=(part,))


def plan_static(
    columns: torch.Tensor, seen: torch.Tensor, *, groups: int, dtype: torch.dtype
) -> AttentionPlan:
    """Plan a call whose shapes do not depend on what the cache holds.

    Args:
        columns: ``(tokens,) int64``, the column of each token.
        seen: ``(batch, tokens, capacity) bool``, what each token sees.
        groups: Query heads per key head.
        dtype: Precision of the scores.

    Returns:
        The plan.
    """
    part = _masked(seen, groups, dtype)
    return AttentionPlan(start=0, end=part.end, parts=(part,), columns=columns)


def _seen(
    cache: KVCache, tokens: int, valid: torch.Tensor | None, tree: torch.Tensor | None
) -> torch.Tensor:
    """What each token sees, ``(batch or 1, tokens, used + tokens) bool``."""
    device = cache.valid.device
    among = seen_among(tokens, valid=valid, tree=tree, device=device)
    if cache.used == 0:
        return among
    if cache.full:
        past = torch.ones(1, tokens, cache.used, dtype=torch.bool, device=device)
    else:
        past = cache.valid[:, None, : cache.used].expand(-1, tokens, -1)
    rows = max(len(past), len(among))
    return torch.cat((past.expand(rows, -1, -1), among.expand(rows, -1, -1)), dim=-1)


def seen_among(
    tokens: int,
    *,
    valid: torch.Tensor | None,
    tree: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """What the tokens of a call see of one another.

    Args:
        tokens: How many there are.
        valid: ``(batch, tokens) bool``, False where padded, or None.
        tree: ``(nodes, nodes)`` or ``(batch, nodes, nodes) bool`` for the last tokens, or None.
        device: Where the result goes.

    Returns:
        ``(batch or 1, tokens, tokens) bool``.
    """
    among = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril_()[None]
    if tree is not None:
        before = tokens - tree.shape[-1]
        among = among.repeat(tree.shape[0] if tree.ndim == 3 else 1, 1, 1)
        among[:, before:, before:] = tree
    if valid is not None:
        # A padded token sees itself, because a softmax over nothing is not a number.
        itself = torch.eye(tokens, dtype=torch.bool, device=device)
        among = (among & valid[:, None]) | itself
    return among


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


def write_columns(
    cache: KVCache, layer: int, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the keys and values of a call into the cache.

    Args:
        cache: The cache, changed in place.
        layer: Number of the layer.
        key: ``(batch, kv_heads, tokens, head_dim)``.
        value: As ``key``.
        plan: Where they go.

    Returns:
        The keys and values that the call's tokens may read, as views or as given.
    """
    keys, values = cache.keys[layer], cache.values[layer]
    if plan.columns is not None:
        keys.index_copy_(2, plan.columns, key)
        values.index_copy_(2, plan.columns, value)
        return keys, values
    tokens = key.shape[2]
    keys.narrow(2, plan.start, tokens).copy_(key)
    values.narrow(2, plan.start, tokens).copy_(value)
    if plan.start == 0:
        return key, value
    return keys.narrow(2, 0, plan.end), values.narrow(2, 0, plan.end)
