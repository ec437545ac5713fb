"""An engine for small models, where Python around the operators costs more than the operators.

Decoding a token of a model with a few million weights is a hundred tiny operations; most of the
time goes into module calls, argument checks and mask building. This engine runs the same
mathematics with fused weight matrices, preallocated caches and no modules, and encodes pictures of
one size in one batch. The rest is the plain engine. In float32 the answers equal the plain
engine's and the label likelihoods differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from procreward.engine.inputs import Batch, PreparedPrompt
from procreward.engine.loading import LoadedModel
from procreward.engine.plain import DecodeStep, PlainEngine, Visual, decode_positions
from procreward.engine.prompt import VideoLayout
from procreward.engine.small_vision import SmallVision

__all__ = ["SmallEngine", "suits_small"]

_LARGEST = 30_000_000
"""Weights of a language model from which on copying them costs more than it saves."""


def suits_small(loaded: LoadedModel) -> bool:
    """Whether a model is one that :class:`SmallEngine` is for.

    Args:
        loaded: The model.

    Returns:
        True for float32 models on the CPU with a language model below 30 million weights.
    """
    if loaded.device.type != "cpu" or loaded.dtype != torch.float32:
        return False
    text = loaded.model.model.language_model
    plain = text.config.hidden_act == "silu" and not text.config.attention_bias
    return plain and sum(weight.numel() for weight in text.parameters()) < _LARGEST


class SmallEngine(PlainEngine):
    """The plain engine with a vision tower and decoding steps for small float32 models.

    Args:
        loaded: The model; see :func:`suits_small`.
        video_layout: How videos are written into the prompt.
    """

    def __init__(self, loaded: LoadedModel, *, video_layout: VideoLayout = "4.57") -> None:
        super().__init__(loaded, video_layout=video_layout)
        with torch.inference_mode():
            self._step = _Step(self._language_model)
            self._vision = SmallVision(loaded.model.model.visual)

    def _encode(self, prepared: Sequence[PreparedPrompt]) -> Visual:
        patches = [patch for prompt in prepared for patch in prompt.patches]
        return self._vision(patches) if patches else (torch.empty(0), [])

    def _decoder(self, batch: Batch, cache: Any, max_new_tokens: int) -> DecodeStep:
        state = _State(cache, self._language_model, batch, max_new_tokens)
        table = self._embed.weight
        return lambda chosen, step: self._step(functional.embedding(chosen, table), state, step)


class _State:
    """Keys and values with room for the answer, and the rotary factors of its positions."""

    def __init__(self, cache: Any, model: Any, batch: Batch, steps: int) -> None:
        self.length = batch.ids.shape[1]
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        for layer in cache.layers:
            for source, target in ((layer.keys, self.keys), (layer.values, self.values)):
                size, heads, length, width = source.shape
                room = source.new_empty(size, heads, length + steps, width)
                room[:, :, :length] = source
                target.append(room)
        positions, mask = decode_positions(batch, steps)
        cos, sin = model.rotary_emb(self.keys[0], positions)  # (batch, steps, head_dim)
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        # One tensor per step, with a dimension for the heads.
        self.cos, self.sin = cos[:, :, None].unbind(1), signed[:, :, None].unbind(1)
        self.mask = None if mask is None else mask.bool()[:, None, None]


class _Step:
    """One decoding step of the language model for all rows, on fused copies of its weights."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._width = config.head_dim
        self._half = config.head_dim // 2
        self._hidden = (config.hidden_size,)
        self._eps = config.rms_norm_eps
        self._norm = model.norm.weight
        self._layers = [self._fuse(layer) for layer in model.layers]

    def _fuse(self, layer: Any) -> tuple[torch.Tensor, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        query = attention.q_norm.weight.expand(self._heads, -1)
        key = attention.k_norm.weight.expand(self._kv_heads, -1)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return (
            layer.input_layernorm.weight,
            torch.cat([projection.weight for projection in projections]),
            torch.cat((query, key)),
            attention.o_proj.weight,
            layer.post_attention_layernorm.weight,
            torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)),
            mlp.down_proj.weight,
        )

    def __call__(self, hidden: torch.Tensor, state: _State, step: int) -> torch.Tensor:
        """Embeddings ``(batch, hidden)`` of the newest tokens to the last layer's output."""
        linear, rms_norm = functional.linear, functional.rms_norm
        size, heads, kv_heads, width = len(hidden), self._heads, self._kv_heads, self._width
        column = state.length + step
        cos, sin = state.cos[step], state.sin[step]
        mask = None if state.mask is None else state.mask[..., : column + 1]
        for layer, keys, values in zip(self._layers, state.keys, state.values, strict=True):
            norm_in, qkv, norm_qk, out, norm_mlp, gate_up, down = layer
            mixed = linear(rms_norm(hidden, self._hidden, norm_in, self._eps), qkv)
            mixed = mixed.view(size, heads + 2 * kv_heads, width)
            both = rms_norm(mixed[:, : heads + kv_heads], (width,), None, self._eps) * norm_qk
            both = torch.addcmul(both * cos, both.roll(self._half, -1), sin)
            keys[:, :, column] = both[:, heads:]
            values[:, :, column] = mixed[:, heads + kv_heads :]
            seen = functional.scaled_dot_product_attention(
                both[:, :heads, None],
                keys[:, :, : column + 1],
                values[:, :, : column + 1],
                attn_mask=mask,
                enable_gqa=heads != kv_heads,
            )
            hidden = hidden + linear(seen.reshape(size, heads * width), out)
            gate, up = linear(rms_norm(hidden, self._hidden, norm_mlp, self._eps), gate_up).chunk(
                2, dim=-1
            )
            hidden = hidden + linear(functional.silu(gate) * up, down)
        return rms_norm(hidden, self._hidden, self._norm, self._eps)
