"""Small random models of the true architectures (Qwen-VL and, as another, LLaVA), for tests."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from procreward.bench.twins import (
    CLIP_STATISTICS,
    TwinSize,
    image_settings,
    make_tokenizer,
    qwen3_config,
    qwen25_config,
    train_tokenizer,
)

_CORPUS = (
    'Given the recent observation and the task "lift the red cube", first infer the remaining '
    "atomic actions required to complete the task. Then estimate the current completion "
    "percentage and output it as a float wrapped by <progress> tags.",
    "The following actions are required: \n1. reach the cube\n2. lift the cube\nTherefore, the "
    "estimated progress is <progress>84.13%</progress>.",
    "Instruction: open the drawer\nQuestion: At the final moment shown in the video, is the "
    "instruction already completed?\nAnswer exactly one label: not complete or complete.",
    "user\n assistant\n 0.1 seconds",
)

_MOE_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "initializer_range",
    "rope_parameters",
)

_GENERIC_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ item['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def _trained() -> str:
    return train_tokenizer(_CORPUS * 4, 400)


def tiny_tokenizer() -> Any:
    """A byte-level BPE of about 400 tokens with Qwen's pre-tokeniser and control tokens."""
    return make_tokenizer(_trained())


def tiny_config(
    tokenizer: Any, *, hidden: int = 64, text_layers: int = 2, vision_layers: int = 2
) -> Any:
    """A configuration with every part of the real one: GQA, deepstack, interleaved M-RoPE."""
    size = TwinSize.square(hidden, layers=text_layers, vision_layers=vision_layers)
    return qwen3_config(tokenizer, size)


def save_tiny(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    text_layers: int = 2,
    vision_layers: int = 2,
    dtype: torch.dtype = torch.float32,
    min_pixels: int = 1024,
    own: dict[str, Any] | None = None,
) -> Path:
    """Write a random model, its tokenizer and image settings; returns the folder."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(
        tokenizer, hidden=hidden, text_layers=text_layers, vision_layers=vision_layers
    )
    _save(folder, Qwen3VLForConditionalGeneration, config, tokenizer, seed=seed, dtype=dtype)
    image = image_settings("qwen3_vl", min_pixels=min_pixels)
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if own is not None:
        (folder / "procreward.json").write_text(json.dumps(own))
    return folder


def save_tiny_moe(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    text_layers: int = 2,
    vision_layers: int = 2,
    experts: int = 4,
    min_pixels: int = 1024,
) -> Path:
    """Write a random Qwen3-VL with a mixture of experts in every layer; returns the folder."""
    tokenizer = tiny_tokenizer()
    dense = tiny_config(
        tokenizer, hidden=hidden, text_layers=text_layers, vision_layers=vision_layers
    ).to_dict()
    text = {key: value for key, value in dense["text_config"].items() if key in _MOE_TEXT_KEYS}
    text |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": hidden}
    vision = {key: value for key, value in dense["vision_config"].items() if key != "model_type"}
    config = Qwen3VLMoeConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **{key: value for key, value in dense.items() if key.endswith("_token_id")},
    )
    _save(folder, Qwen3VLMoeForConditionalGeneration, config, tokenizer, seed=seed)
    image = image_settings("qwen3_vl", min_pixels=min_pixels)
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return folder


def save_tiny_qwen25(
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 64,
    text_layers: int = 2,
    vision_layers: int = 2,
    window_size: int = 56,
    dtype: torch.dtype = torch.float32,
    min_pixels: int = 784,
) -> Path:
    """Write a random Qwen2.5-VL; returns the folder.

    All vision layers but the last attend within windows of ``window_size`` pixels (two merged
    tokens along a side by default), the last to the whole picture, as the real ones do.
    """
    tokenizer = tiny_tokenizer()
    size = TwinSize.square(hidden, layers=text_layers, vision_layers=vision_layers)
    config = qwen25_config(tokenizer, size, window_size=window_size)
    _save(folder, Qwen2_5_VLForConditionalGeneration, config, tokenizer, seed=seed, dtype=dtype)
    image = image_settings("qwen2_5_vl", min_pixels=min_pixels)
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    return folder


def save_tiny_generic(folder: Path, *, seed: int = 0, hidden: int = 64, side: int = 32) -> Path:
    """Write a random LLaVA with its processor and chat template; returns the folder.

    Its pictures are ``side`` pixels square, cut into patches of 8.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    config = LlavaConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.2,
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": side,
            "patch_size": 8,
            "projection_dim": hidden,
            "initializer_factor": 4.0,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // 8) ** 2,
        vision_feature_layer=-1,
    )
    _save(folder, LlavaForConditionalGeneration, config, tokenizer, seed=seed)
    pictures = CLIPImageProcessorPil(
        size={"height": side, "width": side},
        do_center_crop=False,
        **CLIP_STATISTICS,
    )
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_GENERIC_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


def _save(
    folder: Path,
    kind: Any,
    config: Any,
    tokenizer: Any,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Let peft ask transformers for an attribute under its former name."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        yield


def save_tiny_adapter(folder: Path, base: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """Write a random LoRA adapter (attention projections of the language model) for ``base``."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForImageTextToText.from_pretrained(base)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)",
        init_lora_weights=False,
    )
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, settings)
    wrapped.save_pretrained(folder)
    return folder
