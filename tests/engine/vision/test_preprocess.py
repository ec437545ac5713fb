from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from procreward.engine.vision.preprocess import (
    PreprocessConfig,
    preprocess_groups,
    preprocess_images,
    preprocess_video,
    smart_resize,
)
from procreward.errors import FrameError
from procreward.types import Frames
from tests.engine.vision_models import QWEN25_IMAGES

SIDES = st.integers(min_value=16, max_value=1500)


def noise(*shape: int, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("height_width", [(32, 32), (96, 96), (96, 160), (256, 320)])
def test_without_resize_it_equals_the_published_processor(height_width: tuple[int, int]) -> None:
    height, width = height_width
    frames = noise(3, height, width)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 1024, "longest_edge": 2**24},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    theirs = processor(images=list(frames), return_tensors="pt")
    ours = preprocess_images(frames, PreprocessConfig(min_pixels=1024))
    assert torch.equal(ours.grid_thw, theirs["image_grid_thw"])
    # The slow (PIL) processor divides by 255 first, which rounds the last bit of a float.
    assert torch.allclose(ours.pixel_values, theirs["pixel_values"], rtol=0, atol=6e-8)


def test_normalisation_is_the_fused_one_of_the_gpu_processor_to_the_bit() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    frames = np.tile(np.repeat(levels, 3, axis=-1), (1, 2, 2, 1))
    ours = preprocess_images(frames, PreprocessConfig(min_pixels=1024))
    expected = (np.arange(256, dtype=np.float32) - np.float32(127.5)) / np.float32(127.5)
    first_patch = ours.pixel_values[0].reshape(3, 2, 256)
    for plane in first_patch.reshape(6, 256):
        assert torch.equal(plane, torch.from_numpy(expected))


@pytest.mark.parametrize("height_width", [(84, 84), (112, 200), (480, 641), (720, 1280)])
def test_with_resize_it_interpolates_uint8_with_antialiasing(height_width: tuple[int, int]) -> None:
    height, width = height_width
    frames = noise(1, height, width)
    config = PreprocessConfig(min_pixels=65_536, max_pixels=2**18)
    ours = preprocess_images(frames, config)
    high, wide = smart_resize(height, width, factor=32, min_pixels=65_536, max_pixels=2**18)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        size=(high, wide),
        mode="bicubic",
        antialias=True,
    )
    again = preprocess_images(resized.permute(0, 2, 3, 1).numpy(), config)
    assert ours.grid == (1, high // 16, wide // 16)
    assert torch.equal(ours.pixel_values, again.pixel_values)


def test_video_pairs_frames_and_repeats_an_odd_last_one() -> None:
    frames = noise(3, 64, 96)
    config = PreprocessConfig(min_pixels=1024)
    video = preprocess_video(frames, config)
    padded = preprocess_video(np.concatenate((frames, frames[-1:])), config)
    assert video.grid == (2, 4, 6)
    assert torch.equal(video.pixel_values, padded.pixel_values)
    # A pair of equal frames is what a picture is.
    still = preprocess_video(np.repeat(frames[:1], 2, axis=0), config)
    assert torch.equal(still.pixel_values, preprocess_images(frames[:1], config).pixel_values)
    # Row 0 holds channel 0 of frame 0, then of frame 1.
    first = video.pixel_values[0].reshape(3, 2, 16, 16)
    expected = (torch.from_numpy(frames[:2, :16, :16, 1]).float() - 127.5) / 127.5
    assert torch.equal(first[1], expected)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_frames_do_not_influence_each_other(count: int, rows: int, columns: int) -> None:
    frames = noise(count, rows * 32, columns * 32)
    config = PreprocessConfig(min_pixels=1024)
    together = preprocess_images(frames, config).pixel_values.reshape(count, -1, 1536)
    for index in range(count):
        alone = preprocess_images(frames[index : index + 1], config).pixel_values
        assert torch.equal(together[index], alone)


def test_crop_takes_the_box_and_refuses_other_sizes() -> None:
    config = PreprocessConfig(min_pixels=1024, frame_size=(128, 128), crop=(0, 16, 96, 96))
    frames = noise(2, 128, 128)
    cut = preprocess_images(frames[:, 0:96, 16:112], PreprocessConfig(min_pixels=1024))
    assert torch.equal(preprocess_images(frames, config).pixel_values, cut.pixel_values)
    assert config.image_grid(128, 128) == (1, 6, 6)
    with pytest.raises(
        FrameError, match=r"trained on frames of 128x128 .* got 96x128\. .*`--frame-size 128 128`"
    ):
        preprocess_images(noise(2, 128, 96), config)
    with pytest.raises(FrameError, match="must lie inside"):
        preprocess_images(noise(1, 64, 64), PreprocessConfig(crop=(0, 0, 96, 96)))


def test_read_only_frames_are_accepted_and_never_changed() -> None:
    frames = noise(2, 64, 64)
    before = frames.copy()
    frames.setflags(write=False)
    preprocess_images(frames, PreprocessConfig(min_pixels=1024))
    assert np.array_equal(frames, before)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 4), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
)
def test_other_shapes_and_dtypes_are_refused(frames: Frames) -> None:
    with pytest.raises(FrameError, match="must be"):
        preprocess_images(frames, PreprocessConfig())
    with pytest.raises(FrameError, match="must be"):
        preprocess_video(frames, PreprocessConfig())


def test_extreme_shapes_are_refused() -> None:
    with pytest.raises(FrameError, match="within a factor of 200"):
        preprocess_images(np.zeros((1, 2, 500, 3), np.uint8), PreprocessConfig())


def test_channels_may_differ_as_for_qwen25() -> None:
    config = QWEN25_IMAGES
    frames = noise(2, 56, 84)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 784, "longest_edge": 2**24},
        patch_size=14,
        image_mean=list(config.mean),
        image_std=list(config.std),
    )
    theirs = processor(images=list(frames), return_tensors="pt")
    ours = preprocess_images(frames, config)
    assert torch.equal(ours.grid_thw, theirs["image_grid_thw"])
    # The slow (PIL) processor divides by 255 first, which rounds the last bits of a float.
    assert torch.allclose(ours.pixel_values, theirs["pixel_values"], rtol=0, atol=1e-6)
    scaled_mean, scaled_std = (torch.tensor(values) * 255 for values in (config.mean, config.std))
    pixel = torch.from_numpy(frames[0, 0, 0]).float()
    expected = (pixel - scaled_mean) / scaled_std
    assert torch.equal(ours.pixel_values[0].reshape(3, 2, 196)[:, 0, 0], expected)


def test_a_picture_is_kept_once_for_both_moments() -> None:
    config = PreprocessConfig(min_pixels=1024)
    picture, video = (
        preprocess_images(noise(1, 64, 64), config),
        preprocess_video(noise(2, 64, 64), config),
    )
    assert picture.taps.shape == (16, 3, 1, 256)
    assert video.taps.shape == (16, 3, 2, 256)
    assert picture.pixel_values.shape == video.pixel_values.shape == (16, 1536)


@pytest.mark.parametrize("height_width", [(64, 96), (70, 100)])
def test_groups_of_different_clips_can_be_cut_together(height_width: tuple[int, int]) -> None:
    one, other = noise(4, *height_width, seed=1), noise(2, *height_width, seed=2)
    config = PreprocessConfig(min_pixels=1024)
    parts = [preprocess_video(clip, config) for clip in (one, other)]
    together = preprocess_groups(np.concatenate((one, other)), *parts[0].grid[1:], config)
    assert together.grid == (3, *parts[0].grid[1:])
    expected = torch.cat([part.pixel_values for part in parts])
    assert torch.equal(together.pixel_values, expected)


@pytest.mark.parametrize("crop", [None, (0, 0, 64, 64), (3, 5, 64, 64)])
def test_the_callers_buffer_may_be_used_again(crop: tuple[int, int, int, int] | None) -> None:
    frames = noise(2, 96, 96)
    config = PreprocessConfig(min_pixels=1024, crop=crop)
    patches = preprocess_images(frames, config, device=torch.device("cpu"))
    before = patches.pixel_values
    frames[:] = 0
    assert torch.equal(patches.pixel_values, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("height_width", [(96, 128), (84, 100)])
def test_a_gpu_computes_the_same_bits(height_width: tuple[int, int]) -> None:
    frames = noise(3, *height_width)
    for std in ((0.5, 0.5, 0.5), (0.26862954, 0.26130258, 0.27577711)):
        config = PreprocessConfig(min_pixels=1024, std=std)
        for preprocess in (preprocess_images, preprocess_video):
            there = preprocess(frames, config, device=torch.device("cuda"))
            assert there.taps.device.type == "cuda"
            here = preprocess(frames, config)
            assert torch.equal(there.pixel_values.cpu(), here.pixel_values)
