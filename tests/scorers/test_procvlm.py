from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from procreward.config import ScorerConfig
from procreward.engine import Clip, EndTokens, Generation, LabelNLL, Prompt
from procreward.errors import ConfigError, InstructionError, ModelNotFoundError, UnknownNameError
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.scorers.procvlm_text import (
    DIRECT_PREFIX,
    procvlm_prompt,
    read_progress,
    reasoning_of,
)
from procreward.types import Query, Scorer
from tests.tiny import save_tiny

UNFINISHED = (
    "The following actions are required: \n1. grasp the cube\n2. lift the cube\n"
    "Therefore, the estimated progress is <progress>84.13%</progress>."
)


FRAGMENTS = (
    *("<progress>", "<progress>", "</progress>", "</progress>", "<", ">", "\\", "/", "%"),
    *("\\< progr ess>", "progr ess", " ", "\n", "8", "-", ".", "12", "1.", "٣", "²", "é"),
    *("the task is finished", "because", "Image shows the final result"),
)


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
        written = [float(number) for number in re.findall(r"[+-]?\d+(?:\.\d+)?", text)]
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
        assert (reading.progress, reading.source) == (pytest.approx(0.8413), "malformed_tag")

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
            "<progress>84%",
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

    def test_a_truncated_answer_with_a_whole_tag_counts(self) -> None:
        assert read_progress(UNFINISHED, finished=False).progress == pytest.approx(0.8413)
        assert read_progress(UNFINISHED[:-12], finished=False).reason == "truncated"

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(), finished=st.booleans())
    @example(text="<progress>٣%</progress>", finished=True)
    def test_any_text_is_read_without_an_exception(self, text: str, finished: bool) -> None:
        check_reading(text, finished=finished)

    def test_thousands_of_shuffled_fragments_are_read_without_an_exception(self) -> None:
        rng = random.Random(0)
        sources = set()
        for _ in range(6000):
            text = "".join(rng.choices(FRAGMENTS, k=rng.randrange(12)))
            sources.add(check_reading(text, finished=rng.random() < 0.7))
        assert sources == {"", "tag", "malformed_tag", "finished_text"}

    def test_long_texts_are_read_in_reasonable_time(self) -> None:
        # Nested quantifiers would hang here rather than fail.
        for text in (
            "<" * 20_000,
            "<progress>" * 5_000,
            "<p " * 9_000,
            "\n1 " * 20_000,
            " " * 50_000,
        ):
            assert read_progress(text).progress is None

    def test_the_reasoning_is_what_stands_before_the_number(self) -> None:
        assert reasoning_of(UNFINISHED) == UNFINISHED.split("\nTherefore")[0]
        assert reasoning_of("1. lift \\< progr ess>3%") == "1. lift"
        assert reasoning_of(" no tag ") == "no tag"


class EchoEngine:
    """Answers with given generations and keeps what it was asked."""

    def __init__(self, *answers: Generation) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[Prompt], int, tuple[str, ...]]] = []

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: tuple[str, ...] = ()
    ) -> list[Generation]:
        self.calls.append((list(prompts), max_new_tokens, stop))
        return [self.answers.pop(0) for _ in prompts]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        raise NotImplementedError


def said(text: str, *, finished: bool = True) -> Generation:
    return Generation(text=text, tokens=tuple(range(len(text.split()))), finished=finished)


def query(views: Sequence[str] = ("agentview",), instruction: str = "lift the cube") -> Query:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    return Query(
        frames=dict.fromkeys(views, frames),
        instruction=instruction,
        frame_steps=(0, 4, 8),
        stream="episode-1",
    )


class TestScoring:
    def test_images_come_first_then_the_text(self) -> None:
        engine = EchoEngine(said(UNFINISHED))
        (score,) = ProcVLM(engine).score([query()])
        ((prompts, limit, stop),) = engine.calls
        clip, text = prompts[0].parts
        assert isinstance(clip, Clip)
        assert not clip.video
        assert clip.keys == tuple(("episode-1", "agentview", step) for step in (0, 4, 8))
        assert text == procvlm_prompt("lift the cube")
        assert (prompts[0].assistant_prefix, limit, stop) == ("", 256, ("</progress>",))
        assert score.progress == pytest.approx(0.8413)
        assert (score.text, score.mode, score.reason) == (UNFINISHED, "reasoning", "")
        assert (score.success_prob, score.complete) == (None, None)

    def test_text_first_is_opt_in(self) -> None:
        engine = EchoEngine(said(UNFINISHED))
        ProcVLM(engine, ProcVLMOptions(image_order="text_first")).score([query()])
        assert isinstance(engine.calls[0][0][0].parts[0], str)

    def test_direct_mode_begins_the_last_line(self) -> None:
        engine = EchoEngine(said("42.5%</progress>"))
        (score,) = ProcVLM(engine, ProcVLMOptions(mode="direct")).score([query()])
        ((prompts, limit, _),) = engine.calls
        assert prompts[0].assistant_prefix == DIRECT_PREFIX
        assert limit == 16
        assert (score.progress, score.mode) == (0.425, "direct")
        assert score.text == "Therefore, the estimated progress is <progress>42.5%</progress>"

    def test_invalid_answers_say_why(self) -> None:
        engine = EchoEngine(said("1. lift", finished=False), said("no idea"))
        scores = ProcVLM(engine).score([query(), query()])
        assert [score.valid for score in scores] == [False, False]
        assert [score.reason for score in scores] == ["truncated", "unparsable"]

    def test_unusual_readings_are_noted(self) -> None:
        engine = EchoEngine(
            said("<progress>130%</progress>"),
            said("The task is finished."),
            said(r"\<progress>7%\</progress>"),
            said(f"<progress>{'9' * 400}</progress>"),
        )
        scores = ProcVLM(engine).score([query()] * 4)
        assert [score.progress for score in scores] == [1.0, 1.0, 0.07, 1.0]
        assert scores[0].details["percent_as_written"] == 130.0
        assert [score.details.get("clamped") for score in scores] == [1.0, None, None, 1.0]
        assert scores[1].details["finished_text"] == 1.0
        assert scores[2].details["malformed_tag"] == 1.0
        json.dumps([dict(score.details) for score in scores], allow_nan=False)

    def test_batches_keep_the_order(self) -> None:
        engine = EchoEngine(*[said(f"<progress>{number}%</progress>") for number in range(5)])
        scores = ProcVLM(engine, ProcVLMOptions(batch_size=2)).score([query()] * 5)
        assert [score.progress for score in scores] == [0.0, 0.01, 0.02, 0.03, 0.04]
        assert [len(call[0]) for call in engine.calls] == [2, 2, 1]

    def test_several_views_need_a_choice(self) -> None:
        both = query(["front", "side"])
        with pytest.raises(ConfigError, match="looks at one view, got 2: front, side"):
            ProcVLM(EchoEngine()).score([both])
        chosen = EchoEngine(said(UNFINISHED))
        ProcVLM(chosen, ProcVLMOptions(view="side")).score([both])
        clip = chosen.calls[0][0][0].parts[0]
        assert isinstance(clip, Clip)
        assert clip.keys is not None
        assert clip.keys[0] == ("episode-1", "side", 0)
        with pytest.raises(UnknownNameError, match=r"Unknown view 'sied'. Did you mean 'side'"):
            ProcVLM(EchoEngine(), ProcVLMOptions(view="sied")).score([both])

    def test_an_empty_instruction_is_refused(self) -> None:
        with pytest.raises(InstructionError):
            ProcVLM(EchoEngine()).score([query(instruction="  ")])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "fast"}, "`mode` must be one of 'reasoning', 'direct'"),
            ({"image_order": "mixed"}, "image_order"),
            ({"engine": "vllm"}, "engine"),
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"batch_size": 1.5}, "batch_size"),
            ({"max_pixels": 10}, "max_pixels"),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ProcVLMOptions(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("scorers") / "model")


class TestFromConfig:
    @pytest.mark.parametrize("mode", ["reasoning", "direct"])
    def test_a_real_model_answers_alike_on_both_engines(self, folder: Path, mode: str) -> None:
        scores = []
        for engine in ("auto", "small", "plain", "reference"):
            config = ScorerConfig(
                name="procvlm",
                model=str(folder),
                options={"mode": mode, "max_new_tokens": 12, "engine": engine},
            )
            scorer = ProcVLM.from_config(config)
            assert isinstance(scorer, Scorer)
            scores.append(scorer.score([query(), query(instruction="open the drawer")]))
        assert all(other == scores[0] for other in scores[1:])
        for score in scores[0]:  # random weights do not speak the format
            assert not score.valid
            assert score.reason in ("truncated", "unparsable")

    def test_it_says_what_answers(self, folder: Path) -> None:
        config = ScorerConfig(name="procvlm", model=str(folder), options={"max_new_tokens": 9})
        account = ProcVLM.from_config(config).describe()
        assert json.loads(json.dumps(account)) == account
        assert account["model"] == str(folder)
        assert account["dtype"] in ("float32", "bfloat16")
        assert (account["mode"], account["max_new_tokens"]) == ("reasoning", 9)
        assert (account["revision"], account["adapter"]) == (None, None)
        assert account["prompt_sha256"] == (
            "0dd106e10c778ab3b963d23af18ccde5a16a4023695ffa0f8a3f2e079db52c69"
        )

    def test_options_and_model_are_checked(self, folder: Path) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'max_new_tokens'"):
            ProcVLM.from_config(
                ScorerConfig(name="procvlm", model=str(folder), options={"max_tokens": 3})
            )
        with pytest.raises(ConfigError, match="needs a `model`"):
            ProcVLM.from_config(ScorerConfig(name="procvlm"))
        with pytest.raises(ModelNotFoundError):
            ProcVLM.from_config(ScorerConfig(name="procvlm", model="./nothing/here/at/all"))
