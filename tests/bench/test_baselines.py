from __future__ import annotations

import numpy as np
import pytest

from procreward.bench.baselines import Batched, OneByOne
from procreward.bench.frames import moving_frames
from procreward.engine import Clip, EndTokens, Prompt
from procreward.engine.loading import LoadedModel
from procreward.engine.reference import ReferenceEngine

LABELS = ("complete", "not complete")


def prompts() -> list[Prompt]:
    clip = Clip(frames=moving_frames(2, (64, 64)))
    video = Clip(
        frames=moving_frames(4, (32, 64), seed=1), video=True, frame_indices=(0, 1, 2, 3), fps=10.0
    )
    return [
        Prompt(parts=(clip, "lift the cube")),
        Prompt(parts=("first words, then ", video, "done?")),
        Prompt(parts=(video, "is it?")),
    ]


@pytest.mark.parametrize("end_tokens", ["template", "eos", "none"])
def test_labels_in_one_batch_are_labels_one_by_one(
    loaded: LoadedModel, end_tokens: EndTokens
) -> None:
    right = ReferenceEngine(loaded).label_nll(prompts(), LABELS, end_tokens=end_tokens)
    batched = Batched(loaded).label_nll(prompts(), LABELS, end_tokens=end_tokens)
    assert batched.tokens == right.tokens
    np.testing.assert_allclose(batched.nll, right.nll, rtol=0, atol=1e-4)
    alone = OneByOne(ReferenceEngine(loaded)).label_nll(prompts(), LABELS, end_tokens=end_tokens)
    np.testing.assert_array_equal(alone.nll, right.nll)


def test_no_prompts_have_no_likelihoods(loaded: LoadedModel) -> None:
    assert Batched(loaded).label_nll([], LABELS).nll.shape == (0, 2)


def test_answers_one_by_one_are_those_of_a_batch(loaded: LoadedModel) -> None:
    one = OneByOne(ReferenceEngine(loaded)).generate(prompts(), max_new_tokens=12)
    assert one == Batched(loaded).generate(prompts(), max_new_tokens=12)
    assert len({answer.tokens for answer in one}) == 3


def test_numbers_are_read_as_the_reference_reads_them(loaded: LoadedModel) -> None:
    prompt = Prompt(parts=("how far?",), assistant_prefix="It is <progress>")
    readings = [
        engine.read_number([prompt], lead="<progress>", max_new_tokens=4, largest=9.0)
        for engine in (ReferenceEngine(loaded), OneByOne(ReferenceEngine(loaded)))
    ]
    assert readings[0] == readings[1]
    assert readings[0][0].value is not None
