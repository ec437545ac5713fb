from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv

from procreward.errors import ConfigError
from procreward.training.evaluation import EvalResult
from procreward.training.history import (
    Evaluation,
    History,
    format_evaluations,
    read_evaluations,
    write_learning_curve,
)
from procreward.training.learner import build_learner
from tests.training.conftest import config
from tests.training.envs import Corridor

ENTRY = Evaluation(
    step=64,
    success_rate=0.5,
    mean_length=8.0,
    mean_return=1.25,
    mean_progress=0.75,
    episodes=2,
    queries=30,
    failures=1,
)


def result(success: float | None, progress: float | None = None, paid: float = 0.0) -> EvalResult:
    return EvalResult(
        success_rate=success,
        mean_length=8.0,
        mean_return=paid,
        mean_progress=progress,
        seeds=(0, 1),
        successes=(None, None),
        lengths=(8, 8),
        returns=(paid, paid),
    )


def test_the_best_is_by_success_then_progress_then_return_and_the_first_of_equals(
    tmp_path: Path,
) -> None:
    history = History(tmp_path)
    model = build_learner(config(tmp_path), DummyVecEnv([Corridor, Corridor]))
    best = []
    for step, found in enumerate(
        [
            result(None, None, -1.0),
            result(0.0, 0.25),
            result(0.0, 0.25),
            result(0.5, 0.2),
            result(0.0, 0.9),
            result(0.5, 0.2, 3.0),
        ]
    ):
        model.num_timesteps = step
        history.add(model, found, queries=step, failures=0)
        assert history.best is not None
        best.append(history.best.step)
        assert (tmp_path / "best").resolve().name == f"step-{best[-1]:09d}"
    assert best == [0, 1, 1, 3, 3, 5]
    assert read_evaluations(history.path) == history.entries
    assert (history.last_step, len(history.entries)) == (5, 6)


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "evaluations.jsonl").write_text(
        "".join(
            f'{{"step": {step}, "success_rate": null, "mean_length": 8.0, "mean_return": 0.0, '
            f'"mean_progress": null, "episodes": 2, "queries": 4, "failures": 0}}\n'
            for step in (0, 64, 128)
        )
    )
    assert [entry.step for entry in History(tmp_path, up_to=64).entries] == [0, 64]
    assert [entry.step for entry in read_evaluations(tmp_path / "evaluations.jsonl")] == [0, 64]
    assert History(tmp_path).entries == []
    assert (tmp_path / "evaluations.jsonl").read_text() == ""


def test_the_best_policy_of_a_dropped_evaluation_is_still_to_be_beaten(tmp_path: Path) -> None:
    model = build_learner(config(tmp_path), DummyVecEnv([Corridor, Corridor]))
    history = History(tmp_path)
    for step, success in ((0, 0.1), (64, 0.3), (128, 0.8)):
        model.num_timesteps = step
        history.add(model, result(success), queries=0, failures=0)
    # Killed, and gone on with from the checkpoint of step 64.
    history = History(tmp_path, up_to=64)
    model.num_timesteps = 128
    history.add(model, result(0.5), queries=0, failures=0)
    assert [(entry.step, entry.success_rate) for entry in history.entries] == [
        (0, 0.1),
        (64, 0.3),
        (128, 0.5),
    ]
    # What is said and what lies in the folder are one policy.
    assert history.best is not None
    assert (history.best.step, history.best.success_rate) == (128, 0.8)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["success_rate"] == 0.8
    model.num_timesteps = 192
    better = history.add(model, result(0.9), queries=0, failures=0)
    assert history.best is better
    assert (tmp_path / "best").resolve().name == "step-000000192"
    (tmp_path / "best" / "best.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"best\.json` must be an evaluation"):
        History(tmp_path, up_to=192)


def test_a_line_that_is_no_evaluation_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"line 1 must be an evaluation, got '{\"step\": 3}'"):
        read_evaluations(path)


def test_the_table() -> None:
    unknown = replace(ENTRY, step=10_240, success_rate=None, mean_progress=None)
    assert format_evaluations([ENTRY, unknown]).splitlines() == [
        " step  success  true progress  episode steps  env return  queries  failed",
        "-----  -------  -------------  -------------  ----------  -------  ------",
        "   64     50 %           75 %            8.0        1.25       30       1",
        "10240  unknown        unknown            8.0        1.25       30       1",
    ]


def test_the_learning_curve_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "learning_curve.png"
    write_learning_curve([ENTRY, replace(ENTRY, step=128, success_rate=None)], path, title="a run")
    with Image.open(path) as picture:
        assert picture.size == (845, 520)
    with pytest.raises(ConfigError, match="at least one evaluation, got none"):
        write_learning_curve([], path, title="a run")
