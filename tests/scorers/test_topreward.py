from __future__ import annotations

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
from procreward.engine import Clip, EndTokens, Generation, LabelNLL, NumberReading, Prompt, Stop
from procreward.engine.loading import load_model
from procreward.engine.reading.inputs import PromptReader
from procreward.errors import ConfigError, FrameError, InstructionError, UnknownNameError
from procreward.registry import resolve
from procreward.scorers.topreward import TOPReward, TOPRewardOptions, topreward_prompt
from procreward.types import Query, Score, Scorer
from tests.tiny import save_tiny

PREFIX = "The above video shows a robot manipulation trajectory that completes the following task: "
SUFFIX = " Decide whether the above statement is True or not. The answer is:"


class TableEngine:
    """Gives the likelihoods of True and False from a table and keeps what it was asked."""

    def __init__(self, *rows: tuple[float, float]) -> None:
        self.rows = list(rows)
        self.calls: list[tuple[list[Prompt], tuple[str, ...], str]] = []
        self.released: list[str] = []

    def label_nll(
        self, prompts: Sequence[Prompt], labels: Sequence[str], *, end_tokens: EndTokens = "eos"
    ) -> LabelNLL:
        self.calls.append((list(prompts), tuple(labels), end_tokens))
        rows = [self.rows.pop(0) for _ in prompts]
        return LabelNLL(nll=np.array(rows, np.float64).reshape(-1, 2), tokens=((1,), (2,)))

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


def query(
    count: int = 3, *, first: int = 0, static: bool = False, views: Sequence[str] = ("front",)
) -> Query:
    frames = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    if static:
        frames[:] = frames[:1]
    steps = tuple(range(first, first + count))
    return Query(
        frames=dict.fromkeys(views, frames),
        instruction="Open the drawer.",
        frame_steps=steps,
        stream=f"episode {first}",
        fps=20.0,
    )


def read(true: float, false: float, **options: Any) -> Score:
    """The score of a query by the probabilities of True and False."""
    engine = TableEngine((-math.log(true), -math.log(false)))
    (score,) = TOPReward(engine, TOPRewardOptions(**options)).score([query()])
    return score


def test_the_words_are_the_published_ones() -> None:
    assert topreward_prompt("Put {it} down.") == PREFIX + "Put {it} down." + SUFFIX


class TestReadout:
    def test_log_odds_are_the_default(self) -> None:
        score = read(0.6, 0.2)
        assert score.progress == score.success_prob == pytest.approx(0.75)
        assert (score.mode, score.text, score.complete) == ("log_odds", "True", None)
        assert dict(score.details) == pytest.approx(
            {
                "log_true": math.log(0.6),
                "log_false": math.log(0.2),
                "log_odds": math.log(3.0),
                "frames": 16.0,
                "padded_frames": 13.0,
            }
        )

    def test_probability(self) -> None:
        score = read(0.1, 0.3, readout="probability")
        assert (score.progress, score.success_prob) == pytest.approx((0.1, 0.25))
        assert (score.mode, score.text) == ("probability", "False")

    @pytest.mark.parametrize(
        ("log_true", "progress", "clamped"),
        [(-0.5, 1.0, True), (-1.0, 1.0, False), (-2.5, 0.5, False), (-9.0, 0.0, True)],
    )
    def test_bounds_are_fixed_beforehand(
        self, log_true: float, progress: float, clamped: bool
    ) -> None:
        score = read(math.exp(log_true), 0.01, readout="bounded", bounds=[-4.0, -1.0])
        assert score.progress == pytest.approx(progress)
        assert score.details.get("clamped", 0.0) == float(clamped)

    def test_a_value_does_not_depend_on_the_other_queries(self) -> None:
        rows = [(1.0, 2.0), (9.0, 0.1), (0.2, 5.0)]
        together = TOPReward(TableEngine(*rows)).score([query()] * 3)
        alone = [TOPReward(TableEngine(row)).score([query()])[0] for row in rows]
        assert together == alone

    @given(
        st.tuples(st.floats(0, 1e4), st.floats(0, 1e4)),
        st.sampled_from(["log_odds", "probability", "bounded"]),
    )
    def test_scores_are_in_range_and_json(self, row: tuple[float, float], readout: Any) -> None:
        options = TOPRewardOptions(readout=readout)
        (score,) = TOPReward(TableEngine(row), options).score([query()])
        assert score.progress is not None
        assert 0.0 <= score.progress <= 1.0
        json.dumps(dict(score.details), allow_nan=False)


class TestAsking:
    def test_the_turn_stays_open_and_the_words_have_a_space_in_front(self) -> None:
        engine = TableEngine((1.0, 2.0))
        TOPReward(engine).score([query()])
        (((prompt,), labels, end_tokens),) = engine.calls
        assert (labels, end_tokens) == ((" True", " False"), "none")
        assert (prompt.open_turn, prompt.stream) == (True, None)
        assert prompt.parts[1:] == (PREFIX + "Open the drawer." + SUFFIX,)

    def test_the_chat_template_is_an_option(self) -> None:
        engine = TableEngine((1.0, 2.0))
        TOPReward(engine, TOPRewardOptions(chat_template=True)).score([query()])
        (((prompt,), labels, end_tokens),) = engine.calls
        assert (labels, end_tokens, prompt.open_turn) == (("True", "False"), "none", False)

    @pytest.mark.parametrize(
        ("count", "sampling", "steps"),
        [
            (2, "uniform", (7, 7, 7, 8)),
            (4, "uniform", (7, 8, 9, 10)),
            (10, "uniform", (7, 10, 13, 16)),
            (10, "last", (13, 14, 15, 16)),
        ],
    )
    def test_every_query_has_the_same_frames_and_times(
        self, count: int, sampling: Any, steps: tuple[int, ...]
    ) -> None:
        engine = TableEngine((1.0, 2.0))
        options = TOPRewardOptions(num_frames=4, sampling=sampling)
        TOPReward(engine, options).score([query(count, first=7)])
        clip = engine.calls[0][0][0].parts[0]
        assert isinstance(clip, Clip)
        assert clip.keys == tuple(("episode 7", "front", step) for step in steps)
        assert (clip.video, clip.frame_indices, clip.fps) == (True, (0, 1, 2, 3), 2.0)

    def test_batches_keep_the_order(self) -> None:
        engine = TableEngine(*[(float(number), 1.0) for number in range(5)])
        scores = TOPReward(engine, TOPRewardOptions(batch_size=2)).score([query()] * 5)
        assert [len(prompts) for prompts, _, _ in engine.calls] == [2, 2, 1]
        assert [score.details["log_true"] for score in scores] == [0.0, -1.0, -2.0, -3.0, -4.0]

    def test_ended_episodes_are_released(self) -> None:
        engine = TableEngine()
        TOPReward(engine).release(["a", "b"])
        assert engine.released == ["a", "b"]

    def test_one_view(self) -> None:
        views = ("front", "side")
        with pytest.raises(ConfigError, match="TOPReward looks at one view, got 2"):
            TOPReward(TableEngine()).score([query(views=views)])
        engine = TableEngine((1.0, 2.0))
        TOPReward(engine, TOPRewardOptions(view="side")).score([query(views=views)])
        clip = engine.calls[0][0][0].parts[0]
        assert isinstance(clip, Clip)
        assert clip.keys is not None
        assert clip.keys[0][1] == "side"
        with pytest.raises(UnknownNameError, match="Unknown view 'side'"):
            TOPReward(TableEngine(), TOPRewardOptions(view="side")).score([query()])

    def test_malformed_queries_are_refused(self) -> None:
        frames = np.zeros((2, 8, 8, 3), np.uint8)
        with pytest.raises(InstructionError):
            TOPReward(TableEngine()).score(
                [Query(frames={"front": frames}, instruction=" ", frame_steps=(0, 1))]
            )
        with pytest.raises(FrameError):
            TOPReward(TableEngine()).score(
                [Query(frames={"front": frames}, instruction="go", frame_steps=(0,))]
            )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_frames": 0}, "num_frames"),
            ({"sampling": "first"}, "sampling"),
            ({"fps": 0.0}, "fps"),
            ({"layout": "clip"}, "layout"),
            ({"video_layout": "4.58"}, "video_layout"),
            ({"chat_template": "yes"}, "chat_template"),
            ({"readout": "minmax"}, "readout"),
            ({"bounds": (0.0, -1.0)}, "bounds"),
            ({"bounds": (0.0,)}, "bounds"),
            ({"bounds": (float("nan"), 0.0)}, "bounds"),
            ({"frame_size": (0, 5)}, "frame_size"),
            ({"engine": "quick"}, "engine"),
            ({"batch_size": 0}, "batch_size"),
        ],
        ids=str,
    )
    def test_wrong_options_are_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=f"`{message}` must be"):
            TOPRewardOptions(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("topreward") / "model")


def build(folder: Path | str, **options: Any) -> TOPReward:
    config = ScorerConfig(name="topreward", model=str(folder), options=options)
    return TOPReward.from_config(config)


class TestRealModel:
    def test_what_the_model_reads(self, folder: Path) -> None:
        engine = TableEngine((1.0, 2.0))
        TOPReward(engine, TOPRewardOptions(num_frames=3)).score([query(1)])
        loaded = load_model(str(folder))
        chat = PromptReader(loaded).layout(engine.calls[0][0][0])
        text = loaded.tokenizer.decode(chat.ids, clean_up_tokenization_spaces=False)
        # Two frames a second from 0 on, in pairs: 0.25 s and 1.0 s.
        shown = "<|vision_start|>" + 4 * "<|video_pad|>" + "<|vision_end|>"
        assert text == (
            f"<|im_start|>user\n<0.2 seconds>{shown}<1.0 seconds>{shown}"
            "The above video shows a robot manipulation trajectory that completes the following "
            "task: Open the drawer. Decide whether the above statement is True or not. "
            "The answer is:"
        )

    @pytest.mark.parametrize("layout", ["video", "images"])
    @pytest.mark.parametrize("chat_template", [False, True])
    def test_all_engines_score_alike(self, folder: Path, layout: str, chat_template: bool) -> None:
        asked = [query(5), query(2, first=3)]
        scores = []
        for engine in ("fast", "strict", "reference"):
            scorer = build(
                folder, engine=engine, layout=layout, chat_template=chat_template, num_frames=4
            )
            assert isinstance(scorer, Scorer)
            scores.append(scorer.score(asked))
        *others, reference = scores
        for mode in others:
            for ours, theirs in zip(mode, reference, strict=True):
                assert dict(ours.details) == pytest.approx(dict(theirs.details), abs=1e-4)
                assert ours.progress == pytest.approx(theirs.progress, abs=1e-4)

    @pytest.mark.parametrize("layout", ["video", "images"])
    def test_a_clip_without_movement_has_one_score_whatever_its_length(
        self, folder: Path, layout: str
    ) -> None:
        scorer = build(folder, layout=layout, num_frames=4)
        still = [query(count, first=count, static=True) for count in (1, 3, 4, 9)]
        readings = [score.details["log_odds"] for score in scorer.score(still)]
        assert readings == pytest.approx([readings[0]] * 4, abs=1e-5)
        (moving,) = scorer.score([query(4)])
        assert abs(moving.details["log_odds"] - readings[0]) > 1e-2

    def test_it_says_what_answers(self, folder: Path) -> None:
        account = build(folder, bounds=[-3, 0], num_frames=8).describe()
        assert json.loads(json.dumps(account)) == account
        assert (account["name"], account["model"]) == ("topreward", str(folder))
        assert (account["num_frames"], account["fps"]) == (8, 2.0)
        assert (account["readout"], account["bounds"]) == ("log_odds", [-3.0, 0.0])
        assert account["labels"] == [" True", " False"]

    def test_unknown_options_are_named(self, folder: Path) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'readout'"):
            build(folder, raedout="log_odds")

    def test_the_shipped_weights_can_be_asked(self) -> None:
        scorer = build("nano", layout="images", num_frames=2)
        frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
        (score,) = scorer.score(
            [Query(frames={"front": frames}, instruction="Lift it.", frame_steps=(0, 1))]
        )
        assert score.valid
        assert score.details["log_true"] < 0


def test_the_preset_is_found_by_name_and_lends_its_windows() -> None:
    preset = load_preset("topreward-qwen3-vl-8b")
    options = TOPRewardOptions(**preset.scorer.options)  # type: ignore[arg-type]  # on purpose
    assert (options.num_frames, options.fps, options.readout) == (16, 2.0, "log_odds")
    assert (preset.window_frames, preset.pad) == (16, True)
    handle = resolve("topreward")
    assert handle.config.model == "Qwen/Qwen3-VL-8B-Instruct"
    own = resolve({"name": "topreward", "model": "some/model"})
    assert (own.preset.window_frames, own.config.model) == (16, "some/model")
