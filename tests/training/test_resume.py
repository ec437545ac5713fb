"""Runs that end early, and go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from procreward.errors import ConfigError, ScorerFailedError
from procreward.training.checkpoints import newest_checkpoint
from procreward.training.run import train
from tests.training.conftest import config, settings
from tests.training.runs import episodes, parameters, run, statistics


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path, algorithm: str) -> None:
    # The checkpoint at 64 steps falls on the end of an episode, and all begin alike.
    whole = run(tmp_path / "whole", algorithm)
    run(tmp_path / "parts", algorithm, total_steps=64)
    parts = run(tmp_path / "parts", algorithm, resume=True)
    assert parameters(tmp_path / "whole", algorithm) == parameters(tmp_path / "parts", algorithm)
    assert statistics(tmp_path / "whole") == statistics(tmp_path / "parts")
    outcomes = [
        [(entry.step, entry.rank, entry.mean_length) for entry in report.evaluations]
        for report in (whole, parts)
    ]
    assert outcomes[0] == outcomes[1]
    # Every start of a process asks about its first states.
    assert parts.queries == whole.queries + 2
    assert len(episodes(tmp_path / "parts")) == 16


def test_a_run_goes_on_from_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    run(tmp_path)
    # Killed while it wrote the next one, after an evaluation.
    half = tmp_path / "checkpoints" / ".step-000000192.999.partial"
    half.mkdir()
    (half / "policy.zip").write_bytes(b"PK")
    with (tmp_path / "evaluations.jsonl").open("a") as lines:
        entry = json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[-1])
        lines.write(json.dumps({**entry, "step": 160}) + "\n")
    report = run(tmp_path, total_steps=192, resume=True)
    assert report.steps == 192
    assert [entry.step for entry in report.evaluations] == [0, 64, 128, 192]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000000128",
        "step-000000192",
    ]


def test_what_resume_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold a complete checkpoint to resume from"):
        run(tmp_path, resume=True)
    run(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint of step 128; pass --resume to go on"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="`total_steps` must be above 128, got 128"):
        run(tmp_path, resume=True)
    reward = {**settings(tmp_path)["reward"], "scale": 3.0}
    with pytest.raises(ConfigError, match=r"reward\.scale \(was 1\.0, is 3\.0\)") as caught:
        run(tmp_path, resume=True, total_steps=192, seed=9, reward=reward)
    assert "seed (was 0, is 9)" in str(caught.value)
    assert "reward.gamma" not in str(caught.value)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    reward = {**settings(tmp_path)["reward"], "scorer": "interrupting"}
    changes = {"reward": reward, "checkpoint_every_steps": 0}
    report = train(config(tmp_path, **changes), said.append)
    assert report.interrupted
    assert 0 < report.steps < 128
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.steps == report.steps
    assert said[-1].endswith(f"procreward train --config {tmp_path / 'config.yaml'} --resume")
    assert any("press Ctrl-C again" in text for text in said)
    # What is left of the 128 steps, in whole rollouts.
    again = run(tmp_path, resume=True, **changes)
    assert not again.interrupted
    assert 128 <= again.steps < 160


def test_a_model_that_fails_for_good_ends_the_run_with_its_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    reward = {**settings(tmp_path)["reward"], "scorer": "dying", "max_consecutive_failures": 2}
    with pytest.raises(ScorerFailedError, match="dead"):
        train(config(tmp_path, reward=reward), said.append)
    assert said[-1].startswith("checkpoint of step 64 saved; go on with")
