from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from procreward.bench.answers import INSTRUCTION, AnswerScript, answer_corpus
from procreward.bench.frames import moving_frames
from procreward.bench.imposed import ImposedEngine, ImposedModel, Work, number_bonus
from procreward.bench.sizes import TINY
from procreward.bench.twins import (
    loaded_twin,
    make_tokenizer,
    qwen3_config,
    random_model,
    train_tokenizer,
)
from procreward.engine import Clip, Prompt
from procreward.engine.loading import LoadedModel
from procreward.engine.reference import ReferenceEngine
from procreward.scorers.procvlm_text import DIRECT_PREFIX, LEAD, read_progress

STREAMS = ("a", "b", "c")


@pytest.fixture(scope="module")
def twin() -> LoadedModel:
    tokenizer = make_tokenizer(train_tokenizer(answer_corpus(), 600))
    return loaded_twin(random_model(qwen3_config(tokenizer, TINY), seed=0), tokenizer)


def prompts(prefix: str = "") -> list[Prompt]:
    return [
        Prompt(
            parts=(Clip(frames=moving_frames(1 + index, (64, 64), seed=index)), "how far?"),
            assistant_prefix=prefix,
            stream=stream,
        )
        for index, stream in enumerate(STREAMS)
    ]


def engine_of(twin: LoadedModel, *, exact: bool = False) -> ImposedEngine:
    return ImposedEngine(twin, Work(1e9, 1e9), cache_bytes=2**24, exact=exact)


def scripts(twin: LoadedModel) -> dict[str, list[int]]:
    """Three answers of different lengths, which leave the batch one after the other."""
    words = ("<progress>12.34%</progress>.", "1. lift it\n<progress>5.00%</progress>.", "no number")
    return {
        stream: twin.tokenizer.encode(text) for stream, text in zip(STREAMS, words, strict=True)
    }


@pytest.mark.parametrize("exact", [True, False], ids=["strict", "fast"])
def test_our_engine_writes_what_it_is_told(twin: LoadedModel, exact: bool) -> None:
    engine, answers = engine_of(twin, exact=exact), scripts(twin)
    engine.impose(answers)
    for _ in range(2):  # the second time with drafts
        written = engine.generate(prompts(), max_new_tokens=64)
        assert [list(answer.tokens) for answer in written] == list(answers.values())
        assert all(answer.finished for answer in written)
    passes = engine.stats.passes
    # Another answer than the last one: the draft is wrong in part.
    engine.impose(dict(zip(STREAMS, reversed(answers.values()), strict=True)))
    written = engine.generate(prompts(), max_new_tokens=64)
    assert [list(answer.tokens) for answer in written] == list(reversed(answers.values()))
    assert engine.stats.passes > passes


def test_transformers_writes_what_it_is_told(twin: LoadedModel) -> None:
    answers = list(scripts(twin).values())
    model = ImposedModel(twin.model, twin.end_ids[0])
    reference = ReferenceEngine(replace(twin, model=model))
    model.impose(answers)
    first = reference.generate(prompts()[:1], max_new_tokens=64)
    others = reference.generate(prompts()[1:], max_new_tokens=64)
    assert [list(answer.tokens) for answer in (*first, *others)] == answers
    # Nothing is left in the queue: free answers again, those of the model itself.
    free = reference.generate(prompts()[:1], max_new_tokens=8)
    assert free == ReferenceEngine(twin).generate(prompts()[:1], max_new_tokens=8)


def test_without_answers_the_engine_is_free(twin: LoadedModel) -> None:
    engine = engine_of(twin)
    right = ReferenceEngine(twin).generate(prompts(), max_new_tokens=8)
    assert engine.generate(prompts(), max_new_tokens=8) == right
    engine.impose({"a": [5]})  # not all streams of the batch
    assert engine.generate(prompts(), max_new_tokens=8) == right


def test_numbers_are_peaked_where_they_are_imposed(twin: LoadedModel) -> None:
    engine = engine_of(twin)
    engine.impose(dict(zip(STREAMS, (12.0, 50.0, 87.0), strict=True)))
    readings = engine.read_number(prompts(DIRECT_PREFIX), lead=LEAD, max_new_tokens=1)
    for reading, percent in zip(readings, (12.0, 50.0, 87.0), strict=True):
        assert reading.value == pytest.approx(percent, abs=1.0)
        assert reading.mass > 0.99
        assert 0 < reading.spread < 5


def test_work_and_time_are_counted(twin: LoadedModel) -> None:
    engine = engine_of(twin)
    engine.impose(scripts(twin))
    engine.generate(prompts(), max_new_tokens=64)
    seconds = engine.watch.take()
    assert set(seconds) == {"vision", "prefill", "decode"}
    assert min(seconds.values()) > 0
    assert engine.watch.take() == {}
    assert engine.work.prefill_flops > 0
    assert engine.work.decode_passes == engine.stats.passes - 1
    assert engine.work.decode_seconds > 0


def test_the_bonus_of_a_number_falls_with_the_distance() -> None:
    bonus = number_bonus(7.25)
    assert bonus.shape == (5, 11)
    assert bonus.argmax(axis=1).tolist() == [0, 7, 10, 2, 5]
    assert bonus[1, [5, 6, 7, 8]].tolist() == [10.0, 15.0, 20.0, 15.0]


def test_scripted_answers_read_as_their_percentage_and_get_shorter() -> None:
    script = AnswerScript(3)
    texts, percents = zip(*(script.next() for _ in range(300)), strict=True)
    for text, percent in zip(texts, percents, strict=True):
        reading = read_progress(text)
        assert reading.percent == pytest.approx(percent, abs=0.006)
    assert np.mean([one != other for one, other in pairwise(texts)]) > 0.9
    items = [text.count(". ") for text in texts]
    assert items == sorted(items, reverse=True)
    assert items[0] > items[-1] == 1
    assert script.next() != AnswerScript(4).next()
    assert INSTRUCTION in answer_corpus()[0]
