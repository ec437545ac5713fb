from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from procreward.engine import Clip
from procreward.engine.remote.picture_urls import PictureURLs, data_url
from procreward.types import Frames


def frames(*greys: int) -> Frames:
    return np.stack([np.full((8, 12, 3), grey, np.uint8) for grey in greys])


def clip(*greys: int, stream: str = "a") -> Clip:
    return Clip(frames=frames(*greys), keys=tuple((stream, "camera", grey) for grey in greys))


def test_a_window_that_moves_encodes_only_what_is_new() -> None:
    pictures = PictureURLs()
    first, again = pictures.urls([clip(1, 1, 1, 2), clip(1, 1, 2, 3)])
    assert pictures.encoded == 3
    assert first[3] == again[2]
    [later] = pictures.urls([clip(2, 3, 4)])
    assert pictures.encoded == 4
    assert later[:2] == again[2:]


def test_equal_frames_without_keys_are_encoded_once_a_call() -> None:
    pictures = PictureURLs()
    nameless = Clip(frames=frames(5, 5, 6))
    [urls] = pictures.urls([nameless])
    assert (urls[0], pictures.encoded) == (urls[1], 2)
    pictures.urls([nameless])
    assert pictures.encoded == 4


def test_frames_of_other_shapes_are_other_frames() -> None:
    pictures = PictureURLs()
    wide, high = np.zeros((1, 4, 8, 3), np.uint8), np.zeros((1, 8, 4, 3), np.uint8)
    [[one], [other]] = pictures.urls([Clip(frames=wide), Clip(frames=high)])
    assert one != other


def test_the_end_of_a_stream_frees_its_frames_only() -> None:
    pictures = PictureURLs()
    pictures.urls([clip(1, 2), clip(7, 8, stream="b")])
    pictures.release(["a", "unknown"])
    pictures.urls([clip(7, 8, stream="b")])
    assert pictures.encoded == 4
    pictures.urls([clip(1, 2)])
    assert pictures.encoded == 6


def test_no_more_is_kept_than_allowed() -> None:
    [[url]] = PictureURLs().urls([clip(1)])
    pictures = PictureURLs(max_bytes=2 * len(url) + 1)
    pictures.urls([clip(1, 2, 3)])  # 1 has to go
    pictures.urls([clip(2, 3)])
    assert pictures.encoded == 3
    pictures.urls([clip(1)])
    assert pictures.encoded == 4


@pytest.mark.parametrize(("kind", "tolerance"), [("png", 0), ("jpeg", 3)])
def test_urls_hold_the_picture(kind: str, tolerance: int) -> None:
    rows, columns = np.mgrid[:24, :40]
    frame = np.stack([rows * 5, columns * 3, rows + columns], axis=-1).astype(np.uint8)
    url = data_url(frame[:, ::-1], "png" if kind == "png" else "jpeg", jpeg_quality=98)
    head, _, data = url.partition(",")
    assert head == f"data:image/{kind};base64"
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert np.abs(read - frame[:, ::-1]).max() <= tolerance
