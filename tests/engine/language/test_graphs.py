"""Chunks of fixed shape against chunks of any shape."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from functools import cache as memoise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine.language.decoder import Decoder, ModuleDecoder, masked_columns
from procreward.engine.language.fused import FusedDecoder
from procreward.engine.language.graphs import GraphedDecoder
from procreward.engine.language.kv import KVCache
from tests.engine.text_models import left_padding, random_tree, sequence, text_model

_model = memoise(text_model)
PROMPT = 20


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=3e-5)


def _read(
    decoder: Decoder, cache: KVCache, inputs: tuple[Any, Any], tokens: int, **more: Any
) -> Any:
    embeds, positions = inputs
    here = slice(cache.used, cache.used + tokens)
    return decoder.forward(embeds[:, here], positions[..., here], cache, **more)


@pytest.mark.parametrize("kind", ["qwen3", "wide_heads", "qwen2_5", "moe"])
def test_a_forward_of_fixed_shape_equals_one_of_any_shape(kind: str) -> None:
    decoder = ModuleDecoder(_model(kind))
    inputs = sequence(2, PROMPT + 4)
    cache, other = decoder.new_cache(2, 40), decoder.new_cache(2, 40)
    for each in (cache, other):
        _read(decoder, each, inputs, PROMPT, valid=left_padding((PROMPT, 13)))
    seen = torch.zeros(2, 4, 40, dtype=torch.bool)
    seen[..., :PROMPT] = cache.valid[:, None, :PROMPT]
    seen[..., PROMPT : PROMPT + 4] = torch.ones(4, 4, dtype=torch.bool).tril()
    columns = torch.arange(PROMPT, PROMPT + 4)
    embeds, positions = inputs
    static = decoder.forward_static(
        embeds[:, PROMPT:], positions[..., PROMPT:], cache, columns, seen
    )
    assert (cache.used, cache.valid[:, PROMPT:].any().item()) == (PROMPT, False)
    _close(static, _read(decoder, other, inputs, 4))
    for ours, theirs in zip(cache.keys + cache.values, other.keys + other.values, strict=True):
        _close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(
    fused=st.booleans(),
    chunks=st.lists(
        st.tuples(
            st.integers(1, 18), st.sampled_from(["plain", "tree", "trees", "padded", "holes"])
        ),
        max_size=5,
    ),
    padded=st.booleans(),
    keep=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 10**6),
)
def test_any_series_of_chunks_equals_the_plain_decoders(
    fused: bool, chunks: list[tuple[int, str]], padded: bool, keep: int | None, seed: int
) -> None:
    with torch.inference_mode():
        plain = ModuleDecoder(_model("qwen3"))
        graphed = GraphedDecoder(_model("qwen3"), FusedDecoder(_model("qwen3")) if fused else plain)
        inputs = sequence(2, PROMPT + 90, seed=seed)
        caches = [(graphed, graphed.new_cache(2, 110)), (plain, plain.new_cache(2, 110))]
        generator = torch.Generator().manual_seed(seed)
        valid = left_padding((PROMPT, 9)) if padded else None
        for decoder, cache in caches:
            _read(decoder, cache, inputs, PROMPT, valid=valid)
        for tokens, kind in chunks:
            more: dict[str, Any] = {"keep": keep}
            if kind in ("tree", "trees"):
                nodes = max(1, tokens - 2)
                trees = torch.stack([random_tree(nodes, seed=seed + row)[1] for row in range(2)])
                more["tree"] = trees if kind == "trees" else trees[0]
            if kind == "padded":
                more["valid"] = torch.rand(2, tokens, generator=generator) < 0.7
            ours, theirs = (
                _read(decoder, cache, inputs, tokens, **more) for decoder, cache in caches
            )
            _close(ours, theirs)
            for _, cache in caches:
                if kind == "holes" and tokens > 1:
                    masked_columns(cache, torch.tensor([1]), torch.tensor([cache.used - 1]))
        (_, ours), (_, theirs) = caches
        assert ours.used == theirs.used
        # It does not look at a mask to find that nothing is masked; it must never miss a hole.
        assert theirs.full or not ours.full
        assert torch.equal(ours.valid[:, :110], theirs.valid)


def test_results_survive_the_next_chunk() -> None:
    decoder = GraphedDecoder(_model("qwen3"))
    inputs = sequence(1, PROMPT + 2)
    cache = decoder.new_cache(1, PROMPT + 20)
    _read(decoder, cache, inputs, PROMPT)
    first = _read(decoder, cache, inputs, 1)
    before = first.clone()
    _read(decoder, cache, inputs, 1)
    assert torch.equal(first, before)


def test_memory_is_reused_once_nobody_holds_it() -> None:
    decoder = GraphedDecoder(_model("qwen3"), slots=2)
    first = decoder.new_cache(1, 300)
    assert first.capacity == 512
    address = first.keys[0].data_ptr()
    second = decoder.new_cache(1, 512)
    assert second.keys[0].data_ptr() != address
    _read(decoder, first, sequence(1, PROMPT), PROMPT)
    del first
    gc.collect()
    third = decoder.new_cache(1, 400)
    assert third.keys[0].data_ptr() == address
    assert (third.used, third.full, third.valid.any().item()) == (0, True, False)


def test_with_all_memory_in_use_chunks_are_still_read() -> None:
    plain = ModuleDecoder(_model("qwen3"))
    decoder = GraphedDecoder(_model("qwen3"), slots=1)
    inputs = sequence(1, PROMPT + 3)
    held = decoder.new_cache(1, 100)
    cache, other = decoder.new_cache(1, 100), plain.new_cache(1, 100)
    for tokens in (PROMPT, 3):
        ours = _read(decoder, cache, inputs, tokens)
        _close(ours, _read(plain, other, inputs, tokens))
    assert held.used == 0


def test_rows_can_be_copied_into_a_pooled_cache() -> None:
    plain = ModuleDecoder(_model("qwen3"))
    decoder = GraphedDecoder(_model("qwen3"))
    embeds, positions = sequence(1, PROMPT + 3)
    prefix = decoder.new_cache(1, PROMPT)
    decoder.forward(embeds[:, :PROMPT], positions[..., :PROMPT], prefix)
    cache = decoder.new_cache(2, PROMPT + 20)
    prefix.copy_to(cache, torch.tensor([0, 0]))
    twice = embeds.repeat(2, 1, 1), positions.repeat(1, 2, 1)
    ours = _read(decoder, cache, twice, 3)
    whole = plain.forward(*twice, plain.new_cache(2, PROMPT + 3))
    _close(ours, whole[:, PROMPT:])


def test_a_chunk_that_cannot_be_captured_is_read_anyway_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refuses(ModuleDecoder):
        def forward_static(self, *args: Any, **more: Any) -> torch.Tensor:
            raise RuntimeError("operation not permitted when stream is capturing")

    decoder = GraphedDecoder(_model("qwen3"), Refuses(_model("qwen3")))
    plain = ModuleDecoder(_model("qwen3"))
    inputs = sequence(1, PROMPT + 3)
    cache, other = decoder.new_cache(1, 100), plain.new_cache(1, 100)
    with caplog.at_level(logging.WARNING):
        for tokens in (PROMPT, 1, 1, 1):
            ours = _read(decoder, cache, inputs, tokens)
            assert torch.equal(ours, _read(plain, other, inputs, tokens))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without CUDA graphs" in caplog.text
    assert "stream is capturing" in caplog.text


def test_releasing_frees_what_nobody_holds() -> None:
    decoder = GraphedDecoder(_model("qwen3"))
    inputs = sequence(1, PROMPT + 3)
    held, dropped = decoder.new_cache(1, 30), decoder.new_cache(1, 30)
    _read(decoder, held, inputs, PROMPT)
    kept, freed = weakref.ref(held.keys[0]), weakref.ref(dropped.keys[0])
    del dropped
    decoder.release()
    gc.collect()
    assert freed() is None
    assert kept() is held.keys[0]
    plain = ModuleDecoder(_model("qwen3"))
    whole = plain.forward(*inputs, plain.new_cache(1, PROMPT + 3))
    _close(_read(decoder, held, inputs, 3), whole[:, PROMPT:])


def test_memory_that_nobody_holds_is_given_back_when_it_runs_out() -> None:
    class Small(ModuleDecoder):
        left = 2

        def new_cache(self, batch: int, capacity: int) -> KVCache:
            if not self.left:
                self.left = 1
                raise torch.OutOfMemoryError("no room")
            self.left -= 1
            return super().new_cache(batch, capacity)

    decoder = GraphedDecoder(_model("qwen3"), Small(_model("qwen3")))
    held, dropped = decoder.new_cache(1, 30), decoder.new_cache(1, 30)
    freed = weakref.ref(dropped.keys[0])
    del dropped
    assert decoder.new_cache(2, 300).batch == 2
    gc.collect()
    assert freed() is None
    assert held.capacity == 256


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_replay_what_the_plain_decoder_computes(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = text_model("qwen3", device="cuda", dtype=dtype)
    plain, decoder = ModuleDecoder(loaded), GraphedDecoder(loaded)
    embeds, positions = sequence(2, PROMPT + 40)
    inputs = embeds.to("cuda", dtype), positions.cuda()
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    for _ in range(2):  # the second time in used memory, with graphs already there
        cache, other = decoder.new_cache(2, 100), plain.new_cache(2, 100)
        tree = random_tree(4)[1].cuda()
        script: list[tuple[int, dict[str, Any]]] = [(PROMPT, {}), (1, {}), (4, {"tree": tree})]
        for tokens, more in [*script, (1, {}), (7, {}), (16, {}), (1, {})]:
            ours = _read(decoder, cache, inputs, tokens, **more)
            theirs = _read(plain, other, inputs, tokens, **more)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
            for each in (cache, other):
                where = torch.tensor([each.used - 1], device="cuda")
                masked_columns(each, torch.tensor([0], device="cuda"), where)
        del cache
        gc.collect()
    assert "without CUDA graphs" not in caplog.text
