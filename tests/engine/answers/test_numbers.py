from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from procreward.engine.answers.numbers import Moments, NumberReader
from procreward.engine.answers.tree import TokenTree
from procreward.errors import ConfigError, ModelError
from tests.tiny import tiny_tokenizer

Floats = npt.NDArray[np.float64]
Model = Callable[[str], Floats]
"""What was written to the probabilities ``(12,)`` of ten digits, the point and all else."""

LETTERS = "0123456789."
IDS = [40, 31, 32, 33, 34, 35, 36, 37, 38, 39, 9]  # "0" to "9", "."


def random_model(seed: int, *, sharp: float = 1.0) -> Model:
    generator = np.random.default_rng(seed)

    @cache
    def model(written: str) -> Floats:
        return generator.dirichlet(np.full(12, 1.0 / sharp))

    return model


def one_answer(answer: str) -> Model:
    """A model that surely writes one text."""

    def model(written: str) -> Floats:
        probs = np.zeros(12)
        following = answer[len(written)] if answer.startswith(written) and written != answer else ""
        probs[LETTERS.index(following) if following in LETTERS and following else 11] = 1.0
        return probs

    return model


def read(reader: NumberReader, model: Model, tree: TokenTree) -> Floats:
    """What the trees ask of a model."""
    letters = {token: LETTERS[i] for i, token in enumerate(reader.columns.tolist())}
    rows = [model("".join(letters[token] for token in tree.path(i))) for i in range(-1, len(tree))]
    return np.stack(rows)[:, :11]


def moments(reader: NumberReader, model: Model) -> Moments:
    probs = read(reader, model, reader.integers)
    tree = reader.plan_decimals(probs)
    decimals = None if tree is None else read(reader, model, tree)
    return reader.expectation(probs, decimals, tree)


def all_numbers(model: Model, largest: float) -> Iterator[tuple[float, float]]:
    """Every number with its probability, by going through every text."""

    def after_point(text: str, mass: float) -> Iterator[tuple[float, float]]:
        if len(text.split(".")[1]) == 2:
            yield float(text), mass
            return
        probs = model(text)
        for digit in range(10):
            yield from after_point(text + str(digit), mass * probs[digit])
        yield float(text), mass * (1 - probs[:10].sum())

    def before_point(text: str, mass: float) -> Iterator[tuple[float, float]]:
        if len(text) == 3:
            yield float(text), mass
            return
        probs = model(text)
        for digit in range(10):
            yield from before_point(text + str(digit), mass * probs[digit])
        if text:
            yield float(text), mass * probs[11]
            yield from after_point(text + ".", mass * probs[10])

    for value, mass in before_point("", 1.0):
        yield min(value, largest), mass


def brute_force(model: Model, largest: float) -> tuple[float, float, float]:
    numbers = np.array(list(all_numbers(model, largest)))
    mass = numbers[:, 1].sum()
    mean = (numbers[:, 0] * numbers[:, 1]).sum() / mass
    variance = ((numbers[:, 0] - mean) ** 2 * numbers[:, 1]).sum() / mass
    return mean, math.sqrt(variance), mass


@pytest.mark.parametrize("largest", [100.0, 1.0, 37.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_moments_are_those_of_all_texts(seed: int, largest: float) -> None:
    model = random_model(seed)
    reader = NumberReader(IDS[:10], IDS[10], largest, tolerance=0.0)
    ours = moments(reader, model)
    assert ours.value is not None
    np.testing.assert_allclose(
        (ours.value, ours.spread, ours.mass), brute_force(model, largest), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("seed", [3, 4])
def test_improbable_decimals_are_left_unread(seed: int) -> None:
    model = random_model(seed, sharp=30.0)
    reader = NumberReader(IDS[:10], IDS[10])
    probs = read(reader, model, reader.integers)
    tree = reader.plan_decimals(probs)
    assert tree is not None
    assert 11 <= len(tree) < 400  # all of them would be 1200
    ours = reader.expectation(probs, read(reader, model, tree), tree)
    mean, spread, mass = brute_force(model, 100.0)
    assert ours.value == pytest.approx(mean, abs=1e-6)
    assert ours.spread == pytest.approx(spread, abs=1e-4)
    assert ours.mass == pytest.approx(mass, abs=1e-12)


def test_unread_decimals_count_as_their_middle() -> None:
    reader = NumberReader(IDS[:10], IDS[10])
    probs = read(reader, one_answer("84.13"), reader.integers)
    ours = reader.expectation(probs)
    assert ours.value == pytest.approx(84.495)
    assert ours.spread == pytest.approx(0.288661, abs=1e-6)  # of 100 equally likely hundredths


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("84.13", 84.13),
        ("84.13%</progress>", 84.13),
        ("7", 7.0),
        ("7%", 7.0),
        ("07", 7.0),
        ("084", 84.0),
        ("084.9", 84.0),
        ("0", 0.0),
        ("0.05", 0.05),
        ("3.5%", 3.5),
        ("84.%", 84.0),
        ("84..5", 84.0),
        ("84.139", 84.13),
        ("99.99", 99.99),
        ("100", 100.0),
        ("100.5", 100.0),
        ("850", 100.0),
        ("1000", 100.0),
    ],
)
def test_a_sure_answer_is_read_as_written(answer: str, value: float) -> None:
    ours = moments(NumberReader(IDS[:10], IDS[10]), one_answer(answer))
    assert ours.value == pytest.approx(value, abs=1e-12)
    assert ours.spread == pytest.approx(0.0, abs=1e-9)
    assert ours.mass == 1.0


@pytest.mark.parametrize("answer", ["none", ".5", "-3", ""])
def test_what_starts_without_a_digit_is_no_number(answer: str) -> None:
    ours = moments(NumberReader(IDS[:10], IDS[10]), one_answer(answer))
    assert ours == Moments(value=None, spread=0.0, mass=0.0)


def test_two_likely_numbers_have_their_mean_and_spread() -> None:
    def coin(written: str) -> Floats:
        options = [answer for answer in ("20", "40", "x") if answer.startswith(written)]
        return np.mean([one_answer(answer)(written) for answer in options or ["x"]], axis=0)

    ours = moments(NumberReader(IDS[:10], IDS[10]), coin)
    assert ours.value == pytest.approx(30.0)
    assert ours.spread == pytest.approx(10.0)
    assert ours.mass == pytest.approx(2 / 3)


def test_only_whole_numbers_that_a_point_follows_are_planned() -> None:
    reader = NumberReader(IDS[:10], IDS[10])
    assert reader.plan_decimals(read(reader, one_answer("84"), reader.integers)) is None
    assert reader.plan_decimals(read(reader, one_answer("x"), reader.integers)) is None
    tree = reader.plan_decimals(read(reader, one_answer("84.13"), reader.integers))
    assert tree is not None
    assert tree.path(2) == (IDS[8], IDS[4], IDS[10])
    assert [tree.path(node)[3:] for node in range(3, 13)] == [(digit,) for digit in IDS[:10]]
    assert len(tree) == 13


def test_the_first_tree_holds_one_and_two_digits() -> None:
    reader = NumberReader(IDS[:10], IDS[10])
    tree = reader.integers
    assert len(tree) == 110
    assert tree.path(7) == (IDS[7],)
    assert tree.path(10 + 7) == (IDS[0], IDS[7])
    assert tree.path(10 + 84) == (IDS[8], IDS[4])
    assert reader.columns.tolist() == IDS


def probabilities(seed: int, rows: int, power: float) -> Floats:
    raw = np.random.default_rng(seed).random((rows, 12)) ** power
    return np.asarray((raw / raw.sum(axis=1, keepdims=True))[:, :11])


@given(st.integers(0, 2**31), st.floats(0.1, 80.0), st.floats(0.5, 100.0))
@settings(max_examples=60, deadline=None)
def test_the_moments_stay_in_their_bounds(seed: int, power: float, largest: float) -> None:
    reader = NumberReader(IDS[:10], IDS[10], largest)
    # In float32, as a device computes them, rows may sum to a little more than 1.
    probs = probabilities(seed, 111, power).astype(np.float32).astype(np.float64)
    tree = reader.plan_decimals(probs)
    decimals = None if tree is None else probabilities(seed + 1, len(tree) + 1, power)
    ours = reader.expectation(probs, decimals, tree)
    assert ours.value is not None
    assert 0.0 <= ours.value <= largest
    assert 0.0 <= ours.spread <= largest
    assert 0.0 <= ours.mass <= 1.0


def test_wrong_shapes_and_values_are_refused() -> None:
    reader = NumberReader(IDS[:10], IDS[10])
    probs = read(reader, one_answer("84.13"), reader.integers)
    tree = reader.plan_decimals(probs)
    with pytest.raises(ConfigError, match=r"must be \(111, 11\)"):
        reader.plan_decimals(probs[1:])
    with pytest.raises(ConfigError, match=r"must be \(14, 11\)"):
        reader.expectation(probs, probs, tree)
    with pytest.raises(ConfigError, match="together with `tree`"):
        reader.expectation(probs, None, tree)
    with pytest.raises(ConfigError, match="`plan_decimals` returned"):
        reader.expectation(probs, probs, reader.integers)
    with pytest.raises(ModelError, match="not finite"):
        reader.expectation(np.full((111, 11), np.nan))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="all different"):
        NumberReader(IDS[:9], IDS[10])
    with pytest.raises(ConfigError, match="all different"):
        NumberReader(IDS[:10], IDS[0])
    with pytest.raises(ConfigError, match="`largest` must be a number above 0"):
        NumberReader(IDS[:10], IDS[10], 0.0)
    with pytest.raises(ConfigError, match="tolerance"):
        NumberReader(IDS[:10], IDS[10], tolerance=1.0)


def test_the_ids_come_from_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    reader = NumberReader.from_tokenizer(tokenizer)
    assert reader.columns.tolist() == tokenizer.convert_tokens_to_ids(list(LETTERS))


def test_a_tokenizer_that_joins_digits_is_refused() -> None:
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet()})
    vocabulary = {letter: i for i, letter in enumerate([*letters, "10"])}
    joining = Tokenizer(models.BPE(vocabulary, [("1", "0")]))
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    joining.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining)
    with pytest.raises(ConfigError, match="'reasoning'"):
        NumberReader.from_tokenizer(tokenizer)
