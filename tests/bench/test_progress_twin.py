from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from procreward.bench.progress_job import progress_material
from procreward.bench.progress_twin import (
    TrainSettings,
    _picture_only,
    answer,
    demonstration,
    train_progress_twin,
)
from procreward.bench.twins import TwinSize
from procreward.engine import Clip
from procreward.engine.fast import FastEngine
from procreward.engine.reading.inputs import PromptReader
from procreward.scorers.progresslm import ProgressLM, ProgressLMOptions
from procreward.scorers.progresslm_prompts import progresslm_prompt
from procreward.scorers.progresslm_text import read_think
from tests.bench.recordings import keep, recordings

BRIEF = TrainSettings(
    look_steps=2,
    look_batch=2,
    short_steps=2,
    short_batch=2,
    long_steps=1,
    long_batch=1,
    size=TwinSize.square(32),
    vocabulary=400,
)


@pytest.mark.parametrize("percent", range(101))
def test_answers_are_read_as_they_are_meant(percent: int) -> None:
    reading = read_think(answer(percent / 100))
    assert reading.progress == percent / 100
    assert reading.ref == 1 + round(percent / 100 * 7)


def test_answers_say_different_things() -> None:
    assert len({answer(percent / 100) for percent in range(101)}) == 101
    scenes = {answer(percent / 100).split(".")[0] for percent in range(101)}
    assert len(scenes) == 5


def test_a_demonstration_spreads_its_key_frames_over_the_progress() -> None:
    one = recordings(1, 22)[0]
    frames = one.episode.frames["front"]
    demo = demonstration(one)
    rows = [next(r for r, f in enumerate(frames) if f is g or (f == g).all()) for g in demo.frames]
    assert rows == [0, 3, 6, 9, 12, 15, 18, 21]


def test_training_is_seeded_kept_and_loads_as_a_model(cache: Path) -> None:
    keep(10, 16, cache)
    loaded, demo, held_out = progress_material(10, 16, cache, BRIEF)
    assert loaded.family == "qwen2_5_vl"
    # Seven of ten: one demonstrates, two are trained on.
    assert [episode.name[-1] for episode in held_out] == ["0", "1", "2", "3", "5", "6", "7"]
    folder = cache / "progress-twin-10-16"
    before = (folder / "model.safetensors").read_bytes()
    train_progress_twin([], demo, folder)  # would fail, were it not there
    again = train_progress_twin(recordings(10, 16)[8:], demo, cache / "again", BRIEF)
    assert (again / "model.safetensors").read_bytes() == before
    scorer = ProgressLM(
        FastEngine(loaded), demo, ProgressLMOptions(max_new_tokens=4), account={"family": "qwen2"}
    )
    (score,) = scorer.score([held_out[0].query(3, 1)])
    assert score.details["tokens"] <= 4
    assert not next(loaded.model.parameters()).requires_grad


def test_a_prompt_is_cut_to_its_last_picture_where_it_stands(cache: Path) -> None:
    keep(10, 16, cache)
    loaded, demo, _ = progress_material(10, 16, cache, BRIEF)
    clip = Clip(frames=demo.frames[0][None])
    chat = PromptReader(loaded).layout(progresslm_prompt("lift", demo, clip))
    short = _picture_only(chat)
    tokens = int(short.visual.sum())
    assert int(chat.visual.sum()) == 9 * tokens
    assert len(short) == tokens + 2 + 4
    words = loaded.tokenizer.convert_ids_to_tokens(short.ids)
    assert words[0] == "<|vision_start|>"
    assert words[tokens + 1] == "<|vision_end|>"
    assert loaded.tokenizer.decode(short.ids).endswith("stant\n")
    assert short.next_position == chat.next_position
    assert np.isin(short.positions[0], chat.positions[0]).all()
    assert torch.tensor(short.positions).max() < chat.next_position
