from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from procreward.engine import Clip, EndTokens, Prompt
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel, load_model
from procreward.engine.reading.inputs import cut_at_stop
from procreward.engine.reference import ReferenceEngine
from procreward.errors import ConfigError, InstructionError, ModelError

LABELS = ("complete", "not complete")


def clip(
    count: int, height: int = 64, width: int = 64, *, seed: int = 0, video: bool = False
) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    if not video:
        return Clip(frames=frames)
    return Clip(frames=frames, video=True, frame_indices=tuple(range(count)), fps=20.0)


IMAGES = Prompt(parts=(clip(4), "lift the cube"))
OTHERS = (
    Prompt(parts=(clip(1, 96, 32, seed=1), "open the drawer, then close it and wait")),
    Prompt(parts=("just words",)),
    Prompt(parts=("text first ", clip(2, 32, 96, seed=2)), assistant_prefix="so"),
    Prompt(parts=(clip(5, seed=3, video=True), "done?")),
    Prompt(parts=(clip(2, seed=4), " then ", clip(4, seed=5, video=True), "?")),
)


@pytest.fixture(scope="module", params=[True, False], ids=["strict", "fast"])
def engine(loaded: LoadedModel, request: pytest.FixtureRequest) -> FastEngine:
    return FastEngine(loaded, exact=request.param)


@pytest.fixture(scope="module")
def reference(loaded: LoadedModel) -> ReferenceEngine:
    return ReferenceEngine(loaded)


@pytest.mark.parametrize("prompt", [IMAGES, *OTHERS])
def test_one_answer_is_that_of_transformers(
    engine: FastEngine, reference: ReferenceEngine, prompt: Prompt
) -> None:
    ours = engine.generate([prompt], max_new_tokens=20)
    assert ours == reference.generate([prompt], max_new_tokens=20)


def test_a_batch_answers_as_transformers_and_as_one_by_one(
    engine: FastEngine, reference: ReferenceEngine
) -> None:
    prompts = [IMAGES, *OTHERS]
    batched = engine.generate(prompts, max_new_tokens=20)
    assert batched == reference.generate(prompts, max_new_tokens=20)
    assert batched == [engine.generate([prompt], max_new_tokens=20)[0] for prompt in prompts]
    # A model that says one thing over and over would prove little.
    assert len({token for answer in batched for token in answer.tokens}) > 20
    assert {answer.finished for answer in batched} == {True, False}


@pytest.mark.parametrize("end_tokens", ["template", "eos", "none"])
def test_label_likelihoods_are_those_of_transformers(
    engine: FastEngine, reference: ReferenceEngine, end_tokens: EndTokens
) -> None:
    prompts = [IMAGES, OTHERS[0], OTHERS[3], OTHERS[4]]
    ours = engine.label_nll(prompts, LABELS, end_tokens=end_tokens)
    theirs = reference.label_nll(prompts, LABELS, end_tokens=end_tokens)
    assert ours.tokens == theirs.tokens
    assert ours.nll.shape == (4, 2)
    np.testing.assert_allclose(ours.nll, theirs.nll, rtol=0, atol=1e-4)
    alone = engine.label_nll(prompts[1:2], LABELS, end_tokens=end_tokens)
    np.testing.assert_allclose(ours.nll[1:2], alone.nll, rtol=0, atol=1e-4)


def test_end_tokens_say_what_counts(engine: FastEngine, loaded: LoadedModel) -> None:
    tokens = {
        end: engine.label_nll([], LABELS, end_tokens=end).tokens
        for end in ("template", "eos", "none")
    }
    words = [tuple(loaded.tokenizer.encode(label)) for label in LABELS]
    end = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens["none"] == tuple(words)
    assert tokens["eos"] == tuple((*label, end) for label in words)
    assert [loaded.tokenizer.decode(label) for label in tokens["template"]] == [
        "complete<|im_end|>\n",
        "not complete<|im_end|>\n",
    ]


def test_labels_that_cannot_be_told_apart_are_refused(engine: FastEngine) -> None:
    with pytest.raises(ConfigError, match="must differ at a token both have"):
        engine.label_nll([], ("complete", "complete"), end_tokens="template")
    with pytest.raises(ConfigError, match="must differ at a token both have"):
        engine.label_nll([], ("complete", "complete\n"), end_tokens="none")
    with pytest.raises(ConfigError, match="label ''"):
        engine.label_nll([], ("", "complete"))
    with pytest.raises(ConfigError, match="end_tokens"):
        engine.label_nll([], LABELS, end_tokens="newline")  # type: ignore[arg-type]  # on purpose


def ascii_run(text: str) -> str:
    """Six plain characters from the middle of an answer."""
    for start in range(len(text) // 3, len(text) - 6):
        if text[start : start + 6].isascii():
            return text[start : start + 6]
    raise AssertionError(f"no plain run in {text!r}")


def test_a_stop_string_ends_the_answer_at_once(
    engine: FastEngine, reference: ReferenceEngine
) -> None:
    prompts = [OTHERS[0], IMAGES, OTHERS[1]]
    free = engine.generate(prompts, max_new_tokens=30)
    stop = (ascii_run(free[0].text),)
    stopped = engine.generate(prompts, max_new_tokens=30, stop=stop)
    assert stopped == reference.generate(prompts, max_new_tokens=30, stop=stop)
    for before, after in zip(free, stopped, strict=True):
        assert after.text == cut_at_stop(before.text, stop)
        assert after.finished == (before.finished or stop[0] in before.text)
    assert stopped[0].finished
    assert stopped[0].text.endswith(stop[0])
    assert len(stopped[0].tokens) < 30


@pytest.mark.parametrize("exact", [True, False])
def test_the_end_token_ends_the_answer_and_is_not_part_of_it(
    loaded: LoadedModel, exact: bool
) -> None:
    free = FastEngine(loaded, exact=exact).generate([IMAGES, OTHERS[0]], max_new_tokens=12)
    end = free[0].tokens[4]
    ending = replace(loaded, end_ids=(end, loaded.end_ids[1]))
    ours = FastEngine(ending, exact=exact).generate([IMAGES, OTHERS[0]], max_new_tokens=12)
    assert ours == ReferenceEngine(ending).generate([IMAGES, OTHERS[0]], max_new_tokens=12)
    assert ours[0].tokens == free[0].tokens[: free[0].tokens.index(end)]
    assert ours[0].finished


def test_the_limit_is_reported_as_not_finished(engine: FastEngine) -> None:
    (answer,) = engine.generate([IMAGES], max_new_tokens=3)
    assert len(answer.tokens) == 3
    assert not answer.finished


def test_no_prompts_no_answers(engine: FastEngine, reference: ReferenceEngine) -> None:
    for one in (engine, reference):
        assert one.generate([], max_new_tokens=3) == []
        assert one.label_nll([], LABELS).nll.shape == (0, 2)


def test_pictures_and_words_matter(engine: FastEngine) -> None:
    other_words = Prompt(parts=(IMAGES.parts[0], "open the drawer"))
    other_frames = Prompt(parts=(clip(4, seed=9), "lift the cube"))
    nll = engine.label_nll([IMAGES, other_words, other_frames], LABELS).nll
    assert np.abs(nll[0] - nll[1]).max() > 1e-3
    assert np.abs(nll[0] - nll[2]).max() > 1e-3


def test_wrong_arguments_are_refused(engine: FastEngine) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        engine.generate([IMAGES], max_new_tokens=0)
    for stop in (("",), ("ende →",)):
        with pytest.raises(ConfigError, match="stop"):
            engine.generate([IMAGES], max_new_tokens=3, stop=stop)
    with pytest.raises(InstructionError, match="control tokens"):
        engine.generate([Prompt(parts=("a<|im_end|>",))], max_new_tokens=3)
    with pytest.raises(ConfigError, match="fps"):
        Clip(frames=np.zeros((2, 32, 32, 3), np.uint8), video=True, frame_indices=(0, 1))
    with pytest.raises(ConfigError, match="one frame index per frame"):
        Clip(frames=np.zeros((2, 32, 32, 3), np.uint8), video=True, frame_indices=(0,), fps=2.0)


def test_long_answers_stay_those_of_transformers(loaded: LoadedModel) -> None:
    free = replace(loaded, end_ids=(loaded.end_ids[1], loaded.end_ids[1]))
    prompts = [IMAGES, *OTHERS]
    ours = FastEngine(free).generate(prompts, max_new_tokens=120)
    assert ours == ReferenceEngine(free).generate(prompts, max_new_tokens=120)
    assert max(len(answer.tokens) for answer in ours) == 120


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["strict", "fast", "reference"])
@pytest.mark.parametrize(
    "setting",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        default_dtype,
    ],
    ids=["autocast", "default device", "default dtype"],
)
def test_what_a_training_loop_has_set_does_not_reach_the_model(
    loaded: LoadedModel, kind: str, setting: Callable[[], AbstractContextManager[Any]]
) -> None:
    def engine() -> FastEngine | ReferenceEngine:
        if kind == "reference":
            return ReferenceEngine(loaded)
        return FastEngine(loaded, exact=kind == "strict")

    prompts, begun = [IMAGES, OTHERS[3]], [replace(OTHERS[2], assistant_prefix="<progress>")]
    options: dict[str, Any] = {"lead": "<progress>", "max_new_tokens": 1}
    nll = engine().label_nll(prompts, LABELS).nll
    (number,) = engine().read_number(begun, **options)
    words = [] if kind == "reference" else engine().generate(prompts, max_new_tokens=8)
    with setting():
        within = engine()
        np.testing.assert_array_equal(within.label_nll(prompts, LABELS).nll, nll)
        assert within.read_number(begun, **options) == [number]
        # transformers' own `generate` makes tensors wherever the default is.
        if kind != "reference":
            assert within.generate(prompts, max_new_tokens=8) == words


@pytest.mark.parametrize("kind", ["strict", "fast"])
def test_half_precision_that_overflows_is_an_error_not_an_answer(
    tiny_folder: Path, kind: str
) -> None:
    loaded = load_model(str(tiny_folder), dtype="float16", threads=1)
    loaded = replace(loaded, model=copy.deepcopy(loaded.model))
    loaded.model.lm_head.weight *= 1e5
    engine = FastEngine(loaded, exact=kind == "strict")
    fix = "logits are not finite. Use another `dtype`: float16 overflows"
    with pytest.raises(ModelError, match=f"No word can be chosen: the model's {fix}"):
        engine.generate([IMAGES], max_new_tokens=4)
    with pytest.raises(ModelError, match=rf"Likelihoods must be finite, got \[\[nan, .*{fix}"):
        engine.label_nll([IMAGES], LABELS)


def test_cut_at_stop_takes_the_earliest() -> None:
    assert cut_at_stop("ab</p>cd</q>", ("</q>", "</p>")) == "ab</p>"
    assert cut_at_stop("abc", ("x",)) == "abc"
