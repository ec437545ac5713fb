"""The small models' decoder against the plain one and the models' own forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache as memoise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine.language.decoder import Decoder, ModuleDecoder, masked_columns
from procreward.engine.language.fused import FusedDecoder, suits_fused
from tests.engine.text_models import random_tree, sequence, text_model

_model = memoise(text_model)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@memoise
def _decoders(kind: str) -> tuple[FusedDecoder, ModuleDecoder]:
    return FusedDecoder(_model(kind)), ModuleDecoder(_model(kind))


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=3e-5)


def _theirs(kind: str, embeds: Any, positions: Any, **more: Any) -> Any:
    text = _model(kind).model.model.language_model
    return text(inputs_embeds=embeds, position_ids=positions, use_cache=False, **more)[0]


@pytest.mark.parametrize("kind", ["qwen3", "wide_heads"])
@pytest.mark.parametrize(("batch", "length"), [(1, 40), (3, 20), (3, 200)])
def test_a_prompt_is_read_like_the_models_own_forward(kind: str, batch: int, length: int) -> None:
    fused, _ = _decoders(kind)
    embeds, positions = sequence(batch, length)
    cache = fused.new_cache(batch, length)
    _close(fused.forward(embeds, positions, cache), _theirs(kind, embeds, positions))
    assert (cache.used, cache.full) == (length, True)


def _script(
    decoder: Decoder, draw: dict[str, Any], embeds: torch.Tensor, positions: torch.Tensor
) -> Any:
    """Read a padded prompt with visual tokens, a chunk with holes, then a tree and a token."""
    batch, length, nodes = draw["batch"], draw["length"], draw["nodes"]
    generator = torch.Generator().manual_seed(draw["seed"])
    cache = decoder.new_cache(batch, length + nodes + 6)
    starts = torch.randint(0, length if draw["padded"] else 1, (batch, 1), generator=generator)
    valid = torch.arange(length) >= starts
    if draw["hole"]:
        valid[0, -1] = False
    where = (torch.rand(batch, length, generator=generator) < 0.3) & valid
    features = [
        torch.randn(int(where.sum()), 64, generator=generator) for _ in range(draw["features"])
    ]
    tree = torch.stack([random_tree(nodes, seed=draw["seed"] + row)[1] for row in range(batch)])
    tree = tree if draw["own_trees"] else tree[0]
    one, two, three = length, length + 5, length + 5 + nodes
    in_prompt = draw["tree_in_prompt"] and nodes <= length
    yield (
        decoder.forward(
            embeds[:, :one],
            positions[..., :one],
            cache,
            valid=valid,
            visual=(where, features) if features else None,
            tree=tree if in_prompt else None,
            keep=draw["keep"],
        )
        * valid[:, -min(draw["keep"] or length, length) :, None]
    )
    yield decoder.forward(embeds[:, one:two], positions[..., one:two], cache)
    rows = torch.tensor([batch - 1, batch - 1])
    masked_columns(cache, rows, torch.tensor([two - 1, two - 2]))
    yield decoder.forward(
        embeds[:, two:three], positions[..., two:three], cache, tree=tree, keep=draw["keep"]
    )
    cache.crop(two)
    yield decoder.forward(embeds[:, -1:], positions[..., -1:], cache)
    yield cache.valid.float()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["qwen3", "wide_heads"]),
    draw=st.fixed_dictionaries(
        {
            "batch": st.integers(1, 4),
            "length": st.sampled_from([1, 2, 9, 70, 200]),
            "nodes": st.integers(1, 7),
            "padded": st.booleans(),
            "hole": st.booleans(),
            "own_trees": st.booleans(),
            "tree_in_prompt": st.booleans(),
            "features": st.integers(0, 3),
            "keep": st.sampled_from([None, 1, 4, 12]),
            "seed": st.integers(0, 10**6),
        }
    ),
)
def test_it_agrees_with_the_plain_decoder_whatever_is_asked(
    kind: str, draw: dict[str, Any]
) -> None:
    fused, plain = _decoders(kind)
    with torch.inference_mode():
        total = draw["length"] + draw["nodes"] + 6
        embeds, positions = sequence(draw["batch"], total, seed=draw["seed"])
        steps = zip(
            _script(fused, draw, embeds, positions),
            _script(plain, draw, embeds, positions),
            strict=True,
        )
        for ours, theirs in steps:
            _close(ours, theirs)


def test_positions_beyond_the_table_are_rotated_too() -> None:
    fused, plain = _decoders("qwen3")
    embeds, positions = sequence(1, 20)
    positions += 3000
    far = fused.forward(embeds, positions, fused.new_cache(1, 20))
    _close(far, plain.forward(embeds, positions, plain.new_cache(1, 20)))


def test_tokens_and_words_are_the_models_own() -> None:
    fused, plain = _decoders("qwen3")
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    assert torch.equal(fused.embed(ids), plain.embed(ids))
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    _close(fused.head(hidden), plain.head(hidden))


def test_it_reads_nothing_into_the_callers_embeddings() -> None:
    fused, _ = _decoders("qwen3")
    embeds, positions = sequence(1, 20)
    before = embeds.clone()
    where = torch.ones(1, 20, dtype=torch.bool)
    visual = (where, [torch.ones(20, 64)] * 2)
    fused.forward(embeds, positions, fused.new_cache(1, 20), visual=visual)
    assert torch.equal(embeds, before)


def test_models_with_biases_experts_other_activations_or_precisions_do_not_suit() -> None:
    assert suits_fused(_model("qwen3"))
    assert not suits_fused(_model("qwen2_5"))
    assert not suits_fused(_model("moe"))
    assert not suits_fused(text_model("qwen3", dtype=torch.bfloat16))
    other = text_model("qwen3")
    other.model.model.language_model.config.hidden_act = "gelu"
    assert not suits_fused(other)
