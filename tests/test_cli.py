from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio
import numpy as np
import pytest

from procreward import registry
from procreward.cli import main
from procreward.demo import DemoConfig, run_demo
from procreward.envs.experts import KINDS
from procreward.scorers.scripted import Scripted
from procreward.types import Query, Score

TOY = ["demo", "--env", "procreward/Toy-v0", "--scorer", "constant", "--episodes", "1"]
TOY += ["--max-steps", "9", "--policy", "random"]


class Unseeded(gym.Env[Any, Any]):
    """Rewards and observes what its seed does not decide."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    observation_space = gym.spaces.Box(0.0, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)
    instruction = "be predictable"
    count = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def _observe(self) -> Any:
        type(self).count += 1
        return np.array([float(self.count)])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        return self._observe(), 0.0, False, False, {}

    def render(self) -> Any:
        picture = np.zeros((8, 8, 3), dtype=np.uint8)
        picture[0] = 99
        return picture


class Moody(Scripted):
    """Answers higher every time it is asked."""

    asked = 0

    def score(self, queries: list[Query]) -> list[Score]:  # type: ignore[override]  # narrower on purpose
        type(self).asked += 1
        return [Score(progress=min(1.0, self.asked / 100)) for _ in queries]


class Mute(Scripted):
    """Never answers."""

    def score(self, queries: list[Query]) -> list[Score]:  # type: ignore[override]  # narrower on purpose
        return [Score(reason="mute") for _ in queries]


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_demo_prints_the_table_and_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TOY, "--out", str(tmp_path)) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("policy  episode  steps  return  final progress  completion")
    row = "random        0      9  +0.000            50 %          no           no        3"
    assert lines[2].startswith(row)
    assert lines[-4:] == [
        "written:",
        f"  {tmp_path}/random-0.mp4",
        f"  {tmp_path}/episodes.jsonl",
        f"  {tmp_path}/progress.png",
    ]
    assert "100%" in err
    assert "step/s" in err


def test_an_error_of_ours_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*TOY, "--out", str(tmp_path), "--judge", "constnt") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: Unknown scorer 'constnt'. Did you mean 'constant'?")
    assert err.count("\n") == 1


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    from procreward.errors import UnknownNameError

    with pytest.raises(UnknownNameError, match="constnt"):
        main([*TOY, "--out", str(tmp_path), "--judge", "constnt", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing subcommand"),
        (("dmeo",), "dmeo"),
        (("demo", "--episods", "3"), "--episodes"),
        (("demo", "--episodes", "0"), "`episodes` must be an integer of at least 1"),
        (("demo", "--max-steps", "many"), "many"),
        (("verify",), "Missing subcommand"),
        (("verify", "env"), "ID"),
        (("score", "film.mp4"), "--instruction"),
    ],
    ids=str,
)
def test_wrong_usage_is_explained(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments) == 2
    out, err = capsys.readouterr()
    assert message in out + err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["demo", "verify", "score"]),
        ("demo", ["--every-k-steps", "procreward/Lift-v0", "nano", *KINDS]),
        ("verify", ["env", "scorer", "explain what fails"]),
        ("verify env", ["ID", "--scorer", "--instruction"]),
        ("verify scorer", ["NAME", "hub id"]),
        ("score", ["--instruction", "VIDEO"]),
    ],
)
def test_help_names_the_options(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*command.split(), "--help") == 0
    out = capsys.readouterr().out
    assert [word for word in words if word not in out] == []


def test_verify_env_explains_every_point(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("verify", "env", "procreward/Toy-v0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "procreward/Toy-v0, by Gymnasium"
    assert lines[1].startswith("  ok      check_env: spaces, seeding")
    assert lines[2] == "procreward/Toy-v0, wrapped, scorer constant"
    assert len(lines) > 8
    assert all(line.startswith("  ok      ") for line in lines[3:])


def test_verify_env_fails_with_status_1_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("Unseeded-v0", entry_point=Unseeded, max_episode_steps=5)
    try:
        assert status("verify", "env", "Unseeded-v0") == 1
    finally:
        del gym.registry["Unseeded-v0"]
    out = capsys.readouterr().out
    assert "  FAILED  check_env: spaces, seeding" in out
    assert "  ok      reward_adds_up: " in out
    assert "          raised AssertionError: " in out


@pytest.mark.parametrize(
    ("scorer", "expected"), [("constant", 0), ("tests.test_cli:Moody", 1)], ids=["good", "bad"]
)
def test_verify_scorer(
    scorer: str, expected: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if ":" in scorer:
        monkeypatch.setattr(registry, "_registered", {"moody": scorer})
        scorer = "moody"
    assert status("verify", "scorer", scorer) == expected
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"scorer '{scorer}'"
    failed = [line.split()[1] for line in lines if line.startswith("  FAILED")]
    assert ("deterministic:" in failed, len(failed) > 0) == (expected == 1, expected == 1)


def test_score_prints_procvlms_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "film.mp4"
    run_demo(
        DemoConfig(
            env="procreward/Toy-v0",
            scorer="constant",
            policy=("random",),
            episodes=1,
            max_steps=4,
            out=tmp_path,
        ),
        lambda _: None,
    )
    (tmp_path / "random-0.mp4").rename(video)
    arguments = ["score", str(video), "--instruction", "reach the disc", "--scorer", "constant"]
    assert status(*arguments, "--every-k-frames", "10") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # Five steps and the last picture held for 1.5 seconds, 10 a second; the last is always asked.
    assert [record["frame_index"] for record in records] == [0, 10, 19]
    assert records[1] == {
        "video_path": str(video),
        "task": "reach the disc",
        "sample_index": 1,
        "frame_index": 10,
        "timestamp_sec": 1.0,
        "window_frame_indices": [10],
        "progress": 50.0,
        "parsed_progress": 50.0,
        "progress_source": "model",
        "reasoning": "",
        "model_output": "<progress>50%</progress>",
    }


def test_a_video_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("score", "nowhere.mp4", "--instruction", "lift", "--scorer", "constant") == 2
    assert "must be a video file, got 'nowhere.mp4'" in capsys.readouterr().err


def test_python_m_procreward_is_the_command_and_help_is_light() -> None:
    code = """
import runpy, sys
sys.argv = ["procreward", "--help"]
try:
    runpy.run_module("procreward", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "transformers", "matplotlib", "mujoco", "robosuite"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: procreward" in done.stdout


def test_score_fails_when_no_query_was_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = tmp_path / "film.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    imageio.mimwrite(video, list(frames), fps=10)
    monkeypatch.setattr(registry, "_registered", {"mute": "tests.test_cli:Mute"})
    assert status("score", str(video), "--instruction", "go", "--scorer", "mute") == 1
    captured = capsys.readouterr()
    assert '"parsed_progress": null' in captured.out
    assert "none of the 3 queries was answered" in captured.err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--version") == 0
    assert capsys.readouterr().out == f"procreward {version('procreward')}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_the_disk_has_no_room_for(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "procreward", "verify", "scorer", "constant"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert done.stderr == "error: [Errno 28] No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("unbuffered", "command"), [("", "verify scorer constant"), ("1", "verify --help")]
)
def test_output_that_nobody_reads_ends_quietly(unbuffered: str, command: str) -> None:
    read, write = os.pipe()
    os.close(read)  # as `head` does when it has seen enough
    done = subprocess.run(
        [sys.executable, "-m", "procreward", *command.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
