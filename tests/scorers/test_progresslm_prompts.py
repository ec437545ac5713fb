from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.engine import Clip, Prompt
from procreward.errors import ConfigError
from procreward.scorers.demonstration import Demonstration
from procreward.scorers.progresslm_prompts import progresslm_prompt, prompt_sha256
from procreward.types import Frame

GOAL = "Put the {cup} away."
STEPS = ("[left] picks up the cup", "[right] opens the door", "put it in")


def picture(grey: int, size: int = 8) -> Frame:
    return np.full((size, size, 3), grey, np.uint8)


TEXT = Demonstration(steps=STEPS)
VISUAL = Demonstration(frames=tuple(picture(10 + index) for index in range(7)))
STATE = Clip(frames=picture(99)[None])


def published() -> dict[str, str]:
    """The prompts as upstream's own code writes them, by name."""
    text = Path(__file__).with_name("progresslm_prompts.txt").read_text(encoding="utf-8")
    sections = text.removesuffix("\n").removeprefix("=== ").split("\n=== ")
    return dict(section.split("\n", 1) for section in sections)


def written(prompt: Prompt) -> str:
    """A prompt as the file has it; texts touch."""
    assert prompt.assistant_prefix == ""
    assert not prompt.open_turn
    system = "" if prompt.system is None else f"{prompt.system}\n"
    parts = [part if isinstance(part, str) else "[picture]" for part in prompt.parts]
    return f"{system}[user]\n{''.join(parts)}"


@pytest.mark.parametrize(
    ("name", "demo", "options"),
    [
        ("eval text think", TEXT, {}),
        ("eval text think", TEXT, {"family": "qwen3"}),
        ("eval visual think", VISUAL, {}),
        ("eval visual think", VISUAL, {"family": "qwen3"}),
        ("eval text nothink qwen2.5", TEXT, {"think": False}),
        ("eval visual nothink qwen2.5", VISUAL, {"think": False}),
        ("eval text nothink qwen3", TEXT, {"think": False, "family": "qwen3"}),
        ("eval visual nothink qwen3", VISUAL, {"think": False, "family": "qwen3"}),
        ("train text", TEXT, {"layout": "train"}),
        ("train visual", VISUAL, {"layout": "train", "family": "qwen3"}),
    ],
)
def test_prompts_are_the_published_ones(
    name: str, demo: Demonstration, options: dict[str, Any]
) -> None:
    assert written(progresslm_prompt(GOAL, demo, STATE, **options)) == published()[name]


def test_every_published_prompt_is_another_one() -> None:
    assert len(set(published().values())) == len(published()) == 8


@pytest.mark.parametrize("layout", ["eval", "train"])
def test_key_frames_come_in_order_and_the_state_last(layout: Any) -> None:
    prompt = progresslm_prompt(GOAL, VISUAL, STATE, layout=layout, stream="episode-1/front")
    clips = [part for part in prompt.parts if isinstance(part, Clip)]
    assert [int(clip.frames[0, 0, 0, 0]) for clip in clips] == [*range(10, 17), 99]
    assert all(clip.frames.shape == (1, 8, 8, 3) and not clip.video for clip in clips)
    assert prompt.stream == "episode-1/front"
    assert clips[-1] is STATE


def test_key_frames_are_named_by_their_pixels() -> None:
    def keys(demo: Demonstration) -> list[Any]:
        parts = progresslm_prompt(GOAL, demo, STATE).parts
        return [part.keys for part in parts if isinstance(part, Clip)][:-1]

    first = keys(VISUAL)
    stream = first[0][0][0]
    assert first == [((stream, "", index),) for index in range(7)]
    assert stream == f"demo:{VISUAL.pixel_digest[:16]}"
    same = Demonstration(frames=tuple(frame.copy() for frame in VISUAL.frames))
    assert keys(same) == first
    other = Demonstration(frames=(*VISUAL.frames[:-1], picture(17)))
    assert set(keys(other)).isdisjoint(first)


def test_key_frames_may_differ_in_size() -> None:
    demo = Demonstration(frames=(picture(1, 8), picture(2, 16)), progress=(0, 100))
    clips = [p for p in progresslm_prompt(GOAL, demo, STATE).parts if isinstance(p, Clip)]
    assert [clip.frames.shape[1] for clip in clips] == [8, 16, 8]


def test_percentages_that_are_given_are_written() -> None:
    demo = Demonstration(frames=VISUAL.frames[:3], progress=(0, 12.5, 100))
    line = "The progress shifts across all given visual demos is: <image> 0% <image> 12% <image> "
    assert f"{line}100%" in progresslm_prompt(GOAL, demo, STATE).parts
    steps = Demonstration(steps=("a", "b"), progress=(20, 100))
    demonstration = "Step 1. a\nThe Progress for now is 20%.\n\nStep 2. b\nThe Progress for now is "
    assert f"{demonstration}100%." in progresslm_prompt(GOAL, steps, STATE).parts


def test_another_word_for_a_picture() -> None:
    parts = progresslm_prompt(GOAL, VISUAL, STATE, picture_word="picture").parts
    shifts = "picture 0% picture 17% picture 33% picture 50% picture 67% picture 83% picture 100%"
    assert f"The progress shifts across all given visual demos is: {shifts}" in parts


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ConfigError, match="`layout` must be 'eval' where `think` is false"):
        progresslm_prompt(GOAL, TEXT, STATE, think=False, layout="train")
    with pytest.raises(ConfigError, match="`layout` must be one of 'eval', 'train'"):
        progresslm_prompt(GOAL, TEXT, STATE, layout="sft")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigError, match="`prompt_family` must be one of"):
        progresslm_prompt(GOAL, TEXT, STATE, family="qwen2")  # type: ignore[arg-type]  # on purpose


def test_the_wording_has_a_digest() -> None:
    kinds: list[dict[str, Any]] = [
        {"think": True, "layout": "eval", "family": "qwen2.5"},
        {"think": True, "layout": "train", "family": "qwen2.5"},
        {"think": False, "layout": "eval", "family": "qwen2.5"},
        {"think": False, "layout": "eval", "family": "qwen3"},
    ]
    digests = [prompt_sha256(**kind) for kind in kinds]
    assert len(set(digests)) == 4
    assert {len(digest) for digest in digests} == {64}
    assert digests[0] == prompt_sha256(think=True, layout="eval", family="qwen3")
