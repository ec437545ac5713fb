from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from procreward.engine.loading import load_model
from procreward.engine.reading.inputs import PromptReader
from procreward.engine.vision.preprocess import PreprocessConfig, preprocess_video
from procreward.errors import ConfigError, FrameError, InstructionError, UnknownNameError
from procreward.scorers import completion_judge
from procreward.scorers.completion_judge import CompletionJudge, JudgeOptions, judge_prompt
from procreward.types import Query, Scorer
from tests.tiny import save_tiny, save_tiny_adapter

RIGHT, LEFT, WRIST = "robot0_agentview_right", "robot0_agentview_left", "robot0_eye_in_hand"


class TableEngine:
    """Gives label likelihoods from a table and keeps what it was asked."""

    def __init__(self, *rows: tuple[float, float], lengths: tuple[int, int] = (3, 4)) -> None:
        self.rows = list(rows)
        self.lengths = lengths
        self.calls: list[tuple[list[Prompt], tuple[str, ...], str]] = []
        self.released: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        raise NotImplementedError

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        raise NotImplementedError

    def release(self, streams: Iterable[str]) -> None:
        self.released += streams

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        self.calls.append((list(prompts), tuple(labels), end_tokens))
        rows = [self.rows.pop(0) for _ in prompts]
        tokens = tuple(tuple(range(length)) for length in self.lengths)
        return LabelNLL(nll=np.array(rows, dtype=np.float64).reshape(-1, 2), tokens=tokens)


def query(
    *views: str,
    count: int = 4,
    fps: float | None = 20.0,
    instruction: str = "open the drawer",
    size: int = 64,
) -> Query:
    frames = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return Query(
        frames={view: frames for view in views or ("front",)},
        instruction=instruction,
        frame_steps=tuple(range(100, 100 + 2 * count, 2)),
        stream="e",
        fps=fps,
    )


def test_the_question_is_the_published_one() -> None:
    assert judge_prompt("close {the} door") == (
        "Instruction: close {the} door\n"
        "Question: At the final moment shown in the video, is the instruction already completed?\n"
        "Answer exactly one label: not complete or complete."
    )


class TestRule:
    def test_the_card_s_example(self) -> None:
        # Two views whose normalised scores average to 0.1846 and 0.2324.
        engine = TableEngine((0.3, 1.2), (0.8076, 0.6592))
        (score,) = CompletionJudge(engine).score([query(RIGHT, LEFT)])
        assert score.details["score_complete"] == pytest.approx(0.1846)
        assert score.details["score_not_complete"] == pytest.approx(0.2324)
        assert (score.complete, score.text, score.mode) == (True, "complete", "normalised")
        assert score.details["log_odds"] == pytest.approx((0.9 - 0.1484) / 2)
        assert score.success_prob == pytest.approx(1 / (1 + math.exp(-(0.9 - 0.1484) / 2)))
        assert score.progress is None
        assert score.details[f"nll_complete/{RIGHT}"] == pytest.approx(0.3)
        assert score.details[f"nll_not_complete/{LEFT}"] == pytest.approx(0.6592)

    def test_the_length_favours_the_longer_label_and_log_odds_do_not(self) -> None:
        # P(complete) = 0.54: more likely than not, yet the published rule says "not complete".
        row = (-math.log(0.54), -math.log(0.46))
        (published,) = CompletionJudge(TableEngine(row)).score([query()])
        options = JudgeOptions(rule="log_odds")
        (odds,) = CompletionJudge(TableEngine(row), options).score([query()])
        assert (published.complete, odds.complete) == (False, True)
        assert published.success_prob == odds.success_prob == pytest.approx(0.54)

    @pytest.mark.parametrize(
        ("lengths", "threshold"), [((1, 2), 0.618), ((2, 3), 0.570), ((3, 4), 0.550)]
    )
    def test_how_likely_complete_must_be_for_the_published_rule(
        self, lengths: tuple[int, int], threshold: float
    ) -> None:
        # One and two words; the end token, and the line break behind it, are certain.
        rows = [(-math.log(p), -math.log(1 - p)) for p in (threshold - 0.001, threshold + 0.001)]
        judge = CompletionJudge(TableEngine(*rows, lengths=lengths))
        assert [score.complete for score in judge.score([query()] * 2)] == [False, True]

    def test_the_threshold_moves_the_log_odds_rule(self) -> None:
        options = JudgeOptions(rule="log_odds", log_odds_threshold=1.0)
        rows = [(1.0, 1.9), (1.0, 2.0)]
        scores = CompletionJudge(TableEngine(*rows), options).score([query(), query()])
        assert [score.complete for score in scores] == [False, True]

    def test_weights_are_shares(self) -> None:
        options = JudgeOptions(views={RIGHT: 3.0, LEFT: 1.0}, layout="images")
        engine = TableEngine((0.0, 4.0), (4.0, 0.0))
        (score,) = CompletionJudge(engine, options).score([query(LEFT, RIGHT)])
        assert score.details["log_odds"] == pytest.approx(0.75 * 4 - 0.25 * 4)

    @given(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)))
    def test_probabilities_are_probabilities(self, row: tuple[float, float]) -> None:
        (score,) = CompletionJudge(TableEngine(row)).score([query()])
        assert score.success_prob is not None
        assert 0.0 <= score.success_prob <= 1.0
        json.dumps(dict(score.details), allow_nan=False)


class TestAsking:
    def test_a_video_has_true_times_from_its_first_frame(self) -> None:
        engine = TableEngine((1.0, 2.0))
        CompletionJudge(engine).score([query(count=4)])
        ((prompts, labels, end_tokens),) = engine.calls
        clip, text = prompts[0].parts
        assert isinstance(clip, Clip)
        assert clip.video
        assert (clip.frame_indices, clip.fps) == ((0, 2, 4, 6), 20.0)
        assert text == judge_prompt("open the drawer")
        assert (labels, end_tokens) == (("complete", "not complete"), "template")

    def test_pictures_and_order_are_options(self) -> None:
        engine = TableEngine((1.0, 2.0))
        options = JudgeOptions(layout="images", media_order="text_first", end_tokens="eos")
        CompletionJudge(engine, options).score([query(fps=None)])
        ((prompts, _, end_tokens),) = engine.calls
        text, clip = prompts[0].parts
        assert isinstance(text, str)
        assert isinstance(clip, Clip)
        assert not clip.video
        assert end_tokens == "eos"

    def test_queries_and_views_keep_their_order_over_batches(self) -> None:
        rows = [(float(number), 10.0) for number in range(6)]
        options = JudgeOptions(batch_size=2, views=[RIGHT, LEFT])
        scores = CompletionJudge(TableEngine(*rows), options).score([query(LEFT, RIGHT)] * 3)
        assert [score.details[f"nll_complete/{RIGHT}"] for score in scores] == [0.0, 2.0, 4.0]
        assert [score.details[f"nll_complete/{LEFT}"] for score in scores] == [1.0, 3.0, 5.0]

    def test_a_video_without_a_frame_rate_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="`fps` of its source"):
            CompletionJudge(TableEngine()).score([query(fps=None)])
        engine = TableEngine((1.0, 2.0))
        CompletionJudge(engine, JudgeOptions(fps=10.0)).score([query(fps=None)])
        clip = engine.calls[0][0][0].parts[0]
        assert isinstance(clip, Clip)
        assert clip.fps == 10.0

    def test_a_short_clip_is_filled_up_with_its_first_frame(self) -> None:
        engine = TableEngine((1.0, 2.0))
        asked = query(count=3)
        (score,) = CompletionJudge(engine, JudgeOptions(num_frames=5)).score([asked])
        clip = engine.calls[0][0][0].parts[0]
        assert isinstance(clip, Clip)
        np.testing.assert_array_equal(clip.frames, asked.frames["front"][[0, 0, 0, 1, 2]])
        assert clip.frame_indices == (0, 0, 0, 2, 4)
        assert clip.keys == tuple(("e", "front", step) for step in (100, 100, 100, 102, 104))
        assert (score.details["frames"], score.details["padded_frames"]) == (5.0, 2.0)

    @pytest.mark.parametrize(
        ("sampling", "steps", "indices"),
        [("last", (106, 108, 110), (0, 2, 4)), ("uniform", (100, 106, 110), (0, 6, 10))],
    )
    def test_a_long_clip_is_thinned(
        self, sampling: str, steps: tuple[int, ...], indices: tuple[int, ...]
    ) -> None:
        engine = TableEngine((1.0, 2.0))
        options = JudgeOptions(num_frames=3, sampling=sampling)  # type: ignore[arg-type]  # on purpose
        (score,) = CompletionJudge(engine, options).score([query(count=6)])
        clip = engine.calls[0][0][0].parts[0]
        assert isinstance(clip, Clip)
        assert clip.frame_indices == indices
        assert clip.keys == tuple(("e", "front", step) for step in steps)
        assert (score.details["frames"], score.details["padded_frames"]) == (3.0, 0.0)

    def test_padding_by_the_window_is_counted_too(self) -> None:
        asked = query(count=4)
        asked = dataclasses.replace(asked, frame_steps=(0, 0, 0, 5))
        (score,) = CompletionJudge(TableEngine((1.0, 2.0))).score([asked])
        assert (score.details["frames"], score.details["padded_frames"]) == (4.0, 2.0)

    def test_all_queries_and_views_are_one_call(self) -> None:
        engine = TableEngine(*[(1.0, 2.0)] * 6)
        CompletionJudge(engine).score([query(RIGHT, LEFT)] * 3)
        assert [len(prompts) for prompts, _, _ in engine.calls] == [6]
        assert all(prompt.stream is None for prompt in engine.calls[0][0])

    def test_ended_episodes_are_released(self) -> None:
        engine = TableEngine()
        CompletionJudge(engine).release(["a", "b"])
        assert engine.released == ["a", "b"]

    def test_wrist_cameras_are_refused_unless_allowed(self) -> None:
        with pytest.raises(ConfigError, match="5 of 16"):
            JudgeOptions(views=[RIGHT, WRIST])
        with pytest.raises(ConfigError, match=WRIST):
            CompletionJudge(TableEngine()).score([query(RIGHT, WRIST)])
        allowed = JudgeOptions(allow_eye_in_hand=True)
        (score,) = CompletionJudge(TableEngine((1.0, 2.0)), allowed).score([query(WRIST)])
        assert score.valid

    def test_missing_views_and_empty_instructions_are_refused(self) -> None:
        judge = CompletionJudge(TableEngine(), JudgeOptions(views=[RIGHT]))
        with pytest.raises(UnknownNameError, match="Unknown view"):
            judge.score([query(LEFT)])
        with pytest.raises(InstructionError):
            CompletionJudge(TableEngine()).score([query(instruction="")])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layout": "clip"}, "layout"),
            ({"end_tokens": "newline"}, "end_tokens"),
            ({"rule": "majority"}, "rule"),
            ({"media_order": "video"}, "media_order"),
            ({"video_layout": "4.58"}, "video_layout"),
            ({"engine": "quick"}, "engine"),
            ({"sampling": "first"}, "sampling"),
            ({"num_frames": 0}, "num_frames"),
            ({"log_odds_threshold": float("nan")}, "log_odds_threshold"),
            ({"fps": 0.0}, "fps"),
            ({"batch_size": 0}, "batch_size"),
            ({"views": []}, "views"),
            ({"views": {RIGHT: -1.0, LEFT: 2.0}}, "views"),
            ({"views": {RIGHT: 0.0}}, "views"),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            JudgeOptions(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("judge") / "model")
    save_tiny_adapter(folder / "judge", folder)
    return folder


class TestFromConfig:
    @pytest.mark.parametrize("layout", ["video", "images"])
    @pytest.mark.parametrize("video_layout", ["4.57", "5.x"])
    def test_a_real_model_judges_alike_on_all_engines(
        self, folder: Path, layout: str, video_layout: str
    ) -> None:
        scores = []
        for engine in ("fast", "strict", "reference"):
            options = {"layout": layout, "video_layout": video_layout, "engine": engine}
            config = ScorerConfig(
                name="completion_judge", model=str(folder), adapter="judge", options=options
            )
            judge = CompletionJudge.from_config(config)
            assert isinstance(judge, Scorer)
            scores.append(judge.score([query(RIGHT, LEFT), query(RIGHT, count=3)]))
        *others, reference = scores
        for mode in others:
            for ours, theirs in zip(mode, reference, strict=True):
                assert ours.complete == theirs.complete
                assert ours.success_prob == pytest.approx(theirs.success_prob, abs=1e-4)
                assert dict(ours.details) == pytest.approx(dict(theirs.details), abs=1e-4)

    def test_frames_of_another_size_are_refused_not_resampled(self, folder: Path) -> None:
        config = ScorerConfig(
            name="completion_judge", model=str(folder), options={"frame_size": [224, 224]}
        )
        judge = CompletionJudge.from_config(config)
        assert judge.describe()["frame_size"] == [224, 224]
        with pytest.raises(FrameError, match="224x224"):
            judge.score([query()])

    def test_it_says_what_answers(self, folder: Path) -> None:
        options = {"views": [RIGHT, LEFT], "fps": 20}
        config = ScorerConfig(
            name="completion_judge", model=str(folder), adapter="judge", options=options
        )
        account = CompletionJudge.from_config(config).describe()
        assert json.loads(json.dumps(account)) == account
        assert account["views"] == {RIGHT: 0.5, LEFT: 0.5}
        assert (account["adapter"], account["end_tokens"]) == ("judge", "template")
        assert (account["video_layout"], account["rule"]) == ("4.57", "normalised")

    def test_labels_that_do_not_diverge_are_refused_at_load(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(completion_judge, "LABELS", ("complete", "completed"))
        config = ScorerConfig(
            name="completion_judge", model=str(folder), options={"end_tokens": "none"}
        )
        with pytest.raises(ConfigError, match="must differ at a token both have"):
            CompletionJudge.from_config(config)

    def test_unknown_options_are_named(self, folder: Path) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'layout'"):
            CompletionJudge.from_config(
                ScorerConfig(name="judge", model=str(folder), options={"layuot": "video"})
            )


class TestRoboCasaPreset:
    """What the preset makes of the true input: 64 frames of 224x224, 20 a second, two views."""

    def test_it_is_the_card_s(self) -> None:
        preset = load_preset("robocasa-judge")
        options = JudgeOptions(**preset.scorer.options)  # type: ignore[arg-type]  # on purpose
        assert preset.scorer.model == "Qwen/Qwen3-VL-4B-Instruct"
        assert preset.scorer.quantization == "auto"
        assert options.views == {RIGHT: 0.5, LEFT: 0.5}
        assert (options.num_frames, options.frame_size) == (64, (224, 224))
        assert (options.end_tokens, options.rule) == ("template", "normalised")
        assert (preset.window_frames, preset.frame_stride_steps) == (64, 1)
        assert (preset.frame_size, preset.pad) == ((224, 224), True)

    def test_every_frame_reaches_the_model_unchanged_with_its_true_time(self, folder: Path) -> None:
        options = JudgeOptions(**load_preset("robocasa-judge").scorer.options)  # type: ignore[arg-type]  # on purpose
        engine = TableEngine((1.0, 2.0), (1.0, 2.0))
        asked = query(RIGHT, LEFT, count=64, size=224)
        asked = dataclasses.replace(asked, frame_steps=tuple(range(300, 364)))
        CompletionJudge(engine, options).score([asked])
        ((prompts, _, _),) = engine.calls
        loaded = load_model(str(folder))
        chat = PromptReader(loaded).layout(prompts[0])
        text = loaded.tokenizer.decode(chat.ids, clean_up_tokenization_spaces=False)
        groups = "".join(
            f"<{(4 * group + 1) / 40:.1f} seconds><|vision_start|>{49 * '<|video_pad|>'}"
            "<|vision_end|>"
            for group in range(32)
        )
        assert text == (
            f"<|im_start|>user\n{groups}Instruction: open the drawer\nQuestion: At the final "
            "moment shown in the video, is the instruction already completed?\nAnswer exactly one "
            "label: not complete or complete.<|im_end|>\n<|im_start|>assistant\n"
        )
        clip = prompts[0].parts[0]
        assert isinstance(clip, Clip)
        patches = preprocess_video(clip.frames, PreprocessConfig())
        assert patches.grid == (32, 14, 14)
        # A clip that is not resampled has just its own grey levels, 256 of them.
        levels = np.unique(patches.pixel_values.numpy())
        np.testing.assert_allclose(levels, np.arange(256) / 127.5 - 1, atol=1e-6)
