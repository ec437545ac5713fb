"""A vision tower for small models, where the form of a product matters as much as its size.

The same mathematics on rearranged copies of the weights: every matrix is stored the way the product
reads it, a picture that stands still meets the sum of the weights of its moments, and the two
halves of every head that a rotation mixes lie side by side, so that rotating is one complex
product. Features differ from the tower's own by rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from procreward.engine.vision.tables import measure_tables

__all__ = ["FusedTower", "suits_fused_tower"]

_LARGEST = 30_000_000
"""Weights of a tower from which on copying them costs more than it saves."""

_GELU_CUBE, _GELU_SLOPE = 0.044715, 1.5957691216057308
"""The published constants of GELU's tanh form; the slope is sqrt(8 / pi)."""


def suits_fused_tower(tower: Any) -> bool:
    """Whether a tower is one that :class:`FusedTower` is for.

    Args:
        tower: ``model.model.visual``.

    Returns:
        True for a Qwen3-VL tower in float32 on the CPU below 30 million weights, made of plain
        layers with the published activation.
    """
    if not hasattr(tower, "deepstack_merger_list"):
        return False
    if tower.config.hidden_act != "gelu_pytorch_tanh":
        return False
    weights = list(tower.parameters())
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        return False
    if sum(weight.numel() for weight in weights) >= _LARGEST:
        return False
    products = (
        part
        for block in tower.blocks
        for part in (block.attn.qkv, block.attn.proj, block.mlp.linear_fc1, block.mlp.linear_fc2)
    )
    return all(type(part) is torch.nn.Linear for part in products)


class _Product:
    """A layer ``x W + b`` with its matrix stored as the product reads it."""

    __slots__ = ("bias", "matrix")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.matrix = weight.t().contiguous()
        self.bias = bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, rows, self.matrix)


class _Norm:
    """A layer norm."""

    __slots__ = ("bias", "eps", "shape", "weight")

    def __init__(self, module: Any) -> None:
        self.shape, self.eps = module.normalized_shape, module.eps
        self.weight, self.bias = module.weight, module.bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(rows, self.shape, self.weight, self.bias, self.eps)


class _Merger:
    """Four patches to one token of the language model."""

    __slots__ = ("first", "norm", "second", "width")

    def __init__(self, module: Any) -> None:
        self.width = int(module.linear_fc1.in_features)
        self.norm = _Norm(module.norm)
        self.first = _Product(module.linear_fc1.weight, module.linear_fc1.bias)
        self.second = _Product(module.linear_fc2.weight, module.linear_fc2.bias)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        # The norm is over one patch or over all four.
        rows = self.norm(hidden.view(-1, self.norm.shape[0])).view(-1, self.width)
        return self.second(functional.gelu(self.first(rows)))


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer of the tower."""

    norm1: _Norm
    qkv: _Product
    proj: _Product
    scale: float
    norm2: _Norm
    first: _Product
    second: _Product
    merger: _Merger | None


class FusedTower:
    """Encodes pictures of one size; see :func:`suits_fused_tower`.

    Args:
        tower: ``model.model.visual``. Its weights are copied; later changes to it are not seen.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        self._heads = int(tower.config.num_heads)
        self._hidden = int(tower.config.hidden_size)
        self._wide = self._hidden // self._heads
        with torch.inference_mode():
            patch = tower.patch_embed.proj
            self._moving = _Product(patch.weight.flatten(1), patch.bias)
            self._still = _Product(patch.weight.sum(dim=2).flatten(1), patch.bias)
            mergers = dict(
                zip(tower.deepstack_visual_indexes, tower.deepstack_merger_list, strict=True)
            )
            self._layers = [
                self._fuse(block, mergers.get(number)) for number, block in enumerate(tower.blocks)
            ]
            self._merger = _Merger(tower.merger)
        self._tables: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, taps: torch.Tensor, temporal: int, size: tuple[int, int]) -> torch.Tensor:
        """Encode pictures of one size.

        Args:
            taps: As in :attr:`procreward.engine.vision.preprocess.Patches.taps`.
            temporal: Frames in one patch.
            size: Rows and columns of a picture in patches.

        Returns:
            ``(1 + num_deepstack, tokens, hidden)``, as
            :attr:`procreward.engine.vision.tower.Features.levels`.
        """
        places, turns = self._tables_for(size)
        embed = self._still if taps.shape[2] == 1 else self._moving
        hidden = embed(taps.flatten(1)).view(-1, *places.shape).add_(places)
        hidden = hidden.view(-1, self._hidden)
        levels = []
        for layer in self._layers:
            mixed = layer.qkv(layer.norm1(hidden)).view(-1, len(places), 3, self._heads, self._wide)
            hidden = layer.proj(self._attend(mixed, turns, layer.scale)).add_(hidden)
            hidden = layer.second(_gelu(layer.first(layer.norm2(hidden)))).add_(hidden)
            if layer.merger is not None:
                levels.append(layer.merger(hidden))
        return torch.stack([self._merger(hidden), *levels])

    def _attend(self, mixed: torch.Tensor, turns: torch.Tensor, scale: float) -> torch.Tensor:
        """``(count, tokens, 3, heads, head_dim)`` to what each token takes from its picture."""
        both = torch.view_as_complex(mixed[:, :, :2].view(*mixed.shape[:2], 2, self._heads, -1, 2))
        query, key = torch.view_as_real(both * turns).flatten(-2).unbind(2)
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            mixed[:, :, 2].transpose(1, 2),
            scale=scale,
        )
        return seen.transpose(1, 2).reshape(-1, self._hidden)

    def _fuse(self, block: Any, merger: Any) -> _Layer:
        attention, mlp = block.attn, block.mlp
        # Feature i of a head comes beside feature i + half: the two that a rotation mixes.
        # The device is said: the caller's default may be another one.
        cpu = attention.qkv.weight.device
        order = torch.arange(self._wide, device=cpu).view(2, -1).t().flatten()
        rows = torch.arange(3 * self._hidden, device=cpu)
        turned = rows[: 2 * self._hidden].view(-1, self._wide)[:, order].flatten()
        rows = torch.cat((turned, rows[2 * self._hidden :]))
        return _Layer(
            norm1=_Norm(block.norm1),
            qkv=_Product(attention.qkv.weight[rows], attention.qkv.bias[rows]),
            proj=_Product(attention.proj.weight, attention.proj.bias),
            scale=attention.scaling,
            norm2=_Norm(block.norm2),
            first=_Product(mlp.linear_fc1.weight, mlp.linear_fc1.bias),
            second=_Product(mlp.linear_fc2.weight, mlp.linear_fc2.bias),
            merger=None if merger is None else _Merger(merger),
        )

    def _tables_for(self, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Position embeddings ``(tokens, hidden)``; rotations ``(tokens, 1, 1, head_dim / 2)``."""
        tables = self._tables.get(size)
        if tables is None:
            measured = measure_tables(self._tower, size)
            assert measured.places is not None  # Qwen3-VL has learned ones
            half = self._wide // 2
            turns = torch.complex(measured.cos[..., :half], measured.sin[..., :half])
            tables = self._tables[size] = (measured.places, turns[:, None])
        return tables


def _gelu(inner: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form; written with a sigmoid it takes half the time."""
    bent = torch.addcmul(inner, inner, inner * inner, value=_GELU_CUBE)
    return bent.mul_(_GELU_SLOPE).sigmoid_().mul_(inner)
