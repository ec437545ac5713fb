"""Short runs where a simulator is watched by the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from procreward.report.records import read_records
from procreward.training.config import config_mapping, load_train_config, train_config
from procreward.training.run import train

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def shortened(name: str, out: Path, **changes: Any) -> Any:
    """A shipped config with less of everything."""
    values = config_mapping(load_train_config(name))
    values |= {"num_envs": 2, "workers": False, "out": str(out), **changes}
    values["eval"] = {"every_steps": 0, "episodes": 1, "video": 1}
    values["env_kwargs"] = {**values["env_kwargs"], "max_episode_steps": 25}
    return train_config(values)


def test_nano_rewards_ppo_on_meta_world(tmp_path: Path) -> None:
    learner = {"n_steps": 50, "batch_size": 50, "n_epochs": 1}
    config = shortened("drawer-close-ppo", tmp_path, total_steps=200, learner=learner)
    said: list[str] = []
    report = train(config, said.append)
    assert (report.steps, report.failures) == (200, 0)
    # Eight episodes of 25 steps, asked about at 0, 8, 16, 24 and 25, and the first of two more.
    assert report.queries == 8 * 5 + 2
    [record] = read_records(tmp_path / "episodes.jsonl")
    assert (record.env_id, record.scorer, record.steps) == ("procreward/DrawerClose-v0", "nano", 25)
    assert record.instruction == "Push the drawer closed."
    names = {path.name: path.stat().st_size for path in report.files}
    assert sorted(names) == [
        "episodes.jsonl",
        "learning_curve.png",
        "ppo-200-0.mp4",
        "progress.png",
    ]
    assert min(names.values()) > 1000
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 1
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["reward"]["scorer"] == "nano"


def test_nano_rewards_sac_on_robosuite(tmp_path: Path) -> None:
    learner = {"buffer_size": 200, "learning_starts": 20, "batch_size": 16}
    config = shortened("lift-sac", tmp_path, total_steps=50, num_envs=1, learner=learner)
    report = train(config, lambda _: None)
    assert (report.steps, report.queries, report.failures) == (50, 11, 0)
    assert (tmp_path / "videos" / "sac-50-0.mp4").stat().st_size > 1000
