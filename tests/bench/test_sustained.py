from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from procreward.bench.sustained import (
    BenchConfig,
    Sustained,
    frame_size,
    measure_sustained,
    run_bench,
    summary,
    views_of,
)
from procreward.cli import main
from procreward.config import load_preset
from procreward.errors import ConfigError
from procreward.types import Query, Score

ROW = Sustained(
    environments=1,
    latency_ms=10.0,
    ms_per_query=10.0,
    queries_per_s=100.0,
    peak_gib=1.0,
    every_k_steps=1,
    invalid_share=0.0,
)


class Recorder:
    """Answers at once and remembers."""

    def __init__(self) -> None:
        self.asked: list[list[Query]] = []
        self.released: list[str] = []

    def score(self, queries: Any) -> list[Score]:
        self.asked.append(list(queries))
        return [Score(progress=0.5) for _ in queries]

    def release(self, streams: Any) -> None:
        self.released += streams

    def describe(self) -> dict[str, object]:
        return {"name": "recorder"}


def test_the_model_is_measured_and_written_down(tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "new" / "bench.json"
    rows = run_bench(BenchConfig(envs=(2, 1), seconds=0.01, out=out), lines.append)
    assert [row.environments for row in rows] == [1, 2]
    assert all(row.latency_ms > 0 and row.every_k_steps >= 1 for row in rows)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["scorer"]["name"] == "procvlm"
    assert figures["step_hz"] == 20.0
    assert [row["environments"] for row in figures["rows"]] == [1, 2]
    assert lines[0].startswith("nano (cpu, float32, fast): 4 frames of 128x128 in 1 view(s)")
    assert any("this machine sustains" in line for line in lines)


def test_a_scorer_is_asked_as_its_preset_says_and_told_when_it_is_over() -> None:
    scorer, preset = Recorder(), load_preset("robocasa-judge")
    config = BenchConfig(seconds=1e-9, every_k_steps=4, step_hz=10.0, instruction="Open it.")
    row = measure_sustained(scorer, preset, 2, config)
    assert row.environments == 2
    assert row.every_k_steps == 1
    # Two moments to warm up, three to measure.
    assert len(scorer.asked) == 5
    first, other = scorer.asked[1]
    assert set(first.frames) == {"robot0_agentview_right", "robot0_agentview_left"}
    assert first.frames["robot0_agentview_left"].shape == (64, 224, 224, 3)
    assert first.frame_steps == tuple(range(4, 68))
    assert (first.fps, first.instruction) == (10.0, "Open it.")
    assert first.stream != other.stream
    assert sorted(scorer.released) == sorted({first.stream, other.stream})


def test_views_and_frame_size_are_those_of_the_preset() -> None:
    nano = load_preset("nano")
    assert views_of(nano) == ("front",)
    assert frame_size(nano) == (128, 128)
    side = replace(nano.scorer, options={"view": "side", "frame_size": [64, 32]})
    assert views_of(replace(nano, scorer=side)) == ("side",)
    assert frame_size(replace(nano, scorer=side, frame_size=None)) == (64, 32)
    assert frame_size(load_preset("procvlm-2b")) == (256, 256)


def test_the_summary_names_each_k_at_which_more_is_sustained() -> None:
    rows = [
        replace(ROW, environments=count, every_k_steps=steps)
        for count, steps in ((1, 1), (4, 2), (16, 5), (64, 20))
    ]
    assert [line.split("query ")[1].split(" this")[0] for line in summary(rows, 20.0)] == [
        "every 1 step(s)",
        "every 2 step(s)",
        "every 8 step(s)",
        "every 32 step(s)",
    ]
    assert summary(rows, 20.0)[2].endswith("sustains 16 environment(s).")
    slow = [replace(ROW, environments=1, every_k_steps=100)]
    assert summary(slow, 20.0) == [
        "At 20 steps/s this machine sustains 1 environment(s) with a query every 100 steps."
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"envs": ()},
        {"envs": (0,)},
        {"step_hz": 0.0},
        {"seconds": -1.0},
        {"every_k_steps": 0},
        {"out": Path()},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BenchConfig(**wrong)


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "constant", "--envs", "1", "3", "--seconds", "0.001"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("constant (no model): 1 frames of 256x256")
    assert lines[1].split() == [
        "envs",
        "ms/query",
        "queries/s",
        "memory",
        "GiB",
        "every",
        "k",
        "steps",
    ]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "3"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "no-such-model"])
    assert ended.value.code == 2
