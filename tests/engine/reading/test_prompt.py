from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from procreward.engine.loading import LoadedModel
from procreward.engine.reading.prompt import (
    Chat,
    ChatBuilder,
    Image,
    Part,
    Video,
    VideoLayout,
    build_chat,
)
from procreward.errors import ArchitectureError, ConfigError, InstructionError
from tests.engine.vision_models import qwen25
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QWEN25 = qwen25(TOKENIZER).model.model


def text_of(chat: Chat) -> str:
    text: str = TOKENIZER.decode(chat.ids, clean_up_tokenization_spaces=False)
    return text


def test_images_first_then_the_text_in_one_user_turn() -> None:
    chat = build_chat(TOKENIZER, [Image(1, 2), Image(1, 2), "lift the cube"])
    assert text_of(chat) == (
        "<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        "lift the cube<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_answer_can_be_begun() -> None:
    chat = build_chat(TOKENIZER, ["lift"], assistant_prefix="so <progress>")
    assert text_of(chat) == (
        "<|im_start|>user\nlift<|im_end|>\n<|im_start|>assistant\nso <progress>"
    )


def test_a_system_turn_comes_first() -> None:
    chat = build_chat(TOKENIZER, [Image(1, 2), "lift"], system="Judge it.")
    assert text_of(chat) == (
        "<|im_start|>system\nJudge it.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        "lift<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.ids.tolist() == TOKENIZER.encode(text_of(chat), add_special_tokens=False)


def test_a_family_may_have_a_system_turn_of_its_own() -> None:
    builder = ChatBuilder(TOKENIZER, default_system="You are a helpful assistant.")
    assert text_of(builder.build(["a"])).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\na"
    )
    assert text_of(builder.build(["a"], system="b")).startswith("<|im_start|>system\nb<|im_end|>")
    assert text_of(builder.build(["a"], system="")).startswith("<|im_start|>system\n<|im_end|>\n")


def test_an_open_turn_ends_behind_the_words() -> None:
    chat = build_chat(TOKENIZER, [Image(1, 1), "done? "], open_turn=True)
    assert text_of(chat) == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>done? "
    closed = build_chat(TOKENIZER, [Image(1, 1)], open_turn=True)
    assert text_of(closed) == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    with pytest.raises(ConfigError, match="`assistant_prefix` must be empty"):
        build_chat(TOKENIZER, ["a"], assistant_prefix="b", open_turn=True)


VIDEO = Video.from_frames([0, 1, 2, 3, 4], 20.0, 1, 2)


def test_video_is_written_as_transformers_4_57_does() -> None:
    chat = build_chat(TOKENIZER, [VIDEO, "done?"], video_layout="4.57")
    pads = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert text_of(chat) == (
        f"<|im_start|>user\n<0.0 seconds>{pads}<0.1 seconds>{pads}<0.2 seconds>{pads}"
        "done?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_video_is_written_as_transformers_5_does() -> None:
    chat = build_chat(TOKENIZER, [VIDEO, "done?"], video_layout="5.x")
    pads = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert text_of(chat) == (
        f"<|im_start|>user\n<|vision_start|><0.0 seconds>{pads}<0.1 seconds>{pads}"
        f"<0.2 seconds>{pads}<|vision_end|>done?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_timestamps_are_the_mean_of_a_pair() -> None:
    assert VIDEO.seconds == pytest.approx((0.025, 0.125, 0.2))
    assert Video.from_frames([0, 10], 10.0, 1, 1).seconds == (0.5,)


@pytest.mark.parametrize("parts", [["a", "b c"], ["two\n", "lines"], [Image(2, 2), "x", "\ny"]])
def test_it_tokenises_as_the_whole_string_would_be(parts: list[Part]) -> None:
    chat = build_chat(TOKENIZER, parts)
    whole = TOKENIZER.encode(text_of(chat), add_special_tokens=False)
    assert chat.ids.tolist() == whole


def grids_of(parts: list[Part], kind: type) -> torch.Tensor | None:
    grids = []
    for part in parts:
        if isinstance(part, kind):
            frames = len(part.seconds) if isinstance(part, Video) else 1
            grids.append([frames, part.rows * 2, part.columns * 2])
    return torch.tensor(grids) if grids else None


PARTS = st.lists(
    st.one_of(
        st.builds(Image, st.integers(1, 4), st.integers(1, 4)),
        st.builds(
            Video,
            st.lists(st.floats(0, 9), min_size=1, max_size=3).map(tuple),
            st.integers(1, 3),
            st.integers(1, 3),
        ),
        st.sampled_from(["lift the cube", "a", "open\n the drawer"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, layout=st.sampled_from(["4.57", "5.x"]))
def test_positions_are_those_of_transformers(
    parts: list[Part], layout: VideoLayout, loaded: LoadedModel
) -> None:
    chat = build_chat(TOKENIZER, parts, video_layout=layout)
    ids = torch.tensor(chat.ids)[None]
    positions, deltas = loaded.model.model.get_rope_index(
        ids,
        mm_token_type_ids=torch.tensor(chat.kinds)[None],
        image_grid_thw=grids_of(parts, Image),
        video_grid_thw=grids_of(parts, Video),
        attention_mask=torch.ones_like(ids),
    )
    assert np.array_equal(positions[:, 0].numpy(), chat.positions)
    assert chat.next_position == len(chat) + int(deltas)


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.builds(Image, st.integers(1, 4), st.integers(1, 4)),
            st.sampled_from(["lift the cube", "a", "open\n the drawer"]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_positions_of_pictures_are_those_of_qwen25(parts: list[Part]) -> None:
    chat = build_chat(TOKENIZER, parts, system="You are a helpful assistant.")
    ids = torch.tensor(chat.ids)[None]
    positions, deltas = QWEN25.get_rope_index(
        ids,
        mm_token_type_ids=torch.tensor(chat.kinds)[None],
        image_grid_thw=grids_of(parts, Image),
        attention_mask=torch.ones_like(ids),
    )
    assert np.array_equal(positions[:, 0].numpy(), chat.positions)
    assert chat.next_position == len(chat) + int(deltas)


def test_a_picture_advances_by_its_longer_side() -> None:
    chat = build_chat(TOKENIZER, [Image(2, 3), "a"])
    start = int(np.flatnonzero(chat.visual)[0])
    assert chat.positions[:, start : start + 6].tolist() == [
        [start] * 6,
        [start, start, start, start + 1, start + 1, start + 1],
        [start, start + 1, start + 2] * 2,
    ]
    assert chat.positions[:, start + 6].tolist() == [start + 3] * 3
    assert chat.visual.sum() == 6


def test_with_text_goes_on_where_the_prompt_ends() -> None:
    chat = build_chat(TOKENIZER, [Image(2, 2), "a"])
    longer = chat.with_text([5, 6])
    assert longer.ids[-2:].tolist() == [5, 6]
    first = chat.next_position
    assert longer.positions[:, -2:].tolist() == [[first, first + 1]] * 3
    assert longer.next_position == first + 2
    assert len(longer) == len(chat) + 2
    assert not longer.visual[-2:].any()


def test_layouts_are_remembered_and_cannot_be_changed() -> None:
    builder = ChatBuilder(TOKENIZER)
    chat = builder.build([Image(2, 2), "a"])
    assert builder.build((Image(2, 2), "a")) is chat
    assert builder.build([Image(2, 2), "b"]) is not chat
    assert builder.build([Image(2, 2), "a"], system="s") is not chat
    assert builder.build([Image(2, 2), "a"], open_turn=True) is not chat
    assert builder.build([Image(2, 2), "a"], assistant_prefix="x") is not chat
    assert builder.build([Image(2, 2), "a"]) is chat
    with pytest.raises(ValueError, match="read-only"):
        chat.ids[0] = 1


def test_control_tokens_in_a_text_are_refused() -> None:
    for text in ("lift<|im_end|>", "<|image_pad|>", "<|im_start|>system"):
        with pytest.raises(InstructionError, match="control tokens"):
            build_chat(TOKENIZER, [text])
        with pytest.raises(InstructionError, match="control tokens"):
            build_chat(TOKENIZER, ["lift"], system=text)


def test_other_tokenizers_and_layouts_are_refused() -> None:
    class Foreign:
        all_special_ids = (0,)

        def get_vocab(self) -> dict[str, int]:
            return {"<|im_start|>": 0, "<|im_end|>": 1}

    with pytest.raises(ArchitectureError, match="vision_start"):
        ChatBuilder(Foreign())
    with pytest.raises(ConfigError, match="video_layout"):
        ChatBuilder(TOKENIZER, video_layout="4.56")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigError, match="positive `fps`"):
        Video.from_frames([0, 1], 0.0, 1, 1)
    with pytest.raises(ConfigError, match="at least one frame"):
        Video.from_frames([], 20.0, 1, 1)
