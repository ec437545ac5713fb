from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine import Clip, EndTokens, Prompt
from procreward.engine.loading import LoadedModel
from procreward.engine.reading.inputs import PromptReader
from procreward.engine.vision.preprocess import PreprocessConfig
from procreward.errors import ConfigError, FrameError
from procreward.types import Frames


def frames(count: int, height: int = 64, width: int = 96) -> Frames:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def video(count: int, height: int = 64, width: int = 96) -> Clip:
    return Clip(
        frames=frames(count, height, width),
        video=True,
        frame_indices=tuple(range(count)),
        fps=20.0,
    )


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    height=st.integers(20, 130),
    width=st.integers(20, 130),
    is_video=st.booleans(),
)
def test_the_layout_has_one_token_for_every_merged_patch(
    count: int, height: int, width: int, is_video: bool, loaded: LoadedModel
) -> None:
    reader = PromptReader(loaded)
    clip = video(count, height, width) if is_video else Clip(frames=frames(count, height, width))
    prompt = Prompt(parts=(clip, "lift the cube"))
    chat = reader.layout(prompt)
    prepared = reader.read(prompt)
    assert prepared.chat is chat
    assert prepared.videos == (is_video,)
    assert int(chat.visual.sum()) == len(prepared.patches[0].pixel_values) // 4
    assert set(chat.kinds[chat.visual].tolist()) == {2 if is_video else 1}


def test_the_layout_knows_system_and_open_turn(loaded: LoadedModel) -> None:
    reader = PromptReader(loaded)
    prompt = Prompt(parts=("a ", "b"), system="s", open_turn=True)
    assert loaded.tokenizer.decode(reader.layout(prompt).ids) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na b"
    )


@pytest.mark.parametrize("is_video", [False, True])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), "must be"),
        (np.zeros((64, 64, 3), np.uint8), "must be"),
        (np.zeros((2, 64, 64, 4), np.uint8), "must be"),
        (np.zeros((2, 64, 96, 3), np.uint8), r"frames of 64x64 .* got 96x64"),
    ],
)
def test_the_layout_refuses_the_frames_that_preprocessing_refuses(
    wrong: Frames, words: str, is_video: bool, loaded: LoadedModel
) -> None:
    config = PreprocessConfig(min_pixels=1024, frame_size=(64, 64))
    reader = PromptReader(_like(loaded, image_config=config))
    count = len(wrong)
    clip = Clip(frames=wrong, video=is_video, frame_indices=tuple(range(count)), fps=1.0)
    with pytest.raises(FrameError, match=words):
        reader.layout(Prompt(parts=(clip,)))


def test_a_model_without_videos_says_so(loaded: LoadedModel) -> None:
    reader = PromptReader(_like(loaded, family="qwen2_5_vl", default_system="Help."))
    with pytest.raises(ConfigError, match="frames as pictures"):
        reader.layout(Prompt(parts=(video(2),)))
    chat = reader.layout(Prompt(parts=(Clip(frames=frames(2)),)))
    assert loaded.tokenizer.decode(chat.ids).startswith("<|im_start|>system\nHelp.<|im_end|>\n")


@pytest.mark.parametrize(
    ("end_tokens", "end"), [("none", ""), ("eos", "<|im_end|>"), ("template", "<|im_end|>\n")]
)
def test_labels_of_an_answer(end_tokens: EndTokens, end: str, loaded: LoadedModel) -> None:
    reader = PromptReader(loaded)
    tokens = reader.label_tokens(["not complete", "complete"], end_tokens)
    texts = [loaded.tokenizer.decode(label) for label in tokens]
    assert texts == ["not complete" + end, "complete" + end]


def test_labels_behind_an_open_turn(loaded: LoadedModel) -> None:
    reader = PromptReader(loaded)
    prompt = Prompt(parts=(Clip(frames=frames(1)), "is the task ", "complete:"), open_turn=True)
    text = reader.open_text(prompt)
    assert text == "is the task complete:"
    ended = reader.label_tokens([" yes", " no"], "eos", open_turn_text=text)
    assert [loaded.tokenizer.decode(label) for label in ended] == [
        " yes<|im_end|>",
        " no<|im_end|>",
    ]
    labels = reader.label_tokens([" yes", " no"], "none", open_turn_text=text)
    assert labels == tuple(label[:-1] for label in ended)
    whole = loaded.tokenizer.encode(text + " yes", add_special_tokens=False)
    assert whole == [*loaded.tokenizer.encode(text), *labels[0]]
    with pytest.raises(ConfigError, match="end_tokens"):
        reader.label_tokens([" yes"], "template", open_turn_text=text)


def test_open_text_is_what_is_tokenised_in_one_piece(loaded: LoadedModel) -> None:
    reader = PromptReader(loaded)
    clip = Clip(frames=frames(1))
    assert reader.open_text(Prompt(parts=(clip, "a"))) is None
    assert reader.open_text(Prompt(parts=("a", clip), open_turn=True)) == ""
    assert reader.open_text(Prompt(parts=("a", "b"), open_turn=True)) == "user\nab"
    assert reader.label_tokens(["yes"], "none", open_turn_text="")[0] == tuple(
        loaded.tokenizer.encode("yes", add_special_tokens=False)
    )


def test_labels_that_melt_into_the_words_before_them_are_refused(loaded: LoadedModel) -> None:
    reader = PromptReader(loaded)
    with pytest.raises(ConfigError, match="tokenised apart from the words"):
        reader.label_tokens(["s"], "none", open_turn_text="progres")
    with pytest.raises(ConfigError, match="tokenised apart from the line"):
        reader.label_tokens([""], "none")
    with pytest.raises(ConfigError, match="must differ"):
        reader.label_tokens(["a", "a b"], "none")


def _like(loaded: LoadedModel, **changes: object) -> LoadedModel:
    """A model with other settings and the same weights."""
    names = ("tokenizer", "image_config", "device", "dtype", "model")
    values = {name: getattr(loaded, name) for name in names} | changes
    return SimpleNamespace(**values)  # type: ignore[return-value]  # a stand-in
