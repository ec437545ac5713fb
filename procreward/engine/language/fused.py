"""A decoder for small models, where Python around the operators costs more than the operators.

A token of a model with a few million weights is a hundred tiny operations; most of the time goes
into module calls, argument checks and passes over memory. This decoder does the same mathematics
on rearranged copies of the weights: norm weights are multiplied into the projections that follow
them, projections that read the same input are one matrix, stored the way the product reads it, and
the two halves of every head that a rotation mixes lie side by side, so that rotating is one complex
product. Answers differ from the plain decoder's by rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from procreward.engine.language.decoder import Decoder, VisualTokens
from procreward.engine.language.kv import AttentionPlan, KVCache, write_columns
from procreward.engine.loading import LoadedModel

__all__ = ["FusedDecoder", "suits_fused"]

_LARGEST = 30_000_000
"""Weights of a language model from which on copying them costs more than it saves."""

_SMALL_VOCABULARY = 8192
"""Words up to which the output layer is copied too."""

_BLOCK = 512
"""Tokens from which on a batch of prompts is read in groups of rows: what one group needs at a
time stays in the core's own cache."""


def suits_fused(loaded: LoadedModel) -> bool:
    """Whether a model is one that :class:`FusedDecoder` is for.

    Args:
        loaded: The model.

    Returns:
        True for dense float32 models on the CPU below 30 million weights, with norms on queries
        and keys, a SiLU, plain rotary positions and no bias anywhere.
    """
    if loaded.device.type != "cpu" or loaded.dtype != torch.float32:
        return False
    if hasattr(loaded.model, "get_base_model"):
        return False
    text = loaded.model.model.language_model
    if text.config.hidden_act != "silu" or getattr(text.rotary_emb, "rope_type", "") != "default":
        return False
    if sum(weight.numel() for weight in text.parameters()) >= _LARGEST:
        return False
    return all(_is_plain(layer) for layer in text.layers)


def _is_plain(layer: Any) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [getattr(attention, f"{name}_proj", None) for name in ("q", "k", "v", "o")] + [
        getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")
    ]
    linear = all(type(part) is torch.nn.Linear and part.bias is None for part in projections)
    return linear and hasattr(attention, "q_norm")


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer's weights, as the products read them: ``(inputs, outputs)``.

    Attributes:
        qkv: Queries, keys and values of all heads, times the norm before them.
        norm: Weights of the norms on queries and keys, ``(heads + kv_heads, head_dim)``.
        out: Attention's output.
        gate: Half of the feed-forward input, times the norm before it.
        up: The other half.
        down: Feed-forward output.
    """

    qkv: torch.Tensor
    norm: torch.Tensor
    out: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class FusedDecoder(Decoder):
    """Decodes small float32 models on the CPU; see :func:`suits_fused`.

    The keys in its caches are in an order of its own: a cache belongs to the decoder that made it.

    Args:
        loaded: The model. Its weights are copied; later changes to it are not seen.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        config = self._text.config
        self._heads: int = config.num_attention_heads
        self._scale: float = self._text.layers[0].self_attn.scaling
        with torch.inference_mode():
            self._layers = [self._fuse(layer) for layer in self._text.layers]
            self._norm: torch.Tensor = self._text.norm.weight * self.hidden_size**0.5
            # The device is said everywhere: the caller's default may be another one.
            eps, here = config.rms_norm_eps, self.device
            self._eps = torch.tensor((self.hidden_size * eps) ** 0.5, device=here)
            self._head_eps = torch.tensor((self._head_dim * eps) ** 0.5, device=here)
            self._rows = self._axes = torch.empty(0, device=here)
            small = self._lm_head.weight.shape[0] <= _SMALL_VOCABULARY
            self._words = self._lm_head.weight.t().contiguous() if small else None

    def _fuse(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        before = layer.input_layernorm.weight * self.hidden_size**0.5
        between = layer.post_attention_layernorm.weight * self.hidden_size**0.5
        # Feature i of a head comes beside feature i + half: the two that a rotation mixes.
        half = self._head_dim // 2
        order = torch.arange(self._head_dim, device=self.device).view(2, half).t().flatten()
        mixed = [
            projection.weight.unflatten(0, (-1, self._head_dim))[:, order].flatten(0, 1)
            for projection in (attention.q_proj, attention.k_proj)
        ]
        norms = (
            attention.q_norm.weight[order].expand(self._heads, -1),
            attention.k_norm.weight[order].expand(self._kv_heads, -1),
        )
        return _Layer(
            qkv=(torch.cat((*mixed, attention.v_proj.weight)) * before).t().contiguous(),
            norm=torch.cat(norms) * self._head_dim**0.5,
            out=attention.o_proj.weight.t().contiguous(),
            gate=(mlp.gate_proj.weight * between).t().contiguous(),
            up=(mlp.up_proj.weight * between).t().contiguous(),
            down=mlp.down_proj.weight.t().contiguous(),
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up token embeddings; see :meth:`Decoder.embed`."""
        return functional.embedding(ids, self._text.embed_tokens.weight)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score every word of the vocabulary; see :meth:`Decoder.head`."""
        if self._words is None:
            return super().head(hidden)
        return torch.matmul(hidden, self._words)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Make an empty cache; see :meth:`Decoder.new_cache`."""
        layers = len(self._layers)
        shape = (2, layers, batch, self._kv_heads, capacity, self._head_dim)
        both = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return KVCache(
            keys=list(both[0].unbind()),
            values=list(both[1].unbind()),
            valid=torch.zeros(batch, capacity, dtype=torch.bool, device=self.device),
        )

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
        """Read a chunk of tokens; see :meth:`Decoder.forward`.

        A large batch of prompts is read a few rows at a time, each group without the padding that
        its rows have in common. The result is 0 there.
        """
        batch, tokens, _ = embeds.shape
        if cache.used or batch == 1 or batch * tokens <= _BLOCK or tokens > cache.capacity:
            return super().forward(
                embeds, positions, cache, valid=valid, tree=tree, visual=visual, keep=keep
            )
        keep = min(keep or tokens, tokens)
        hidden = embeds.new_zeros(batch, keep, self.hidden_size)
        for rows in _groups(batch, max(1, _BLOCK // tokens)):
            start = 0 if valid is None else _padding(valid[rows], tree)
            here = rows, slice(start, None)
            keys, values = (
                [part[rows, :, start:] for part in parts] for parts in (cache.keys, cache.values)
            )
            result = super().forward(
                embeds[here],
                positions[:, rows, start:],
                KVCache(keys=keys, values=values, valid=cache.valid[here]),
                valid=None if valid is None else valid[here],
                tree=tree[rows] if tree is not None and tree.ndim == 3 else tree,
                visual=_part(visual, rows, start),
                keep=keep,
            )
            hidden[rows, keep - result.shape[1] :] = result
        cache.used = tokens
        cache.full = bool(cache.valid[:, :tokens].all())
        return hidden

    def _run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        visual: VisualTokens | None,
        keep: int,
    ) -> torch.Tensor:
        size, tokens, width = embeds.shape
        hidden = embeds.reshape(-1, width)
        turns = self._turns(positions)
        places = None if visual is None else visual[0].flatten().nonzero()[:, 0]
        features = [] if visual is None else visual[1]
        # The last layer is run for the wanted tokens alone, unless features follow on it.
        short = keep < tokens and len(features) < len(self._layers)
        for index, layer in enumerate(self._layers[:-1] if short else self._layers):
            mixed = torch.mm(_unit(hidden, self._eps), layer.qkv)
            mixed = mixed.view(size, tokens, -1, self._head_dim)
            seen = self._mix_tokens(index, layer, mixed, turns, cache, plan)
            hidden = _feed(torch.addmm(hidden, seen, layer.out), layer, self._eps)
            if places is not None and index < len(features):
                hidden.index_add_(0, places, features[index])
        if short:
            hidden = self._finish(hidden.view(size, tokens, width), turns, cache, plan, keep)
        result = _unit(hidden, self._eps).mul_(self._norm).view(size, -1, width)
        return result[:, -keep:]

    def _mix_tokens(
        self,
        index: int,
        layer: _Layer,
        mixed: torch.Tensor,
        turns: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        """Attention on the projections of a layer; returns ``(batch * tokens, heads * width)``."""
        heads, rotated = self._heads, self._heads + self._kv_heads
        both = self._turn(mixed[:, :, :rotated], layer.norm, turns)
        key, value = write_columns(
            cache,
            index,
            both[:, :, heads:].transpose(1, 2),
            mixed[:, :, rotated:].transpose(1, 2),
            plan,
        )
        return self._look(both[:, :, :heads], key, value, plan)

    def _finish(
        self,
        hidden: torch.Tensor,
        turns: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        keep: int,
    ) -> torch.Tensor:
        """The last layer: keys and values of all tokens, the rest for the last ``keep``."""
        index, layer = len(self._layers) - 1, self._layers[-1]
        size, tokens, width = hidden.shape
        split = self._heads * self._head_dim
        normed = _unit(hidden, self._eps)
        mixed = torch.mm(normed.view(-1, width), layer.qkv[:, split:])
        mixed = mixed.view(size, tokens, -1, self._head_dim)
        key = self._turn(mixed[:, :, : self._kv_heads], layer.norm[self._heads :], turns)
        value = mixed[:, :, self._kv_heads :].transpose(1, 2)
        key, value = write_columns(cache, index, key.transpose(1, 2), value, plan)
        asking = torch.mm(normed[:, -keep:].reshape(-1, width), layer.qkv[:, :split])
        asking = asking.view(size, keep, -1, self._head_dim)
        query = self._turn(asking, layer.norm[: self._heads], turns[:, -keep:])
        seen = self._look(query, key, value, plan.last(keep, groups=self._groups, like=query))
        wanted = hidden[:, -keep:].reshape(-1, width)
        return _feed(torch.addmm(wanted, seen, layer.out), layer, self._eps)

    def _turn(self, states: torch.Tensor, norm: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Norm and rotate heads, ``(batch, tokens, heads, head_dim)``."""
        result = _unit(states, self._head_eps).mul_(norm)
        torch.view_as_complex(result.view(*result.shape[:-1], -1, 2)).mul_(turns)
        return result

    def _look(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """Attention of heads ``(batch, tokens, heads, head_dim)``; heads are joined again."""
        size, tokens, _, width = query.shape
        if tokens == 1:
            # One token's heads are in memory as rows of the key head that they share.
            query = query.reshape(size, self._kv_heads, self._groups, width)
            seen = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=plan.parts[0].bias, scale=self._scale
            )
            return seen.view(size, -1)
        seen = self._attend(query.transpose(1, 2), key, value, plan, self._scale)
        return seen.view(size * tokens, -1)

    def _turns(self, positions: torch.Tensor) -> torch.Tensor:
        """Complex factors that rotate heads, ``(batch, tokens, 1, head_dim / 2)``."""
        _, size, tokens = positions.shape
        known = len(self._rows) // 3
        furthest = int(positions.max())
        if furthest >= known:
            known = max(1024, 1 << furthest.bit_length())
            self._rows = self._table(known)
            self._axes = torch.arange(0, 3 * known, known, device=self.device)[:, None, None]
        # Every frequency belongs to one axis and is 0 in the rows of the others.
        rows = (positions + self._axes).view(3, -1).t().contiguous()
        factors = functional.embedding_bag(rows, self._rows, mode="sum")
        return torch.view_as_complex(factors.view(size, tokens, 1, -1, 2))

    def _table(self, count: int) -> torch.Tensor:
        """Cosine and sine beside each other per axis and position, ``(3 * count, head_dim)``."""
        half = self._head_dim // 2
        like = self._norm
        steps = torch.arange(count, device=like.device).expand(3, 1, -1)
        # One axis at a time moves.
        probe = torch.eye(3, dtype=torch.int64, device=like.device)[:, :, None]
        axis = self._rotary(like, probe)[1][:, 0, :half].abs() > 0
        cos, sin = (factor[0, :, :half] for factor in self._rotary(like, steps))
        table = torch.stack((cos, sin), dim=-1) * axis[:, None, :, None]
        return table.reshape(3 * count, self._head_dim)


def _unit(states: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The RMS norm over the last dimension, less the factor that its weights were given."""
    norm: torch.Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return states / norm.hypot_(eps)


def _feed(hidden: torch.Tensor, layer: _Layer, eps: torch.Tensor) -> torch.Tensor:
    """The feed-forward half of a layer."""
    normed = _unit(hidden, eps)
    gate = functional.silu(torch.mm(normed, layer.gate), inplace=True)
    return torch.addmm(hidden, gate.mul_(torch.mm(normed, layer.up)), layer.down)


def _groups(batch: int, size: int) -> list[slice]:
    """Neighbouring rows, up to ``size`` together."""
    return [slice(first, first + size) for first in range(0, batch, size)]


def _padding(valid: torch.Tensor, tree: torch.Tensor | None) -> int:
    """How many leading columns are padding in all rows; nodes of a tree do not count."""
    columns = valid.any(dim=0).int()
    nodes = 0 if tree is None else tree.shape[-1]
    first = int(columns.argmax()) if bool(columns.any()) else 0
    return min(first, len(columns) - max(nodes, 1))


def _part(visual: VisualTokens | None, rows: slice, start: int) -> VisualTokens | None:
    """Visual tokens of some rows."""
    if visual is None:
        return None
    where, features = visual
    before, count = int(where[: rows.start].sum()), int(where[rows].sum())
    return where[rows, start:], [feature[before : before + count] for feature in features]
