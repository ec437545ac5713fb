from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from procreward.config import ScorerConfig, load_preset
from procreward.engine import Clip, Generation, Prompt, Stop
from procreward.engine.fast import FastEngine
from procreward.engine.loading import load_model
from procreward.engine.reference import ReferenceEngine
from procreward.errors import ConfigError, FrameError, InstructionError, UnknownNameError
from procreward.registry import get_scorer, resolve
from procreward.scorers.demonstration import Demonstration, load_demonstrations
from procreward.scorers.progresslm import ProgressLM, ProgressLMOptions
from procreward.scorers.progresslm_prompts import progresslm_prompt
from procreward.scorers.progresslm_text import NOTHINK_STOP
from procreward.types import Query, Scorer
from tests.tiny import save_tiny, save_tiny_generic, save_tiny_qwen25

GOAL = "put the cup away"
STEPS = ("pick up the cup", "open the door", "put it in")
TEXT = Demonstration(steps=STEPS)
VISUAL = Demonstration(
    frames=tuple(np.full((32, 32, 3), grey, np.uint8) for grey in (40, 90, 140, 190))
)
ANSWER = (
    "<ref_think>The cup is up.</ref_think>\n<ref>1</ref>\n"
    "<score_think>A little behind.</score_think>\n<score>40.5%</score>"
)


class EchoEngine:
    """Answers with given texts and keeps what it was asked."""

    def __init__(self, *answers: str | Generation) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[list[Prompt], int, Stop]] = []
        self.released: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        self.calls.append((list(prompts), max_new_tokens, stop))
        return [said(self.answers.pop(0)) for _ in prompts]

    def label_nll(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def read_number(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def release(self, streams: Iterable[str]) -> None:
        self.released += streams


def said(answer: str | Generation) -> Generation:
    if isinstance(answer, Generation):
        return answer
    return Generation(text=answer, tokens=(1, 2, 3), finished=True)


def query(
    *, views: Sequence[str] = ("front",), goal: str = GOAL, step: int = 8, stream: str = "episode-1"
) -> Query:
    frames = np.random.default_rng(step).integers(1, 256, (3, 48, 64, 3), np.uint8)
    return Query(
        frames=dict.fromkeys(views, frames),
        instruction=goal,
        frame_steps=(step - 8, step - 4, step),
        stream=stream,
    )


class TestScoring:
    def test_the_last_frame_is_compared_with_the_demonstration(self) -> None:
        engine, asked = EchoEngine(ANSWER), query()
        (score,) = ProgressLM(engine, VISUAL).score([asked])
        ((prompts, limit, stop),) = engine.calls
        state = prompts[0].parts[-2]
        assert isinstance(state, Clip)
        assert np.array_equal(state.frames, asked.frames["front"][-1:])
        assert state.keys == (("episode-1", "front", 8),)
        expected = progresslm_prompt(GOAL, VISUAL, state)
        assert words(prompts[0]) == words(expected)
        assert prompts[0].system == expected.system
        assert prompts[0].stream == "episode-1/front"
        assert (limit, stop) == (1024, ("</score>",))
        assert score.progress == pytest.approx(0.405)
        assert (score.text, score.mode, score.reason) == (ANSWER, "think", "")
        assert score.details == {"tokens": 3.0, "ref": 1.0}
        assert (score.success_prob, score.complete, score.spread) == (None, None, None)

    def test_without_a_stream_nothing_is_named(self) -> None:
        engine = EchoEngine(ANSWER)
        ProgressLM(engine, TEXT).score([query(stream="")])
        (prompt,) = engine.calls[0][0]
        assert prompt.stream is None
        assert [part.keys for part in prompt.parts if isinstance(part, Clip)] == [None]

    def test_without_reasoning(self) -> None:
        engine = EchoEngine("40%", "n/a", "100", "about 3 of 4")
        scorer = ProgressLM(engine, TEXT, ProgressLMOptions(think=False))
        scores = scorer.score([query()] * 4)
        ((prompts, limit, stop),) = engine.calls
        assert (limit, stop) == (16, NOTHINK_STOP)
        assert prompts[0].parts[0] == f"Our goal is {GOAL}."
        assert [score.progress for score in scores] == [0.4, None, 1.0, 0.03]
        assert [score.reason for score in scores] == ["", "n/a", "", ""]
        assert {score.mode for score in scores} == {"nothink"}
        assert [score.details.get("any_number") for score in scores] == [None, None, None, 1.0]

    def test_the_training_layout(self) -> None:
        engine = EchoEngine(ANSWER)
        ProgressLM(engine, VISUAL, ProgressLMOptions(layout="train")).score([query()])
        (prompt,) = engine.calls[0][0]
        assert prompt.system is None
        assert " 33% " in prompt.parts

    def test_invalid_answers_say_why(self) -> None:
        engine = EchoEngine(
            ANSWER.replace("40.5%", "n/a"),
            "no idea",
            Generation(text="<ref_think>The", tokens=(1,), finished=False),
            Generation(text="", tokens=(), finished=False, error="timeout"),
        )
        scores = ProgressLM(engine, TEXT).score([query()] * 4)
        assert [score.valid for score in scores] == [False] * 4
        assert [s.reason for s in scores] == ["n/a", "unparsable", "truncated", "timeout"]
        assert [score.details.get("ref") for score in scores] == [1.0, None, None, None]

    def test_numbers_above_the_whole_are_noted(self) -> None:
        engine = EchoEngine(
            *(f"<score>{number}%</score><ref>{'9' * 400}</ref>" for number in (130, "9" * 400))
        )
        scores = ProgressLM(engine, TEXT).score([query()] * 2)
        assert [score.progress for score in scores] == [1.0, 1.0]
        assert [score.details["clamped"] for score in scores] == [1.0, 1.0]
        assert [score.details["percent_as_written"] for score in scores] == [130.0, 1e12]
        json.dumps([dict(score.details) for score in scores], allow_nan=False)

    def test_batches_keep_the_order(self) -> None:
        engine = EchoEngine(*(f"<score>{number}%</score>" for number in range(5)))
        scorer = ProgressLM(engine, TEXT, ProgressLMOptions(batch_size=2))
        scores = scorer.score([query()] * 5)
        assert [score.progress for score in scores] == [0.0, 0.01, 0.02, 0.03, 0.04]
        assert [len(call[0]) for call in engine.calls] == [2, 2, 1]

    def test_each_instruction_has_its_own_demonstration(self) -> None:
        engine = EchoEngine(ANSWER, ANSWER)
        demos = load_demonstrations({"open it": ["pull"], "close it": VISUAL})
        ProgressLM(engine, demos).score([query(goal="close it"), query(goal="open it")])
        clips = [sum(isinstance(p, Clip) for p in prompt.parts) for prompt in engine.calls[0][0]]
        assert clips == [5, 1]
        with pytest.raises(ConfigError, match=r"got none for 'lift it'\. It has: 'open it', 'cl"):
            ProgressLM(engine, demos).score([query(goal="lift it")])

    def test_several_views_need_a_choice(self) -> None:
        both = query(views=["front", "side"])
        with pytest.raises(ConfigError, match="ProgressLM looks at one view, got 2: front, side"):
            ProgressLM(EchoEngine(), TEXT).score([both])
        engine = EchoEngine(ANSWER)
        ProgressLM(engine, TEXT, ProgressLMOptions(view="side")).score([both])
        assert engine.calls[0][0][0].stream == "episode-1/side"
        with pytest.raises(UnknownNameError, match=r"Unknown view 'top'"):
            ProgressLM(engine, TEXT, ProgressLMOptions(view="top")).score([both])

    def test_what_no_scorer_can_answer(self) -> None:
        with pytest.raises(InstructionError):
            ProgressLM(EchoEngine(), TEXT).score([query(goal=" ")])

    def test_ended_episodes_are_released(self) -> None:
        engine = EchoEngine()
        ProgressLM(engine, TEXT).release(["episode-1"])
        assert engine.released == ["episode-1"]


def words(prompt: Prompt) -> list[str]:
    return [part if isinstance(part, str) else "[picture]" for part in prompt.parts]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"think": 1}, "`think` must be true or false, got 1"),
            ({"layout": "sft"}, "`layout` must be one of 'eval', 'train', got 'sft'"),
            ({"layout": "train", "think": False}, "`layout` must be 'eval' where `think` is false"),
            ({"prompt_family": "qwen2"}, "`prompt_family` must be one of 'auto', 'qwen2.5'"),
            ({"picture_word": ""}, "`picture_word` must be a non-empty string"),
            ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer of at least 1"),
            ({"demo_frames": 1}, "`demo_frames` must be an integer of at least 2"),
            ({"min_pixels": 10}, "`min_pixels` must be an integer of at least 1024"),
            ({"min_pixels": 4096, "max_pixels": 2048}, "must not exceed `max_pixels`, got 4096"),
            ({"engine": "small"}, "`engine` must be one of"),
            ({"batch_size": 0}, "`batch_size` must be"),
        ],
    )
    def test_wrong_ones_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ProgressLMOptions(**options)

    @pytest.mark.parametrize(
        ("asked", "account", "family"),
        [
            ("auto", {"family": "qwen2_5_vl"}, "qwen2.5"),
            ("auto", {"family": "qwen3_vl_moe", "model": "my/qwen2-copy"}, "qwen3"),
            ("auto", {"model": "Raymond-Qiancx/ProgressLM-3B-SFT"}, "qwen2.5"),
            ("auto", {"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "qwen2.5"),
            ("auto", {"model": "Qwen/Qwen3-VL-4B-Instruct"}, "qwen3"),
            ("auto", {"model": "OpenGVLab/InternVL3_5-8B-HF"}, "qwen3"),
            ("auto", {}, "qwen3"),
            ("qwen2.5", {"family": "qwen3_vl"}, "qwen2.5"),
            ("qwen3", {"family": "qwen2_5_vl"}, "qwen3"),
        ],
    )
    def test_the_wording_is_that_for_the_model(
        self, asked: Any, account: dict[str, object], family: str
    ) -> None:
        engine = EchoEngine("n/a")
        options = ProgressLMOptions(think=False, prompt_family=asked)
        scorer = ProgressLM(engine, VISUAL, options, account=account)
        assert scorer.describe()["prompt_family"] == family
        scorer.score([query()])
        last = engine.calls[0][0][0].parts[-1]
        assert str(last).startswith("Your task:" if family == "qwen2.5" else "Output Instruction:")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("progresslm")
    return {
        "qwen3": save_tiny(root / "qwen3"),
        "qwen2.5": save_tiny_qwen25(root / "my own"),
        "llava": save_tiny_generic(root / "llava"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo")
    for index, frame in enumerate(VISUAL.frames):
        Image.fromarray(frame).save(path / f"{index}.png")
    return path


def config(model: Path, demo: Any, **options: Any) -> ScorerConfig:
    options = {"demo": str(demo) if isinstance(demo, Path) else demo, **options}
    return ScorerConfig(name="progresslm", model=str(model), options=options)


class TestFromConfig:
    @pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
    @pytest.mark.parametrize(
        "options", [{}, {"layout": "train"}, {"think": False}], ids=["think", "train", "nothink"]
    )
    def test_engines_give_the_same_answers(
        self, models: dict[str, Path], folder: Path, family: str, options: dict[str, Any]
    ) -> None:
        scores = []
        for engine in ("reference", "strict", "fast"):
            settings = config(models[family], folder, max_new_tokens=24, engine=engine, **options)
            scorer = ProgressLM.from_config(settings)
            assert isinstance(scorer, Scorer)
            first = scorer.score([query(), query(step=9, stream="episode-2")])
            again = scorer.score([query(step=12)])
            scores.append(first + again)
        assert scores[1] == scores[0]
        assert scores[2] == scores[0]
        for score in scores[0]:
            assert score.text
            assert score.progress is None  # random weights do not speak the format

    def test_a_text_demonstration(self, models: dict[str, Path]) -> None:
        scores = []
        for engine in ("reference", "auto"):
            settings = config(models["qwen2.5"], list(STEPS), max_new_tokens=6, engine=engine)
            scores.append(ProgressLM.from_config(settings).score([query()]))
        assert scores[0] == scores[1]
        assert scores[0][0].reason == "truncated"

    def test_key_frames_are_encoded_once_for_all_episodes(self, models: dict[str, Path]) -> None:
        loaded = load_model(str(models["qwen2.5"]), device="cpu", dtype="float32")
        engine, options = FastEngine(loaded), ProgressLMOptions(max_new_tokens=12)
        scorer = ProgressLM(engine, VISUAL, options)
        scorer.score([query()])
        assert engine.stats.frames_encoded == 5
        scorer.release(["episode-1"])
        later = query(step=9, stream="episode-2")
        answer = scorer.score([later])
        assert (engine.stats.frames_encoded, engine.stats.frames_reused) == (6, 4)
        assert answer == ProgressLM(ReferenceEngine(loaded), VISUAL, options).score([later])

    @pytest.mark.parametrize(
        "options",
        [{"layout": "train"}, {"picture_word": "picture"}, {"picture_word": "it", "think": False}],
        ids=["train", "think", "nothink"],
    )
    def test_a_model_of_another_maker(
        self, models: dict[str, Path], folder: Path, options: dict[str, Any]
    ) -> None:
        scorer = ProgressLM.from_config(
            config(models["llava"], folder, max_new_tokens=4, **options)
        )
        assert scorer.describe()["engine"] == "plain"
        (score,) = scorer.score([query()])
        assert score.reason in ("truncated", "unparsable")

    def test_the_published_word_is_a_picture_to_some(
        self, models: dict[str, Path], folder: Path
    ) -> None:
        scorer = ProgressLM.from_config(config(models["llava"], folder, max_new_tokens=4))
        with pytest.raises(InstructionError, match="must not contain control tokens"):
            scorer.score([query()])

    def test_small_pictures_are_enlarged_on_request(
        self, models: dict[str, Path], folder: Path
    ) -> None:
        texts = []
        for least in (None, 128 * 128):
            settings = config(
                models["qwen3"], folder, max_new_tokens=6, engine="reference", min_pixels=least
            )
            texts.append(ProgressLM.from_config(settings).score([query()])[0].text)
        assert texts[0] != texts[1]

    def test_it_says_what_answers(self, models: dict[str, Path], folder: Path) -> None:
        settings = config(models["qwen2.5"], folder, engine="reference")
        account = ProgressLM.from_config(settings).describe()
        assert json.loads(json.dumps(account)) == account
        assert account["name"] == "progresslm"
        assert account["model"] == str(models["qwen2.5"])
        assert (account["think"], account["mode"], account["layout"]) == (True, "think", "eval")
        assert account["prompt_family"] == "qwen2.5"  # by its architecture, not its folder's name
        assert account["demo"] == {
            "kind": "visual",
            "count": 4,
            "percents": [0, 33, 67, 100],
            "sha256": VISUAL.digest,
        }
        assert account["prompt_sha256"] == (
            "c546993338ba8f1d487120c244a51e743682d4ebf0a7da07e1a7e440a2364956"
        )

    @pytest.mark.parametrize(
        ("demo", "error", "message"),
        [
            (None, ConfigError, "needs a demonstration, got none. Set its option `demo`"),
            ("no/such/folder", ConfigError, "there is no such file or folder"),
            ([], ConfigError, "`steps` must be a list of at least one sentence"),
            ({"stpes": ["a"]}, UnknownNameError, "Did you mean 'steps'"),
            ({"frames": ["one.png"]}, ConfigError, r"one.png': no such file"),
        ],
    )
    def test_a_wrong_demonstration_is_seen_before_a_model_is_loaded(
        self, demo: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            ProgressLM.from_config(config(Path("no/such/model"), demo))

    def test_a_damaged_picture_is_seen_before_a_model_is_loaded(self, tmp_path: Path) -> None:
        (tmp_path / "1.png").write_bytes(b"\x89PNG no more")
        with pytest.raises(FrameError, match="cannot be read as a picture"):
            ProgressLM.from_config(config(Path("no/such/model"), tmp_path))

    def test_unknown_options(self, models: dict[str, Path]) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'demo_frames'"):
            ProgressLM.from_config(config(models["qwen3"], ["a"], demo_frame=3))
        with pytest.raises(ConfigError, match="needs a `model`"):
            ProgressLM.from_config(ScorerConfig(name="progresslm", options={"demo": ["a"]}))


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "model"),
        [
            ("progresslm-3b-rl", "Raymond-Qiancx/ProgressLM-3B-RL"),
            ("progresslm-3b-sft", "Raymond-Qiancx/ProgressLM-3B-SFT"),
            ("qwen3-vl-4b-progresslm", "Qwen/Qwen3-VL-4B-Instruct"),
        ],
    )
    def test_they_ask_as_published(self, name: str, model: str) -> None:
        preset = load_preset(name)
        assert (preset.scorer.name, preset.scorer.model) == ("progresslm", model)
        assert (preset.window_frames, preset.frame_size) == (1, (640, 480))
        options = ProgressLMOptions(**dict(preset.scorer.options))  # type: ignore[arg-type]  # on purpose
        assert (options.think, options.layout, options.max_new_tokens) == (True, "eval", 1024)

    def test_the_name_stands_for_the_best_one(self) -> None:
        assert resolve("progresslm").preset == load_preset("progresslm-3b-rl")

    def test_a_preset_with_a_demonstration_and_another_model(
        self, models: dict[str, Path], folder: Path
    ) -> None:
        handle = resolve(
            {
                "preset": "progresslm-3b-rl",
                "model": str(models["qwen2.5"]),
                "options": {"demo": str(folder), "engine": "reference", "max_new_tokens": 4},
            }
        )
        scorer = get_scorer(handle)
        assert isinstance(scorer, ProgressLM)
        assert scorer.score([query()])[0].mode == "think"
        with pytest.raises(ConfigError, match="needs a demonstration"):
            get_scorer(resolve("progresslm-3b-rl"))
