"""The decoder for small models; see :class:`FusedDecoder`."""

from __future__ import annotations

import torch

from procreward.engine.language import ModuleDecoder
from procreward.engine.loading import LoadedModel

__all__ = ["FusedDecoder", "suits_fused"]

_LARGEST = 30_000_000
"""Weights of a language model from which on copying them costs more than it saves."""


def suits_fused(loaded: LoadedModel) -> bool:
    """Whether a model is one that :class:`FusedDecoder` is for.

    Args:
        loaded: The model.

    Returns:
        True for dense float32 models on the CPU below 30 million weights, with a SiLU and without
        biases in attention.
    """
    if loaded.device.type != "cpu" or loaded.dtype != torch.float32:
        return False
    if hasattr(loaded.model, "get_base_model"):
        return False
    text = loaded.model.model.language_model
    layer = text.layers[0]
    projections = (layer.self_attn.q_proj, layer.self_attn.o_proj, getattr(layer.mlp, "up_proj", 0))
    linear = all(type(part) is torch.nn.Linear and part.bias is None for part in projections)
    known = hasattr(layer.self_attn, "q_norm") and text.config.hidden_act == "silu"
    small = sum(weight.numel() for weight in text.parameters()) < _LARGEST
    return linear and known and small


class FusedDecoder(ModuleDecoder):
    """A small model's decoder."""
