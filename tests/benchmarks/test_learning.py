"""The learning benchmark on the toy, from the command line as users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is an extra")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "learning.py"
TOY = ("--only", "toy/nano-delta/k4/s0", "toy/sparse", "--scorer", "constant", "--jobs", "1")


def call(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs that were finished: where, and what was printed."""
    out = tmp_path_factory.mktemp("learning") / "learning.json"
    return out, call(*TOY, "--seeds", "0", "--out", str(out))


def records(path: Path) -> dict[str, dict[str, Any]]:
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {run["key"]: run for run in runs}


def test_a_record_tells_the_whole_run(finished: tuple[Path, str]) -> None:
    runs = records(finished[0])
    assert set(runs) == {"toy/nano-delta/k4/s0", "toy/sparse/k4/s0"}
    run = runs["toy/nano-delta/k4/s0"]
    assert run["steps"][:2] == [256, 512]
    assert len(run["success"]) == len(run["progress"]) == len(run["training"]) == len(run["steps"])
    # 1024 steps are one rollout of PPO: 10 episodes of 25 steps in each of 4 environments, and 6
    # steps of the next. A whole one has queries at 0, 4, ..., 24 and at its end.
    assert run["queries"] == 4 * (10 * 8 + 2)
    assert run["failures"] == 0
    assert run["reading"]["n"] == 4 * (10 * 7 + 1)
    assert run["scorer_sha256"] is None
    assert "queries" not in runs["toy/sparse/k4/s0"]


def test_finished_runs_are_not_trained_again(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert "2 runs to train, 0 are there" in printed
    before = records(out)
    printed = call(*TOY, "--out", str(out))
    assert "1 runs to train, 2 are there" in printed
    after = records(out)
    assert set(after) - set(before) == {"toy/sparse/k4/s1"}
    assert {key: after[key] for key in before} == before


def test_table_and_curves_need_no_training(
    finished: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import learning

    out, _ = finished
    before = out.read_bytes()
    learning.main(learning.Settings(out=out, table=True, plot=tmp_path))
    assert "| nano-delta | 0.00 (n=1) |" in capsys.readouterr().out
    assert 0 < (tmp_path / "learning-toy.png").stat().st_size < 150_000
    assert out.read_bytes() == before


def test_two_writers_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from concurrent.futures import ThreadPoolExecutor

    import learning

    path = tmp_path / "runs.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: learning.add(path, {"key": f"run/{n:02}"}), range(20)))
    assert list(records(path)) == [f"run/{n:02}" for n in range(20)]
    assert json.loads(path.read_text(encoding="utf-8"))["runs"][3] == {"key": "run/03"}


def test_the_potential_of_a_reading_is_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the truth as the scorer, the wrapper pays what the stand-in for it pays."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import _learning_runs as runs
    import gymnasium as gym

    from procreward import ProgressReward
    from procreward.types import Score

    def make() -> gym.Env[Any, Any]:
        return gym.make("procreward.envs:procreward/Toy-v0", max_episode_steps=11)

    watched = make()

    class Truth:
        def score(self, queries: Any) -> list[Score]:
            bare: Any = watched.unwrapped
            return [Score(progress=bare.privileged_progress()) for _ in queries]

        def describe(self) -> dict[str, object]:
            return {"name": "truth"}

    for shaping in ("delta", "pbrs"):
        ours = ProgressReward(
            watched,
            scorer=Truth(),
            shaping=shaping,
            every_k_steps=4,
            gamma=runs.GAMMA,
            scale=runs.SCALE,
            window_frames=1,
        )
        stand_in = runs.ReadingReward(
            make(), reading=runs.true_reading, shaping=shaping, every_k_steps=4
        )
        ours.reset(seed=3)
        stand_in.reset(seed=3)
        paid = []
        for _ in range(11):
            bare: Any = watched.unwrapped
            action = bare.expert_action()
            one, other = ours.step(action), stand_in.step(action)
            assert one[1] == other[1]
            assert one[2:4] == other[2:4]
            paid.append(one[1])
        assert other[3]
        assert any(paid)


def test_plan_has_five_seeds_of_the_main_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import learning

    keys = [run.key for run in learning.plan()]
    assert len(keys) == len(set(keys))
    for reward in ("nano-delta", "truth-delta", "sparse", "dense", "clock"):
        assert {f"window-open/{reward}/k8/s{seed}" for seed in range(5)} <= set(keys)
    assert not any(key.startswith("toy") for key in keys)
