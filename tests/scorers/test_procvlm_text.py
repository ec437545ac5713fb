from __future__ import annotations

import random
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from procreward.engine.answers.answer import AnswerRow
from procreward.engine.reading.inputs import cut_at_stop
from procreward.scorers.procvlm_text import (
    DIRECT_COMPLETE,
    DIRECT_PREFIX,
    NUMBER_COMPLETE,
    STOP,
    procvlm_prompt,
    read_progress,
    reasoning_of,
)

UNFINISHED = (
    "The following actions are required: \n1. grasp the cube\n2. lift the cube\n"
    "Therefore, the estimated progress is <progress>84.13%</progress>."
)


FRAGMENTS = (
    *("<progress>", "<progress>", "</progress>", "</progress>", "<", ">", "\\", "/", "%"),
    *("\\< progr ess>", "progr ess", " ", "\n", "8", "-", ".", "12", "1.", "٣", "²", "é"),
    *("the task is finished", "because", "Image shows the final result"),
)


def random_answer(rng: random.Random) -> str:
    """Tags, digits and words in any order; now and then any characters at all between them."""
    parts = rng.choices(FRAGMENTS, k=rng.randrange(12))
    if rng.random() < 0.3:
        noise = chr(rng.choice((rng.randrange(32), rng.randrange(0xD800), 0x1F600, 0xFFFD)))
        parts.insert(rng.randrange(len(parts) + 1), noise)
    if rng.random() < 0.2:
        parts.append("".join(rng.choices(string.printable, k=rng.randrange(30))))
    return "".join(parts)


def check_stopped(text: str, *, finished: bool) -> str:
    """The same for what an engine makes of the text: it stops as soon as the number is whole."""
    stop = (STOP, NUMBER_COMPLETE)
    row = AnswerRow((), stop)
    letters = 0
    for letter in text:
        letters += 1
        if not row.push(0, letter):
            break
    cut = cut_at_stop(text[:letters], stop)
    assert cut == cut_at_stop(text, stop)
    number = NUMBER_COMPLETE.search(text)
    if row.finished and number is not None and cut.endswith("%"):
        assert number.group(0) in cut
        assert read_progress(cut, finished=False).source == "tag"
    return check_reading(cut, finished=finished or row.finished)


def check_reading(text: str, *, finished: bool) -> str:
    """Whatever the text: a number that is in it, or a reason."""
    reading = read_progress(text, finished=finished)
    assert (reading.progress is None) == (reading.reason != "")
    if reading.progress is None:
        assert reading.reason == ("unparsable" if finished else "truncated")
    elif reading.source == "finished_text":
        assert finished
        assert reading.progress == 1.0
    else:
        assert 0.0 <= reading.progress <= 1.0
        written = [float(number) for number in re.findall(r"[+-]?[0-9]+(?:\.[0-9]+)?", text)]
        assert reading.percent in written
    assert reasoning_of(text) in text
    return reading.source


class TestPrompt:
    def test_it_is_the_published_one(self) -> None:
        assert procvlm_prompt("lift the {red} cube") == (
            'Given the recent observation and the task "lift the {red} cube", first infer the '
            "remaining atomic actions required to complete the task. Then estimate the current "
            "completion percentage and output it as a float wrapped by <progress> tags."
        )


class TestReading:
    @pytest.mark.parametrize(
        ("text", "progress"),
        [
            (UNFINISHED, 0.8413),
            ("<progress>0%</progress>", 0.0),
            ("<progress>100%</progress>.", 1.0),
            ("<PROGRESS> 12 % </Progress>", 0.12),
            ("<progress>0.5</progress>", 0.005),
            ("<progress>+7.5%</progress>", 0.075),
            ("<progress>10%</progress> or <progress>90%</progress>", 0.1),
            ("<progress>\n50.\n</progress> <progress>20%</progress>", 0.2),
            # Answers end behind the sign, where they are stopped.
            ("1. lift\n<progress>84.13%", 0.8413),
            ("<Progress> 9 % \n", 0.09),
            ("<progress>8 4%, no: <progress>84%", 0.84),
        ],
    )
    def test_tags_are_read_as_upstream_does(self, text: str, progress: float) -> None:
        reading = read_progress(text)
        assert reading.progress == pytest.approx(progress)
        assert reading.source == "tag"
        assert not reading.clamped

    @pytest.mark.parametrize(
        ("text", "progress", "percent"),
        [
            ("<progress>120%</progress>", 1.0, 120.0),
            ("<progress>-3%</progress>", 0.0, -3.0),
            (f"<progress>{'9' * 400}%</progress>", 1.0, float("inf")),
        ],
    )
    def test_numbers_outside_are_clamped_and_noted(
        self, text: str, progress: float, percent: float
    ) -> None:
        reading = read_progress(text)
        assert (reading.progress, reading.percent, reading.clamped) == (progress, percent, True)

    @pytest.mark.parametrize(
        "text",
        [
            r"\< progr ess>84.13%\</ progress >",
            "< progress >84.13 %</ progress>",
            r"\<progress\>84.13\%\</progress\>",
            "<p r o g r e s s>84.13%< / progress>",
        ],
    )
    def test_broken_tags_are_read(self, text: str) -> None:
        reading = read_progress("left: lift. " + text)
        assert reading.progress == pytest.approx(0.8413)
        assert reading.source == "malformed_tag"

    @pytest.mark.parametrize(
        "text",
        [
            "this task is finished because the cube is in the air",
            "The task is completed.",
            "The cube is up.\nThe task is already done!",
            "So, the task is complete",
            "Image shows the final result. Reason: the drawer is closed.",
            "the image shows the final result",
        ],
    )
    def test_finished_texts_without_a_tag_are_complete(self, text: str) -> None:
        reading = read_progress(text)
        assert (reading.progress, reading.source) == (1.0, "finished_text")
        assert read_progress(text, finished=False).reason == "truncated"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "84%",
            "progress 84%",
            "<progress>84",
            "<progress>84.",
            "<progress>84% or so",
            "<progress>84.%",
            "<progress>٨٤%</progress>",
            "<progress>84٪</progress>",
            "<progress>8²%</progress>",
            "<progress>\uff18\uff14%</progress>",
            "<progress>inf%</progress>",
            "<progress>nan%",
            "\\< progr ess>84%",
            "<progress>eighty</progress>",
            "<progress></progress>",
            "<progress>8 4%</progress>",
            "<progress>1e2</progress>",
            "<progress>nan</progress>",
            "The task is not finished because the cube lies on the table.",
            "The task is finished when the cube is in the air.",
            "The task is done as soon as the door is shut.",
            "Is the task is finished? No",
            "I cannot say whether the task is finished.",
            "once the task is done.",
            "The following actions are required: \n1. lift\nThe task is finished.",
            "- lift the cube\nthe task is done.",
            "<progress>84 The task is finished.",
            "The task is finished 20%.",
        ],
    )
    def test_a_number_that_is_not_there_is_not_made_up(self, text: str) -> None:
        reading = read_progress(text)
        assert (reading.progress, reading.reason) == (None, "unparsable")

    def test_a_truncated_answer_with_a_whole_number_counts(self) -> None:
        for end, progress in (("%</progress>.", 0.8413), ("%</prog", None), ("%", 0.8413)):
            reading = read_progress(UNFINISHED.split("%")[0] + end, finished=False)
            assert reading.progress == pytest.approx(progress)

    @pytest.mark.parametrize("number", ["", "8", "84", "84.", "84.1", "84.13 "])
    def test_a_number_that_may_go_on_does_not_count(self, number: str) -> None:
        reading = read_progress(f"1. lift\n<progress>{number}", finished=False)
        assert (reading.progress, reading.reason) == (None, "truncated")

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(), finished=st.booleans())
    @example(text="<progress>٣%</progress>", finished=True)
    def test_any_text_is_read_without_an_exception(self, text: str, finished: bool) -> None:
        check_reading(text, finished=finished)

    @settings(max_examples=200, deadline=None)
    @given(parts=st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=14))
    def test_any_mixture_is_read_without_an_exception(self, parts: list[str]) -> None:
        check_reading("".join(parts), finished=True)
        check_stopped("".join(parts), finished=True)

    def test_ten_thousand_random_answers_are_read_without_an_exception(self) -> None:
        rng = random.Random(0)
        sources, stopped = set(), set()
        for _ in range(10_000):
            text = random_answer(rng)
            finished = rng.random() < 0.7
            sources.add(check_reading(text, finished=finished))
            stopped.add(check_stopped(text, finished=finished))
        assert sources == stopped == {"", "tag", "malformed_tag", "finished_text"}

    def test_long_texts_are_read_in_reasonable_time(self) -> None:
        # Nested quantifiers would hang here rather than fail.
        for text in (
            "<" * 20_000,
            "<progress>" * 5_000,
            "<p " * 9_000,
            "\n1 " * 20_000,
            " " * 50_000,
            "<progress>8" + " " * 50_000,
            "<progress>8%" + " " * 50_000 + ".",
            "\\<progress>8\\" + " " * 50_000,
            "<progress>" + "8" * 50_000,
        ):
            assert read_progress(text).progress is None

    def test_the_reasoning_is_what_stands_before_the_number(self) -> None:
        assert reasoning_of(UNFINISHED) == UNFINISHED.split("\nTherefore")[0]
        assert reasoning_of("1. lift \\< progr ess>3%") == "1. lift"
        assert reasoning_of(" no tag ") == "no tag"


class TestStops:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("is <progress>84.13%</progress>.", "<progress>84.13%"),
            ("<progress> +7\t% and", "<progress> +7\t%"),
            ("<PROGRESS>100%", "<PROGRESS>100%"),
            ("<progress>8 4% <progress>-5.0%", "<progress>-5.0%"),
        ],
    )
    def test_the_sign_makes_a_number_whole(self, text: str, number: str) -> None:
        match = NUMBER_COMPLETE.search(text)
        assert match is not None
        assert match.group(0) == number

    @pytest.mark.parametrize(
        "text",
        [
            *("<progress>84", "<progress>84.", "<progress>84.1", "<progress>%", "84%"),
            *("<progress>nan%", "<progress>٨٤%", "<progress>\uff18\uff14%", "<progre\u017fs>84%"),
        ],
    )
    def test_nothing_else_does(self, text: str) -> None:
        assert NUMBER_COMPLETE.search(text) is None

    def test_behind_the_tag_the_number_alone_is_enough(self) -> None:
        match = DIRECT_COMPLETE.search("42.5%</progress>")
        assert match is not None
        assert match.group(0) == "42.5%"
        assert read_progress(DIRECT_PREFIX + match.group(0)).progress == 0.425
        assert DIRECT_COMPLETE.search("42.5</progress>") is None
