from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from procreward.engine import Clip, Generation, Prompt
from procreward.engine.loading import LoadedModel
from procreward.engine.reading.inputs import cut_at_stop
from procreward.engine.reference import ReferenceEngine
from procreward.engine.vision.preprocess import load_preprocess_config
from procreward.errors import ConfigError
from tests.engine.answers.test_numbers import brute_force
from tests.tiny import save_tiny_moe, save_tiny_qwen25

LABELS = ("complete", "not complete")
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
IMAGES = Prompt(parts=(Clip(frames=FRAMES), "lift the cube"))
OTHER_IMAGES = Prompt(parts=(Clip(frames=FRAMES[:1, :, :32]), "open the drawer and wait"))
WORDS = Prompt(parts=("just words",))
DIRECT = Prompt(parts=("how far?",), assistant_prefix="It is <progress>")


@pytest.fixture(scope="module")
def reference(loaded: LoadedModel) -> ReferenceEngine:
    return ReferenceEngine(loaded)


@pytest.fixture(scope="module", params=[save_tiny_qwen25, save_tiny_moe])
def relative(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel
) -> ReferenceEngine:
    """An engine for another model of the family."""
    folder = request.param(tmp_path_factory.mktemp("relative") / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return ReferenceEngine(
        replace(loaded, model=model, image_config=load_preprocess_config(folder))
    )


def text_probs(loaded: LoadedModel, prompt: str) -> Callable[[str], np.ndarray]:
    """Probabilities of digits, point and all else behind a text, from the bare model."""
    tokenizer, known = loaded.tokenizer, {}
    columns = tokenizer.convert_tokens_to_ids([*"0123456789."])

    def probs(written: str) -> np.ndarray:
        if written not in known:
            ids = torch.tensor([tokenizer.encode(prompt + written)])
            with torch.inference_mode():
                logits = loaded.model(input_ids=ids).logits[0, -1]
            ours = logits.double().softmax(-1)[columns].numpy()
            known[written] = np.append(ours, 1 - ours.sum())
        return known[written]

    return probs


def free_words(answer: Generation, loaded: LoadedModel) -> str:
    """Words in the middle of an answer that end where a token ends and stand there only once."""
    for count in range(4, len(answer.tokens) - 2):
        text = loaded.tokenizer.decode(answer.tokens[:count], skip_special_tokens=True)
        words = text[-6:]
        if words.isascii() and len(words) == 6 and answer.text.count(words) == 1:
            return words
    raise AssertionError(f"no plain words in {answer.text!r}")


def test_the_answer_is_the_greedy_one(reference: ReferenceEngine, loaded: LoadedModel) -> None:
    (answer,) = reference.generate([WORDS], max_new_tokens=6)
    ids = loaded.tokenizer.encode("<|im_start|>user\njust words<|im_end|>\n<|im_start|>assistant\n")
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(6):
            logits = loaded.model(input_ids=torch.tensor([ids + expected])).logits
            expected.append(int(logits[0, -1].argmax()))
    assert answer.tokens == tuple(expected)
    assert answer.text == loaded.tokenizer.decode(expected, skip_special_tokens=True)
    assert not answer.finished


def test_a_batch_answers_as_one_by_one(reference: ReferenceEngine) -> None:
    prompts = [IMAGES, WORDS, OTHER_IMAGES]
    batched = reference.generate(prompts, max_new_tokens=20)
    assert batched == [reference.generate([prompt], max_new_tokens=20)[0] for prompt in prompts]
    assert reference.generate([], max_new_tokens=3) == []


def test_patterns_and_strings_stop_at_the_first_match(
    reference: ReferenceEngine, loaded: LoadedModel
) -> None:
    prompts = [IMAGES, OTHER_IMAGES]
    free = reference.generate(prompts, max_new_tokens=30)
    words = free_words(free[0], loaded)
    pattern = re.compile(re.escape(words[:3]) + "[^~]" + re.escape(words[4:]))
    for stop in ((words,), (pattern,), ("~never~", pattern), (words, re.compile("~never~"))):
        stopped = reference.generate(prompts, max_new_tokens=30, stop=stop)
        assert stopped[0].text == free[0].text[: free[0].text.index(words) + 6]
        assert stopped[0].finished
        assert stopped[0].tokens == free[0].tokens[: len(stopped[0].tokens)]
        before = loaded.tokenizer.decode(stopped[0].tokens[:-1], skip_special_tokens=True)
        assert words not in before
        assert stopped[1].text == cut_at_stop(free[1].text, stop)


def test_the_earliest_of_several_stops_counts(reference: ReferenceEngine) -> None:
    (free,) = reference.generate([IMAGES], max_new_tokens=30)
    letter = re.search("[A-Za-z]", free.text)
    assert letter is not None
    stop = (re.compile("[A-Za-z].*[A-Za-z]"), re.compile("[A-Za-z]"))
    (stopped,) = reference.generate([IMAGES], max_new_tokens=30, stop=stop)
    assert stopped.text == free.text[: letter.end()]


def test_an_end_token_ends_the_answer(loaded: LoadedModel, reference: ReferenceEngine) -> None:
    (free,) = reference.generate([IMAGES], max_new_tokens=12)
    ending = replace(loaded, end_ids=(free.tokens[4], loaded.end_ids[1]))
    (answer,) = ReferenceEngine(ending).generate([IMAGES], max_new_tokens=12)
    assert answer.tokens == free.tokens[: free.tokens.index(free.tokens[4])]
    assert answer.finished


def test_label_likelihoods_are_those_of_the_bare_model(
    reference: ReferenceEngine, loaded: LoadedModel
) -> None:
    text = "<|im_start|>user\njust words<|im_end|>\n<|im_start|>assistant\n"
    ours = reference.label_nll([IMAGES, WORDS], LABELS, end_tokens="none")
    assert ours.nll.shape == (2, 2)
    for column, label in enumerate(LABELS):
        head, ids = loaded.tokenizer.encode(text), loaded.tokenizer.encode(text + label)
        with torch.inference_mode():
            log_probs = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(float(log_probs[i - 1, ids[i]]) for i in range(len(head), len(ids)))
        assert ours.nll[1, column] == pytest.approx(expected, abs=1e-4)


def test_labels_behind_an_open_turn(reference: ReferenceEngine, loaded: LoadedModel) -> None:
    text = "<|im_start|>user\nIs it done? The answer is:"
    prompt = Prompt(parts=("Is it done? The answer is:",), open_turn=True)
    ours = reference.label_nll([prompt], (" True", " False"), end_tokens="none")
    for column, label in enumerate((" True", " False")):
        head, ids = loaded.tokenizer.encode(text), loaded.tokenizer.encode(text + label)
        assert ours.tokens[column] == tuple(ids[len(head) :])
        with torch.inference_mode():
            log_probs = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(float(log_probs[i - 1, ids[i]]) for i in range(len(head), len(ids)))
        assert ours.nll[0, column] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("largest", [100.0, 40.0])
def test_a_number_is_the_expectation_over_all_texts(
    reference: ReferenceEngine, loaded: LoadedModel, largest: float
) -> None:
    (ours,) = reference.read_number([DIRECT], lead="<progress>", max_new_tokens=1, largest=largest)
    text = "<|im_start|>user\nhow far?<|im_end|>\n<|im_start|>assistant\nIt is <progress>"
    mean, spread, mass = brute_force(text_probs(loaded, text), largest)
    assert 0.0 < mass < 1.0
    assert ours.value == pytest.approx(mean, abs=1e-4)
    assert ours.spread == pytest.approx(spread, abs=1e-3)
    assert ours.mass == pytest.approx(mass, abs=1e-6)
    assert (ours.text, ours.tokens, ours.finished) == ("", 0, True)


def test_a_number_behind_words_of_the_model(
    reference: ReferenceEngine, loaded: LoadedModel
) -> None:
    (free,) = reference.generate([WORDS], max_new_tokens=30)
    lead = free_words(free, loaded)
    (ours,) = reference.read_number([WORDS], lead=lead, max_new_tokens=30)
    assert ours.text == free.text[: free.text.index(lead) + 6]
    assert ours.finished
    prefix = loaded.tokenizer.decode(free.tokens[: ours.tokens])
    assert prefix == ours.text  # no control tokens, so the prompt can be written as words
    (given,) = reference.read_number(
        [replace(WORDS, assistant_prefix=prefix)], lead=lead, max_new_tokens=1
    )
    assert ours.value == pytest.approx(given.value, abs=1e-3)
    assert ours.mass == pytest.approx(given.mass, rel=1e-3)


def test_without_the_lead_there_is_no_number(reference: ReferenceEngine) -> None:
    (ours,) = reference.read_number([IMAGES], lead="<progress>", max_new_tokens=4)
    assert (ours.value, ours.spread, ours.mass, ours.finished) == (None, 0.0, 0.0, False)
    assert ours.tokens == 4
    assert ours.text == reference.generate([IMAGES], max_new_tokens=4)[0].text


def test_other_models_of_the_family_answer(relative: ReferenceEngine) -> None:
    prompts = [IMAGES, WORDS, OTHER_IMAGES]
    batched = relative.generate(prompts, max_new_tokens=8)
    assert batched == [relative.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]
    nll = relative.label_nll(prompts, LABELS).nll
    assert len(np.unique(nll)) == 6
    begun = replace(IMAGES, assistant_prefix="<progress>")
    (number,) = relative.read_number([begun], lead="<progress>", max_new_tokens=1)
    assert number.value is not None
    assert 0.0 < number.value < 100.0
    assert 0.0 < number.mass < 1.0


def test_names_of_control_tokens_are_no_words(
    reference: ReferenceEngine, loaded: LoadedModel
) -> None:
    (criterion,) = reference._criteria(("a", "start"), 1)
    ids = loaded.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "a", "b"])
    answers = torch.tensor([[0, ids[0]], [0, ids[1]], [0, ids[2]]])
    assert criterion(answers, None).tolist() == [False, True, False]


def test_wrong_arguments_are_refused(reference: ReferenceEngine) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        reference.generate([IMAGES], max_new_tokens=0)
    with pytest.raises(ConfigError, match="stop"):
        reference.generate([IMAGES], max_new_tokens=3, stop=("ende →",))
    with pytest.raises(ConfigError, match="stop"):
        reference.generate([IMAGES], max_new_tokens=3, stop=(re.compile("x*"),))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        reference.read_number([IMAGES], lead="<progress>", max_new_tokens=0)
    with pytest.raises(ConfigError, match="largest"):
        reference.read_number([IMAGES], lead="<progress>", max_new_tokens=1, largest=-1.0)


def test_texts_are_cut_behind_the_stop_that_ends_first() -> None:
    assert cut_at_stop("a 84.13% b", (re.compile(r"\d+\.\d\d"), "%")) == "a 84.13"
    assert cut_at_stop("a 84.13% b", (re.compile(r"\d.*b"), "4")) == "a 84"
    assert cut_at_stop("abc", (re.compile(r"\d"), "x")) == "abc"
