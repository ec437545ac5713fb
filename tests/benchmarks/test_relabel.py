"""The relabelling benchmark at its smallest, from the command line as users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.recordings import keep

pytest.importorskip("pyarrow", reason="pyarrow is an extra")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "relabel.py"
SMALL = ("--episodes", "3", "--most-frames", "6", "--size", "64", "--naive-frames", "5")


def figures(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "results" / "relabel.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *SMALL, "--repetitions", "1", *arguments, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == found
    return found


def test_both_loops_read_the_same_with_imposed_answers(tmp_path: Path) -> None:
    found = figures(tmp_path, "--model", "tiny", "--step-episodes", "2")
    assert (found["disagreements"], found["compared"]) == (0, 5)
    assert found["speedup_vs_naive"] > 1.0
    assert list(found["steps_ms_per_query"]) == [
        "naive",
        "decoded_once",
        "encoded_once",
        "answers_drafted",
        "batched",
        "overlapped",
    ]
    assert 0.0 <= found["decode_share"] <= 1.0
    assert (found["gpu_utilisation"], found["gpu_utilisation_why_not"]) == (None, "no GPU")
    assert found["settings"]["every_k_frames"] == 1


def test_both_loops_read_the_same_with_nano(tmp_path: Path) -> None:
    keep(24, 120, tmp_path / "cache")
    arguments = ("--cache", str(tmp_path / "cache"), "--step-episodes", "0", "--clock", "cpu")
    found = figures(tmp_path, "--every-k-frames", "2", *arguments)
    assert (found["disagreements"], found["compared"]) == (0, 5)
    assert list(found["steps_ms_per_query"]) == ["naive", "decoded_once", "overlapped"]
    shares = [found[f"naive_{name}_share"] for name in ("decode", "preprocess", "generate")]
    assert sum(shares) == pytest.approx(1.0)
