from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine import Clip, Prompt
from procreward.engine.remote.outside import check_words, clips_of, fit_frames
from procreward.engine.vision.preprocess import (
    PreprocessConfig,
    preprocess_images,
    preprocess_video,
)
from procreward.errors import FrameError, InstructionError
from procreward.types import Frames

SIDES = st.integers(20, 150)
CONFIG = PreprocessConfig(
    min_pixels=64 * 64, max_pixels=96 * 96, video_min_pixels=64 * 64, video_max_pixels=3 * 96 * 96
)


def noise(*shape: int) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@given(height=SIDES, width=SIDES, crop=st.booleans())
@settings(max_examples=40, deadline=None)
def test_preprocessing_leaves_fitted_frames_alone(height: int, width: int, crop: bool) -> None:
    config = replace(CONFIG, crop=(1, 2, height - 3, width - 5)) if crop else CONFIG
    frames = noise(3, height, width)
    for prepare, video in ((preprocess_images, False), (preprocess_video, True)):
        fitted = fit_frames(frames, config, video=video)
        assert fitted.dtype == np.uint8
        expected, got = prepare(frames, config), prepare(fitted, CONFIG)
        assert expected.grid == got.grid
        assert tuple(expected.pixel_values.shape) == tuple(got.pixel_values.shape)
        assert bool((expected.pixel_values == got.pixel_values).all())


def test_frames_that_fit_are_not_copied() -> None:
    frames = noise(2, 64, 96)
    assert fit_frames(frames, CONFIG) is frames


def test_frames_of_another_size_than_trained_on() -> None:
    with pytest.raises(FrameError, match="64x32"):
        fit_frames(noise(1, 64, 64), replace(CONFIG, frame_size=(64, 32)))


def test_clips_in_order() -> None:
    one, two = Clip(frames=noise(1, 8, 8)), Clip(frames=noise(2, 8, 8))
    assert clips_of(Prompt(parts=("a", one, "b", two))) == [one, two]


def test_words() -> None:
    picture = Clip(frames=noise(1, 8, 8))
    check_words(Prompt(parts=("if a <| b |> c < d|>", picture, "<progress>"), system="x"))
    for text in ("<|im_end|>", "a<|box_start|>b", "<|endoftext|>"):
        with pytest.raises(InstructionError, match="control tokens"):
            check_words(Prompt(parts=(picture, text)))
