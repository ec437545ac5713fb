"""Small random vision towers of each architecture, without a language model worth the name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from procreward.engine.loading import LoadedModel
from procreward.engine.vision.preprocess import PreprocessConfig

QWEN3_IMAGES = PreprocessConfig(min_pixels=1024)
QWEN25_IMAGES = PreprocessConfig(
    min_pixels=784,
    patch=14,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)

_TEXT = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
_VISION = {"hidden_size": 64, "num_heads": 4, "out_hidden_size": 32, "initializer_range": 0.2}
_QWEN3 = _VISION | {
    "depth": 4,
    "intermediate_size": 96,
    "patch_size": 16,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 3],
}


def qwen3(dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Qwen3-VL with features of three of four vision layers."""
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = _TEXT | {"head_dim": 16, "rope_parameters": rope | {"rope_theta": 1e4}}
    config = Qwen3VLConfig(text_config=text, vision_config=_QWEN3)
    return _loaded(Qwen3VLForConditionalGeneration, config, QWEN3_IMAGES, "qwen3_vl", dtype)


def qwen3_moe() -> LoadedModel:
    """Its mixture-of-experts version."""
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = _TEXT | {"head_dim": 16, "rope_parameters": rope | {"rope_theta": 1e4}}
    text |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=_QWEN3)
    return _loaded(
        Qwen3VLMoeForConditionalGeneration, config, QWEN3_IMAGES, "qwen3_vl_moe", torch.float32
    )


def qwen25(tokenizer: Any = None, *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Qwen2.5-VL with windows of 2x2 tokens in two of three layers.

    Args:
        tokenizer: Where it takes the ids of the tokens that stand for pictures from.
        dtype: Its precision.
    """
    names = ("image", "video") if tokenizer else ()
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in names}
    text = _TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
    vision = _VISION | {
        "depth": 3,
        "intermediate_size": 96,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return _loaded(Qwen2_5_VLForConditionalGeneration, config, QWEN25_IMAGES, "qwen2_5_vl", dtype)


def _loaded(
    kind: Any, config: Any, images: PreprocessConfig, family: str, dtype: torch.dtype
) -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).to(dtype).eval().requires_grad_(False)
    loaded = SimpleNamespace(
        model=model, device=torch.device("cpu"), dtype=dtype, image_config=images, family=family
    )
    return loaded  # type: ignore[return-value]  # a stand-in
