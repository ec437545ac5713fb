"""Fast greedy readout of many windows, to watch training with.

The text is the same that the scorer's direct mode generates; only the batching differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from procreward.engine.vision.preprocess import PreprocessConfig, preprocess_images
from procreward.models.nano.architecture import (
    CROP,
    FrameFeatures,
    encode_frames,
    run_windows,
)
from procreward.models.nano.corpus import MARGIN_BOX
from procreward.models.nano.prompts import PromptBank

__all__ = ["IMAGE_CONFIG", "centre_crop", "episode_windows", "read_percent"]

IMAGE_CONFIG = PreprocessConfig(min_pixels=32 * 32)
"""Preprocessing of frames that are cropped already."""

_MOST_DIGITS = 3


def centre_crop(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cut nano's own crop out of stored frames ``(n, 104, 128, 3)``."""
    top, left = CROP[0] - MARGIN_BOX[0], CROP[1] - MARGIN_BOX[1]
    return np.ascontiguousarray(images[:, top : top + CROP[2], left : left + CROP[3]])


def episode_windows(length: int, frames: int = 4, stride: int = 1) -> npt.NDArray[np.int64]:
    """Return ``(length, frames)`` indices: the window of every frame, padded with the first."""
    ends = np.arange(length)[:, None]
    return np.maximum(ends + stride * np.arange(1 - frames, 1)[None], 0).astype(np.int64)


@torch.no_grad()
def read_percent(
    model: Any,
    bank: PromptBank,
    images: npt.NDArray[np.uint8],
    windows: npt.NDArray[np.int64],
    instruction: str,
) -> npt.NDArray[np.float64]:
    """Return the greedy percentage of every window, NaN where the text is no number.

    Args:
        model: The model.
        bank: Prompts.
        images: ``(n, 96, 128, 3) uint8``.
        windows: ``(batch, 4)`` indices into ``images``.
        instruction: The task in words.
    """
    features = encode_frames(model, preprocess_images(images, IMAGE_CONFIG).pixel_values)
    parts = [
        _read(model, bank, features, torch.from_numpy(part), instruction)
        for part in np.array_split(windows, max(1, len(windows) // 64))
    ]
    return np.concatenate(parts)


def _read(
    model: Any, bank: PromptBank, features: FrameFeatures, windows: torch.Tensor, instruction: str
) -> npt.NDArray[np.float64]:
    chat = bank.chat(instruction).with_text(bank.prefix)
    count = len(windows)
    ids = torch.from_numpy(np.tile(chat.ids, (count, 1)))
    positions = torch.from_numpy(np.tile(chat.positions[:, None], (1, count, 1)))
    texts = np.array([""] * count, dtype=object)
    running = np.ones(count, dtype=bool)
    following = chat.next_position
    for _ in range(_MOST_DIGITS + 1):
        hidden = run_windows(model, features, windows, ids, positions)
        chosen = model.lm_head(hidden[:, -1]).argmax(-1)
        for row in np.flatnonzero(running):
            text = bank.decode(int(chosen[row]))
            running[row] = text.isdigit()
            texts[row] += text if running[row] else ""
        if not running.any():
            break
        ids = torch.cat((ids, chosen[:, None]), dim=1)
        step = torch.full((3, count, 1), following, dtype=torch.int64)
        positions, following = torch.cat((positions, step), dim=2), following + 1
    return np.array([_number(text, bool(r)) for text, r in zip(texts, running, strict=True)])


def _number(text: str, unfinished: bool) -> float:
    return min(100.0, float(text)) if text and not unfinished else float("nan")
