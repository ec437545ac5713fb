"""The decoder against the models' own forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache as memoise
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from procreward.engine.language.decoder import (
    Decoder,
    ModuleDecoder,
    make_decoder,
    masked_columns,
    shares_keys,
)
from procreward.engine.language.fused import FusedDecoder
from procreward.engine.loading import LoadedModel
from procreward.errors import ArchitectureError, ConfigError
from tests.engine.text_models import KINDS, left_padding, random_tree, sequence, text_model

_model = memoise(text_model)
LENGTH = 30


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(params=KINDS)
def loaded_text(request: pytest.FixtureRequest) -> LoadedModel:
    return _model(request.param)


def _decoder(kind: str = "qwen3") -> ModuleDecoder:
    return ModuleDecoder(_model(kind))


def _theirs(loaded: LoadedModel, embeds: Any, positions: Any, **more: Any) -> Any:
    text = loaded.model.model.language_model
    return text(inputs_embeds=embeds, position_ids=positions, use_cache=False, **more)[0]


def _close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_prompt_is_read_bit_for_bit_like_the_models_own_forward(
    loaded_text: LoadedModel, batch: int
) -> None:
    decoder = ModuleDecoder(loaded_text)
    embeds, positions = sequence(batch, LENGTH)
    cache = decoder.new_cache(batch, LENGTH + 9)
    hidden = decoder.forward(embeds, positions, cache)
    assert torch.equal(hidden, _theirs(loaded_text, embeds, positions))
    assert (cache.used, cache.full) == (LENGTH, True)
    assert cache.valid.sum(dim=1).tolist() == [LENGTH] * batch


def test_ids_become_the_models_own_logits_and_its_position_state_stays(
    loaded_text: LoadedModel,
) -> None:
    decoder = ModuleDecoder(loaded_text)
    ids = torch.arange(20)[None] * 4
    positions = torch.arange(20).expand(3, 1, 20)
    loaded_text.model.model.rope_deltas = marker = torch.tensor([[7]])
    hidden = decoder.forward(decoder.embed(ids), positions, decoder.new_cache(1, 20))
    assert loaded_text.model.model.rope_deltas is marker
    theirs = loaded_text.model(input_ids=ids, position_ids=positions).logits
    assert torch.equal(decoder.head(hidden), theirs)


def test_padded_rows_equal_the_models_own_padded_batch_and_each_row_alone(
    loaded_text: LoadedModel,
) -> None:
    decoder = ModuleDecoder(loaded_text)
    embeds, positions = sequence(3, LENGTH)
    valid = left_padding((LENGTH, 11, 24))
    cache = decoder.new_cache(3, LENGTH)
    hidden = decoder.forward(embeds, positions, cache, valid=valid)
    assert hidden.isfinite().all()
    assert not cache.full
    assert torch.equal(cache.valid, valid)
    theirs = _theirs(loaded_text, embeds, positions, attention_mask=valid.long())
    _close(hidden[valid], theirs[valid])
    alone = _theirs(loaded_text, embeds[1:2, -11:], positions[:, 1:2, -11:])
    _close(hidden[1:2, -11:], alone)


def test_a_mask_that_masks_nothing_changes_no_bit() -> None:
    decoder = _decoder()
    embeds, positions = sequence(2, LENGTH)
    cache = decoder.new_cache(2, LENGTH)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    hidden = decoder.forward(embeds, positions, cache, valid=valid)
    assert cache.full
    assert torch.equal(hidden, decoder.forward(embeds, positions, decoder.new_cache(2, LENGTH)))


@pytest.mark.parametrize("lengths", [(LENGTH, LENGTH), (LENGTH, 17)])
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1), (4,), (1, 3)])
def test_chunks_behind_a_prompt_equal_one_long_forward(
    loaded_text: LoadedModel, lengths: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    decoder = ModuleDecoder(loaded_text)
    embeds, positions = sequence(2, LENGTH + 4)
    valid = left_padding(lengths)
    cache = decoder.new_cache(2, LENGTH + 4)
    read = [decoder.forward(embeds[:, :LENGTH], positions[..., :LENGTH], cache, valid=valid)]
    for chunk in chunks:
        here = slice(cache.used, cache.used + chunk)
        read.append(decoder.forward(embeds[:, here], positions[..., here], cache))
    for row, length in enumerate(lengths):
        first = LENGTH - length
        alone = _theirs(
            loaded_text, embeds[row : row + 1, first:], positions[:, row : row + 1, first:]
        )
        _close(torch.cat(read, dim=1)[row, first:], alone[0])


def test_decoding_step_by_step_equals_the_models_own_cached_decoding() -> None:
    loaded = _model("qwen3")
    decoder, text = ModuleDecoder(loaded), loaded.model.model.language_model
    embeds, positions = sequence(1, LENGTH)
    cache, theirs = decoder.new_cache(1, LENGTH), DynamicCache(config=text.config)
    for start, end in ((0, 25), (25, 26), (26, 27), (27, 28)):
        part = {"inputs_embeds": embeds[:, start:end], "position_ids": positions[..., start:end]}
        hidden = decoder.forward(part["inputs_embeds"], part["position_ids"], cache)
        _close(hidden, text(**part, past_key_values=theirs, use_cache=True)[0])


def test_switched_off_columns_are_as_if_never_read(loaded_text: LoadedModel) -> None:
    decoder = ModuleDecoder(loaded_text)
    embeds, positions = sequence(2, LENGTH)
    cache = decoder.new_cache(2, LENGTH)
    decoder.forward(embeds[:, :20], positions[..., :20], cache)
    decoder.forward(embeds[:, 20:26], positions[..., 20:26], cache)
    # Row 0 accepts two tokens of six, row 1 five.
    masked_columns(cache, torch.tensor([0, 0, 0, 0, 1]), torch.tensor([22, 23, 24, 25, 25]))
    assert not cache.full
    hidden = decoder.forward(embeds[:, 26:30], positions[..., 26:30], cache)
    for row, rejected in enumerate(({22, 23, 24, 25}, {25})):
        kept = [column for column in range(LENGTH) if column not in rejected]
        alone = _theirs(loaded_text, embeds[row : row + 1, kept], positions[:, row : row + 1, kept])
        _close(hidden[row], alone[0, -4:])


def test_switching_nothing_off_keeps_the_cache_full() -> None:
    cache = _decoder().new_cache(1, 4)
    nothing = torch.empty(0, dtype=torch.int64)
    masked_columns(cache, nothing, nothing)
    assert cache.full


@pytest.mark.parametrize("lengths", [(LENGTH, LENGTH), (13, LENGTH)])
@pytest.mark.parametrize("own_trees", [False, True])
@pytest.mark.parametrize("read_before", [0, 12, LENGTH])
def test_every_tree_node_equals_a_forward_of_its_path(
    loaded_text: LoadedModel, lengths: tuple[int, ...], own_trees: bool, read_before: int
) -> None:
    nodes = 6
    decoder = ModuleDecoder(loaded_text)
    embeds, positions = sequence(2, LENGTH + nodes)
    trees = [random_tree(nodes, seed=seed) for seed in ((1, 2) if own_trees else (1, 1))]
    for row, (paths, _) in enumerate(trees):
        depths = torch.tensor([len(path) for path in paths])
        positions[:, row, LENGTH:] = positions[0, row, LENGTH - 1] + depths
    sees = torch.stack([tree for _, tree in trees]) if own_trees else trees[0][1]
    valid = torch.cat((left_padding(lengths), torch.ones(2, nodes, dtype=torch.bool)), dim=1)
    cache = decoder.new_cache(2, LENGTH + nodes)
    if read_before:
        part = slice(0, read_before)
        decoder.forward(embeds[:, part], positions[..., part], cache, valid=valid[:, part])
    rest = slice(read_before, None)
    hidden = decoder.forward(
        embeds[:, rest], positions[..., rest], cache, valid=valid[:, rest], tree=sees
    )
    for row, length in enumerate(lengths):
        for node, path in enumerate(trees[row][0]):
            kept = [*range(LENGTH - length, LENGTH), *(LENGTH + step for step in path)]
            alone = _theirs(
                loaded_text, embeds[row : row + 1, kept], positions[:, row : row + 1, kept]
            )
            _close(hidden[row, LENGTH - read_before + node], alone[0, -1])


def test_a_tree_leaves_the_prompt_before_it_bit_for_bit_alone() -> None:
    decoder = _decoder()
    embeds, positions = sequence(1, LENGTH)
    sees = torch.eye(5, dtype=torch.bool)
    with_tree = decoder.forward(embeds, positions, decoder.new_cache(1, LENGTH), tree=sees)
    plain = decoder.forward(embeds, positions, decoder.new_cache(1, LENGTH))
    assert torch.equal(with_tree[:, :-5], plain[:, :-5])


@pytest.mark.parametrize("keep", [1, 3, 7, LENGTH + 5])
@pytest.mark.parametrize("lengths", [(LENGTH, LENGTH), (LENGTH, 21)])
@pytest.mark.parametrize("with_tree", [False, True])
@pytest.mark.parametrize("features", [1, 3])
def test_the_last_hidden_states_can_be_had_without_the_others(
    loaded_text: LoadedModel, keep: int, lengths: tuple[int, ...], with_tree: bool, features: int
) -> None:
    decoder = ModuleDecoder(loaded_text)
    embeds, positions = sequence(2, LENGTH + 2)
    where = torch.zeros(2, LENGTH, dtype=torch.bool)
    where[:, 14:17] = where[0, -1] = True
    generator = torch.Generator().manual_seed(0)
    visual = (where, [torch.randn(7, 64, generator=generator) for _ in range(features)])
    more: dict[str, Any] = {
        "valid": left_padding(lengths),
        "tree": random_tree(4)[1] if with_tree else None,
        "visual": visual,
    }
    prompt = embeds[:, :LENGTH], positions[..., :LENGTH]
    cache, other = decoder.new_cache(2, LENGTH + 2), decoder.new_cache(2, LENGTH + 2)
    whole = decoder.forward(*prompt, cache, **more)
    some = decoder.forward(*prompt, other, **more, keep=keep)
    assert some.shape == (2, min(keep, LENGTH), 64)
    _close(some[:, -9:], whole[:, -min(keep, 9) :])
    chunk = embeds[:, LENGTH:], positions[..., LENGTH:]
    one, two = (decoder.forward(*chunk, each, keep=n) for each, n in ((cache, None), (other, 1)))
    _close(two, one[:, -1:])


@pytest.mark.parametrize("kind", ["qwen3", "moe"])
@pytest.mark.parametrize("lengths", [(LENGTH, LENGTH), (LENGTH, 27)])
def test_deepstack_features_enter_as_in_the_models_own_forward(
    kind: str, lengths: tuple[int, ...]
) -> None:
    loaded = _model(kind)
    embeds, positions = sequence(2, LENGTH)
    before = embeds.clone()
    valid = left_padding(lengths)
    where = torch.zeros(2, LENGTH, dtype=torch.bool)
    where[:, 5:17] = True
    features = [torch.randn(24, 64, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    decoder = ModuleDecoder(loaded)
    hidden = decoder.forward(
        embeds,
        positions,
        decoder.new_cache(2, LENGTH),
        valid=valid,
        visual=(where, features),
    )
    theirs = _theirs(
        loaded,
        embeds,
        positions,
        attention_mask=valid.long(),
        visual_pos_masks=where,
        deepstack_visual_embeds=features,
    )
    _close(hidden[valid], theirs[valid])
    assert torch.equal(embeds, before)
    assert not torch.allclose(theirs, _theirs(loaded, embeds, positions), atol=1e-2)


class _UnmixedRotary(torch.nn.Module):
    """Cosines and sines per axis, as Qwen2.5-VL's module gave them in earlier releases."""

    def __init__(self, inverse: torch.Tensor) -> None:
        super().__init__()
        self.inverse = inverse

    def forward(self, like: torch.Tensor, positions: torch.Tensor) -> Any:
        angles = positions[..., None].float() * self.inverse
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def test_rotary_factors_that_come_per_axis_are_mixed() -> None:
    loaded = text_model("qwen2_5")
    embeds, positions = sequence(2, LENGTH)
    theirs = _theirs(loaded, embeds, positions)
    text = loaded.model.model.language_model
    text.rotary_emb = _UnmixedRotary(text.rotary_emb.inv_freq)
    decoder = ModuleDecoder(loaded)
    assert torch.equal(decoder.forward(embeds, positions, decoder.new_cache(2, LENGTH)), theirs)


def test_an_adapter_that_is_not_merged_takes_part() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    loaded = text_model("qwen3")
    embeds, positions = sequence(1, LENGTH)
    bare = _theirs(loaded, embeds, positions)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    settings = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(3)
        inject_adapter_in_model(settings, loaded.model)
    decoder = make_decoder(loaded, exact=False)
    assert type(decoder) is ModuleDecoder
    hidden = decoder.forward(embeds, positions, decoder.new_cache(1, LENGTH))
    assert torch.equal(hidden, _theirs(loaded, embeds, positions))
    assert not torch.allclose(hidden, bare, atol=1e-2)


def test_rows_can_be_taken_from_a_cache_and_columns_cropped() -> None:
    decoder = _decoder()
    embeds, positions = sequence(2, LENGTH)
    cache = decoder.new_cache(2, LENGTH)
    decoder.forward(embeds[:, :20], positions[..., :20], cache, valid=left_padding((20, 15)))
    taken = cache.take(torch.tensor([1, 0, 1]), capacity=LENGTH + 2)
    assert (taken.batch, taken.capacity, taken.used) == (3, LENGTH + 2, 20)
    rows = [1, 0, 1]
    more, there = embeds[rows, 20:24], positions[:, rows, 20:24]
    first = decoder.forward(more, there, taken)
    direct = decoder.forward(embeds[:, 20:24], positions[..., 20:24], cache)
    _close(first, direct[rows])
    taken.crop(20)
    assert taken.valid[:, 20:].sum() == 0
    _close(decoder.forward(more, there, taken), first)


def test_caches_refuse_what_does_not_fit() -> None:
    decoder = _decoder()
    embeds, positions = sequence(1, 5)
    cache = decoder.new_cache(1, 4)
    with pytest.raises(ConfigError, match="`cache` must have room for 5 more columns, got 0 of 4"):
        decoder.forward(embeds, positions, cache)
    with pytest.raises(ConfigError, match="`used` must be between 0 and 0, got 1"):
        cache.crop(1)
    decoder.forward(embeds[:, :4], positions[..., :4], cache)
    with pytest.raises(ConfigError, match="`capacity` must be at least 4, got 3"):
        cache.take(torch.tensor([0]), capacity=3)


def test_sliding_windows_are_refused() -> None:
    loaded = text_model("qwen2_5")
    loaded.model.model.language_model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ArchitectureError, match="1 layers with a sliding window"):
        ModuleDecoder(loaded)


@pytest.mark.parametrize(
    ("kind", "exact", "expected"),
    [
        ("qwen3", False, FusedDecoder),
        ("qwen3", True, ModuleDecoder),
        ("qwen2_5", False, ModuleDecoder),
        ("moe", False, ModuleDecoder),
    ],
)
def test_the_decoder_is_chosen_by_model(kind: str, exact: bool, expected: type[Decoder]) -> None:
    assert type(make_decoder(_model(kind), exact=exact)) is expected


@pytest.mark.parametrize(
    ("dtype", "capability", "shared"),
    [
        (torch.bfloat16, (9, 0), True),
        (torch.float16, (8, 0), True),
        (torch.float16, (7, 5), False),
        (torch.float32, (9, 0), False),
    ],
)
def test_keys_are_shared_where_a_fused_kernel_does_that(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capability: tuple[int, int], shared: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert shares_keys(torch.device("cuda:0"), dtype) is shared
    assert shares_keys(torch.device("cpu"), dtype) is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masked_and_plain_attention_agree_on_a_device() -> None:
    decoder = ModuleDecoder(text_model("qwen3", device="cuda", dtype=torch.bfloat16))
    embeds, positions = sequence(2, LENGTH)
    embeds, positions = embeds.to("cuda", torch.bfloat16), positions.cuda()
    plain = decoder.forward(embeds, positions, decoder.new_cache(2, LENGTH))
    cache = decoder.new_cache(2, LENGTH)
    valid = torch.ones(2, 24, dtype=torch.bool, device="cuda")
    first = decoder.forward(embeds[:, :24], positions[..., :24], cache, valid=valid)
    chain = torch.ones(6, 6, dtype=torch.bool, device="cuda").tril()
    last = decoder.forward(embeds[:, 24:], positions[..., 24:], cache, tree=chain)
    torch.testing.assert_close(torch.cat((first, last), dim=1), plain, rtol=0, atol=0.15)
