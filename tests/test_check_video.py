from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import yaml

from procreward.check_video import CheckVideo, VideoVerdict, check_video, run_check_video
from procreward.cli import main
from procreward.config import ScorerConfig
from procreward.errors import (
    ConfigError,
    FrameError,
    InstructionError,
    ScorerError,
    UnknownNameError,
)
from procreward.registry import resolve
from procreward.scorers.completion_judge import CompletionJudge
from procreward.types import Frame, Query, Score
from procreward.video import VideoReader
from tests.helpers import Recorder
from tests.tiny import save_tiny, save_tiny_adapter

FPS = 20
RIGHT, LEFT = "robot0_agentview_right", "robot0_agentview_left"
KEYS = ["prediction", "ensemble", "scores", "log_odds", "success_prob", "progress", "reason"]
KEYS += ["frame_index", "timestamp_sec", "frames", "padded_frames", "model", "adapter"]

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes frames into a video file."""
    folder = tmp_path_factory.mktemp("videos")

    def write(name: str, frames: Iterable[Frame], fps: int = FPS) -> Path:
        frames, path = list(frames), folder / f"{name}.mp4"
        height, width = frames[0].shape[:2]
        writer = imageio_ffmpeg.write_frames(
            str(path), (width, height), fps=fps, macro_block_size=8, output_params=["-crf", "0"]
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        return path

    return write


def noise(count: int, seed: int = 0, size: int = 64) -> list[Frame]:
    """Blocks of random colours, which survive compression."""
    blocks = np.random.default_rng(seed).integers(30, 226, (count, size // 8, size // 8, 3))
    return list(blocks.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2))


@pytest.fixture(scope="module")
def right(write: Write) -> Path:
    return write("right", noise(6))


@pytest.fixture(scope="module")
def left(write: Write) -> Path:
    return write("left", noise(6, seed=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("judge") / "model")
    save_tiny_adapter(folder / "judge", folder)
    return folder


@pytest.fixture(scope="module")
def preset(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small judge that asks as RoboCasa's does: two weighted views of four frames."""
    options = {"views": {RIGHT: 0.75, LEFT: 0.25}, "num_frames": 4, "frame_size": [64, 64]}
    scorer = {"name": "completion_judge", "model": str(folder), "adapter": "judge"}
    path = tmp_path_factory.mktemp("presets") / "two-views.yaml"
    values = {"scorer": {**scorer, "options": options}, "window_frames": 4, "pad": True}
    path.write_text(yaml.safe_dump(values))
    return path


def lines(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """What the command prints."""
    with pytest.raises(SystemExit) as caught:
        main(["check", "video", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command complains about."""
    with pytest.raises(SystemExit) as caught:
        main(["check", "video", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    return err


def live(answers: list[Any] | None = None) -> tuple[str, Recorder]:
    """A scorer of this process and the name to find it by."""
    recorder = Recorder(answers)
    spec = resolve(recorder).spec
    assert isinstance(spec, str)
    return spec, recorder


@pytest.mark.sim
def test_the_shipped_judge_tells_the_start_of_a_task_from_its_end(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    from procreward.envs.experts import make_expert

    env = gym.make("procreward.envs:procreward/Lift-v0", render_mode="rgb_array")
    policy = make_expert("procreward/Lift-v0", "expert", 3)
    env.reset(seed=3)
    policy.reset(env)
    frames, done = [env.render()], False
    while not done:
        _, _, terminated, truncated, _ = env.step(policy.act(env))
        done = terminated or truncated
        frames.append(env.render())
    env.close()
    video = write("lift", frames)  # type: ignore[arg-type]  # wrong on purpose, or from a mapping
    instruction = ["--instruction", "Lift the red cube off the table."]
    (end,) = lines(capsys, video, *instruction)
    assert list(end) == KEYS
    assert (end["prediction"], end["ensemble"]) == ("complete", "video")
    assert end["success_prob"] > 0.9
    assert end["log_odds"] > 2.0
    assert set(end["scores"]) == {"complete", "not complete"}
    assert end["frame_index"] == len(frames) - 1
    assert (end["frames"], end["padded_frames"]) == (4, 0)
    assert (end["model"], end["adapter"]) == ("nano", "judge")
    (start,) = lines(capsys, video, *instruction, "--at-frame", 5)
    assert (start["prediction"], start["frame_index"]) == ("not complete", 5)
    assert start["success_prob"] < 0.3
    # Frames 5 and 1, and the first one instead of -3 and -7.
    assert (start["timestamp_sec"], start["padded_frames"]) == (0.25, 1)


class TestTwoViews:
    def test_the_record_is_the_judge_s_own_answer(
        self, preset: Path, right: Path, left: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = ["--view", f"right={right}", "--view", f"left={left}"]
        (line,) = lines(capsys, *files, "--instruction", "open it", "--judge", preset)
        with VideoReader(right) as one, VideoReader(left) as two:
            clips = {RIGHT: np.stack(list(one))[2:], LEFT: np.stack(list(two))[2:]}
        judge = CompletionJudge.from_config(resolve(str(preset)).config)
        asked = Query(frames=clips, instruction="open it", frame_steps=(2, 3, 4, 5), fps=float(FPS))
        (score,) = judge.score([asked])
        assert line["ensemble"] == "right+left"
        assert line["prediction"] == ("complete" if score.complete else "not complete")
        assert line["scores"] == pytest.approx(
            {
                "complete": score.details["score_complete"],
                "not complete": score.details["score_not_complete"],
            },
            abs=1e-5,
        )
        assert line["log_odds"] == pytest.approx(score.details["log_odds"], abs=1e-5)
        assert (line["frames"], line["padded_frames"]) == (4, 0)
        # 0.75 of the right and 0.25 of the left, as the preset says.
        details = score.details
        odds = {
            name: details[f"nll_not_complete/{name}"] - details[f"nll_complete/{name}"]
            for name in clips
        }
        assert abs(odds[RIGHT] - odds[LEFT]) > 1e-3
        assert line["log_odds"] == pytest.approx(0.75 * odds[RIGHT] + 0.25 * odds[LEFT], abs=1e-5)

    def test_every_k_frames_and_the_last(
        self, preset: Path, right: Path, left: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = ["--view", f"{LEFT}={left}", "--view", f"right={right}"]
        arguments = [*files, "--instruction", "open it", "--judge", preset]
        records = lines(capsys, *arguments, "--every-k-frames", "2")
        assert [record["frame_index"] for record in records] == [0, 2, 4, 5]
        assert [record["timestamp_sec"] for record in records] == [0.0, 0.1, 0.2, 0.25]
        assert [record["padded_frames"] for record in records] == [3, 1, 0, 0]
        assert {record["ensemble"] for record in records} == {f"{LEFT}+right"}
        (alone,) = lines(capsys, *arguments, "--at-frame", "2")
        assert alone["scores"] == pytest.approx(records[1]["scores"], abs=1e-5)

    def test_one_view_of_two_is_judged_alone(
        self, preset: Path, right: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--instruction", "open it", "--judge", preset]
        (named,) = lines(capsys, "--view", f"right={right}", *arguments)
        (unnamed,) = lines(capsys, right, *arguments)
        assert (named["ensemble"], unnamed["ensemble"]) == ("right", "video")
        assert named["scores"] == pytest.approx(unnamed["scores"], abs=1e-5)

    def test_wrist_cameras_are_refused_with_the_reason(
        self, preset: Path, right: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = ["--view", f"right={right}", "--view", f"eye_in_hand={right}"]
        message = error(capsys, *files, "--instruction", "open it", "--judge", preset)
        assert "must not look through a wrist camera, got eye_in_hand" in message
        assert "5 of 16" in message

    def test_views_of_different_lengths(
        self, preset: Path, right: Path, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        short = write("short", noise(4))
        files = ["--view", f"right={right}", "--view", f"left={short}"]
        message = error(capsys, *files, "--instruction", "x", "--judge", preset, "--at-frame", "1")
        assert f"but '{LEFT}' ended after 4 while '{RIGHT}' went on" in message

    def test_views_of_different_frame_rates(
        self, preset: Path, right: Path, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        slow = write("slow", noise(6), fps=10)
        files = ["--view", f"right={right}", "--view", f"left={slow}"]
        message = error(capsys, *files, "--instruction", "open it", "--judge", preset)
        assert f"the same frame rate, got 20 fps of '{RIGHT}', 10 fps of '{LEFT}'" in message

    def test_frames_of_another_size_name_the_option_that_helps(
        self, preset: Path, write: Write, capsys: pytest.CaptureFixture[str]
    ) -> None:
        large = write("large", noise(3, size=96))
        arguments = [large, "--instruction", "open it", "--judge", preset]
        message = error(capsys, *arguments)
        assert "takes frames of 64x64 pixels, got 96x96 of view 'video'" in message
        assert "--frame-size 64 64" in message
        (line,) = lines(capsys, *arguments, "--frame-size", "64", "64")
        assert (line["frames"], line["padded_frames"]) == (4, 1)


class TestJudges:
    def test_a_bare_folder_is_asked_the_judge_s_question(self, folder: Path, right: Path) -> None:
        (verdict,) = check_video(CheckVideo(video=right, instruction="open it", judge=str(folder)))
        assert (verdict.model, verdict.adapter) == (str(folder), None)
        assert verdict.complete is not None
        assert (verdict.score.details["frames"], verdict.score.mode) == (8.0, "normalised")

    def test_model_and_adapter_take_the_place_of_the_preset_s(
        self, folder: Path, right: Path
    ) -> None:
        command = CheckVideo(
            video=right,
            instruction="open it",
            judge="robocasa-judge",
            model=str(folder),
            adapter="judge",
            frame_size=(224, 224),
        )
        (verdict,) = check_video(command)
        assert (verdict.model, verdict.adapter) == (str(folder), "judge")
        details = verdict.score.details
        assert (details["frames"], details["padded_frames"]) == (64.0, 58.0)
        judge = CompletionJudge.from_config(
            ScorerConfig(name="completion_judge", model=str(folder), adapter="judge")
        )
        with VideoReader(right, frame_size=(224, 224)) as reader:
            frames = np.stack(list(reader))[[0] * 58 + list(range(6))]
        steps = (0,) * 58 + tuple(range(6))
        asked = Query(
            frames={"x": frames}, instruction="open it", frame_steps=steps, fps=float(FPS)
        )
        (score,) = judge.score([asked])
        assert details["log_odds"] == pytest.approx(score.details["log_odds"], abs=1e-4)

    def test_a_model_of_progress_is_read_against_its_threshold(self, right: Path) -> None:
        judge, recorder = live([0.2, 0.2, 0.2, 0.2, 0.97, None])
        command = CheckVideo(video=right, instruction="go", judge=judge, every_k_frames=2)
        verdicts = check_video(command)
        cards = [verdict.as_card() for verdict in verdicts]
        predictions = [card["prediction"] for card in cards]
        assert predictions == ["not complete", "not complete", "complete", None]
        assert (cards[2]["progress"], cards[2]["scores"], cards[2]["frames"]) == (0.97, None, None)
        assert (cards[3]["progress"], cards[3]["reason"]) == (None, "unparsable")
        assert recorder.steps == [0, 2, 4, 5]
        assert {query.fps for query in recorder.queries} == {float(FPS)}
        assert len({query.stream for query in recorder.queries} - {""}) == 1

    def test_a_judge_that_raises_is_a_reason_not_a_crash(
        self, right: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        judge, _ = live([RuntimeError("out of memory")])
        arguments = ["check", "video", str(right), "--instruction", "go", "--judge", judge]
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        assert caught.value.code == 1
        assert json.loads(out)["reason"] == "RuntimeError"
        assert json.loads(out)["prediction"] is None
        assert "error: none of the 1 queries was answered" in err

    def test_a_judge_that_breaks_its_contract(self, right: Path) -> None:
        class Silent(Recorder):
            def score(self, queries: Any) -> list[Score]:
                return []

        spec = resolve(Silent()).spec
        assert isinstance(spec, str)
        with pytest.raises(ScorerError, match="must return one Score per query, got 0"):
            check_video(CheckVideo(video=right, instruction="go", judge=spec))

    def test_window_and_stride(self, right: Path) -> None:
        judge, recorder = live()
        check_video(
            CheckVideo(
                video=right,
                instruction="go",
                judge=judge,
                at_frame=4,
                window_frames=3,
                frame_stride_frames=2,
            )
        )
        assert [query.frame_steps for query in recorder.queries] == [(0, 2, 4)]

    def test_the_judge_may_forget_the_video(self, right: Path) -> None:
        class Forgetful(Recorder):
            released: tuple[str, ...] = ()

            def release(self, streams: Iterable[str]) -> None:
                self.released += tuple(streams)

        judge = Forgetful()
        spec = resolve(judge).spec
        assert isinstance(spec, str)
        check_video(CheckVideo(video=right, instruction="go", judge=spec))
        assert judge.released == (judge.queries[0].stream,)

    def test_an_unknown_judge(self, right: Path) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'nano-judge'"):
            check_video(CheckVideo(video=right, instruction="go", judge="nano-juge"))


def test_lines_are_strict_json_in_the_card_s_shape() -> None:
    details = {"score_complete": 0.1846, "score_not_complete": 0.2324, "log_odds": 0.4}
    verdict = VideoVerdict(
        frame_index=7,
        timestamp_sec=0.35,
        views=("right", "left"),
        complete=True,
        score=Score(success_prob=0.6, complete=True, details=details),
        model="m",
        adapter=None,
    )
    card = verdict.as_card()
    assert list(card) == KEYS
    assert {name: card[name] for name in ("prediction", "ensemble", "scores")} == {
        "prediction": "complete",
        "ensemble": "right+left",
        "scores": {"complete": 0.1846, "not complete": 0.2324},
    }
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_run_writes_one_line_a_moment(right: Path) -> None:
    judge, _ = live()
    written: list[str] = []
    run_check_video(
        CheckVideo(video=right, instruction="go", judge=judge, every_k_frames=5), written.append
    )
    assert [json.loads(line)["frame_index"] for line in written] == [0, 5]


class TestBadInput:
    def test_missing_and_broken_files(
        self, right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--instruction", "go", "--judge", "constant"]
        message = error(capsys, "nowhere.mp4", *arguments)
        assert "must be a video file, got 'nowhere.mp4': there is no such file" in message
        files = ["--view", f"right={right}", "--view", "left=nowhere.mp4"]
        assert "got 'nowhere.mp4'" in error(capsys, *files, *arguments)
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no video" * 50)
        assert "cannot be read as a video" in error(capsys, broken, *arguments)

    @pytest.mark.parametrize(
        ("views", "message"),
        [
            ((), "`video` must be one file, or be left out for `--view NAME=FILE`, got neither"),
            (("right",), "`view` must be NAME=FILE, such as right=right.mp4, got 'right'"),
            (("=f.mp4",), "`view` must be NAME=FILE"),
            (("a=f.mp4", "a=g.mp4"), "`view` must be given once per name, got 'a=g.mp4'"),
        ],
    )
    def test_views_are_named_once(self, views: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_video(CheckVideo(instruction="go", view=views))

    def test_a_file_and_views_exclude_each_other(self, right: Path) -> None:
        with pytest.raises(ConfigError, match="got both"):
            check_video(CheckVideo(video=right, instruction="go", view=(f"a={right}",)))

    def test_two_names_of_one_view(self, preset: Path, right: Path) -> None:
        views = (f"right={right}", f"{RIGHT}={right}")
        with pytest.raises(ConfigError, match="`view` must be given once per view"):
            check_video(CheckVideo(instruction="go", view=views, judge=str(preset)))

    def test_a_frame_behind_the_end(self, right: Path) -> None:
        with pytest.raises(ConfigError, match="below the video's number of frames, 6, got 6"):
            check_video(CheckVideo(video=right, instruction="go", judge="constant", at_frame=6))

    def test_settings(self, right: Path) -> None:
        with pytest.raises(InstructionError):
            check_video(CheckVideo(video=right, instruction=" ", judge="constant"))
        for name in ("every_k_frames", "window_frames", "frame_stride_frames"):
            with pytest.raises(ConfigError, match=f"`{name}` must be an integer of at least 1"):
                CheckVideo(video=right, instruction="go", **{name: 0})
        with pytest.raises(ConfigError, match="`at_frame` must be an integer of at least 0"):
            CheckVideo(video=right, instruction="go", at_frame=-1)
        with pytest.raises(ConfigError, match="`at_frame` must be alone"):
            CheckVideo(video=right, instruction="go", at_frame=1, every_k_frames=1)

    def test_black_frames_are_refused(self, write: Write) -> None:
        dark = write("dark", [np.zeros((32, 32, 3), np.uint8)] * 2)
        with pytest.raises(FrameError, match="black all over"):
            check_video(CheckVideo(video=dark, instruction="go", judge="constant"))


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        ("check", ["video", "Judge whether"]),
        ("check video", ["[VIDEO]", "--instruction", "--view", "--every-k-frames", "right=FILE"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*command.split(), "--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert [word for word in words if word not in out] == []
        assert "hidden" not in out
