from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from procreward.engine.loading import LoadedModel
from procreward.engine.vision.preprocess import (
    Patches,
    preprocess_images,
    preprocess_video,
)
from procreward.engine.vision.tower import Features, VisionTower, _merged, _WholeTower
from procreward.errors import ArchitectureError, ConfigError
from procreward.types import Frames
from tests.engine.vision_models import (
    QWEN3_IMAGES,
    QWEN25_IMAGES,
    qwen3,
    qwen3_moe,
    qwen25,
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return qwen3()


def frames(count: int, height: int, width: int) -> Frames:
    rng = np.random.default_rng(height * width + count)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def images(count: int, height: int, width: int) -> Patches:
    return preprocess_images(frames(count, height, width), QWEN3_IMAGES)


def video(count: int, height: int, width: int) -> Patches:
    return preprocess_video(frames(count, height, width), QWEN3_IMAGES)


def theirs(loaded: LoadedModel, patches: list[Patches]) -> list[torch.Tensor]:
    """What transformers' tower makes of all patches in one call."""
    with torch.inference_mode():
        output = loaded.model.model.visual(
            torch.cat([patch.pixel_values for patch in patches]),
            grid_thw=torch.cat([patch.grid_thw for patch in patches]),
        )
    return [output.pooler_output, *output.deepstack_features]


MIXED = [
    images(2, 96, 64),
    images(1, 64, 96),
    video(4, 96, 64),
    images(3, 160, 320),
    video(5, 64, 96),
    images(1, 96, 64),
]
CASES = {
    "one": [images(1, 64, 64)],
    "several": [images(4, 96, 96)],
    "video": [video(5, 64, 96)],
    "still and moving of one size": [images(2, 64, 96), video(4, 64, 96), images(1, 64, 96)],
    "mixed": MIXED,
}


@pytest.mark.parametrize("name", [*CASES])
def test_exact_is_transformers_to_the_bit(name: str, model: LoadedModel) -> None:
    patches = CASES[name]
    features = VisionTower(model, exact=True).encode(patches)
    # Small products are computed by other kernels: what is compared has to be of one size.
    sizes = {patch.grid[1:] for patch in patches}
    for size in sizes:
        members = [index for index, patch in enumerate(patches) if patch.grid[1:] == size]
        expected = theirs(model, [patches[index] for index in members])
        ours = Features.cat([features[index] for index in members])
        for one, other in zip([ours.embeds, *ours.deepstack], expected, strict=True):
            assert torch.equal(one, other)
    whole = Features.cat(features)
    for one, other in zip([whole.embeds, *whole.deepstack], theirs(model, patches), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_exact_is_transformers_to_the_bit_in_bfloat16() -> None:
    half = qwen3(torch.bfloat16)
    patches = [images(3, 96, 96)]
    ours = VisionTower(half, exact=True).encode(patches)[0]
    assert ours.levels.dtype == torch.bfloat16
    for one, other in zip([ours.embeds, *ours.deepstack], theirs(half, patches), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", [*CASES])
def test_layers_that_are_not_plain_are_called(name: str, exact: bool) -> None:
    loaded = qwen3()
    for block in loaded.model.model.visual.blocks:
        block.attn.qkv.__class__ = _Louder
        block.mlp.linear_fc2.__class__ = _Louder
    patches = CASES[name]
    whole = Features.cat(VisionTower(loaded, exact=exact).encode(patches))
    plain = Features.cat(VisionTower(qwen3(), exact=exact).encode(patches))
    assert float((whole.levels - plain.levels).abs().max()) > 0.1
    expected = theirs(loaded, patches)
    for one, other in zip([whole.embeds, *whole.deepstack], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


class _Louder(torch.nn.Linear):
    """Stands for a layer with an adapter or in four bits."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 1.5


def test_the_faster_form_is_close_in_bfloat16() -> None:
    half = qwen3(torch.bfloat16)
    patches = CASES["still and moving of one size"]
    exact = Features.cat(VisionTower(half, exact=True).encode(patches)).levels.float()
    faster = Features.cat(VisionTower(half, exact=False).encode(patches)).levels.float()
    whole = Features.cat(VisionTower(qwen3(), exact=True).encode(patches)).levels
    noise = (exact - whole).abs().mean()
    assert (faster - whole).abs().mean() < 1.5 * noise


@pytest.mark.parametrize("name", [*CASES])
def test_the_faster_form_differs_in_rounding_only(name: str, model: LoadedModel) -> None:
    whole = Features.cat(VisionTower(model, exact=False).encode(CASES[name]))
    expected = theirs(model, CASES[name])
    for one, other in zip([whole.embeds, *whole.deepstack], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * float(other.abs().max()))


@pytest.mark.parametrize("exact", [True, False])
def test_chunks_do_not_show(exact: bool, model: LoadedModel) -> None:
    whole = VisionTower(model, exact=exact).encode(MIXED)
    pieces = VisionTower(model, exact=exact, max_patches=1).encode(MIXED)
    for one, other in zip(whole, pieces, strict=True):
        assert one.levels.shape == other.levels.shape
        torch.testing.assert_close(one.levels, other.levels, rtol=1e-4, atol=1e-4)


def test_sizes_and_bytes(model: LoadedModel) -> None:
    features = VisionTower(model, exact=True).encode([images(2, 64, 96), video(3, 32, 32)])
    assert [len(one) for one in features] == [2 * 2 * 3, 2]
    assert features[0].embeds.shape == (12, 32)
    assert len(features[0].deepstack) == 3
    assert features[0].nbytes == 4 * 12 * 32 * 4
    first, second = features[0].split([5, 7])
    assert torch.equal(Features.cat([first, second]).levels, features[0].levels)
    assert torch.equal(second.deepstack[2], features[0].deepstack[2][5:])
    assert VisionTower(model, exact=True).encode([]) == []
    with pytest.raises(ConfigError, match="max_patches"):
        VisionTower(model, exact=True, max_patches=0)


def test_the_model_is_left_as_it_was(model: LoadedModel) -> None:
    tower = model.model.model.visual
    before = dict(tower._modules)
    VisionTower(model, exact=False).encode([images(1, 32, 64)])
    assert tower._modules == before
    assert not tower.patch_embed._forward_hooks
    assert not tower.blocks[0]._forward_pre_hooks


def test_experts_have_the_same_tower() -> None:
    experts = qwen3_moe()
    ours = VisionTower(experts, exact=True).encode([images(3, 96, 96)])[0]
    for one, other in zip(
        [ours.embeds, *ours.deepstack], theirs(experts, [images(3, 96, 96)]), strict=True
    ):
        assert torch.equal(one, other)


# Windows of Qwen2.5-VL are 4x4 patches of 14 px here: none, all alike, and of several sizes.
WINDOWED = [(2, 56, 56), (3, 112, 56), (2, 112, 112), (3, 84, 140), (1, 112, 196)]


def theirs25(loaded: LoadedModel, patches: list[Patches]) -> torch.Tensor:
    with torch.inference_mode():
        output = loaded.model.model.get_image_features(
            torch.cat([patch.pixel_values for patch in patches]),
            torch.cat([patch.grid_thw for patch in patches]),
        )
    return torch.cat(output.pooler_output)


@pytest.mark.parametrize("size", WINDOWED)
def test_windows_are_those_of_qwen25_to_the_bit(size: tuple[int, int, int]) -> None:
    loaded = qwen25()
    patches = preprocess_images(frames(*size), QWEN25_IMAGES)
    ours = VisionTower(loaded, exact=True).encode([patches])[0]
    assert ours.deepstack == ()
    assert torch.equal(ours.embeds, theirs25(loaded, [patches]))
    assert float(ours.embeds.std()) > 0.1


@pytest.mark.parametrize("exact", [True, False])
def test_pictures_of_qwen25_may_be_of_any_size(exact: bool) -> None:
    loaded = qwen25()
    patches = [preprocess_images(frames(*size), QWEN25_IMAGES) for size in WINDOWED]
    features = VisionTower(loaded, exact=exact).encode(patches)
    assert [len(one) for one in features] == [2 * 4, 3 * 8, 2 * 16, 3 * 15, 28]
    ours = torch.cat([one.embeds for one in features])
    torch.testing.assert_close(ours, theirs25(loaded, patches), rtol=1e-3, atol=1e-4)
    # A picture does not see its neighbours.
    alone = VisionTower(loaded, exact=exact, max_patches=1).encode([patches[3]])[0]
    torch.testing.assert_close(alone.embeds, features[3].embeds, rtol=1e-3, atol=1e-4)


def test_qwen25_in_bfloat16() -> None:
    half = qwen25(dtype=torch.bfloat16)
    patches = preprocess_images(frames(2, 84, 140), QWEN25_IMAGES)
    ours = VisionTower(half, exact=True).encode([patches])[0]
    assert torch.equal(ours.embeds, theirs25(half, [patches]))


def test_other_towers_are_called_as_they_are() -> None:
    loaded = qwen25()
    del loaded.model.model.visual.fullatt_block_indexes
    tower = VisionTower(loaded, exact=True)
    assert type(tower._run) is _WholeTower
    loaded.model.model.visual.fullatt_block_indexes = [1]
    patches = [preprocess_images(frames(*size), QWEN25_IMAGES) for size in WINDOWED]
    ours = torch.cat([one.embeds for one in tower.encode(patches)])
    torch.testing.assert_close(ours, theirs25(loaded, patches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda merged, raw: merged,
        lambda merged, raw: (merged,),
        lambda merged, raw: (raw, merged),
        lambda merged, raw: SimpleNamespace(pooler_output=merged, last_hidden_state=raw),
        lambda merged, raw: SimpleNamespace(pooler_output=None, last_hidden_state=merged),
    ],
)
def test_merged_embeddings_are_found_in_every_kind_of_result(
    wrap: Callable[[torch.Tensor, torch.Tensor], object],
) -> None:
    merged, raw = torch.zeros(4, 8), torch.zeros(16, 8)
    assert _merged(wrap(merged, raw), 4) is merged


def test_an_unknown_result_is_an_error() -> None:
    with pytest.raises(ArchitectureError, match="4 merged embeddings"):
        _merged(SimpleNamespace(pooler_output=torch.zeros(16, 8)), 4)
