"""Small (and not so small) random models of the true architectures, with tokenizers of their own.

A twin has every part of the model it stands for (grouped heads, deepstack, interleaved rotary
positions, windowed vision attention), fewer or narrower layers, and a byte-level BPE with Qwen's
control tokens that is trained on a few sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from procreward.engine.loading import LoadedModel

__all__ = [
    "CLIP_STATISTICS",
    "SPECIAL_TOKENS",
    "TwinSize",
    "image_settings",
    "loaded_twin",
    "make_tokenizer",
    "qwen3_config",
    "qwen25_config",
    "random_model",
    "save_twin",
    "train_tokenizer",
]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Control tokens, named as Qwen's."""

CLIP_STATISTICS: Mapping[str, list[float]] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""How Qwen2.5-VL normalises pictures."""

# Qwen's own rule: words, single digits, punctuation.
_PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinSize:
    """Dimensions of a model.

    Attributes:
        hidden: Width of the language model.
        layers: Its layers.
        intermediate: Width within its feed-forward blocks.
        heads: Query heads.
        kv_heads: Key heads.
        head_dim: Width of a head.
        sections: Rotary frequencies of time, height and width; None for a third each, roughly.
        vision_hidden: Width of the vision tower.
        vision_layers: Its layers.
        vision_intermediate: Width within its feed-forward blocks.
        vision_heads: Its heads.
        vision_positions: Learned positions of the vision tower, a square number (Qwen3-VL).
        deepstack: Layers of the vision tower whose features are handed on (Qwen3-VL).
        max_positions: Longest sequence.
        initializer_range: Standard deviation of the weights.
    """

    hidden: int = 64
    layers: int = 2
    intermediate: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    sections: tuple[int, int, int] | None = None
    vision_hidden: int = 64
    vision_layers: int = 2
    vision_intermediate: int = 128
    vision_heads: int = 4
    vision_positions: int = 64
    deepstack: tuple[int, ...] = (0, 1)
    max_positions: int = 4096
    initializer_range: float = 0.2

    @classmethod
    def square(cls, hidden: int, *, layers: int = 2, vision_layers: int = 2) -> TwinSize:
        """Return a size in which both towers are equally wide.

        Args:
            hidden: The width, a multiple of 8.
            layers: Layers of the language model.
            vision_layers: Layers of the vision tower.
        """
        return cls(
            hidden=hidden,
            layers=layers,
            intermediate=2 * hidden,
            head_dim=hidden // 4,
            vision_hidden=hidden,
            vision_layers=vision_layers,
            vision_intermediate=2 * hidden,
            deepstack=tuple(range(min(3, vision_layers, layers))),
        )


def train_tokenizer(corpus: Sequence[str], vocabulary: int) -> str:
    """Train a byte-level BPE with Qwen's pre-tokeniser.

    Args:
        corpus: What it is trained on.
        vocabulary: Size without the control tokens, at least 256.

    Returns:
        The tokenizer as JSON, for :func:`make_tokenizer`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

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
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    text: str = tokenizer.to_str()
    return text


def make_tokenizer(trained: str) -> Any:
    """Wrap a trained tokenizer as transformers does.

    Args:
        trained: From :func:`train_tokenizer`.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )


def qwen3_config(tokenizer: Any, size: TwinSize, *, vocabulary: int | None = None) -> Any:
    """Return the configuration of a Qwen3-VL.

    Args:
        tokenizer: Its tokenizer.
        size: Its dimensions.
        vocabulary: Rows of the embedding; None for as many as the tokenizer has.
    """
    from transformers import Qwen3VLConfig

    third = size.head_dim // 6
    sections = size.sections or (size.head_dim // 2 - 2 * third, third, third)
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary or len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.head_dim,
            "max_position_embeddings": size.max_positions,
            "initializer_range": size.initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": list(sections),
                "mrope_interleaved": True,
                "rope_theta": 5e6,
            },
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": size.vision_heads,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": size.vision_positions,
            "deepstack_visual_indexes": list(size.deepstack),
            "initializer_range": size.initializer_range,
        },
        tie_word_embeddings=True,
        **_control_ids(tokenizer),
    )


def qwen25_config(tokenizer: Any, size: TwinSize, *, window_size: int = 56) -> Any:
    """Return the configuration of a Qwen2.5-VL.

    All vision layers but the last attend within windows, the last to the whole picture.

    Args:
        tokenizer: Its tokenizer.
        size: Its dimensions; heads are ``hidden / heads`` wide.
        window_size: Side of a window in pixels.
    """
    from transformers import Qwen2_5_VLConfig

    half = size.hidden // size.heads // 2
    section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": size.max_positions,
            "initializer_range": size.initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": section,
                "rope_theta": 1e6,
            },
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": size.vision_heads,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": size.hidden,
            "window_size": window_size,
            "fullatt_block_indexes": [size.vision_layers - 1],
            "initializer_range": size.initializer_range,
        },
        tie_word_embeddings=True,
        **_control_ids(tokenizer),
    )


def _control_ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "image_pad",
        "video_token_id": "video_pad",
        "vision_start_token_id": "vision_start",
        "vision_end_token_id": "vision_end",
    }
    return {key: int(tokenizer.convert_tokens_to_ids(f"<|{name}|>")) for key, name in names.items()}


def random_model(
    config: Any, *, seed: int, device: str = "cpu", dtype: torch.dtype | None = None
) -> Any:
    """Build a model with random weights where it is to run.

    Args:
        config: Its configuration.
        seed: Of the weights; the process's own random state is left alone.
        device: Where to.
        dtype: Precision; None for float32.

    Returns:
        The model, in eval mode, without gradients.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(
            config, dtype=dtype or torch.float32, attn_implementation="sdpa"
        )
    return model.eval().requires_grad_(False)


def image_settings(model_type: str, *, min_pixels: int) -> dict[str, Any]:
    """Return the content of a twin's ``preprocessor_config.json``.

    Args:
        model_type: ``"qwen3_vl"`` or ``"qwen2_5_vl"``.
        min_pixels: Least area of a picture in pixels.
    """
    shared: dict[str, Any] = {"merge_size": 2, "temporal_patch_size": 2}
    if model_type == "qwen2_5_vl":
        pixels = {"min_pixels": min_pixels, "max_pixels": 12_845_056}
        return {**pixels, "patch_size": 14, **shared, **CLIP_STATISTICS}
    size = {"shortest_edge": min_pixels, "longest_edge": 16_777_216}
    half = [0.5] * 3
    return {"size": size, "patch_size": 16, **shared, "image_mean": half, "image_std": half}


def save_twin(folder: Path, model: Any, tokenizer: Any, *, min_pixels: int = 1024) -> Path:
    """Write a model folder.

    Args:
        folder: Where to.
        model: The model.
        tokenizer: Its tokenizer.
        min_pixels: Least area of a picture in pixels.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image = image_settings(model.config.model_type, min_pixels=min_pixels)
    (folder / "preprocessor_config.json").write_text(json.dumps(image), encoding="utf-8")
    return folder


def loaded_twin(
    model: Any, tokenizer: Any, *, min_pixels: int = 1024, source: str = "twin"
) -> LoadedModel:
    """Wrap a model that was built in memory as a loaded one.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer.
        min_pixels: Least area of a picture in pixels.
        source: What it is called.

    Returns:
        What engines take.
    """
    from procreward.engine.loading import LoadedModel
    from procreward.engine.vision.preprocess import PreprocessConfig

    old = model.config.model_type == "qwen2_5_vl"
    settings: dict[str, Any] = {"min_pixels": min_pixels}
    if old:
        settings |= {
            "max_pixels": 12_845_056,
            "patch": 14,
            "mean": tuple(CLIP_STATISTICS["image_mean"]),
            "std": tuple(CLIP_STATISTICS["image_std"]),
        }
    weight = next(model.parameters())
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        image_config=PreprocessConfig(**settings),
        device=weight.device,
        dtype=weight.dtype,
        attention="sdpa",
        reasons={},
        source=source,
        revision=None,
        adapter=None,
        end_ids=tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])),
        family="qwen2_5_vl" if old else "qwen3_vl",
        default_system="You are a helpful assistant." if old else None,
    )
