"""Small random language models of each architecture, and token sequences to put through them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from procreward.engine.loading import LoadedModel

KINDS = ("qwen3", "wide_heads", "qwen2_5", "moe")

_ROPE = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}
_TEXT: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "rope_parameters": _ROPE,
}
_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}


def _qwen3(**text: Any) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    settings = _TEXT | {"head_dim": 16, "rope_parameters": _ROPE | {"mrope_interleaved": True}}
    vision = _VISION | {"out_hidden_size": 64, "deepstack_visual_indexes": [0]}
    vision["num_position_embeddings"] = 16
    config = Qwen3VLConfig(text_config=settings | text, vision_config=vision)
    return Qwen3VLForConditionalGeneration(config)


def _moe() -> Any:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    settings = _TEXT | {"head_dim": 16, "rope_parameters": _ROPE | {"mrope_interleaved": True}}
    settings |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = _VISION | {"out_hidden_size": 64, "deepstack_visual_indexes": [0]}
    vision["num_position_embeddings"] = 16
    config = Qwen3VLMoeConfig(text_config=settings, vision_config=vision)
    return Qwen3VLMoeForConditionalGeneration(config)


def _qwen2_5() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = _VISION | {"out_hidden_size": 64, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=_TEXT, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config)


def text_model(
    kind: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """A random model with what a decoder asks of a loaded one."""
    wide = {"head_dim": 24, "rope_parameters": _ROPE | {"mrope_section": [6, 3, 3]}}
    makers = {
        "qwen3": _qwen3,
        "wide_heads": lambda: _qwen3(**wide, num_key_value_heads=1),
        "qwen2_5": _qwen2_5,
        "moe": _moe,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = makers[kind]()
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # not ones and zeros only
                weight.data += 0.3 * torch.randn_like(weight)
    model = model.to(device, dtype).eval().requires_grad_(False)
    return cast(LoadedModel, SimpleNamespace(model=model, device=torch.device(device), dtype=dtype))


def sequence(batch: int, length: int, *, hidden: int = 64, seed: int = 0) -> tuple[Any, Any]:
    """Random embeddings, and positions with a grid of 3 x 4 visual tokens from the fifth on."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, length, hidden, generator=generator)
    text = torch.arange(length)
    positions = text.repeat(3, 1)
    if length > 17:
        grid = torch.stack((torch.zeros(12), torch.arange(12) // 4, torch.arange(12) % 4)).long()
        positions[:, 5:17] = 5 + grid
        positions[:, 17:] = torch.arange(length - 17) + 9
    return embeds, positions[:, None].repeat(1, batch, 1)


def left_padding(lengths: tuple[int, ...]) -> torch.Tensor:
    """Which columns are valid when rows of these lengths end in the same column."""
    longest = max(lengths)
    return torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]


def random_tree(nodes: int, *, seed: int = 0) -> tuple[list[list[int]], torch.Tensor]:
    """The path from the root to every node, itself included, and which nodes each one sees."""
    generator = torch.Generator().manual_seed(seed)
    paths: list[list[int]] = []
    for node in range(nodes):
        parent = int(torch.randint(-1, node, (1,), generator=generator)) if node else -1
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    sees = torch.zeros(nodes, nodes, dtype=torch.bool)
    for node, path in enumerate(paths):
        sees[node, path] = True
    return paths, sees
