from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from procreward.bench.sizes import QWEN3_VL_2B, QWEN3_VL_4B, TINY, VOCABULARY
from procreward.bench.twins import (
    SPECIAL_TOKENS,
    TwinSize,
    loaded_twin,
    make_tokenizer,
    qwen3_config,
    qwen25_config,
    random_model,
    save_twin,
    train_tokenizer,
)
from procreward.engine.loading import load_model

TRAINED = train_tokenizer(["lift the red cube"] * 3, 300)


def test_a_tokenizer_knows_its_words_digits_and_control_tokens() -> None:
    tokenizer = make_tokenizer(TRAINED)
    assert tokenizer.tokenize("lift the red cube") == ["lift", "Ġthe", "Ġred", "Ġcube"]
    assert tokenizer.tokenize("84.1%") == ["8", "4", ".", "1", "%"]
    assert all(len(tokenizer.encode(token)) == 1 for token in SPECIAL_TOKENS)


@pytest.mark.parametrize(
    ("size", "weights"), [(QWEN3_VL_2B, 2_127_532_032), (QWEN3_VL_4B, 4_437_815_808)]
)
def test_full_sizes_have_as_many_weights_as_the_published_models(
    size: TwinSize, weights: int
) -> None:
    config = qwen3_config(make_tokenizer(TRAINED), size, vocabulary=VOCABULARY)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == weights


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_twin_in_memory_is_the_one_that_is_loaded(tmp_path: Path, family: str) -> None:
    tokenizer = make_tokenizer(TRAINED)
    make = qwen3_config if family == "qwen3_vl" else qwen25_config
    model = random_model(make(tokenizer, TwinSize.square(32)), seed=3)
    ours = loaded_twin(model, tokenizer, min_pixels=784)
    read = load_model(str(save_twin(tmp_path, model, tokenizer, min_pixels=784)), device="cpu")
    for name in ("image_config", "device", "dtype", "end_ids", "family", "default_system"):
        assert getattr(ours, name) == getattr(read, name), name
    assert ours.family == family
    for one, other in zip(model.parameters(), read.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = qwen3_config(make_tokenizer(TRAINED), TINY)
    before = torch.random.get_rng_state()
    weights = [next(random_model(config, seed=seed).parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.random.get_rng_state())
