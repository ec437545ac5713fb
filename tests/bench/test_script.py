from __future__ import annotations

import json
from pathlib import Path

import pytest

from procreward.bench.script import main
from tests.bench.recordings import keep


def test_a_cpu_job_is_measured_said_and_written_down(cache: Path, tmp_path: Path) -> None:
    keep(24, 120, cache)
    lines: list[str] = []
    out = tmp_path / "results" / "engine.json"
    argv = ["--device", "cpu", "--job", "procvlm_preset_env1", "--quick"]
    main(lines.append, [*argv, "--cache", str(cache), "--out", str(out)])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["procvlm_preset_env1_same_text"] == 1.0
    assert figures["procvlm_preset_env1_queries"] == 8
    assert any("same_text" in line and line.endswith("goal >= 1: met") for line in lines)
    assert any(line.startswith("Baselines read our prompts") for line in lines)


def test_the_gpu_jobs_run_on_a_cpu_with_tiny_models(tmp_path: Path) -> None:
    out = tmp_path / "engine.json"
    argv = ["--device", "cpu", "--size", "tiny", "--envs", "1", "--quick", "--out", str(out)]
    main(lambda line: None, [*argv, "--job", "procvlm_reasoning"])
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["procvlm_reasoning_env1_same_text"] == 1.0


def test_an_unknown_job_is_refused() -> None:
    with pytest.raises(SystemExit, match="procvlm_env1"):
        main(lambda line: None, ["--job", "procvlm"])
    with pytest.raises(SystemExit, match="judge_two_views"):
        main(lambda line: None, ["--device", "cpu", "--size", "tiny", "--job", "topreward"])
