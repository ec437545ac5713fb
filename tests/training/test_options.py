"""``procreward train`` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from procreward.cli import main
from procreward.training.history import read_evaluations
from tests.training.conftest import settings


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path / "out")))
    return str(path)


def test_a_run_and_its_going_on(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "there"
    assert status("--config", file, "--out", str(out), "--total-steps", "32", "--seed", "3") == 0
    printed, progress = capsys.readouterr()
    assert "simulator's reward  never seen" in printed
    assert "32 steps, 18 queries, 0 failed" in printed
    assert "100%" in progress
    assert "step/s" in progress
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert (kept["seed"], kept["total_steps"], kept["out"]) == (3, 32, str(out))
    assert status("--config", str(out / "config.yaml"), "--total-steps", "64", "--resume") == 0
    assert "64 steps, from step 32" in capsys.readouterr().out
    assert [entry.step for entry in read_evaluations(out / "evaluations.jsonl")] == [0, 32, 64]


def test_a_dry_run_checks_and_writes_nothing(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("--config", file, "--dry-run", "--num-envs", "4", "--total-steps", "100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "environment         tests.training.envs:Corridor-v0, 4 in this process, "
        "episodes of 8 steps"
    )
    assert lines[1] == (
        "reward              bright every 3 steps, delta, scale 1, gamma 0.9; blocking"
    )
    assert lines[3] == "learner             PPO, 128 steps, an update every 64"
    # An episode is asked about at the steps 0, 3, 6 and 8.
    assert lines[4] == "queries             about 64"
    assert lines[-2] == "note: 128 steps, not 100: a rollout is 64 steps."
    assert lines[-1].startswith("8 queries asked, 0 failed; ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "toy-pop"], "Did you mean 'toy-ppo'"),
        (["--config", "toy-ppo", "--total-steps", "0"], "`total_steps` must be an integer"),
        (["--config", "toy-ppo", "--resume"], "must hold a complete checkpoint to resume from"),
        (["--config", "toy-ppo", "--out", "file/run"], "`out` must be a folder"),
        (["--config", "toy-ppo", "--dry-run", "--out", "file/run"], "`out` must be a folder"),
    ],
    ids=str,
)
def test_errors_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert status(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_ctrl_c_is_status_130(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = settings(tmp_path / "out")
    # Names are registered per test, but a scorer is built once per process.
    values["reward"]["scorer"] = {"name": "interrupting", "options": {"again": True}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    assert status("--config", str(path)) == 130
    assert capsys.readouterr().out.rstrip().endswith("config.yaml --resume")


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    out = capsys.readouterr().out
    words = ["--config", "--out", "--total-steps", "--num-envs", "--seed", "--resume", "--dry-run"]
    assert [word for word in words if word not in out] == []
