from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.config import ScorerConfig, load_preset
from procreward.engine import (
    Clip,
    EndTokens,
    Generation,
    LabelNLL,
    NumberReading,
    Prompt,
    Stop,
)
from procreward.errors import ConfigError, InstructionError, ModelNotFoundError, UnknownNameError
from procreward.scorers.building import options_from
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.scorers.procvlm_text import (
    DIRECT_COMPLETE,
    DIRECT_PREFIX,
    NUMBER_COMPLETE,
    procvlm_prompt,
)
from procreward.types import Query, Score, Scorer
from tests.tiny import save_tiny

UNFINISHED = (
    "The following actions are required: \n1. grasp the cube\n2. lift the cube\n"
    "Therefore, the estimated progress is <progress>84.13%</progress>."
)


class EchoEngine:
    """Gives the answers it was given and keeps what it was asked."""

    def __init__(self, *answers: Generation | NumberReading) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[Prompt], int, Stop]] = []
        self.leads: list[str] = []
        self.released: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        self.calls.append((list(prompts), max_new_tokens, stop))
        answers = [self.answers.pop(0) for _ in prompts]
        return [answer for answer in answers if isinstance(answer, Generation)]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        raise NotImplementedError

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        assert largest == 100.0
        self.calls.append((list(prompts), max_new_tokens, ()))
        self.leads.append(lead)
        answers = [self.answers.pop(0) for _ in prompts]
        return [answer for answer in answers if isinstance(answer, NumberReading)]

    def release(self, streams: Iterable[str]) -> None:
        self.released += streams


def said(text: str, *, finished: bool = True) -> Generation:
    return Generation(text=text, tokens=tuple(range(len(text.split()))), finished=finished)


def read(
    value: float | None,
    *,
    text: str = "",
    spread: float = 4.0,
    mass: float = 1.0,
    tokens: int = 0,
    finished: bool = True,
) -> NumberReading:
    return NumberReading(
        text=text, tokens=tokens, value=value, spread=spread, mass=mass, finished=finished
    )


def query(
    views: Sequence[str] = ("agentview",),
    instruction: str = "lift the cube",
    stream: str = "episode-1",
) -> Query:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    return Query(
        frames=dict.fromkeys(views, frames),
        instruction=instruction,
        frame_steps=(0, 4, 8),
        stream=stream,
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
        assert (prompts[0].assistant_prefix, limit) == ("", 256)
        assert stop == ("</progress>", NUMBER_COMPLETE)
        assert prompts[0].stream == "episode-1/agentview"
        assert score.progress == pytest.approx(0.8413)
        assert (score.text, score.mode, score.reason) == (UNFINISHED, "reasoning", "")
        assert (score.success_prob, score.complete) == (None, None)

    def test_text_first_is_opt_in(self) -> None:
        engine = EchoEngine(said(UNFINISHED))
        ProcVLM(engine, ProcVLMOptions(image_order="text_first")).score([query()])
        assert isinstance(engine.calls[0][0][0].parts[0], str)

    def test_an_answer_that_stops_behind_the_number_is_whole(self) -> None:
        text = UNFINISHED.removesuffix("</progress>.")
        (score,) = ProcVLM(EchoEngine(said(text))).score([query()])
        assert score.progress == pytest.approx(0.8413)
        assert score.text == text
        assert "malformed_tag" not in score.details

    def test_a_query_of_no_stream_names_nothing(self) -> None:
        engine = EchoEngine(said(UNFINISHED))
        ProcVLM(engine).score([query(stream="")])
        prompt = engine.calls[0][0][0]
        assert prompt.stream is None
        assert isinstance(prompt.parts[0], Clip)
        assert prompt.parts[0].keys is None

    def test_direct_greedy_begins_the_last_line(self) -> None:
        engine = EchoEngine(said("42.5%"))
        scorer = ProcVLM(engine, ProcVLMOptions(mode="direct", readout="greedy"))
        (score,) = scorer.score([query()])
        ((prompts, limit, stop),) = engine.calls
        assert prompts[0].assistant_prefix == DIRECT_PREFIX
        assert (limit, stop) == (16, ("</progress>", DIRECT_COMPLETE))
        assert (score.progress, score.mode, score.spread) == (0.425, "direct+greedy", None)
        assert score.text == "Therefore, the estimated progress is <progress>42.5%"

    def test_released_streams_are_passed_on(self) -> None:
        engine = EchoEngine()
        ProcVLM(engine).release(["episode-1", "episode-2"])
        assert engine.released == ["episode-1", "episode-2"]

    def test_invalid_answers_say_why(self) -> None:
        engine = EchoEngine(said("1. lift", finished=False), said("no idea"))
        scores = ProcVLM(engine).score([query(), query()])
        assert [score.valid for score in scores] == [False, False]
        assert [score.reason for score in scores] == ["truncated", "unparsable"]

    def test_an_engine_without_an_answer_says_why(self) -> None:
        silent = Generation(text="", tokens=(), finished=False, error="timeout")
        scores = ProcVLM(EchoEngine(silent, said("<progress>1%"))).score([query()] * 2)
        assert [score.reason for score in scores] == ["timeout", ""]
        (score,) = ProcVLM(
            EchoEngine(silent), ProcVLMOptions(mode="direct", readout="greedy")
        ).score([query()])
        assert (score.reason, score.text, score.mode) == ("timeout", "", "direct+greedy")

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
            ({"engine": "small"}, "engine"),
            ({"readout": "both"}, "`readout` must be one of 'auto', 'greedy', 'expectation'"),
            ({"min_number_mass": 1.5}, "min_number_mass"),
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"batch_size": 1.5}, "batch_size"),
            ({"max_pixels": 10}, "max_pixels"),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ProcVLMOptions(**options)


class TestExpectation:
    def ask(self, reading: NumberReading, **options: Any) -> tuple[Score, EchoEngine]:
        engine = EchoEngine(reading)
        (score,) = ProcVLM(engine, ProcVLMOptions(**options)).score([query()])
        return score, engine

    def test_direct_reads_the_number_off_the_probabilities(self) -> None:
        score, engine = self.ask(read(37.25, spread=12.5, mass=0.9), mode="direct")
        ((prompts, limit, _),) = engine.calls
        assert prompts[0].assistant_prefix == DIRECT_PREFIX
        assert prompts[0].stream == "episode-1/agentview"
        assert (engine.leads, limit) == (["<progress>"], 256)
        assert score == Score(
            progress=0.3725,
            spread=0.125,
            text="Therefore, the estimated progress is <progress>",
            mode="direct",
            details={"tokens": 0.0, "number_mass": 0.9, "percent": 37.25},
        )

    def test_reasoning_then_expectation_keeps_the_words_as_they_are(self) -> None:
        text = "1. lift\nTherefore, the estimated progress is <progress>"
        score, engine = self.ask(
            read(84.0, text=text, tokens=9), readout="expectation", max_new_tokens=40
        )
        ((prompts, limit, _),) = engine.calls
        assert (prompts[0].assistant_prefix, limit) == ("", 40)
        assert (score.progress, score.spread, score.text) == (0.84, 0.04, text)
        assert (score.mode, score.details["tokens"]) == ("reasoning+expectation", 9.0)

    @pytest.mark.parametrize(
        ("value", "mass", "least", "valid"),
        [
            (50.0, 0.5, 0.5, True),
            (50.0, 0.49, 0.5, False),
            (50.0, 0.01, 0.0, True),
            (50.0, 0.99, 1.0, False),
            (None, 0.0, 0.0, False),
        ],
    )
    def test_a_number_that_hardly_follows_is_none(
        self, value: float | None, mass: float, least: float, valid: bool
    ) -> None:
        score, _ = self.ask(read(value, mass=mass), mode="direct", min_number_mass=least)
        assert score.valid is valid
        assert score.reason == ("" if valid else "no_number")
        assert score.details["number_mass"] == mass
        assert ("percent" in score.details) is valid

    @pytest.mark.parametrize("value", [100.00000001, -1e-9])
    def test_rounding_does_not_leave_the_range(self, value: float) -> None:
        score, _ = self.ask(read(value), mode="direct")
        assert score.progress in (0.0, 1.0)

    @pytest.mark.parametrize(
        ("text", "tokens", "progress", "reason"),
        [
            ("1. lift\n2. la", 40, None, "truncated"),
            ("I do not know.", 4, None, "unparsable"),
            ("The task is finished because the cube is up.", 9, 1.0, ""),
            ("The task is finished because the cube is up.", 40, None, "truncated"),
            (r"\< progr ess>7%\</ progress >", 9, 0.07, ""),
        ],
    )
    def test_where_the_tag_never_comes_the_words_are_read(
        self, text: str, tokens: int, progress: float | None, reason: str
    ) -> None:
        reading = read(None, text=text, tokens=tokens, mass=0.0, finished=False)
        score, _ = self.ask(reading, readout="expectation", max_new_tokens=40)
        assert (score.progress, score.reason, score.spread) == (progress, reason, None)
        assert score.text == text

    def test_batches_keep_the_order(self) -> None:
        engine = EchoEngine(*[read(10.0 * number) for number in range(5)])
        scores = ProcVLM(engine, ProcVLMOptions(mode="direct", batch_size=2)).score([query()] * 5)
        assert [score.progress for score in scores] == [0.0, 0.1, 0.2, 0.3, 0.4]
        assert [len(call[0]) for call in engine.calls] == [2, 2, 1]

    @pytest.mark.parametrize(
        ("mode", "readout", "label", "least"),
        [
            ("reasoning", "auto", "reasoning", None),
            ("reasoning", "greedy", "reasoning", None),
            ("reasoning", "expectation", "reasoning+expectation", 0.5),
            ("direct", "auto", "direct", 0.5),
            ("direct", "expectation", "direct", 0.5),
            ("direct", "greedy", "direct+greedy", None),
        ],
    )
    def test_every_pair_of_mode_and_readout_says_what_it_is(
        self, mode: Any, readout: Any, label: str, least: float | None
    ) -> None:
        options = ProcVLMOptions(mode=mode, readout=readout)
        reading = read(50.0, text="<progress>")
        engine = EchoEngine(reading if options.expects else said("<progress>50%"))
        scorer = ProcVLM(engine, options)
        (score,) = scorer.score([query()])
        assert (score.mode, score.progress) == (label, 0.5)
        account = scorer.describe()
        assert account["mode"] == mode
        assert account["readout"] == ("greedy" if least is None else "expectation")
        assert account["min_number_mass"] == least


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("scorers") / "model")


class TestFromConfig:
    @pytest.mark.parametrize("mode", ["reasoning", "direct"])
    def test_a_real_model_answers_alike_on_all_engines(self, folder: Path, mode: str) -> None:
        scores = []
        for engine in ("auto", "fast", "strict", "reference"):
            options: dict[str, Any] = {"mode": mode, "readout": "greedy"}
            options |= {"max_new_tokens": 12, "engine": engine}
            config = ScorerConfig(name="procvlm", model=str(folder), options=options)
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
        served = {"engine": "served", "server": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}
        with pytest.raises(ConfigError, match="`readout: greedy`"):  # before anything is asked
            ProcVLM.from_config(
                ScorerConfig(name="procvlm", options={**served, "mode": "direct"})  # type: ignore[dict-item]  # wrong on purpose
            )
        with pytest.raises(ConfigError, match="needs a `model`"):
            ProcVLM.from_config(ScorerConfig(name="procvlm"))
        with pytest.raises(ModelNotFoundError):
            ProcVLM.from_config(ScorerConfig(name="procvlm", model="./nothing/here/at/all"))


class TestPresets:
    @pytest.mark.parametrize(
        "name", ["nano", "procvlm-2b", "procvlm-2b-fp32", "qwen3-vl-2b-procvlm"]
    )
    def test_their_options_are_known_and_reason_as_published(self, name: str) -> None:
        config = load_preset(name).scorer
        options = options_from(ProcVLMOptions, config.name, config.options)
        assert config.name == "procvlm"
        assert options.label == "reasoning"
        assert options.image_order == "images_first"

    def test_the_untuned_model_is_asked_as_procvlm_is(self) -> None:
        tuned, untuned = load_preset("procvlm-2b"), load_preset("qwen3-vl-2b-procvlm")
        assert untuned.scorer.model == "Qwen/Qwen3-VL-2B-Instruct"
        assert untuned.scorer.options == tuned.scorer.options
        same = replace(untuned, name=tuned.name, summary=tuned.summary, scorer=tuned.scorer)
        assert same == tuned
