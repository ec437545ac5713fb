"""What the engine keeps between calls must never change an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procreward.engine import Clip, Prompt
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel
from procreward.engine.reference import ReferenceEngine
from procreward.errors import ModelError

LABELS = ("complete", "not complete")
EPISODE = np.random.default_rng(7).integers(0, 256, (40, 64, 128, 3), np.uint8)
DEMO = np.random.default_rng(8).integers(0, 256, (5, 32, 64, 3), np.uint8)


def window(
    step: int, *, stream: str = "a", size: int = 4, pad: bool = True, video: bool = False
) -> Clip:
    steps = [max(step - back, 0) for back in range(size - 1, -1, -1)]
    if not pad:
        steps = sorted(set(steps))
    shift = sum(map(ord, stream))
    return Clip(
        frames=np.stack([EPISODE[(one + shift) % len(EPISODE)] for one in steps]),
        keys=tuple((stream, "main", one) for one in steps),
        video=video,
        frame_indices=tuple(range(len(steps))) if video else None,
        fps=2.0 if video else None,
    )


def ask(step: int, *, stream: str = "a", pad: bool = True, words: str = "lift it") -> Prompt:
    return Prompt(parts=(window(step, stream=stream, pad=pad), words), stream=stream)


def told_apart(prompt: Prompt) -> Prompt:
    """The same question without anything an engine could remember it by."""
    parts = tuple(
        part if isinstance(part, str) else replace(part, keys=None) for part in prompt.parts
    )
    return replace(prompt, parts=parts, stream=None)


def reference_answers(loaded: LoadedModel, prompts: Sequence[Prompt], limit: int) -> list[str]:
    engine = ReferenceEngine(loaded)
    return [
        engine.generate([told_apart(prompt)], max_new_tokens=limit)[0].text for prompt in prompts
    ]


@pytest.mark.parametrize("exact", [True, False], ids=["strict", "fast"])
@pytest.mark.parametrize("pad", [True, False])
def test_an_episode_is_answered_as_by_transformers(
    loaded: LoadedModel, exact: bool, pad: bool
) -> None:
    engine = FastEngine(loaded, exact=exact)
    prompts = [ask(step, pad=pad) for step in range(12)]
    texts = [engine.generate([prompt], max_new_tokens=16)[0].text for prompt in prompts]
    assert texts == reference_answers(loaded, prompts, 16)
    stats = engine.stats
    assert stats.frames_encoded == 12
    assert stats.frames_reused == (12 * 4 - 12 if pad else 42 - 12)
    assert stats.prompts == 12
    # While the window still begins with the first frame, its head is not read again.
    assert stats.tokens_reused > 0
    assert (stats.drafts_offered > 0) == (not exact)


@pytest.mark.parametrize("exact", [True, False], ids=["strict", "fast"])
def test_environments_in_lockstep_are_answered_as_alone(loaded: LoadedModel, exact: bool) -> None:
    engine = FastEngine(loaded, exact=exact)
    streams = ["a", "b", "c", "d", "e"]
    for step in range(6):
        prompts = [
            ask(step + 2 * place, stream=stream, words="lift it" if place % 2 else "open it now")
            for place, stream in enumerate(streams)
        ]
        texts = [one.text for one in engine.generate(prompts, max_new_tokens=14)]
        assert texts == reference_answers(loaded, prompts, 14)


def test_repeating_a_question_costs_one_pass(loaded: LoadedModel) -> None:
    engine = FastEngine(loaded)
    first = engine.generate([ask(9)], max_new_tokens=20)
    before = engine.stats
    assert engine.generate([ask(9)], max_new_tokens=20) == first
    after = engine.stats
    assert after.frames_encoded == before.frames_encoded
    assert before.passes > 10
    # The whole last answer is right: one pass reads the prompt and it.
    assert after.passes - before.passes == 1
    assert after.drafts_accepted == after.drafts_offered == 19


@pytest.mark.parametrize("video", [False, True])
def test_labels_along_an_episode_are_those_of_transformers(
    loaded: LoadedModel, video: bool
) -> None:
    engine, reference = FastEngine(loaded), ReferenceEngine(loaded)
    for step in range(0, 16, 2):
        prompts = [
            Prompt(parts=(window(step, stream=stream, size=6, video=video), "done?"), stream=stream)
            for stream in ("left", "right")
        ]
        ours = engine.label_nll(prompts, LABELS).nll
        theirs = reference.label_nll([told_apart(one) for one in prompts], LABELS).nll
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert engine.stats.frames_reused > engine.stats.frames_encoded
    assert engine.stats.passes == 8


def demonstration(step: int, stream: str) -> Prompt:
    demo = Clip(frames=DEMO, keys=tuple(("demo:x", "", place) for place in range(len(DEMO))))
    return Prompt(
        parts=("The goal is near.", demo, "Now:", window(step, stream=stream, size=1), "How far?"),
        system="You estimate.",
        stream=stream,
    )


def test_a_demonstration_is_read_once_for_all(loaded: LoadedModel) -> None:
    engine = FastEngine(loaded)
    for step in range(4):
        prompts = [demonstration(step, stream) for stream in ("a", "b", "c")]
        texts = [one.text for one in engine.generate(prompts, max_new_tokens=10)]
        assert texts == reference_answers(loaded, prompts, 10)
    stats = engine.stats
    assert stats.frames_encoded == len(DEMO) + 12
    # Eleven of the twelve prompts were spared the demonstration, which is most of a prompt.
    head = stats.tokens_reused // 11
    assert stats.tokens_reused == 11 * head
    assert head > 2 * (stats.tokens_read - head) // 12


@pytest.mark.parametrize("exact", [True, False], ids=["strict", "fast"])
def test_numbers_are_those_of_brute_force(loaded: LoadedModel, exact: bool) -> None:
    engine, reference = FastEngine(loaded, exact=exact), ReferenceEngine(loaded)
    lead = "<progress>"
    prompts = [
        Prompt(parts=(window(3), "how far"), assistant_prefix=f"so {lead}", stream="a"),
        Prompt(parts=("words only",), assistant_prefix=lead),
        Prompt(parts=(window(5, stream="b"), "how far"), stream="b"),
    ]
    ours = engine.read_number(prompts, lead=lead, max_new_tokens=4)
    theirs = reference.read_number(
        [told_apart(prompt) for prompt in prompts], lead=lead, max_new_tokens=4
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.text, mine.tokens, mine.finished) == (other.text, other.tokens, other.finished)
        assert mine.mass == pytest.approx(other.mass, abs=1e-4)
        assert mine.spread == pytest.approx(other.spread, abs=1e-2)
        if other.value is None:
            assert mine.value is None
        else:
            assert mine.value == pytest.approx(other.value, abs=1e-2)
    assert [one.finished for one in ours] == [True, True, False]


def test_releasing_a_stream_frees_what_it_held(loaded: LoadedModel) -> None:
    engine = FastEngine(loaded)
    engine.generate([ask(3), ask(3, stream="b")], max_new_tokens=4)
    encoded = engine.stats.frames_encoded
    engine.release(["a"])
    engine.generate([ask(3), ask(3, stream="b")], max_new_tokens=4)
    assert engine.stats.frames_encoded == encoded + 4


def test_nothing_is_kept_without_memory(loaded: LoadedModel) -> None:
    engine = FastEngine(loaded, cache_bytes=0)
    for _ in range(2):
        engine.generate([ask(6)], max_new_tokens=4)
    assert engine.stats.frames_encoded == 8
    assert engine.stats.tokens_reused == 0


queries = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9), st.sampled_from(["go", "stop now"])),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=st.lists(queries, min_size=1, max_size=4), released=st.booleans())
def test_history_never_changes_an_answer(
    loaded: LoadedModel, calls: list[list[tuple[str, int, str]]], released: bool
) -> None:
    engine = FastEngine(loaded, cache_bytes=200_000)
    for call in calls:
        prompts = [ask(step, stream=stream, words=words) for stream, step, words in call]
        texts = [one.text for one in engine.generate(prompts, max_new_tokens=8)]
        assert texts == reference_answers(loaded, prompts, 8)
        if released:
            engine.release(["a"])


def test_out_of_memory_halves_the_batch_and_goes_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FastEngine(loaded)
    whole, sizes = engine._decoder.forward, []

    def cramped(embeds: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        sizes.append(len(embeds))
        if len(embeds) > 3:
            raise torch.OutOfMemoryError("no room for so many")
        return whole(embeds, *args, **named)

    monkeypatch.setattr(engine._decoder, "forward", cramped)
    prompts = [ask(step, stream=stream) for step in (3, 6) for stream in ("a", "b", "c")]
    texts = [one.text for one in engine.generate(prompts, max_new_tokens=6)]
    monkeypatch.undo()
    assert texts == reference_answers(loaded, prompts, 6)
    assert sizes[0] == 6
    assert sizes[1] == 3


def test_a_prompt_that_never_fits_is_a_model_error(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FastEngine(loaded)

    def never(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room at all")

    monkeypatch.setattr(engine._decoder, "forward", never)
    with pytest.raises(ModelError, match="Not enough memory"):
        engine.generate([ask(3)], max_new_tokens=4)


@pytest.mark.parametrize("exact", [True, False], ids=["strict", "fast"])
def test_what_is_announced_changes_no_answer(loaded: LoadedModel, exact: bool) -> None:
    plain, engine = FastEngine(loaded, exact=exact), FastEngine(loaded, exact=exact)
    calls = [[ask(step, stream=stream) for stream in "ab"] for step in range(6)]
    expected = [plain.generate(call, max_new_tokens=8) for call in calls]
    found = []
    for number, call in enumerate(calls):
        for following in calls[number + 1 : number + 2]:
            engine.announce(following)
        found.append(engine.generate(call, max_new_tokens=8))
    assert found == expected
    assert engine.stats == plain.stats


def test_an_engine_that_forgets_is_as_new(loaded: LoadedModel) -> None:
    engine = FastEngine(loaded)
    demo = Clip(frames=DEMO, keys=tuple(("demo", "", one) for one in range(len(DEMO))))
    prompts = [
        Prompt(parts=(demo, window(step, stream=stream), "lift it"), stream=stream)
        for step in (0, 4)
        for stream in "ab"
    ]
    first = engine.generate(prompts, max_new_tokens=8)
    before = engine.stats
    engine.forget()
    assert engine.generate(prompts, max_new_tokens=8) == first
    after = engine.stats
    for name in ("frames_encoded", "frames_reused", "tokens_read", "tokens_reused", "passes"):
        assert getattr(after, name) == 2 * getattr(before, name), name
    assert after.drafts_offered == 2 * before.drafts_offered
