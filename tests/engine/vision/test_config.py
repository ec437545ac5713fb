from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as published_resize,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    smart_resize as published_video_resize,
)

from procreward.engine.vision.config import (
    PreprocessConfig,
    load_preprocess_config,
    smart_resize,
    video_resize,
)
from procreward.errors import ConfigError, ModelError

SIDES = st.integers(min_value=16, max_value=1500)


@given(
    height=SIDES,
    width=SIDES,
    low=st.sampled_from([1024, 65_536]),
    high=st.sampled_from([2**18, 2**24]),
)
def test_smart_resize_is_the_published_one(height: int, width: int, low: int, high: int) -> None:
    ours = smart_resize(height, width, factor=32, min_pixels=low, max_pixels=high)
    assert ours == published_resize(height, width, 32, low, high)


@given(
    frames=st.integers(2, 70), height=SIDES, width=SIDES, high=st.sampled_from([2**20, 25_165_824])
)
def test_video_resize_is_the_published_one(frames: int, height: int, width: int, high: int) -> None:
    ours = video_resize(
        frames, height, width, factor=32, temporal=2, min_pixels=4096, max_pixels=high
    )
    assert ours == published_video_resize(frames, height, width, 2, 32, 4096, high)


def test_halves_round_to_even_and_small_frames_are_enlarged() -> None:
    published = PreprocessConfig()
    assert smart_resize(112, 112, factor=32, min_pixels=1, max_pixels=10**7) == (128, 128)
    assert published.image_grid(128, 128) == (1, 16, 16)
    assert published.image_grid(480, 640) == (1, 30, 40)


def test_settings_are_read_in_both_spellings(tmp_path: Path) -> None:
    assert load_preprocess_config(tmp_path) == PreprocessConfig()
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 4096, "max_pixels": 589_824, "patch_size": 14, "merge_size": 2})
    )
    old = load_preprocess_config(tmp_path)
    assert (old.min_pixels, old.max_pixels, old.patch, old.factor) == (4096, 589_824, 14, 28)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 1024, "longest_edge": 2048},
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [1, 1, 1],
                "temporal_patch_size": 2,
            }
        )
    )
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 1, "longest_edge": 2}})
    )
    (tmp_path / "procreward.json").write_text(
        json.dumps({"frame_size": [128, 96], "crop": [0, 16, 96, 96]})
    )
    new = load_preprocess_config(tmp_path)
    assert new == PreprocessConfig(
        min_pixels=1024,
        max_pixels=2048,
        video_min_pixels=1,
        video_max_pixels=2,
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 1.0, 1.0),
        frame_size=(128, 96),
        crop=(0, 16, 96, 96),
    )


def test_broken_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="must be a JSON object"):
        load_preprocess_config(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(ModelError, match="got a list"):
        load_preprocess_config(tmp_path)
    with pytest.raises(ConfigError, match="min_pixels"):
        PreprocessConfig(min_pixels=100, max_pixels=10)
    with pytest.raises(ConfigError, match="patch"):
        PreprocessConfig(patch=0)
    with pytest.raises(ConfigError, match="std"):
        PreprocessConfig(std=(0.0, 1.0, 1.0))


def test_settings_of_a_whole_processor_count_where_there_is_no_file_of_their_own(
    tmp_path: Path,
) -> None:
    image = {"patch_size": 14, "size": {"shortest_edge": 784, "longest_edge": 7840}}
    both = {
        "image_processor": image,
        "video_processor": {"size": {"shortest_edge": 5, "longest_edge": 6}},
        "processor_class": "Qwen3VLProcessor",
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(both))
    assert load_preprocess_config(tmp_path) == PreprocessConfig(
        patch=14, min_pixels=784, max_pixels=7840, video_min_pixels=5, video_max_pixels=6
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"patch_size": 16}))
    assert load_preprocess_config(tmp_path).patch == 16
    assert load_preprocess_config(tmp_path).video_min_pixels == 5


def test_qwen25_has_defaults_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    config = load_preprocess_config(tmp_path)
    assert (config.factor, config.min_pixels, config.max_pixels) == (28, 3136, 12_845_056)
    assert config.mean == (0.48145466, 0.4578275, 0.40821073)
    assert config.std == (0.26862954, 0.26130258, 0.27577711)
    assert config.image_grid(224, 224) == (1, 16, 16)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 50_176}))
    assert load_preprocess_config(tmp_path).max_pixels == 50_176


@given(frames=st.integers(1, 9), height=SIDES, width=SIDES)
def test_a_clip_has_half_as_many_moments_as_frames(frames: int, height: int, width: int) -> None:
    groups, rows, columns = PreprocessConfig().video_grid(frames, height, width)
    assert groups == (frames + 1) // 2
    high, wide = published_video_resize(max(frames, 2), height, width, 2, 32, 4096, 25_165_824)
    assert (rows * 16, columns * 16) == (high, wide)


def test_grids_are_those_of_the_crop() -> None:
    config = PreprocessConfig(min_pixels=1024, crop=(0, 16, 96, 64))
    assert config.image_grid(128, 128) == (1, 6, 4)
    assert config.video_grid(3, 128, 128) == (2, 6, 4)
