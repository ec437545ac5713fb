"""The engine on a CUDA device, pretended where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from procreward.engine import Clip, Prompt
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel
from tests.engine.pretended_cuda import pretend_cuda

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
LABELS = ("complete", "not complete")


def window(stream: str, step: int) -> Prompt:
    """Up to four frames, as an episode shows them."""
    steps = range(max(0, step - 3), step + 1)
    keys = tuple((stream, "front", one) for one in steps)
    clip = Clip(frames=FRAMES[steps.start : steps.stop], keys=keys)
    return Prompt(parts=(clip, "lift the cube"), stream=f"{stream}/front")


def moments(step: int) -> list[Prompt]:
    return [window("a", step), window("b", step + 2)]


@pytest.mark.parametrize("number", [0, 1])
def test_a_device_gives_the_cpus_answers(
    loaded: LoadedModel, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FastEngine(loaded, exact=True)
    lead = "it is <progress>"
    begun = [replace(prompt, assistant_prefix=lead) for prompt in moments(5)]
    expected = [plain.generate(moments(step), max_new_tokens=24) for step in range(6)]
    numbers = plain.read_number(begun, lead=lead, max_new_tokens=1)
    device = torch.device("cuda", number)
    with pretend_cuda(monkeypatch) as cuda:
        there = replace(loaded, model=cuda.move(loaded.model, device), device=device)
        engine = FastEngine(there)
        found, waits = [], []
        for step in range(6):
            before = len(cuda.waits), engine.stats.passes
            found.append(engine.generate(moments(step), max_new_tokens=24))
            waits.append((len(cuda.waits) - before[0], engine.stats.passes - before[1]))
        nll = engine.label_nll(moments(5), LABELS).nll
        readings = engine.read_number(begun, lead=lead, max_new_tokens=1)
    assert [[answer.tokens for answer in answers] for answers in found] == [
        [answer.tokens for answer in answers] for answers in expected
    ]
    assert len({token for answers in found for answer in answers for token in answer.tokens}) > 20
    np.testing.assert_allclose(nll, plain.label_nll(moments(5), LABELS).nll, rtol=0, atol=1e-4)
    for one, other in zip(readings, numbers, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
    assert cuda.captured > 1
    # A pass is waited for once, for the words that it chose; where the pictures are, once a call.
    assert all(passes <= count <= passes + 1 for count, passes in waits[1:])
