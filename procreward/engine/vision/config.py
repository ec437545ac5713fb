"""The settings by which frames become patches: sizes, budgets, normalisation.

Sizes are computed as Qwen-VL's published processors do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procreward.checks import check_int
from procreward.engine.sources import read_json_object
from procreward.errors import ConfigError, FrameError

__all__ = ["PreprocessConfig", "load_preprocess_config", "smart_resize", "video_resize"]

_MAX_ASPECT = 200.0
_PUBLISHED: dict[Any, dict[str, Any]] = {
    "qwen2_5_vl": {
        "min_pixels": 3136,
        "max_pixels": 12_845_056,
        "patch": 14,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
    }
}


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
            The grid that :func:`~procreward.engine.vision.preprocess.preprocess_images` gives it.
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
            The grid that :func:`~procreward.engine.vision.preprocess.preprocess_video` gives it.
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


def load_preprocess_config(folder: str | Path) -> PreprocessConfig:
    """Read the image settings beside a model's weights.

    They are in ``preprocessor_config.json`` with the older keys (``min_pixels``, ``max_pixels``) or
    the newer ones (``size.shortest_edge``, ``size.longest_edge``), and in
    ``video_preprocessor_config.json`` for the budget of clips; transformers 5 writes both into
    ``processor_config.json``, which counts where a file of its own is absent. ``procreward.json``
    may add ``frame_size`` (width, height) and ``crop`` (top, left, height, width). What is absent
    keeps the default published with Qwen3-VL or, where ``config.json`` says so, Qwen2.5-VL.

    Args:
        folder: The model folder.

    Returns:
        The settings.

    Raises:
        ModelError: If one of the files is not a JSON object.
    """
    folder = Path(folder)
    both = _optional_json(folder / "processor_config.json")
    image, video = (
        _optional_json(folder / f"{prefix}preprocessor_config.json") or both.get(part) or {}
        for prefix, part in (("", "image_processor"), ("video_", "video_processor"))
    )
    own = _optional_json(folder / "procreward.json")
    family = _optional_json(folder / "config.json").get("model_type")
    values: dict[str, Any] = dict(_PUBLISHED.get(family, {}))
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
