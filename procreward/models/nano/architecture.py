"""The network: a small Qwen3-VL, and a training-time forward pass that shares vision work.

transformers' own modules hold the weights; this file only calls them in another order: all frames
of a batch go through the vision tower with one attention product per layer, and every window of
four frames then picks its frames' features by index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import Qwen3VLForConditionalGeneration

__all__ = [
    "CROP",
    "FRAME_SIZE",
    "GRID",
    "VISUAL_TOKENS",
    "WINDOW_FRAMES",
    "FrameFeatures",
    "build_model",
    "encode_frames",
    "run_windows",
]

FRAME_SIZE = (128, 128)
"""Width and height of the frames nano expects, in pixels."""

CROP = (0, 0, 96, 128)
"""Top, left, height and width of the part of a frame that nano reads, in pixels."""

GRID = (1, 6, 8)
"""Patches of one frame: time, rows, columns."""

VISUAL_TOKENS = 12
"""Tokens of the language model per frame."""

WINDOW_FRAMES = 4
"""Frames per query."""


class FrameFeatures(NamedTuple):
    """What the vision tower says about frames.

    Attributes:
        tokens: ``(frames, 12, hidden)``.
        deepstack: One ``(frames, 12, hidden)`` per early layer of the language model.
    """

    tokens: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


def build_model(tokenizer: Any, *, seed: int) -> Qwen3VLForConditionalGeneration:
    """Build the untrained network for a tokenizer.

    Args:
        tokenizer: Gives the vocabulary and the ids of the control tokens.
        seed: Seed of the initial weights.

    Returns:
        The model in float32, about 2.8 million parameters.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in _CONTROL}
    vocabulary = -(-len(tokenizer) // 8) * 8
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "initializer_range": 0.04,
        "bos_token_id": None,
        "eos_token_id": ids["im_end"],
        "pad_token_id": ids["endoftext"],
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
            "rope_theta": 10_000.0,
        },
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
        "initializer_range": 0.04,
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.tie_weights()
    return model.float()


_CONTROL = ("im_start", "im_end", "endoftext", "vision_start", "vision_end", "image_pad",
            "video_pad")  # fmt: skip


def encode_frames(model: Any, pixel_values: torch.Tensor) -> FrameFeatures:
    """Run the vision tower on frames of one grid with one attention product per layer.

    Args:
        model: The whole model.
        pixel_values: ``(frames * 48, 1536) float32`` as the preprocessing gives them.

    Returns:
        The features of every frame.
    """
    tower = model.model.visual
    patches = GRID[1] * GRID[2]
    frames = len(pixel_values) // patches
    hidden = _embed_patches(tower.patch_embed.proj, pixel_values)
    positions, rope = _vision_positions(tower, hidden)
    hidden = hidden.view(frames, patches, -1) + positions
    deepstack = []
    for index, block in enumerate(tower.blocks):
        hidden = hidden + _attend(block.attn, block.norm1(hidden), rope)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if index in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(index)]
            deepstack.append(_merge(merger, hidden))
    return FrameFeatures(_merge(tower.merger, hidden), tuple(deepstack))


def run_windows(
    model: Any,
    features: FrameFeatures,
    windows: torch.Tensor,
    ids: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Run the language model over windows of frames.

    Args:
        model: The whole model.
        features: Features of the batch's frames.
        windows: ``(batch, 4) int64``: which frames each window shows.
        ids: ``(batch, length) int64`` token ids, padded on the right, image pads in place.
        positions: ``(3, batch, length) int64``.

    Returns:
        ``(batch, length, hidden)`` last hidden states; those of the padding are meaningless.
    """
    embeds = model.model.language_model.embed_tokens(ids)
    visual = ids == model.config.image_token_id
    width = embeds.shape[-1]
    tokens = features.tokens[windows].reshape(-1, width)
    embeds = embeds.masked_scatter(visual[..., None], tokens.to(embeds.dtype))
    deepstack = [layer[windows].reshape(-1, width) for layer in features.deepstack]
    # Padding is on the right, so the causal mask alone keeps it away from every real token.
    output = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=None,
        visual_pos_masks=visual,
        deepstack_visual_embeds=deepstack,
        use_cache=False,
    )
    return output.last_hidden_state  # type: ignore[no-any-return]  # untyped modules


def _embed_patches(convolution: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    # The convolution's kernel is as large as its input, so it is a matrix product; torch's general
    # convolution takes many times longer to differentiate.
    weight = convolution.weight
    return F.linear(pixel_values, weight.flatten(1), convolution.bias)


def _vision_positions(
    tower: Any, like: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    from transformers.vision_utils import (
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
    )

    grid = torch.tensor([GRID])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.config.spatial_merge_size,
    )
    learned = (tower.pos_embed(indices) * weights[:, :, None]).sum(1)
    rope = tower.rotary_pos_emb(like, get_vision_position_ids(grid, 2))
    return learned, rope


def _attend(
    attention: Any, hidden: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

    frames, patches, width = hidden.shape
    qkv = attention.qkv(hidden).view(frames, patches, 3, attention.num_heads, -1)
    query, key, value = qkv.unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *rope)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    # Written out: the fused kernel's backward pass is slow for so few patches on a CPU.
    weights = (query * attention.scaling @ key.transpose(2, 3)).softmax(-1)
    mixed = (weights.to(value.dtype) @ value).transpose(1, 2)
    return attention.proj(mixed.reshape(frames, patches, width))  # type: ignore[no-any-return]  # untyped modules


def _merge(merger: Any, hidden: torch.Tensor) -> torch.Tensor:
    return merger(hidden.reshape(-1, hidden.shape[-1])).view(hidden.shape[0], VISUAL_TOKENS, -1)  # type: ignore[no-any-return]  # untyped modules
