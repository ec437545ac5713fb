from __future__ import annotations

import numpy as np
import pytest
import torch

from procreward.engine.loading import LoadedModel
from procreward.engine.preprocess import (
    Patches,
    PreprocessConfig,
    preprocess_images,
    preprocess_video,
)
from procreward.engine.small_vision import SmallVision

CONFIG = PreprocessConfig(min_pixels=1024)


def frames(count: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width + count)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "patches",
    [
        [preprocess_images(frames(1, 64, 64), CONFIG)],
        [preprocess_images(frames(4, 96, 96), CONFIG)],
        [preprocess_video(frames(5, 64, 96), CONFIG)],
        [
            preprocess_images(frames(2, 96, 64), CONFIG),
            preprocess_images(frames(1, 64, 96), CONFIG),
            preprocess_video(frames(4, 96, 64), CONFIG),
            preprocess_images(frames(3, 160, 320), CONFIG),
        ],
    ],
)
def test_it_encodes_as_the_tower_does(loaded: LoadedModel, patches: list[Patches]) -> None:
    tower = loaded.model.model.visual
    with torch.inference_mode():
        ours, levels = SmallVision(tower)(patches)
        theirs = tower(
            torch.cat([patch.pixel_values for patch in patches]),
            grid_thw=torch.cat([patch.grid_thw for patch in patches]),
        )
    expected = [theirs.pooler_output, *theirs.deepstack_features]
    for one, other in zip([ours, *levels], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_it_leaves_no_hooks_behind(loaded: LoadedModel) -> None:
    tower = loaded.model.model.visual
    with torch.inference_mode():
        SmallVision(tower)([preprocess_images(frames(1, 32, 64), CONFIG)])
    assert not tower.patch_embed._forward_hooks
    assert not tower.blocks[0]._forward_pre_hooks
