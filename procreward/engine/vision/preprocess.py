"""Frames to the flat patches that the Qwen-VL vision tower reads, without any processor class.

The arithmetic is that of the published Qwen2-VL image processor and Qwen3-VL video processor
(transformers), so the same weights see the same numbers: resize in uint8 with antialiased bicubic
interpolation to multiples of ``patch * merge`` within a pixel budget, scale to about [-1, 1], cut
into patches of two frames (an image is its own second frame). When no resize is needed the result
equals transformers' bit for bit; with a resize it equals the GPU (torchvision) backend.

Example:
    >>> import numpy as np
    >>> config = PreprocessConfig(min_pixels=32 * 32)
    >>> patches = preprocess_images(np.zeros((4, 96, 64, 3), np.uint8), config)
    >>> tuple(patches.pixel_values.shape), patches.grid
    ((96, 1536), (1, 6, 4))
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from procreward.engine.vision.config import (
    PreprocessConfig,
    load_preprocess_config,
    smart_resize,
    video_resize,
)
from procreward.errors import FrameError
from procreward.types import Frames

__all__ = [
    "Patches",
    "PreprocessConfig",
    "check_frames",
    "load_preprocess_config",
    "preprocess_groups",
    "preprocess_images",
    "preprocess_video",
    "smart_resize",
    "video_resize",
]

_RESCALE = 255.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patches:
    """What the vision tower reads.

    Attributes:
        taps: ``(count * t * h * w, 3, 1 | temporal, patch * patch) float32``, about [-1, 1]; a
            picture that stands still has one tap for all its moments.
        temporal: Frames in one patch.
        grid: ``(t, h, w)`` in patches of each of the pictures (or of the one video).
        count: Number of pictures (1 for a video).
    """

    taps: torch.Tensor
    temporal: int
    grid: tuple[int, int, int]
    count: int

    @property
    def pixel_values(self) -> torch.Tensor:
        """The taps as transformers wants them, ``(patches, 3 * temporal * patch * patch)``."""
        return self.taps.expand(-1, -1, self.temporal, -1).reshape(len(self.taps), -1)

    @property
    def grid_thw(self) -> torch.Tensor:
        """The grids as transformers wants them, ``(count, 3) int64``."""
        return torch.tensor([self.grid] * self.count, dtype=torch.int64, device="cpu")


def preprocess_images(
    frames: Frames, config: PreprocessConfig, *, device: torch.device | None = None
) -> Patches:
    """Turn frames into patches, each frame a picture of its own.

    Args:
        frames: ``(num_frames, height, width, 3) uint8``, upright RGB.
        config: How.
        device: Where the patches are wanted; None for the CPU. Resizing stays on the CPU, where it
            is exact.

    Returns:
        The patches, picture after picture, each with grid ``(1, rows, columns)``.

    Raises:
        FrameError: If the frames have another dtype, shape or size than the model expects.
    """
    check_frames(frames, config)
    _, rows, columns = config.image_grid(frames.shape[1], frames.shape[2])
    taps = _taps(frames, 1, rows, columns, config, device)
    return Patches(taps=taps, temporal=config.temporal, grid=(1, rows, columns), count=len(frames))


def preprocess_video(
    frames: Frames, config: PreprocessConfig, *, device: torch.device | None = None
) -> Patches:
    """Turn frames into the patches of one video; an odd last frame is repeated.

    Args:
        frames: ``(num_frames, height, width, 3) uint8``, upright RGB, oldest first.
        config: How; the ``video_*`` budget counts.
        device: As for :func:`preprocess_images`.

    Returns:
        The patches with grid ``(ceil(num_frames / temporal), rows, columns)``.

    Raises:
        FrameError: If the frames have another dtype, shape or size than the model expects.
    """
    check_frames(frames, config)
    _, rows, columns = config.video_grid(*frames.shape[:3])
    missing = -len(frames) % config.temporal
    if missing:
        frames = np.concatenate((frames, np.repeat(frames[-1:], missing, axis=0)))
    return preprocess_groups(frames, rows, columns, config, device=device)


def preprocess_groups(
    frames: Frames,
    rows: int,
    columns: int,
    config: PreprocessConfig,
    *,
    device: torch.device | None = None,
) -> Patches:
    """Turn groups of frames, each one moment of a video, into patches of a given grid.

    Args:
        frames: ``(groups * temporal, height, width, 3) uint8``, group after group.
        rows: Height of the grid in patches.
        columns: Width of the grid in patches.
        config: How; its budgets do not count.
        device: As for :func:`preprocess_images`.

    Returns:
        The patches with grid ``(groups, rows, columns)``.

    Raises:
        FrameError: If the frames have another dtype, shape or size than the model expects.
    """
    check_frames(frames, config)
    taps = _taps(frames, config.temporal, rows, columns, config, device)
    grid = (len(frames) // config.temporal, rows, columns)
    return Patches(taps=taps, temporal=config.temporal, grid=grid, count=1)


def check_frames(frames: Frames, config: PreprocessConfig) -> None:
    """Refuse frames that a model cannot take.

    Args:
        frames: What should be ``(num_frames, height, width, 3) uint8``.
        config: What the model takes.

    Raises:
        FrameError: If the frames have another dtype, shape or size than the model expects.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 1:
        raise FrameError(
            "`frames` must be (num_frames >= 1, height, width, 3) uint8, got "
            f"{frames.shape} {frames.dtype}."
        )
    height, width = frames.shape[1:3]
    if config.frame_size is not None and (width, height) != tuple(config.frame_size):
        wide, high = config.frame_size
        raise FrameError(
            f"This model was trained on frames of {wide}x{high} (width x height), got "
            f"{width}x{height}. Set `frame_size` to it (`--frame-size {wide} {high}`) for a camera "
            "or a video; resize other pictures yourself."
        )
    if config.crop is not None:
        top, left, high, wide = config.crop
        if top < 0 or left < 0 or top + high > height or left + wide > width:
            raise FrameError(
                f"The crop (top {top}, left {left}, height {high}, width {wide}) must lie inside "
                f"the frame, got a frame of {width}x{height} (width x height)."
            )


def _taps(
    frames: Frames,
    moments: int,
    rows: int,
    columns: int,
    config: PreprocessConfig,
    device: torch.device | None,
) -> torch.Tensor:
    """Checked frames to :attr:`Patches.taps`; ``moments`` frames make up one patch."""
    if config.crop is not None:
        top, left, high, wide = config.crop
        frames = frames[:, top : top + high, left : left + wide]
    if not frames.flags.writeable:
        frames = frames.copy()  # torch warns about arrays that it must not write to
    pixels = _resize(
        torch.from_numpy(frames).permute(0, 3, 1, 2), rows * config.patch, columns * config.patch
    )
    if device is not None and device.type != "cpu":
        if device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(device, non_blocking=True)
    # Bytes are cheaper to bring into planes than floats.
    return _patchify(_normalise(pixels.contiguous(), config), moments, config)


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    return torch.nn.functional.interpolate(
        pixels, size=(height, width), mode="bicubic", antialias=True
    )


def _normalise(pixels: torch.Tensor, config: PreprocessConfig) -> torch.Tensor:
    mean, std = _scaled(config.mean, config.std, pixels.device)
    return pixels.float().sub_(mean).div_(std)


@lru_cache(maxsize=16)
def _scaled(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Mean and deviation for pixels in [0, 255]; one number each where channels do not differ."""
    # They are scaled instead of the pixels, as the GPU backend does.
    scaled = [
        torch.tensor(values, dtype=torch.float32, device="cpu").mul_(_RESCALE)
        for values in (mean, std)
    ]
    # Only the CPU divides by a number; CUDA multiplies by its inverse, which rounds otherwise.
    if device.type == "cpu" and len(set(mean)) == len(set(std)) == 1:
        return float(scaled[0][0]), float(scaled[1][0])
    return scaled[0][:, None, None].to(device), scaled[1][:, None, None].to(device)


def _patchify(pixels: torch.Tensor, moments: int, config: PreprocessConfig) -> torch.Tensor:
    """``(count, 3, height, width)`` to patches in the order in which the tower merges them."""
    count, channels, height, width = pixels.shape
    rows, columns = height // config.factor, width // config.factor
    patches = pixels.view(
        count // moments,
        moments,
        channels,
        rows,
        config.merge,
        config.patch,
        columns,
        config.merge,
        config.patch,
    )
    patches = patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return patches.reshape(-1, channels, moments, config.patch**2)
