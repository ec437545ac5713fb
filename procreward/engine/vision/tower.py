"""The vision tower: patches to what the language model sees of them.

transformers attends picture by picture in a Python loop and rebuilds its position tables on every
call. Here all pictures of one size share one attention call per layer and their tables are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from procreward.checks import check_int
from procreward.engine.loading import LoadedModel
from procreward.engine.vision.fused import FusedTower, suits_fused_tower
from procreward.engine.vision.preprocess import Patches
from procreward.engine.vision.tables import VisionTables, Windows, measure_tables
from procreward.errors import ArchitectureError

__all__ = ["Features", "VisionTower"]

_MAX_PATCHES = {"cpu": 2048, "cuda": 16_384}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a vision tower makes of pictures.

    Attributes:
        levels: ``(1 + num_deepstack, tokens, hidden)``: the embeddings, then what is added to the
            language model's hidden states after its first, second, ... layer.
    """

    levels: torch.Tensor

    @property
    def embeds(self) -> torch.Tensor:
        """The embeddings, ``(tokens, hidden)``."""
        return self.levels[0]

    @property
    def deepstack(self) -> tuple[torch.Tensor, ...]:
        """The deepstack features, each ``(tokens, hidden)``; none for Qwen2.5-VL."""
        return self.levels[1:].unbind(0)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.levels.nbytes

    def __len__(self) -> int:
        return self.levels.shape[1]

    def split(self, counts: Sequence[int]) -> list[Features]:
        """Cut into pieces that share the memory.

        Args:
            counts: Tokens of each piece; they add up to all tokens.

        Returns:
            The pieces in order.
        """
        return [Features(piece) for piece in torch.split(self.levels, list(counts), dim=1)]

    @classmethod
    def cat(cls, parts: Sequence[Features]) -> Features:
        """Join pieces.

        Args:
            parts: At least one.

        Returns:
            All their tokens in order; the piece itself when there is one only.
        """
        if len(parts) == 1:
            return parts[0]
        return cls(torch.cat([part.levels for part in parts], dim=1))


class VisionTower:
    """Encodes pictures as the model's own vision tower does.

    The towers of Qwen3-VL (mixture of experts or not) and Qwen2.5-VL attend within a picture or
    within windows of it: all pictures of one size share one attention call per layer (one per
    length of windows). Any other tower is called as it is. Calls from several threads are safe:
    the model is only read. Its weights must not change afterwards.

    Args:
        loaded: The model.
        exact: Whether to use the very operators of the tower, so that the result is equal to the
            last bit (float32, on the CPU); otherwise faster ones that round differently.
        max_patches: Patches that are encoded at once; None for a number that suits the device.
    """

    def __init__(self, loaded: LoadedModel, *, exact: bool, max_patches: int | None = None) -> None:
        device = loaded.device.type
        if max_patches is None:
            max_patches = _MAX_PATCHES.get(device, _MAX_PATCHES["cpu"])
        check_int("max_patches", max_patches, least=1)
        self._max_patches = max_patches
        tower = loaded.model.model.visual
        self._merge = int(tower.spatial_merge_size) ** 2
        self._run: _PictureTower | _WholeTower | FusedTower
        if not exact and suits_fused_tower(tower):
            self._run = FusedTower(tower)
        elif hasattr(tower, "deepstack_merger_list") or hasattr(tower, "fullatt_block_indexes"):
            self._run = _PictureTower(tower, exact)
        else:
            self._run = _WholeTower(tower)

    @torch.inference_mode()
    def encode(self, patches: Sequence[Patches]) -> list[Features]:
        """Encode pictures and clips.

        Args:
            patches: Any number of them, on any device.

        Returns:
            The features of each, in order, on the model's device.

        Raises:
            ArchitectureError: If the model's tower returns something unknown.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for index, patch in enumerate(patches):
            alike.setdefault(patch.grid[1:], []).append(index)
        result: list[Any] = [None] * len(patches)
        for size, members in alike.items():
            taps = _join([patches[index] for index in members])
            counts = [len(patches[index].taps) // self._merge for index in members]
            features = Features(self._encode(taps, patches[members[0]].temporal, size))
            for index, piece in zip(members, features.split(counts), strict=True):
                result[index] = piece
        return result

    def _encode(self, taps: torch.Tensor, temporal: int, size: tuple[int, int]) -> torch.Tensor:
        tokens = size[0] * size[1]
        step = max(1, self._max_patches // tokens) * tokens
        if len(taps) <= step:
            return self._run(taps, temporal, size)
        return torch.cat(
            [self._run(part, temporal, size) for part in torch.split(taps, step)], dim=1
        )


def _join(patches: Sequence[Patches]) -> torch.Tensor:
    if len(patches) == 1:
        return patches[0].taps
    moments = max(patch.taps.shape[2] for patch in patches)
    return torch.cat([patch.taps.expand(-1, -1, moments, -1) for patch in patches])


class _PictureTower:
    """Towers that attend within one picture or its windows: Qwen3-VL and Qwen2.5-VL."""

    def __init__(self, tower: Any, exact: bool) -> None:
        self._tower = tower
        self._exact = exact
        self._heads = int(tower.config.num_heads)
        self._conv = tower.patch_embed.proj
        self._weight = self._conv.weight.flatten(1)
        # A picture that stands still meets the sum of the weights of all moments.
        self._still = self._conv.weight.sum(dim=2).flatten(1)
        levels = getattr(tower, "deepstack_visual_indexes", ())
        mergers = getattr(tower, "deepstack_merger_list", ())
        self._mergers = dict(zip(levels, mergers, strict=True))
        self._tables: dict[tuple[int, int], VisionTables] = {}

    def __call__(self, taps: torch.Tensor, temporal: int, size: tuple[int, int]) -> torch.Tensor:
        tables = self._tables.get(size)
        if tables is None:
            tables = self._tables[size] = measure_tables(self._tower, size)
        width = len(self._weight)
        hidden = self._embed(taps, temporal).view(-1, size[0] * size[1], width)
        if tables.places is not None:
            hidden = hidden + tables.places
        if tables.order is not None:
            hidden = hidden[:, tables.order]
        deepstack = []
        for number, block in enumerate(self._tower.blocks):
            seen = self._attend(block.attn, block.norm1(hidden), tables, tables.windows[number])
            hidden = hidden + block.attn.proj(seen)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if number in self._mergers:
                deepstack.append(self._mergers[number](hidden.view(-1, width)))
        merged = self._tower.merger(hidden.view(-1, width))
        if tables.back is not None:
            merged = merged.view(len(hidden), len(tables.back), -1)[:, tables.back].flatten(0, 1)
        return torch.stack([merged, *deepstack])

    def _embed(self, taps: torch.Tensor, temporal: int) -> torch.Tensor:
        weight = self._conv.weight
        taps = taps.to(weight.device, weight.dtype)
        if self._exact:
            # The tower's own operator; as a matrix product it would round differently.
            pixels = taps.expand(-1, -1, temporal, -1)
            return self._conv(pixels.reshape(-1, *weight.shape[1:])).view(len(taps), -1)  # type: ignore[no-any-return]  # untyped
        if taps.shape[2] == temporal:
            return functional.linear(taps.flatten(1), self._weight, self._conv.bias)
        if weight.dtype == torch.float32:
            return functional.linear(taps.flatten(1), self._still, self._conv.bias)
        pixels = taps.expand(-1, -1, temporal, -1).reshape(len(taps), -1)
        return functional.linear(pixels, self._weight, self._conv.bias)

    def _attend(
        self, attention: Any, normed: torch.Tensor, tables: VisionTables, windows: Windows | None
    ) -> torch.Tensor:
        count, tokens, width = normed.shape
        mixed = attention.qkv(normed).view(count, tokens, 3, self._heads, -1)
        if self._exact:
            query = _rotate(mixed[:, :, 0], tables)
            key = _rotate(mixed[:, :, 1], tables)
        else:
            both = mixed[:, :, :2].float()
            turned = both.roll(both.shape[-1] // 2, -1)
            cos, sin = tables.cos[:, None], tables.signed[:, None]
            query, key = torch.addcmul(both * cos, turned, sin).to(mixed.dtype).unbind(2)
        value, scale = mixed[:, :, 2], attention.scaling
        if windows is None:
            return _look(query, key, value, scale).reshape(count, tokens, width)
        if windows.length:
            shape = (-1, windows.length, *query.shape[2:])
            query, key, value = (part.reshape(shape) for part in (query, key, value))
            return _look(query, key, value, scale).reshape(count, tokens, width)
        seen = torch.empty_like(query)
        for group in windows.groups:
            q, k, v = (part[:, group].flatten(0, 1) for part in (query, key, value))
            seen[:, group] = _look(q, k, v, scale).reshape(count, *group.shape, *query.shape[2:])
        return seen.reshape(count, tokens, width)


def _look(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention among the tokens of each picture, all ``(count, tokens, heads, head_dim)``."""
    return functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=scale
    ).transpose(1, 2)


class _WholeTower:
    """Any other tower, called as the model does."""

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        self._merge = int(tower.spatial_merge_size) ** 2

    def __call__(self, taps: torch.Tensor, temporal: int, size: tuple[int, int]) -> torch.Tensor:
        weight = self._tower.patch_embed.proj.weight
        pixels = taps.to(weight.device, weight.dtype).expand(-1, -1, temporal, -1)
        tokens = size[0] * size[1]
        grid = torch.tensor([[1, *size]] * (len(taps) // tokens), device=weight.device)
        output = self._tower(pixels.reshape(len(taps), -1), grid_thw=grid)
        return _merged(output, len(taps) // self._merge)[None]


def _merged(output: Any, tokens: int) -> torch.Tensor:
    """Find the merged embeddings in what a tower of some version of transformers returns."""
    candidates = [output, getattr(output, "pooler_output", None)]
    candidates += list(output) if isinstance(output, tuple) else []
    candidates.append(getattr(output, "last_hidden_state", None))
    for candidate in candidates:
        if isinstance(candidate, torch.Tensor) and len(candidate) == tokens:
            return candidate
    raise ArchitectureError(
        f"The vision tower must return {tokens} merged embeddings, got a {type(output).__name__}. "
        "This version of transformers is not supported; use engine='reference'."
    )


def _rotate(states: torch.Tensor, tables: VisionTables) -> torch.Tensor:
    """Turn queries or keys exactly as the tower does, in float32."""
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return ((wide * tables.cos) + (turned * tables.sin)).to(states.dtype)
