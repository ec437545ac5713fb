from __future__ import annotations

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from procreward.scorers.progresslm_text import NOTHINK_STOP, Reading, read_nothink, read_think

ANSWER = (
    "<ref_think>The gripper holds the carrot, as in step 3.</ref_think>\n<ref>3</ref>\n"
    "<score_think>It is just behind step 3 of 5.</score_think>\n<score>66%</score>"
)
NOT_APPLICABLE = (
    "<ref_think>There is no apple.</ref_think>\n<ref>n/a</ref>\n"
    "<score_think>n/a</score_think>\n<score>n/a</score>"
)

FRAGMENTS = (
    *("<score>", "<score>", "</score>", "</score>", "<ref>", "</ref>", "<score_think>", "%", "%"),
    *("8", "12", "1.5", ".", "-", "+", " ", "\n", "n/a", "na", "N/A", "nan", "inf", "1e5", "1,000"),
    *("٣", "²", "½", "\uff15", "\u2212", "/", '"', "é", "step", "9" * 400),
)
DIGITS = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def scored(value: str) -> str:
    return f"<score_think>66%</score_think><score>{value}</score>"


def check_reading(reading: Reading, where: str, *, finished: bool) -> str:
    """Whatever the text: a number whose digits are there, or a reason."""
    assert (reading.progress is None) == (reading.reason != "")
    if reading.progress is None:
        assert reading.reason in ("n/a", "unparsable", "truncated")
        assert reading.reason != ("truncated" if finished else "")
        assert reading.percent is None
        return reading.reason
    assert 0.0 <= reading.progress <= 1.0
    numbers = [float(digits) for digits in DIGITS.findall(where)]
    shares = {number / 100.0 for number in numbers} | {n for n in numbers if n <= 1.0}
    assert reading.progress in {min(share, 1.0) for share in shares}
    return reading.source


def check_think(text: str, *, finished: bool) -> str:
    reading = read_think(text, finished=finished)
    tag = re.search(r"<score>(.*?)</score>", text, re.DOTALL)
    return check_reading(reading, tag.group(1) if tag else "", finished=finished)


def check_nothink(text: str, *, finished: bool) -> str:
    return check_reading(read_nothink(text, finished=finished), text, finished=finished)


class TestThink:
    def test_an_answer_with_all_tags(self) -> None:
        expected = Reading(progress=0.66, percent=66.0, ref=3.0, source="percent")
        assert read_think(ANSWER) == expected
        assert not expected.clamped

    @pytest.mark.parametrize(
        ("value", "progress", "source"),
        [
            ("33%", 0.33, "percent"),
            (" 33.5 % ", 0.335, "percent"),
            ("\n0%\n", 0.0, "percent"),
            ("0.5%", 0.005, "percent"),
            ("1%", 0.01, "percent"),
            ("75", 0.75, "number"),
            ("0.75", 0.75, "number"),
            # Upstream's reading: a bare number is a percentage only above 1.
            ("1", 1.0, "number"),
            ("1.0", 1.0, "number"),
            ("1.5", 0.015, "number"),
            ("0", 0.0, "number"),
        ],
    )
    def test_numbers_are_read_as_upstream_does(
        self, value: str, progress: float, source: str
    ) -> None:
        reading = read_think(scored(value))
        assert reading.progress == pytest.approx(progress)
        assert reading.source == source
        assert reading.percent == pytest.approx(100 * progress)
        assert not reading.clamped

    @pytest.mark.parametrize(
        ("value", "percent"),
        [("120%", 120.0), ("100.5", 100.5), ("9" * 400 + "%", float("inf")), ("9" * 400, None)],
    )
    def test_numbers_above_the_whole_are_clamped(self, value: str, percent: float | None) -> None:
        reading = read_think(scored(value))
        assert (reading.progress, reading.clamped) == (1.0, True)
        assert reading.percent == (percent or float("inf"))

    @pytest.mark.parametrize("value", ["n/a", "N/A", " na\n", "NA", '"n/a"', "'N/a'"])
    def test_not_applicable_is_no_number(self, value: str) -> None:
        assert read_think(f"<ref>2</ref>{scored(value)}") == Reading(reason="n/a", ref=2.0)

    @pytest.mark.parametrize(
        "value",
        [
            *("", "%", "half", "nan", "inf", "-5%", "+5%", "1e5", "1e-1%", ".5", "5.", "1,000"),
            *(
                "٣%",
                "\uff15\uff10%",
                "²",
                "0x10",
                "50%%",
                "50% done",
                "about 50%",
                "50 60",
                "<b>50%</b>",
            ),
            *("infinity", "1_000", "50\u00a0percent", "n / a", "not applicable"),
        ],
    )
    def test_anything_else_is_unparsable(self, value: str) -> None:
        assert read_think(scored(value)) == Reading(reason="unparsable")
        assert read_think(scored(value), finished=False).reason == "unparsable"

    @pytest.mark.parametrize(
        "text",
        ["", "66%", "<score>66%", "66%</score>", "<SCORE>66%</SCORE>", ANSWER[:-3], "< score>6%"],
    )
    def test_without_a_whole_tag_there_is_no_number(self, text: str) -> None:
        assert read_think(text).reason == "unparsable"
        assert read_think(text, finished=False).reason == "truncated"

    def test_the_first_tag_counts_and_may_span_lines(self) -> None:
        assert read_think("<score>\n20%\n</score><score>90%</score>").progress == 0.2
        assert read_think("<score>none</score><score>90%</score>").reason == "unparsable"
        assert read_think(ANSWER, finished=False).progress == pytest.approx(0.66)

    @pytest.mark.parametrize(
        ("value", "ref"),
        [
            ("2", 2.0),
            ("Step 4 of 5", 4.0),
            ("\n10\n", 10.0),
            ("n/a", None),
            ("NA", None),
            ("none", None),
            ("", None),
            ("٣", None),
            ("9" * 400, 1e12),
        ],
    )
    def test_the_reference_is_its_first_number(self, value: str, ref: float | None) -> None:
        reading = read_think(f"<ref>{value}</ref><score>50%</score>")
        assert (reading.ref, reading.progress) == (ref, 0.5)

    def test_a_reading_without_a_reference(self) -> None:
        assert read_think("<score>50%</score>").ref is None
        assert read_think(NOT_APPLICABLE) == Reading(reason="n/a")


class TestNothink:
    @pytest.mark.parametrize(
        ("text", "progress", "source"),
        [
            ("75%", 0.75, "percent"),
            (" 75 %\n", 0.75, "percent"),
            ("The progress is 33.3%.", 0.333, "percent"),
            ("Step 2 is done: 40%", 0.4, "percent"),
            ("0.5%", 0.005, "percent"),
            ("0.75", 0.75, "number"),
            ("75", 0.75, "number"),
            ("1", 1.0, "number"),
            ("0", 0.0, "number"),
            ("About 60 percent", 0.6, "any_number"),
            ("It is 80.", 0.8, "any_number"),
            ("progress:75%", 0.75, "percent"),
            ("(75%)", 0.75, "percent"),
            ("**75%**", 0.75, "percent"),
        ],
    )
    def test_numbers_are_read_as_upstream_does(
        self, text: str, progress: float, source: str
    ) -> None:
        reading = read_nothink(text)
        assert reading.progress == pytest.approx(progress)
        assert reading.source == source
        assert reading.ref is None

    @pytest.mark.parametrize(
        "text", ["n/a", "N/A", " na ", '"n/a"', "n/a.", "n/a, since 2 cups are there", "(N/A) 40%"]
    )
    def test_not_applicable_is_no_number(self, text: str) -> None:
        assert read_nothink(text) == Reading(reason="n/a")
        assert read_nothink(text, finished=False) == Reading(reason="n/a")

    @pytest.mark.parametrize(
        "text",
        [
            *("", "done", "nan", "inf", "%", "-5%", "\u22125%", "+5", "1e5", "1e5%", "v2", "2nd"),
            *(
                "3/4",
                "1,000%",
                "1,000",
                "٣%",
                "\uff15\uff10%",
                "²",
                "5²",
                ".5",
                "1.2.3",
                "x50%",
                "0x10",
            ),
            *("n/abc", "nap", "20-30%", "20\u201330%", "20-30"),
        ],
    )
    def test_what_is_no_number_of_its_own_is_not_read(self, text: str) -> None:
        assert read_nothink(text) == Reading(reason="unparsable")

    @pytest.mark.parametrize("text", ["7", "It is 7", "0.7", "The arm", ""])
    def test_a_cut_off_number_is_not_read(self, text: str) -> None:
        assert read_nothink(text, finished=False) == Reading(reason="truncated")
        assert read_nothink("75% of", finished=False).progress == 0.75

    def test_numbers_above_the_whole_are_clamped(self) -> None:
        reading = read_nothink("130%")
        assert (reading.progress, reading.percent, reading.clamped) == (1.0, 130.0, True)
        assert read_nothink("9" * 400).progress == 1.0

    @pytest.mark.parametrize(
        ("text", "cut"),
        [
            ("75% of it", "75%"),
            ("it is 7.5 % now, 80% soon", "it is 7.5 %"),
            ("N/A because of 2 cups, 40%", "N/A"),
            ("40%, n/a", "40%"),
            ("n/abc 3", None),
            ("na", None),
            ("75", None),
        ],
    )
    def test_stopping_early_does_not_change_the_reading(self, text: str, cut: str | None) -> None:
        ends = [found.end() for stop in NOTHINK_STOP if (found := stop.search(text))]
        stopped = text[: min(ends)] if ends else None
        assert stopped == cut
        if stopped is not None:
            assert read_nothink(stopped) == read_nothink(text)


class TestAnyText:
    @settings(max_examples=200, deadline=None)
    @given(
        text=st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS)).map("".join)),
        finished=st.booleans(),
    )
    @example(text="٣%", finished=True)
    def test_it_is_read_without_an_exception(self, text: str, finished: bool) -> None:
        check_think(text, finished=finished)
        check_think(scored(text), finished=finished)
        check_nothink(text, finished=finished)

    def test_ten_thousand_shuffled_fragments(self) -> None:
        rng = random.Random(0)
        think, nothink = set(), set()
        for _ in range(10_000):
            text = "".join(rng.choices(FRAGMENTS, k=rng.randrange(8)))
            finished = rng.random() < 0.7
            tagged = scored(text) if rng.random() < 0.5 else text
            think.add(check_think(tagged, finished=finished))
            nothink.add(check_nothink(text, finished=finished))
        assert think == {"percent", "number", "n/a", "unparsable", "truncated"}
        assert nothink == {"percent", "number", "any_number", "n/a", "unparsable", "truncated"}

    def test_ten_thousand_random_strings(self) -> None:
        rng = random.Random(1)
        for _ in range(10_000):
            letters = [chr(rng.randrange(32, 0x3000)) for _ in range(rng.randrange(12))]
            text = "".join(rng.choices([*letters, "5", "%", "."], k=8))
            check_think(scored(text), finished=rng.random() < 0.5)
            check_nothink(text, finished=rng.random() < 0.5)

    @pytest.mark.parametrize("piece", ["<score>", "<ref>1", "1", "1.", " ", "n/", "1 ", "%", "-1"])
    def test_long_ones_are_read_in_reasonable_time(self, piece: str) -> None:
        # Nested quantifiers would hang here rather than fail.
        text = piece * (20_000 // len(piece))
        assert read_think(text).progress is None
        assert read_nothink(text + "x").reason in ("", "unparsable")
