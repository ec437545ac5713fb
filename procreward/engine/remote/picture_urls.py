"""Frames as ``data:`` URLs, each encoded once however many windows it is part of."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

import numpy as np

from procreward.engine import Clip, FrameKey
from procreward.types import Frame

__all__ = ["ImageFormat", "PictureURLs", "data_url"]

ImageFormat = Literal["png", "jpeg"]
"""How a frame is compressed: without loss, or smaller."""


class PictureURLs:
    """Encodes frames and keeps the latest ones by their keys.

    Args:
        image_format: How a frame is compressed.
        jpeg_quality: 1 to 100; counts for ``"jpeg"`` only.
        max_pixels: Area in pixels above which a frame is reduced, or None.
        max_bytes: How much text is kept between calls.
    """

    def __init__(
        self,
        image_format: ImageFormat = "png",
        *,
        jpeg_quality: int = 95,
        max_pixels: int | None = None,
        max_bytes: int = 64 * 1024**2,
    ) -> None:
        self._format: ImageFormat = image_format
        self._quality = jpeg_quality
        self._max_pixels = max_pixels
        self._max_bytes = max_bytes
        self._kept: OrderedDict[FrameKey, str] = OrderedDict()
        self._bytes = 0
        self.encoded = 0
        """How many frames were compressed so far."""

    def urls(self, clips: Iterable[Clip]) -> list[list[str]]:
        """Encode clips.

        Args:
            clips: The clips of one call; equal frames among them are encoded once, whether or not
                they have keys.

        Returns:
            For each clip, one URL per frame.
        """
        seen: dict[bytes, str] = {}
        return [
            [self._url(clip, index, seen) for index in range(len(clip.frames))] for clip in clips
        ]

    def release(self, streams: Iterable[str]) -> None:
        """Forget the frames of streams that have ended.

        Args:
            streams: Names that keys begin with.
        """
        ended = set(streams)
        for key in [key for key in self._kept if key[0] in ended]:
            self._bytes -= len(self._kept.pop(key))

    def _url(self, clip: Clip, index: int, seen: dict[bytes, str]) -> str:
        key = clip.keys[index] if clip.keys else None
        if key is not None and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        frame = clip.frames[index]
        name = hashlib.blake2b(frame.tobytes(), digest_size=16).digest()
        name += repr(frame.shape).encode()
        if name not in seen:
            self.encoded += 1
            small = _reduced(frame, self._max_pixels)
            seen[name] = data_url(small, self._format, jpeg_quality=self._quality)
        if key is not None:
            self._keep(key, seen[name])
        return seen[name]

    def _keep(self, key: FrameKey, url: str) -> None:
        self._kept[key] = url
        self._bytes += len(url)
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)


def data_url(frame: Frame, image_format: ImageFormat, *, jpeg_quality: int = 95) -> str:
    """Write a frame as a ``data:`` URL.

    Args:
        frame: ``(height, width, 3) uint8``, upright RGB.
        image_format: How it is compressed.
        jpeg_quality: 1 to 100; counts for ``"jpeg"`` only.

    Returns:
        The URL.
    """
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(frame))
    if image_format == "png":
        # The lightest compression: the time it takes counts, the loopback's bandwidth does not.
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _reduced(frame: Frame, max_pixels: int | None) -> Frame:
    if max_pixels is None or frame.shape[0] * frame.shape[1] <= max_pixels:
        return frame
    from procreward.engine.remote.outside import fit_frames
    from procreward.engine.vision.preprocess import PreprocessConfig

    small: Frame = fit_frames(frame[None], PreprocessConfig(min_pixels=1, max_pixels=max_pixels))[0]
    return small
