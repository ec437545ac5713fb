"""Position tables and windows of the Qwen-VL vision towers, read off the tower itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

__all__ = ["VisionTables", "Windows", "measure_tables"]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """How a layer cuts a picture into windows that do not see each other.

    Attributes:
        length: Tokens of each window when all are alike, else 0.
        groups: For windows that differ, those of each length: ``(windows, length) int64`` numbers
            of their tokens.
    """

    length: int
    groups: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class VisionTables:
    """What depends on a picture's size only.

    Attributes:
        places: ``(tokens, hidden)`` learned position embeddings; None for Qwen2.5-VL.
        cos: ``(tokens, 1, head_dim) float32`` rotary factors.
        sin: The same.
        signed: The sines, their first half negated.
        order: ``(tokens,) int64``, the patch that stands at each place inside the tower; None when
            that is the order of the patches.
        back: ``(tokens / 4,) int64``, where each merged token is found at the end; None likewise.
        windows: For each layer its windows; None where it sees the whole picture.
    """

    places: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor
    signed: torch.Tensor
    order: torch.Tensor | None
    back: torch.Tensor | None
    windows: tuple[Windows | None, ...]


def measure_tables(tower: Any, size: tuple[int, int]) -> VisionTables:
    """Find out what enters the tower's layers when there is no picture.

    That works with every version of transformers, whatever computes the tables there.

    Args:
        tower: ``model.model.visual`` of a Qwen3-VL or Qwen2.5-VL model.
        size: Rows and columns of the picture in patches.

    Returns:
        The tables for pictures of this size.
    """
    weight = tower.patch_embed.proj.weight
    learned = hasattr(tower, "pos_embed")
    probes = [_Probe(weight.dtype) for _ in tower.blocks]
    # A shallow twin, so that nobody who uses the tower meanwhile sees the stand-ins.
    twin = copy.copy(tower)
    stand_ins = {
        "patch_embed": _Blank(weight.detach(), numbered=not learned),
        "blocks": torch.nn.ModuleList(probes),
    }
    twin.__dict__["_modules"] = {**tower._modules, **stand_ins}
    tokens, unit = size[0] * size[1], int(tower.spatial_merge_size) ** 2
    pixels = weight.new_zeros(tokens, weight[0].numel())
    twin(pixels, grid_thw=torch.tensor([[1, *size]], device=weight.device))
    hidden, (cos, sin) = probes[0].hidden, probes[0].rotary
    cos, sin = cos.float()[:, None], sin.float()[:, None]
    half = sin.shape[-1] // 2
    order = None if learned else hidden[:, 0].long()
    return VisionTables(
        places=hidden.clone() if learned else None,
        cos=cos,
        sin=sin,
        signed=torch.cat((-sin[..., :half], sin[..., half:]), dim=-1),
        order=order,
        back=None if order is None else torch.argsort(order[::unit] // unit),
        windows=tuple(_windows(probe.bounds, tokens, weight.device) for probe in probes),
    )


def _windows(bounds: list[int], tokens: int, device: torch.device) -> Windows | None:
    """Sort the windows between bounds by their length."""
    if bounds == [0, tokens]:
        return None
    starts: dict[int, list[int]] = {}
    for start, end in pairwise(bounds):
        starts.setdefault(end - start, []).append(start)
    if len(starts) == 1:
        return Windows(length=next(iter(starts)), groups=())
    groups = tuple(
        (torch.tensor(first)[:, None] + torch.arange(length)).to(device)
        for length, first in starts.items()
    )
    return Windows(length=0, groups=groups)


class _Blank(torch.nn.Module):
    """Stands in for the patch embedding: no picture at all, or the numbers of its patches."""

    def __init__(self, weight: torch.Tensor, *, numbered: bool) -> None:
        super().__init__()
        self._weight, self._numbered = weight, numbered

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        width = len(self._weight)
        if not self._numbered:
            return self._weight.new_zeros(len(pixels), width)
        # In single precision, which holds every number exactly.
        numbers = torch.arange(len(pixels), dtype=torch.float32, device=pixels.device)
        return numbers[:, None].repeat(1, width)


class _Probe(torch.nn.Module):
    """Stands in for a layer: keeps what enters it."""

    hidden: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]
    bounds: list[int]

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def forward(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        self.hidden, self.rotary = hidden_states, named["position_embeddings"]
        self.bounds = named["cu_seqlens"].tolist()
        return torch.zeros_like(hidden_states, dtype=self._dtype)
