"""Every family that the engine runs answers as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from procreward.engine import Clip, Prompt
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel, load_model
from procreward.engine.reference import ReferenceEngine
from tests.tiny import save_tiny_moe, save_tiny_qwen25

LABELS = ("complete", "not complete")
FRAMES = np.random.default_rng(3).integers(0, 256, (12, 84, 112, 3), np.uint8)


@pytest.fixture(scope="module", params=[save_tiny_qwen25, save_tiny_moe], ids=["2.5", "moe"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    save: Callable[[Path], Path] = request.param
    return load_model(str(save(tmp_path_factory.mktemp("family") / "model")), threads=1)


def ask(step: int, stream: str, *, keys: bool = True) -> Prompt:
    steps = range(max(step - 3, 0), step + 1)
    names = tuple((stream, "main", one) for one in steps)
    clip = Clip(frames=FRAMES[list(steps)], keys=names if keys else None)
    words = "lift the cube" if stream == "a" else "open the drawer and wait"
    return Prompt(parts=(clip, words), stream=stream if keys else None)


@pytest.mark.parametrize("exact", [True, False], ids=["strict", "fast"])
def test_streams_are_answered_as_by_transformers(family: LoadedModel, exact: bool) -> None:
    engine, reference = FastEngine(family, exact=exact), ReferenceEngine(family)
    texts = set()
    for step in range(6):
        ours = engine.generate([ask(step, "a"), ask(step, "b")], max_new_tokens=12)
        for stream, answer in zip("ab", ours, strict=True):
            alone = reference.generate([ask(step, stream, keys=False)], max_new_tokens=12)
            assert [answer] == alone
        texts |= {answer.text for answer in ours}
    assert len(texts) > 4
    assert engine.stats.frames_encoded == 12


def test_labels_and_numbers_are_those_of_transformers(family: LoadedModel) -> None:
    engine, reference = FastEngine(family), ReferenceEngine(family)
    prompts = [ask(4, "a"), ask(7, "b")]
    plain = [ask(4, "a", keys=False), ask(7, "b", keys=False)]
    np.testing.assert_allclose(
        engine.label_nll(prompts, LABELS).nll,
        reference.label_nll(plain, LABELS).nll,
        rtol=0,
        atol=1e-4,
    )
    lead = "<progress>"
    begun = Prompt(parts=prompts[0].parts, assistant_prefix=lead, stream="a")
    (ours,) = engine.read_number([begun], lead=lead, max_new_tokens=1)
    (theirs,) = reference.read_number([begun], lead=lead, max_new_tokens=1)
    assert ours.value == pytest.approx(theirs.value, abs=1e-2)
    assert ours.mass == pytest.approx(theirs.mass, abs=1e-4)
