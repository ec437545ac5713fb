"""Whole runs, of a moment each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from procreward.errors import (
    ConfigError,
    InstructionError,
    MissingDependencyError,
    UnknownNameError,
)
from procreward.report.records import read_records
from procreward.training.config import train_config
from procreward.training.history import read_evaluations
from procreward.training.run import train
from tests.training.conftest import config, settings
from tests.training.runs import episodes, parameters, run

PAYING = {"env_kwargs": {"pay": 1000.0}}


def test_everything_promised_is_written(tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    evaluation = {"every_steps": 64, "episodes": 2, "video": 1}
    report = train(config(out, eval=evaluation), said.append)
    assert sorted(path.name for path in out.iterdir()) == [
        "best",
        "checkpoints",
        "config.yaml",
        "episodes.jsonl",
        "evaluations.jsonl",
        "learning_curve.png",
        "monitor.csv",
        "policies",
        "progress.png",
        "tensorboard",
        "videos",
    ]
    assert [path.name for path in (out / "checkpoints").iterdir()].sort() == [
        "step-000000064",
        "step-000000128",
    ].sort()
    assert all(path.stat().st_size > 500 for path in report.files)
    assert report.files[0] == out / "videos" / "ppo-128-0.mp4"
    assert train_config(yaml.safe_load((out / "config.yaml").read_text())) == config(
        out, eval=evaluation
    )
    # 16 episodes of 8 steps, one picture at the reset and three at the steps 3, 6 and 8.
    assert (report.steps, report.interrupted) == (128, False)
    assert len(episodes(out)) == 16
    assert report.queries == 2 + 16 * 4
    assert report.failures == 0
    assert read_evaluations(out / "evaluations.jsonl") == list(report.evaluations)
    assert [entry.step for entry in report.evaluations] == [0, 64, 128]
    assert json.loads((out / "best" / "best.json").read_text())["step"] == report.best.step  # type: ignore[union-attr]  # not None
    table = next(text for text in said if "true progress" in text).splitlines()
    assert table[0].split()[:3] == ["step", "success", "true"]
    assert [line.split()[0] for line in table[2:]] == ["0", "64", "128"]


def test_the_filmed_episodes_are_those_of_the_evaluation(tmp_path: Path) -> None:
    report = run(tmp_path, eval={"every_steps": 0, "episodes": 2, "video": 2, "seed": 3})
    records = read_records(tmp_path / "episodes.jsonl")
    assert [(record.seed, record.steps) for record in records] == [(3, 8), (4, 8)]
    [evaluation] = report.evaluations
    truth = [max(entry.true_progress or 0.0 for entry in record.trace) for record in records]
    assert np.mean(truth) == pytest.approx(evaluation.mean_progress)
    assert evaluation.success_rate == np.mean([record.env_success for record in records])
    assert records[0].trace[0].progress == pytest.approx(110 / 255)


def test_the_best_policy_and_its_statistics_can_be_used(tmp_path: Path) -> None:
    run(tmp_path)
    model = PPO.load(tmp_path / "best" / "policy.zip")
    action, _ = model.predict(np.zeros(2), deterministic=True)
    assert action.shape == (1,)
    assert model.gamma == 0.9


def test_curves_are_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {
        "eval/success_rate",
        "eval/mean_progress",
        "reward_model/queries",
        "reward_model/failures",
        "reward_model/waiting_share",
        "rollout/ep_rew_mean",
    } <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("eval/success_rate")] == [0, 64, 128]
    assert events.Scalars("reward_model/queries")[-1].value == 66.0


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_the_learner_never_sees_the_simulators_reward(tmp_path: Path, algorithm: str) -> None:
    run(tmp_path / "nothing", algorithm)
    run(tmp_path / "much", algorithm, **PAYING)
    assert parameters(tmp_path / "nothing", algorithm) == parameters(tmp_path / "much", algorithm)
    # It does where it was asked to, so the above says something.
    reward = {**settings(tmp_path)["reward"], "env_reward_weight": 1.0}
    run(tmp_path / "told", algorithm, reward=reward, **PAYING)
    assert parameters(tmp_path / "nothing", algorithm) != parameters(tmp_path / "told", algorithm)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"env": "procreward/Toi-v0"}, UnknownNameError, "Did you mean 'procreward/Toy-v0'"),
        ({"env": "nosuchpackage:Env-v0"}, MissingDependencyError, "nosuchpackage"),
        ({"env_kwargs": {"steps": 3}}, ConfigError, "`env_kwargs` must be what .*'steps'"),
        ({"reward": {"scorer": "nanoo"}}, UnknownNameError, "Unknown scorer 'nanoo'"),
        ({"reward": {"judge": "constnt"}}, UnknownNameError, "Did you mean 'constant'"),
        (
            {"reward": {"scorer": "bright"}},
            ConfigError,
            "better than others, got .shaping 'pbrs' alone",
        ),
        (
            {"reward": {"instruction": "obs:task", "shaping": "delta"}},
            (ConfigError, InstructionError),
            "task",
        ),
        (
            {"reward": {"scorer": "bright", "views": "side", "shaping": "delta"}},
            ConfigError,
            "side",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_found_before_any_work(
    tmp_path: Path, changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "out", **changes)
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert left <= {"monitor.csv"}


@pytest.mark.slow
def test_worker_processes_learn_the_same(tmp_path: Path) -> None:
    few: dict[str, Any] = {"total_steps": 32, "eval": {"every_steps": 0, "episodes": 1, "video": 0}}
    run(tmp_path / "here", **few)
    run(tmp_path / "there", workers=True, **few)
    assert parameters(tmp_path / "here") == parameters(tmp_path / "there")
