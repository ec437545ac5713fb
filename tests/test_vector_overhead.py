"""The benchmark of many sub-environments: fair to the bare ones, and it runs."""

from __future__ import annotations

import json
import math
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from procreward.envs.toy import ToyEnv
from procreward.types import Frame, Query
from tests.helpers import picture

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "vector_overhead.py"
TOY = "procreward/Toy-v0"


@pytest.fixture(scope="module")
def bench() -> SimpleNamespace:
    """The benchmark's names."""
    return SimpleNamespace(**runpy.run_path(str(BENCHMARK), run_name="vector_overhead"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cameras that toys have drawn, in order."""
    names: list[str] = []
    draw = ToyEnv.render_camera

    def counted(self: ToyEnv, name: str, width: int, height: int) -> Frame:
        names.append(f"{name} {width} {height}")
        return draw(self, name, width, height)

    monkeypatch.setattr(ToyEnv, "render_camera", counted)
    return names


def drawings(drawn: list[str], runs: dict[str, Any]) -> dict[str, int]:
    """How many frames each run draws."""
    counts = {}
    for name, timed in runs.items():
        drawn.clear()
        timed()
        counts[name] = len(drawn)
        assert set(drawn) <= {"front 128 128"}
    return counts


def test_the_bare_environment_draws_what_the_wrapper_draws(
    bench: SimpleNamespace, drawn: list[str]
) -> None:
    settings = bench.Settings(every_k_steps=4)
    envs = SyncVectorEnv([partial(bench.make, TOY, 10)] * 3, autoreset_mode=AutoresetMode.DISABLED)

    def draw() -> None:
        for sub in envs.envs:
            sub.unwrapped.render_camera("front", 128, 128)

    # In 25 steps: 4, 8, 10 and anew, the same again, 4. The wrapper also draws at the first reset.
    runs = bench.gymnasium_runs(envs, draw, 25, settings)
    assert drawings(drawn, runs) == {"bare": 0, "drawing": 27, "wrapped": 30}
    runs = bench.sb3_runs(envs.envs, draw, 25, settings)
    assert drawings(drawn, runs) == {"bare": 0, "drawing": 27, "wrapped": 30}
    envs.close()


def test_runs_take_turns_and_the_first_round_does_not_count(bench: SimpleNamespace) -> None:
    log: list[str] = []

    def run(name: str) -> float:
        log.append(name)
        return float(len(log))

    took = bench.alternate({"one": partial(run, "one"), "other": partial(run, "other")}, 2)
    assert log == ["other", "one", "one", "other", "other", "one"]
    assert took == {"one": [3.0, 6.0], "other": [4.0, 5.0]}
    assert bench.median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0


def test_few_sub_environments_take_more_steps(bench: SimpleNamespace) -> None:
    settings = bench.Settings(env_steps=128, least_steps=24)
    assert [bench.steps_for(count, settings) for count in (1, 4, 8, 32)] == [128, 32, 24, 24]


def test_the_sleeping_scorer_answers_alike(bench: SimpleNamespace) -> None:
    query = Query(frames={"front": picture(7)[None]}, instruction="wait", frame_steps=(0,))
    scores = bench.Sleeping(0.0).score([query, query])
    assert [score.progress for score in scores] == [0.5, 0.5]


def test_everything_on_the_toy(bench: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "results" / "overhead.json"
    settings = bench.Settings(
        simulator=TOY,
        fast_simulator=TOY,
        num_envs=(1, 2),
        scorer="constant",
        quick=True,
        out=out,
    )
    figures = bench.main(settings)
    assert json.loads(out.read_text()) == figures
    assert all(math.isfinite(value) for value in figures.values())
    ratios = [
        f"{prefix}ratio_{count}{suffix}"
        for prefix in ("", "metaworld_", "metaworld_sb3_")
        for count in (1, 2)
        for suffix in ("", "_frames_included")
    ]
    for key in [*ratios, "metaworld_async_ratio_2", "deferred_speedup", "ms_per_step_blocking"]:
        assert figures[key] > 0.0, key
    assert {"overhead_us_1", "overhead_us_2"} <= figures.keys()
    for latency in ("blocking", "deferred"):
        for suffix in ("", "_sleeping"):
            assert 0.0 <= figures[f"waiting_share_{latency}{suffix}"] <= 1.0
    # A sleep is never shorter than asked for; there are queries at step 8, and at the end and the
    # new beginning at 10.
    milliseconds = figures["ms_per_step_blocking_sleeping"] * figures["rollout_steps"]
    assert milliseconds * figures["waiting_share_blocking_sleeping"] >= 2 * 5.0
