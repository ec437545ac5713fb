from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from procreward.bench.flops import (
    behind_flops,
    kv_bytes_per_token,
    language_weights,
    prefill_flops,
    vision_flops,
)
from procreward.bench.sizes import QWEN3_VL_2B, QWEN3_VL_4B, TINY, VOCABULARY
from procreward.bench.twins import TwinSize, qwen3_config, random_model
from tests.tiny import tiny_tokenizer


def config_of(size: TwinSize, rows: int | None = VOCABULARY) -> Any:
    return qwen3_config(tiny_tokenizer(), size, vocabulary=rows)


def test_counts_at_the_true_sizes() -> None:
    two, four = config_of(QWEN3_VL_2B), config_of(QWEN3_VL_4B)
    # Eight pictures of 256x256 and a prompt of 598 tokens; a clip of 64 frames of 224x224.
    assert vision_flops(two, 8, 256) / 1e12 == pytest.approx(1.40, abs=0.01)
    assert prefill_flops(two, 598) / 1e12 == pytest.approx(1.73, abs=0.01)
    assert vision_flops(four, 32, 196) / 1e12 == pytest.approx(4.27, abs=0.01)
    assert prefill_flops(four, 1903) / 1e12 == pytest.approx(14.90, abs=0.01)
    assert language_weights(two) / 1e9 == pytest.approx(1.720, abs=0.001)
    assert kv_bytes_per_token(two) == 114_688
    assert kv_bytes_per_token(four) == 147_456


def test_the_language_model_is_counted_as_torch_counts_it() -> None:
    config = config_of(TINY, None)
    model = random_model(config, seed=0)
    model.set_attn_implementation("eager")  # torch does not count its fused attention here
    tokens = 24
    embeds = torch.zeros(1, tokens, TINY.hidden)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        hidden = model.model.language_model(inputs_embeds=embeds).last_hidden_state
        model.lm_head(hidden[:, -1])
    # torch counts every pair of tokens, seen or not; ours counts those that are seen.
    unseen = tokens * (tokens - 1) / 2
    attention = 4 * TINY.layers * TINY.heads * TINY.head_dim * unseen
    counted = prefill_flops(config, tokens) + attention
    # Older versions of transformers compute rotary angles by a small matrix product.
    assert counted <= counter.get_total_flops() < 1.001 * counted


def test_the_vision_tower_is_counted_as_torch_counts_it() -> None:
    config = config_of(TINY, None)
    model = random_model(config, seed=0)
    model.set_attn_implementation("eager")
    tower = model.model.visual
    pixels = torch.zeros(2 * 16, 3 * 2 * 16 * 16)
    grid = torch.tensor([[1, 4, 4]] * 2)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower(pixels, grid_thw=grid)
    # Tables of positions are built by small products that a tower could keep.
    assert counter.get_total_flops() == pytest.approx(vision_flops(config, 2, 16), rel=0.01)


def test_tokens_behind_a_prompt_cost_what_the_prompt_grows_by() -> None:
    config = config_of(QWEN3_VL_2B)
    grown = prefill_flops(config, 601) - prefill_flops(config, 600)
    assert behind_flops(config, 1, 601) == pytest.approx(grown, rel=1e-9)
