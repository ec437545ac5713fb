from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from procreward.engine.loading import LoadedModel
from procreward.engine.vision.fused import FusedTower, _gelu, suits_fused_tower
from tests.engine.vision_models import qwen3, qwen25


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return qwen3()


def taps(count: int, moments: int, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count * size[0] * size[1], 3, moments, 256, generator=generator) * 2 - 1


@pytest.mark.parametrize("moments", [1, 2])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (12, 8)])
def test_it_encodes_as_the_tower_does(
    moments: int, size: tuple[int, int], model: LoadedModel
) -> None:
    tower = model.model.model.visual
    pixels = taps(3, moments, size)
    with torch.inference_mode():
        ours = FusedTower(tower)(pixels, 2, size)
        whole = pixels.expand(-1, -1, 2, -1).reshape(len(pixels), -1)
        theirs = tower(whole, grid_thw=torch.tensor([[1, *size]] * 3))
    expected = [theirs.pooler_output, *theirs.deepstack_features]
    assert ours.shape == (4, 3 * size[0] * size[1] // 4, 32)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * float(other.abs().max()))


def test_it_leaves_its_input_alone(model: LoadedModel) -> None:
    pixels = taps(1, 1, (4, 4))
    before = pixels.clone()
    fused = FusedTower(model.model.model.visual)
    with torch.inference_mode():
        first = fused(pixels, 2, (4, 4))
        assert torch.equal(fused(pixels, 2, (4, 4)), first)
    assert torch.equal(pixels, before)


def test_only_small_plain_towers_in_single_precision_suit_it(model: LoadedModel) -> None:
    assert suits_fused_tower(model.model.model.visual)
    assert not suits_fused_tower(qwen3(torch.bfloat16).model.model.visual)
    assert not suits_fused_tower(qwen25().model.model.visual)
    other = qwen3().model.model.visual
    other.config.hidden_act = "gelu"
    assert not suits_fused_tower(other)
    other.config.hidden_act = "gelu_pytorch_tanh"
    other.blocks[1].attn.proj = torch.nn.Sequential(other.blocks[1].attn.proj)
    assert not suits_fused_tower(other)
    large = qwen3().model.model.visual
    large.register_parameter("more", torch.nn.Parameter(torch.empty(30_000_000)))
    assert not suits_fused_tower(large)


def test_gelu_is_the_published_one() -> None:
    inner = torch.linspace(-12, 12, 10_001)
    expected = functional.gelu(inner.double(), approximate="tanh")
    torch.testing.assert_close(_gelu(inner).double(), expected, rtol=1e-5, atol=1e-7)
