from __future__ import annotations

from typing import Any

import pytest
import torch

from procreward.engine.vision.tables import measure_tables
from tests.engine.vision_models import qwen3, qwen25

TOWER = qwen3().model.model.visual


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8), (10, 4)])
def test_tables_are_what_enters_the_first_layer(size: tuple[int, int]) -> None:
    seen: dict[str, Any] = {}

    def look(_module: object, inputs: tuple[torch.Tensor, ...], named: dict[str, object]) -> None:
        seen["hidden"], seen["rotary"] = inputs[0], named["position_embeddings"]

    hook = TOWER.blocks[0].register_forward_pre_hook(look, with_kwargs=True)
    pixels = torch.rand(size[0] * size[1], 1536)
    with torch.inference_mode():
        tables = measure_tables(TOWER, size)
        TOWER(pixels, grid_thw=torch.tensor([[1, *size]]))
        embedded = TOWER.patch_embed(pixels)
    hook.remove()
    cos, sin = seen["rotary"]
    assert tables.places is not None
    assert (tables.order, tables.back, tables.windows) == (None, None, (None,) * 4)
    assert torch.equal(embedded + tables.places, seen["hidden"])
    assert torch.equal(tables.cos[:, 0], cos)
    assert torch.equal(tables.sin[:, 0], sin)
    half = cos.shape[-1] // 2
    assert torch.equal(tables.signed[:, 0, :half], -sin[:, :half])
    assert torch.equal(tables.signed[:, 0, half:], sin[:, half:])


def test_a_grid_like_the_learned_one_takes_its_places_as_they_are() -> None:
    # 64 learned places are a grid of 8x8; rows of the table are in the order of merged patches.
    places = measure_tables(TOWER, (8, 8)).places
    assert places is not None
    learned = TOWER.pos_embed.weight
    assert torch.allclose(places[0], learned[0])
    assert torch.allclose(places[1], learned[1])
    assert torch.allclose(places[2], learned[8])
    assert torch.allclose(places[4], learned[2])
    assert torch.allclose(places[-1], learned[63])


def test_windows_of_qwen25() -> None:
    tower = qwen25().model.model.visual
    # 4x6 patches are 2x3 merged tokens, windows are 2x2 of them: one of 16 patches, one of 8.
    tables = measure_tables(tower, (4, 6))
    assert tables.places is None
    assert tables.order is not None
    assert tables.back is not None
    assert tables.order.tolist() == [*range(8), *range(12, 20), *range(8, 12), *range(20, 24)]
    assert tables.back.tolist() == [0, 1, 4, 2, 3, 5]
    first, whole, last = tables.windows
    assert whole is None
    for windows in (first, last):
        assert windows is not None
        assert windows.length == 0
        assert [group.tolist() for group in windows.groups] == [
            [[*range(16)]],
            [[*range(16, 24)]],
        ]
    alike = measure_tables(tower, (8, 4)).windows[0]
    assert alike is not None
    assert (alike.length, alike.groups) == (16, ())
    assert measure_tables(tower, (4, 4)).windows == (None, None, None)


def test_the_tower_is_left_as_it_was() -> None:
    before = dict(TOWER._modules)
    measure_tables(TOWER, (2, 4))
    assert TOWER._modules == before
