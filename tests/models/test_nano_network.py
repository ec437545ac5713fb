from __future__ import annotations

import numpy as np
import pytest
import torch

from procreward.engine.vision.preprocess import (
    PreprocessConfig,
    load_preprocess_config,
    preprocess_images,
)
from procreward.models.nano.architecture import (
    CROP,
    FRAME_SIZE,
    GRID,
    build_model,
    encode_frames,
    run_windows,
)
from procreward.models.nano.export import write_model
from procreward.models.nano.prompts import PromptBank
from procreward.models.nano.readout import episode_windows, read_percent
from procreward.models.nano.text import build_tokenizer

STAGES = ("reach the cube", "lift the cube")
CONFIG = PreprocessConfig(min_pixels=1024, frame_size=FRAME_SIZE, crop=CROP)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(STAGES)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(tokenizer, seed=0).eval()


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (6, 128, 128, 3), dtype=np.uint8)


def test_it_is_small(model):
    assert 2_500_000 < sum(p.numel() for p in model.parameters()) < 3_000_000


def test_batched_vision_equals_the_tower(model, frames):
    patches = preprocess_images(frames, CONFIG)
    assert patches.grid == GRID
    with torch.no_grad():
        ours = encode_frames(model, patches.pixel_values)
        theirs = model.model.visual(patches.pixel_values, grid_thw=patches.grid_thw)
    torch.testing.assert_close(ours.tokens.flatten(0, 1), theirs.pooler_output, atol=1e-5, rtol=0)
    for one, other in zip(ours.deepstack, theirs.deepstack_features, strict=True):
        torch.testing.assert_close(one.flatten(0, 1), other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_windows_equal_the_whole_model(tokenizer, frames, attention):
    model = build_model(tokenizer, seed=0).eval()
    model.set_attn_implementation(attention)
    bank = PromptBank(tokenizer)
    chats = [bank.chat("lift the cube"), bank.chat("open the small window with the handle")]
    batch = bank.pad(chats, [bank.reply(STAGES, 0, 7, direct=False)] * 2)
    windows = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])
    with torch.no_grad():
        features = encode_frames(model, preprocess_images(frames, CONFIG).pixel_values)
        hidden = run_windows(model, features, windows, batch.ids, batch.positions)
        for row, chat in enumerate(chats):
            length = len(chat)
            picked = preprocess_images(frames[windows[row].numpy()], CONFIG)
            logits = model(
                input_ids=batch.ids[row : row + 1, :length],
                pixel_values=picked.pixel_values,
                image_grid_thw=picked.grid_thw,
                mm_token_type_ids=torch.from_numpy(chat.kinds.copy())[None],
            ).logits
            ours = model.lm_head(hidden[row : row + 1, :length])
            torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)


def test_direct_replies_are_not_taught_their_prefix(tokenizer):
    bank = PromptBank(tokenizer)
    ids, weights = bank.reply(STAGES, 0, 42, direct=True)
    pieces = [tokenizer.decode([i]) for i in ids]
    assert pieces == [
        "Therefore, the estimated progress is <progress>", "4", "2", "%</progress>.", "<|im_end|>",
    ]  # fmt: skip
    assert weights == [0.0, 3.0, 1.5, 1.0, 1.0]


def test_reasoned_replies_weigh_only_the_percentage_up(tokenizer):
    ids, weights = PromptBank(tokenizer).reply(STAGES, 0, 42, direct=False)
    heavy = [(tokenizer.decode([i]), w) for i, w in zip(ids, weights, strict=True) if w > 1.0]
    assert heavy == [("4", 3.0), ("2", 1.5)]
    assert set(weights) == {1.0, 1.5, 3.0}


def test_value_is_read_at_the_progress_tag(tokenizer):
    bank = PromptBank(tokenizer)
    replies = [bank.reply(STAGES, 0, 42, direct=d) for d in (False, True)]
    batch = bank.pad([bank.chat("lift the cube")] * 2, replies)
    at = batch.ids[torch.arange(2), batch.value_at].tolist()
    assert at == [bank.prefix[-1]] * 2


def test_start_of_episode_is_padded_with_the_first_frame():
    assert episode_windows(3).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2]]


def test_readout_of_an_untrained_model_is_a_number_or_nothing(model, tokenizer, frames):
    read = read_percent(
        model, PromptBank(tokenizer), np.ascontiguousarray(frames[:, :96]),
        episode_windows(6), "lift the cube",
    )  # fmt: skip
    assert read.shape == (6,)
    assert np.isnan(read[np.isnan(read)]).all()
    assert ((read[~np.isnan(read)] >= 0) & (read[~np.isnan(read)] <= 100)).all()


def test_exported_folder_loads_in_the_engine(tokenizer, frames, tmp_path):
    from procreward.engine import Clip, Prompt
    from procreward.engine.fast import FastEngine
    from procreward.engine.loading import load_model

    write_model(build_model(tokenizer, seed=0), tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 6_000_000
    assert load_preprocess_config(tmp_path).crop == CROP
    loaded = load_model(str(tmp_path))
    prompt = Prompt(parts=(Clip(frames=frames[:4]), "lift the cube"))
    (answer,) = FastEngine(loaded).generate([prompt], max_new_tokens=3, stop=())
    assert len(answer.tokens) <= 3
