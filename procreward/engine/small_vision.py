"""The vision tower for small models: all pictures of one size in one batch, without module calls.

transformers attends picture by picture in a Python loop and rebuilds position tables on every call.
Here pictures of equal size share one attention call per layer and their tables are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from procreward.engine.preprocess import Patches

__all__ = ["SmallVision"]


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """What depends on a picture's size only.

    Attributes:
        places: ``(tokens, hidden)`` learned position embeddings.
        cos: ``(tokens, 1, 1, head_dim)`` rotary factors.
        sin: The same, its first half negated.
    """

    places: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


class SmallVision:
    """Encodes pictures as the model's own vision tower does.

    Args:
        tower: ``model.model.visual`` of a Qwen3-VL model in float32 on the CPU.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        self._heads = tower.config.num_heads
        self._hidden = tower.config.hidden_size
        self._unit = tower.spatial_merge_size**2
        projection = tower.patch_embed.proj
        # The same product as the tower's strided convolution, several times faster on the CPU.
        self._patch = (projection.weight.flatten(1), projection.bias)
        self._levels = list(tower.deepstack_visual_indexes)
        self._tables: dict[tuple[int, int], _Tables] = {}

    def __call__(self, patches: Sequence[Patches]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode clips.

        Args:
            patches: The clips, at least one.

        Returns:
            Embeddings ``(tokens, out)`` of all clips in order, and one such tensor per deepstack
            level.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for index, patch in enumerate(patches):
            groups.setdefault(patch.grid[1:], []).append(index)
        parts: list[list[torch.Tensor]] = [[] for _ in patches]
        for size, members in groups.items():
            pixels = torch.cat([patches[index].pixel_values for index in members])
            counts = [len(patches[index].pixel_values) // self._unit for index in members]
            for level in self._encode(pixels, size):
                for index, part in zip(members, torch.split(level, counts), strict=True):
                    parts[index].append(part)
        merged, *deepstack = (torch.cat(level) for level in zip(*parts, strict=True))
        return merged, deepstack

    def _encode(self, pixels: torch.Tensor, size: tuple[int, int]) -> list[torch.Tensor]:
        """Encode pictures of one size; the merged output first, then the deepstack levels."""
        tables = self._tables.get(size)
        if tables is None:
            tables = self._tables[size] = self._measure(size)
        linear, layer_norm, width = functional.linear, functional.layer_norm, (self._hidden,)
        tokens = size[0] * size[1]
        hidden = linear(pixels, *self._patch).view(-1, tokens, self._hidden) + tables.places
        count = len(hidden)
        levels = []
        for number, block in enumerate(self._tower.blocks):
            attention, mlp = block.attn, block.mlp
            normed = layer_norm(hidden, width, block.norm1.weight, block.norm1.bias, 1e-6)
            mixed = linear(normed, attention.qkv.weight, attention.qkv.bias)
            mixed = mixed.view(count, tokens, 3, self._heads, -1)
            both = mixed[:, :, :2]
            turned = both.roll(both.shape[-1] // 2, -1)
            both = torch.addcmul(both * tables.cos, turned, tables.sin)
            seen = functional.scaled_dot_product_attention(
                both[:, :, 0].transpose(1, 2),
                both[:, :, 1].transpose(1, 2),
                mixed[:, :, 2].transpose(1, 2),
            )
            seen = seen.transpose(1, 2).reshape(count, tokens, self._hidden)
            hidden = hidden + linear(seen, attention.proj.weight, attention.proj.bias)
            normed = layer_norm(hidden, width, block.norm2.weight, block.norm2.bias, 1e-6)
            inner = mlp.act_fn(linear(normed, mlp.linear_fc1.weight, mlp.linear_fc1.bias))
            hidden = hidden + linear(inner, mlp.linear_fc2.weight, mlp.linear_fc2.bias)
            if number in self._levels:
                merger = self._tower.deepstack_merger_list[self._levels.index(number)]
                levels.append(merger(hidden.view(-1, self._hidden)))
        return [self._tower.merger(hidden.view(-1, self._hidden)), *levels]

    def _measure(self, size: tuple[int, int]) -> _Tables:
        """Read the tables off the tower itself: what enters its first block for empty patches."""
        seen: dict[str, Any] = {}

        def blank(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(output)

        def look(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen["places"] = named.get("hidden_states", inputs[0] if inputs else None)
            seen["rotary"] = named["position_embeddings"]

        tower = self._tower
        hooks = (
            tower.patch_embed.register_forward_hook(blank),
            tower.blocks[0].register_forward_pre_hook(look, with_kwargs=True),
        )
        try:
            pixels = torch.zeros(size[0] * size[1], self._patch[0].shape[1])
            tower(pixels, grid_thw=torch.tensor([[1, *size]]))
        finally:
            for hook in hooks:
                hook.remove()
        cos, sin = seen["rotary"]
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        return _Tables(
            places=seen["places"].clone(), cos=cos[:, None, None], sin=signed[:, None, None]
        )
