"""Small random models of the true Qwen3-VL architecture, for tests."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

_PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
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


@cache
def _trained() -> str:
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer.to_str()


def tiny_tokenizer() -> Any:
    """A byte-level BPE of about 400 tokens with Qwen's pre-tokeniser and control tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )


def tiny_config(
    tokenizer: Any, *, hidden: int = 64, text_layers: int = 2, vision_layers: int = 2
) -> Qwen3VLConfig:
    """A configuration with every part of the real one: GQA, deepstack, interleaved M-RoPE."""
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}
    head = hidden // 4
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": head,
            "max_position_embeddings": 4096,
            "initializer_range": 0.2,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [head // 2 - 2 * (head // 6), head // 6, head // 6],
                "mrope_interleaved": True,
                "rope_theta": 5e6,
            },
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_heads": 4,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(range(min(3, vision_layers, text_layers))),
            "initializer_range": 0.2,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": min_pixels, "longest_edge": 16_777_216}
    image = {"size": size, "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    image |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    if own is not None:
        (folder / "procreward.json").write_text(json.dumps(own))
    return folder


def save_tiny_adapter(folder: Path, base: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """Write a random LoRA adapter (attention projections of the language model) for ``base``."""
    from peft import LoraConfig, get_peft_model

    model = Qwen3VLForConditionalGeneration.from_pretrained(base)
    settings = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)",
        init_lora_weights=False,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers for an attribute under its former name.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, settings)
    wrapped.save_pretrained(folder)
    return folder
