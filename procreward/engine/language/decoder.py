"""The language model, layer by layer, on a cache of our own.

Tokens are appended to a :class:`KVCache` in chunks of any length. Columns of the cache can be
switched off afterwards (rejected drafts, padding) without moving anything, because every token
carries its position; and the last tokens of a chunk can be the nodes of a tree, each of which sees
its ancestors only. The layers' own submodules do the arithmetic, so biases, LoRA layers, quantised
layers and expert blocks need no code here. The model's mutable position state is never touched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from procreward.engine.language.kv import (
    AttentionPart,
    AttentionPlan,
    KVCache,
    masked_columns,
    plan_attention,
    plan_static,
    write_columns,
)
from procreward.engine.loading import LoadedModel
from procreward.errors import ArchitectureError, ConfigError

__all__ = [
    "Decoder",
    "KVCache",
    "ModuleDecoder",
    "VisualTokens",
    "make_decoder",
    "masked_columns",
    "shares_keys",
]

VisualTokens: TypeAlias = tuple[torch.Tensor, list[torch.Tensor]]
"""Where visual tokens are, ``(batch, tokens) bool``, and their deepstack features, each
``(visual tokens, hidden)`` in row-major order."""

_WIDEST_GQA = 256
"""Head width up to which PyTorch's fused kernels share keys between query heads."""


class Decoder(ABC):
    """A language model that reads tokens chunk by chunk.

    Args:
        loaded: The model.

    Attributes:
        hidden_size: Width of the hidden states.
        device: Where it runs.
        dtype: Precision of the hidden states.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        # An unmerged adapter wraps the model and puts its layers into it.
        model = loaded.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._text: Any = base.model.language_model
        self._lm_head: Any = base.lm_head
        config = self._text.config
        sliding = [kind for kind in getattr(config, "layer_types", None) or () if "sliding" in kind]
        if sliding:
            raise ArchitectureError(
                f"A language model must attend to all earlier tokens, got {len(sliding)} layers "
                "with a sliding window. Use `engine='plain'` for this model."
            )
        attention = self._text.layers[0].self_attn
        self.hidden_size: int = config.hidden_size
        self.device: torch.device = loaded.device
        self.dtype: torch.dtype = loaded.dtype
        self._head_dim: int = attention.head_dim
        self._shares_keys = self._head_dim <= _WIDEST_GQA and shares_keys(loaded.device, self.dtype)
        self._kv_heads: int = config.num_key_value_heads
        self._groups: int = config.num_attention_heads // config.num_key_value_heads
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        self._sections: list[int] = list((rope or {}).get("mrope_section") or ())

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up token embeddings.

        Args:
            ids: ``(batch, tokens) int64``.

        Returns:
            ``(batch, tokens, hidden)``.
        """
        result: torch.Tensor = self._text.embed_tokens(ids)
        return result

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score every word of the vocabulary.

        Args:
            hidden: ``(..., hidden)``, from :meth:`forward`.

        Returns:
            Logits ``(..., vocabulary)`` in the model's precision.
        """
        result: torch.Tensor = self._lm_head(hidden)
        return result

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Make an empty cache.

        Args:
            batch: Rows.
            capacity: Columns, one per token.

        Returns:
            The cache, on the model's device. Its memory is zeroed: a forward of fixed shape reads
            unwritten columns, though it gives them no weight.
        """
        shape = (batch, self._kv_heads, capacity, self._head_dim)
        layers = range(len(self._text.layers))
        return KVCache(
            keys=[torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in layers],
            values=[torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in layers],
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
        """Read a chunk of tokens and append it to the cache.

        Every token sees all valid columns from before the call, the valid tokens of the call up to
        itself, and itself.

        Args:
            embeds: ``(batch, tokens, hidden)``, visual embeddings already in place.
            positions: ``(3, batch, tokens) int64``: time, height, width.
            cache: Where keys and values go; changed in place.
            valid: ``(batch, tokens) bool``, False where padded. None means that nothing is; that
                is faster.
            tree: ``(nodes, nodes)`` or ``(batch, nodes, nodes) bool``. The last ``nodes`` tokens
                are then nodes of a tree: node ``i`` sees what is valid before the tree and the
                nodes ``j`` with ``tree[i, j]``, itself included.
            visual: Where visual tokens are and their deepstack features.
            keep: How many of the last tokens' hidden states are wanted, at least 1. The last layer
                is then run for these alone. None means all.

        Returns:
            ``(batch, keep or tokens, hidden)``, behind the final norm.

        Raises:
            ConfigError: If the cache has no room for the tokens.
        """
        tokens = embeds.shape[1]
        if cache.used + tokens > cache.capacity:
            raise ConfigError(
                f"`cache` must have room for {tokens} more columns, got {cache.used} of "
                f"{cache.capacity} in use. Make it with a larger `capacity`."
            )
        if valid is not None and valid.device.type == "cpu" and bool(valid.all()):
            valid = None
        plan = plan_attention(
            cache, tokens, valid=valid, tree=tree, groups=self._groups, dtype=embeds.dtype
        )
        hidden = self._run(embeds, positions, cache, plan, visual, min(keep or tokens, tokens))
        cache.valid[:, plan.start : plan.end] = True if valid is None else valid
        cache.full = cache.full and valid is None
        cache.used = plan.end
        return hidden

    def forward_static(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        columns: torch.Tensor,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """Read a short chunk with shapes and memory that do not depend on what the cache holds.

        That is what a CUDA graph needs. The whole capacity is read under a mask, and where to
        write is a tensor. The cache's own record (``used``, ``valid``, ``full``) stays as it is.

        Args:
            embeds: ``(batch, tokens, hidden)``.
            positions: ``(3, batch, tokens) int64``.
            cache: Where keys and values go.
            columns: ``(tokens,) int64``, the column of each token.
            seen: ``(batch, tokens, capacity) bool``, what each token sees; each its own column at
                least.

        Returns:
            ``(batch, tokens, hidden)``, behind the final norm.
        """
        plan = plan_static(columns, seen, groups=self._groups, dtype=embeds.dtype)
        return self._run(embeds, positions, cache, plan, None, embeds.shape[1])

    @abstractmethod
    def _run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        visual: VisualTokens | None,
        keep: int,
    ) -> torch.Tensor:
        """All layers, and the final norm of the last ``keep`` tokens; the cache is written."""

    def _rotary(
        self, like: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the positions, each ``(batch, tokens, head_dim)``."""
        cos, sin = self._text.rotary_emb(like, positions)
        if cos.ndim == 4:  # one per axis; transformers below 5.2x leaves mixing them to the layers
            cos, sin = self._mix(cos), self._mix(sin)
        return cos, sin

    def _mix(self, factors: torch.Tensor) -> torch.Tensor:
        parts = torch.split(factors, self._sections * 2, dim=-1)
        return torch.cat([part[place % 3] for place, part in enumerate(parts)], dim=-1)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: AttentionPlan,
        scale: float,
    ) -> torch.Tensor:
        """Attention as planned; returns ``(batch, tokens, heads * head_dim)``."""
        size, _, tokens, _ = query.shape
        results, first = [], 0
        for part in plan.parts:
            here = query.narrow(2, first, part.tokens)
            keys, values = key.narrow(2, 0, part.end), value.narrow(2, 0, part.end)
            results.append(self._attend_part(here, keys, values, part, scale))
            first += part.tokens
        seen = results[0] if len(results) == 1 else torch.cat(results, dim=2)
        return seen.transpose(1, 2).reshape(size, tokens, -1)

    def _attend_part(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        part: AttentionPart,
        scale: float,
    ) -> torch.Tensor:
        """Attention of the tokens of one part, ``(batch, heads, tokens, head_dim)``."""
        size, heads, tokens, width = query.shape
        shared = False
        # Shared key heads and a mask together would leave the fused kernels on CUDA.
        if part.packed:
            query = query.reshape(size, self._kv_heads, self._groups * tokens, width)
        elif self._groups > 1:
            shared = part.bias is None and self._shares_keys
            if not shared:
                key, value = self._repeat(key), self._repeat(value)
        result = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=part.bias,
            is_causal=part.causal,
            scale=scale,
            enable_gqa=shared,
        )
        return result.reshape(size, heads, tokens, width)

    def _repeat(self, shared: torch.Tensor) -> torch.Tensor:
        return shared.repeat_interleave(self._groups, dim=1)


class ModuleDecoder(Decoder):
    """Runs the layers' own submodules: any precision and device, and any kind of layer inside.

    In float32 on the CPU an unpadded prompt gives bit for bit what the model's own forward gives
    with PyTorch's attention.

    Args:
        loaded: The model.
    """

    def _run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        visual: VisualTokens | None,
        keep: int,
    ) -> torch.Tensor:
        hidden = embeds
        cos, sin = self._rotary(hidden, positions)
        factors = (cos[:, None], sin[:, None])
        places = None if visual is None else visual[0].flatten().nonzero()[:, 0]
        features = [] if visual is None else visual[1]
        final = len(self._text.layers) - 1
        for index, layer in enumerate(self._text.layers):
            # Only where features follow on the last layer are all tokens needed behind it.
            wanted = keep if index == final >= len(features) else hidden.shape[1]
            mixed = self._attention(index, layer, hidden, factors, cache, plan, wanted)
            hidden = hidden[:, -wanted:] + mixed
            change = layer.mlp(layer.post_attention_layernorm(hidden))
            hidden = hidden + (change[0] if isinstance(change, tuple) else change)
            if places is not None and index < len(features):
                feature = features[index].to(hidden.device, hidden.dtype)
                hidden = hidden.contiguous()
                hidden.view(-1, hidden.shape[-1]).index_add_(0, places, feature)
        result: torch.Tensor = self._text.norm(hidden[:, -keep:])
        return result

    def _attention(
        self,
        index: int,
        layer: Any,
        hidden: torch.Tensor,
        factors: tuple[torch.Tensor, torch.Tensor],
        cache: KVCache,
        plan: AttentionPlan,
        keep: int,
    ) -> torch.Tensor:
        """Attention of one layer, ``(batch, keep, hidden)``."""
        attention = layer.self_attn
        hidden = layer.input_layernorm(hidden)
        asking = hidden
        if keep < hidden.shape[1]:
            asking = hidden[:, -keep:]
        query = attention.q_proj(asking).unflatten(-1, (-1, self._head_dim))
        key = attention.k_proj(hidden).unflatten(-1, (-1, self._head_dim))
        value = attention.v_proj(hidden).unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query = _rotate(query.transpose(1, 2), *(factor[:, :, -keep:] for factor in factors))
        key = _rotate(key.transpose(1, 2), *factors)
        key, value = write_columns(cache, index, key, value, plan)
        if keep < hidden.shape[1]:
            plan = plan.last(keep, groups=self._groups, like=query)
        seen = self._attend(query, key, value, plan, attention.scaling)
        result: torch.Tensor = attention.o_proj(seen)
        return result


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return (states * cos) + (turned * sin)


def shares_keys(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's fused attention takes keys that several query heads share.

    On CUDA flash attention alone does, in half precision and from compute capability 8 on. Without
    it such a call holds the scores of all pairs of tokens in memory at once.

    Args:
        device: Where it runs.
        dtype: Precision of queries and keys.
    """
    if device.type != "cuda":
        return True
    half = dtype in (torch.float16, torch.bfloat16)
    return half and (bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0))


def make_decoder(loaded: LoadedModel, *, exact: bool) -> Decoder:
    """Choose the decoder for a model.

    Args:
        loaded: The model.
        exact: Whether to stay with the operators of the model's own forward.

    Returns:
        :class:`ModuleDecoder` if ``exact``. Else a decoder of fused kernels for small float32
        models on the CPU, and one with CUDA graphs for short chunks on CUDA.
    """
    if not exact and loaded.device.type == "cuda":
        from procreward.engine.language.graphs import GraphedDecoder

        return GraphedDecoder(loaded)
    if not exact:
        from procreward.engine.language.fused import FusedDecoder, suits_fused

        if suits_fused(loaded):
            return FusedDecoder(loaded)
    return ModuleDecoder(loaded)
