"""Position tables of the Qwen3-VL vision tower, read off the tower itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["VisionTables", "measure_tables"]


@dataclass(frozen=True, slots=True, eq=False)
class VisionTables:
    """What depends on a picture's size only.

    Attributes:
        places: ``(tokens, hidden)`` learned position embeddings.
        cos: ``(tokens, 1, head_dim) float32`` rotary factors.
        sin: The same.
        signed: The sines, their first half negated.
    """

    places: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    signed: torch.Tensor


def measure_tables(tower: Any, size: tuple[int, int]) -> VisionTables:
    """Find out what enters the tower's first layer when there is no picture.

    That works with every version of transformers, whatever computes the tables there.

    Args:
        tower: ``model.model.visual`` of a Qwen3-VL model.
        size: Rows and columns of the picture in patches.

    Returns:
        The tables for pictures of this size.
    """
    weight = tower.patch_embed.proj.weight
    probe = _Probe()
    # A shallow twin, so that nobody who uses the tower meanwhile sees the stand-ins.
    twin = copy.copy(tower)
    stand_ins = {
        "patch_embed": _Blank(weight.shape[0], weight.detach()),
        "blocks": torch.nn.ModuleList([probe]),
    }
    twin.__dict__["_modules"] = {**tower._modules, **stand_ins}
    pixels = weight.new_zeros(size[0] * size[1], weight[0].numel())
    twin(pixels, grid_thw=torch.tensor([[1, *size]], device=weight.device))
    assert probe.seen is not None
    places, (cos, sin) = probe.seen
    cos, sin = cos.float()[:, None], sin.float()[:, None]
    half = sin.shape[-1] // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return VisionTables(places=places.clone(), cos=cos, sin=sin, signed=signed)


class _Blank(torch.nn.Module):
    """Stands in for the patch embedding: no picture at all."""

    def __init__(self, hidden: int, like: torch.Tensor) -> None:
        super().__init__()
        self._hidden, self._like = hidden, like

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._like.new_zeros(len(pixels), self._hidden)


class _Probe(torch.nn.Module):
    """Stands in for the layers: keeps what enters the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[torch.Tensor, Any] | None = None

    def forward(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        self.seen = (hidden_states, named["position_embeddings"])
        return hidden_states
