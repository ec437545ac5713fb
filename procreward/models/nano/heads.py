"""Throw-away heads: they teach the network during training and are not shipped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from procreward.models.nano.architecture import VISUAL_TOKENS
from procreward.models.nano.corpus import AUX_NAMES

__all__ = ["StateHead", "ValueHead", "state_loss"]

_FLAGS = 2
_WEIGHTS = {
    "gripper": 1.0,
    "object": 1.0,
    "target": 0.5,
    "offset": 2.0,
    "height": 3.0,
    "distance": 2.0,
    "progress": 3.0,
}


class StateHead(nn.Module):
    """Reads the simulator's state from one frame's tokens, with an output per task.

    Args:
        tasks: Number of tasks.
        hidden: Width of the tokens.
    """

    def __init__(self, tasks: int, hidden: int = 128) -> None:
        super().__init__()
        self.tasks = tasks
        self.inner = nn.Sequential(
            nn.LayerNorm(VISUAL_TOKENS * hidden),
            nn.Linear(VISUAL_TOKENS * hidden, 256),
            nn.GELU(),
            nn.Linear(256, tasks * len(AUX_NAMES)),
        )

    def forward(self, tokens: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Return ``(frames, 17)`` for tokens ``(frames, 12, hidden)`` and ``(frames,)`` tasks."""
        every = self.inner(tokens.flatten(1)).view(len(tokens), self.tasks, -1)
        chosen: torch.Tensor = every[torch.arange(len(tokens)), task]
        return chosen.float()


class ValueHead(nn.Module):
    """Reads progress in [0, 1] from the hidden state at ``<progress>``."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return ``(batch,)`` for ``(batch, hidden)``."""
        return torch.sigmoid(self.linear(hidden).float())[:, 0]


def state_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the loss of predicted states, height and nearness weighted up.

    Args:
        predicted: ``(frames, 17)``; the last two are logits.
        target: ``(frames, 17)``.
    """
    weights = predicted.new_tensor([_WEIGHTS[name.split("_")[0]] for name in AUX_NAMES[:-_FLAGS]])
    numbers = F.smooth_l1_loss(
        predicted[:, :-_FLAGS], target[:, :-_FLAGS], beta=0.1, reduction="none"
    )
    flags = F.binary_cross_entropy_with_logits(predicted[:, -_FLAGS:], target[:, -_FLAGS:])
    return (numbers * weights).sum(1).mean() / weights.sum() + 0.3 * flags
