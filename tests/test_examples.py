"""The examples run, as short as they can be."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TOY = ["--env", "procreward.envs:procreward/Toy-v0", "--scorer", "constant"]


@pytest.mark.parametrize("name", ["sb3_ppo", "sb3_sac"])
def test_stable_baselines(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TOY, "--steps", "64", "--episode-steps", "10", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert (tmp_path / "policy.zip").stat().st_size > 0
    assert (tmp_path / "normalisation.pkl").stat().st_size > 0
    episodes = (tmp_path / "monitor.csv").read_text().splitlines()[2:]
    # 64 steps of 2 or 4 sub-environments that are cut off after 10.
    assert len(episodes) in (4, 6)
    assert {line.split(",")[1] for line in episodes} == {"10"}
