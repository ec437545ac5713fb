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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from procreward.checks import check_int
from procreward.engine.sources import read_json_object
from procreward.errors import ConfigError, FrameError
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

_MAX_ASPECT = 200.0
_RESCALE = 255.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessConfig:
    """How frames become patches; the defaults are those published with Qwen3-VL.

    Attributes:
        min_pixels: Least area of an image in pixels; a smaller one is enlarged.
        max_pixels: Largest area of an image in pixels; a larger one is reduced.
        video_min_pixels: Least number of pixels of a whole clip (frames x height x width).
        video_max_pixels: Largest number of pixels of a whole clip.
        patch: Side of a patch in pixels.
        merge: Patches merged along each side into one token of the language model.
        temporal: Frames in one patch.
        mean: Mean per RGB channel, in [0, 1].
        std: Standard deviation per RGB channel, in (0, 1].
        frame_size: ``(width, height)`` that every incoming frame must have, or None for any.
        crop: ``(top, left, height, width)`` box cut from each frame before anything else, or None.

    Raises:
        ConfigError: If a value cannot be right.
    """

    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    video_min_pixels: int = 4_096
    video_max_pixels: int = 25_165_824
    patch: int = 16
    merge: int = 2
    temporal: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    frame_size: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "video_min_pixels", "video_max_pixels"):
            check_int(name, getattr(self, name), least=1)
        for name in ("patch", "merge", "temporal"):
            check_int(name, getattr(self, name), least=1)
        if self.min_pixels > self.max_pixels or self.video_min_pixels > self.video_max_pixels:
            raise ConfigError(
                "`min_pixels` must not exceed `max_pixels`, got "
                f"{self.min_pixels} > {self.max_pixels} (images) or "
                f"{self.video_min_pixels} > {self.video_max_pixels} (videos)."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(
                f"`mean` and `std` must hold 3 numbers and `std` be positive, got {self.mean} "
                f"and {self.std}."
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a merged token; sizes are rounded to multiples of it."""
        return self.patch * self.merge

    def image_grid(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the ``(1, rows, columns)`` patch grid of one image of the size given.

        Args:
            height: Height of the incoming frame in pixels (before the crop).
            width: Width of the incoming frame in pixels (before the crop).

        Returns:
            The grid that :func:`preprocess_images` gives for it.
        """
        if self.crop is not None:
            height, width = self.crop[2], self.crop[3]
        high, wide = smart_resize(
            height,
            width,
            factor=self.factor,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        return 1, high // self.patch, wide // self.patch

    def video_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the ``(groups, rows, columns)`` patch grid of one clip of the size given.

        Args:
            num_frames: Frames in the clip, at least 1.
            height: Height of the incoming frames in pixels (before the crop).
            width: Width of the incoming frames in pixels (before the crop).

        Returns:
            The grid that :func:`preprocess_video` gives for it.
        """
        if self.crop is not None:
            height, width = self.crop[2], self.crop[3]
        num_frames = max(num_frames, self.temporal)
        high, wide = video_resize(
            num_frames,
            height,
            width,
            factor=self.factor,
            temporal=self.temporal,
            min_pixels=self.video_min_pixels,
            max_pixels=self.video_max_pixels,
        )
        groups = -(-num_frames // self.temporal)
        return groups, high // self.patch, wide // self.patch


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
        return torch.tensor([self.grid] * self.count, dtype=torch.int64)


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return the size to which Qwen-VL resizes an image.

    Both sides become multiples of ``factor`` and the area falls in ``[min_pixels, max_pixels]``
    while the aspect ratio is kept as well as that allows. Python's rounding of halves to even is
    part of the published behaviour (112 px becomes 128 with a factor of 32).

    Args:
        height: Height in pixels, at least 1.
        width: Width in pixels, at least 1.
        factor: Multiple to round to, in pixels.
        min_pixels: Least area.
        max_pixels: Largest area.

    Returns:
        ``(height, width)`` in pixels.

    Raises:
        FrameError: If one side is more than 200 times the other.
    """
    _check_aspect(height, width)
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    return _fit(height, width, high, wide, 1, 1, factor, min_pixels, max_pixels)


def video_resize(
    num_frames: int,
    height: int,
    width: int,
    *,
    factor: int,
    temporal: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """Return the size to which Qwen3-VL resizes the frames of a clip.

    Like :func:`smart_resize`, but the budget is for the whole clip.

    Args:
        num_frames: Frames in the clip, at least ``temporal``.
        height: Height in pixels, at least 1.
        width: Width in pixels, at least 1.
        factor: Multiple to round to, in pixels.
        temporal: Frames in one patch.
        min_pixels: Least number of pixels of the clip.
        max_pixels: Largest number of pixels of the clip.

    Returns:
        ``(height, width)`` in pixels.

    Raises:
        FrameError: If one side is more than 200 times the other.
    """
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    rounded = round(num_frames / temporal) * temporal
    return _fit(height, width, high, wide, num_frames, rounded, factor, min_pixels, max_pixels)


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


def load_preprocess_config(folder: str | Path) -> PreprocessConfig:
    """Read the image settings beside a model's weights.

    ``preprocessor_config.json`` may use the older keys (``min_pixels``, ``max_pixels``) or the
    newer ones (``size.shortest_edge``, ``size.longest_edge``);
    ``video_preprocessor_config.json`` gives the budget of clips; ``procreward.json`` may add
    ``frame_size`` (width, height) and ``crop`` (top, left, height, width). What is absent keeps
    the published default.

    Args:
        folder: The model folder.

    Returns:
        The settings.

    Raises:
        ModelError: If one of the files is not a JSON object.
    """
    folder = Path(folder)
    image = _optional_json(folder / "preprocessor_config.json")
    video = _optional_json(folder / "video_preprocessor_config.json")
    own = _optional_json(folder / "procreward.json")
    values: dict[str, Any] = {}
    for source, low, high in (
        (image, "min_pixels", "max_pixels"),
        (video, "video_min_pixels", "video_max_pixels"),
    ):
        values.update(_budget(source, low, high))
    for key, name in (("patch_size", "patch"), ("merge_size", "merge")):
        if key in image:
            values[name] = int(image[key])
    if "temporal_patch_size" in image:
        values["temporal"] = int(image["temporal_patch_size"])
    for key, name in (("image_mean", "mean"), ("image_std", "std")):
        if key in image:
            values[name] = tuple(float(number) for number in image[key])
    for name in ("frame_size", "crop"):
        if own.get(name) is not None:
            values[name] = tuple(int(number) for number in own[name])
    return PreprocessConfig(**values)


def _budget(source: Mapping[str, Any], low: str, high: str) -> dict[str, int]:
    size = source.get("size") or {}
    pairs = (
        (low, source.get("min_pixels") or size.get("shortest_edge")),
        (high, source.get("max_pixels") or size.get("longest_edge")),
    )
    return {name: int(value) for name, value in pairs if value is not None}


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _check_aspect(height: int, width: int) -> None:
    if min(height, width) < 1 or max(height, width) / min(height, width) > _MAX_ASPECT:
        raise FrameError(
            f"A frame's sides must be at least 1 px and within a factor of {_MAX_ASPECT:.0f} of "
            f"each other, got {height}x{width} (height x width)."
        )


def _fit(
    height: int,
    width: int,
    high: int,
    wide: int,
    frames: int,
    rounded_frames: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    if rounded_frames * high * wide > max_pixels:
        beta = math.sqrt(frames * height * width / max_pixels)
        high = max(factor, math.floor(height / beta / factor) * factor)
        wide = max(factor, math.floor(width / beta / factor) * factor)
    elif rounded_frames * high * wide < min_pixels:
        beta = math.sqrt(min_pixels / (frames * height * width))
        high = math.ceil(height * beta / factor) * factor
        wide = math.ceil(width * beta / factor) * factor
    return high, wide


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
        raise FrameError(
            f"This model was trained on frames of {config.frame_size[0]}x{config.frame_size[1]} "
            f"(width x height), got {width}x{height}. Render or resize the camera to that size."
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
    scaled = [torch.tensor(values, dtype=torch.float32).mul_(_RESCALE) for values in (mean, std)]
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
