"""Floating-point operations and bytes that a Qwen3-VL cannot do without, counted from its sizes.

A multiplication with an addition counts as two operations. Norms, activations, softmax and rotary
factors are left out: they are a per cent or so. Causal attention counts the pairs that are seen.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "behind_flops",
    "kv_bytes_per_token",
    "language_weights",
    "prefill_flops",
    "vision_flops",
]


def language_weights(config: Any) -> int:
    """Weights that every new token is multiplied with, the head included.

    Args:
        config: A Qwen3-VL configuration.
    """
    text = config.text_config
    return int(text.num_hidden_layers * _layer_weights(text) + text.vocab_size * text.hidden_size)


def _layer_weights(text: Any) -> int:
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    attention = text.hidden_size * text.head_dim * (2 * heads + 2 * kv_heads)
    return int(attention + 3 * text.hidden_size * text.intermediate_size)


def prefill_flops(config: Any, tokens: int, *, scored: int = 1) -> float:
    """Operations of the language model over one prompt.

    Args:
        config: A Qwen3-VL configuration.
        tokens: Tokens of the prompt and of what is read behind it.
        scored: Places at which the vocabulary is scored.
    """
    text = config.text_config
    pairs = tokens * (tokens + 1) / 2
    attention = 4.0 * text.num_attention_heads * text.head_dim * pairs
    layers = text.num_hidden_layers * (2.0 * _layer_weights(text) * tokens + attention)
    return float(layers + 2.0 * scored * text.hidden_size * text.vocab_size)


def behind_flops(config: Any, tokens: int, before: int) -> float:
    """Operations of the language model's layers over tokens behind a prompt.

    Args:
        config: A Qwen3-VL configuration.
        tokens: How many tokens; what they see of one another is left out.
        before: Tokens in front of them, which all of them see.
    """
    text = config.text_config
    attention = 4.0 * text.num_attention_heads * text.head_dim * before
    return float(tokens * text.num_hidden_layers * (2.0 * _layer_weights(text) + attention))


def vision_flops(config: Any, pictures: int, patches: int) -> float:
    """Operations of the vision tower.

    Args:
        config: A Qwen3-VL configuration.
        pictures: Pictures, or groups of a video's frames.
        patches: Patches of each.
    """
    vision = config.vision_config
    hidden, merged = vision.hidden_size, vision.hidden_size * vision.spatial_merge_size**2
    embed = 3 * vision.temporal_patch_size * vision.patch_size**2 * hidden
    block = 4 * hidden * hidden + 2 * hidden * vision.intermediate_size
    attention = 4.0 * hidden * patches
    merger = merged * merged + merged * vision.out_hidden_size
    mergers = (1 + len(vision.deepstack_visual_indexes)) * merger / vision.spatial_merge_size**2
    per_patch = 2.0 * (embed + vision.depth * block + mergers) + vision.depth * attention
    return float(pictures * patches * per_patch)


def kv_bytes_per_token(config: Any, width: int = 2) -> int:
    """Bytes of keys and values that every later token reads.

    Args:
        config: A Qwen3-VL configuration.
        width: Bytes of a number.
    """
    text = config.text_config
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * width)
