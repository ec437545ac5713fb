from __future__ import annotations

from pathlib import Path

import pytest

from procreward.bench.cpu_jobs import CPU_GOALS, CPU_JOBS, CpuSettings, procvlm_job
from procreward.bench.sizes import TINY
from tests.bench.recordings import keep
from tests.bench.test_progress_twin import BRIEF

EPISODES, STEPS = 10, 17


@pytest.fixture
def settings(cache: Path) -> CpuSettings:
    keep(EPISODES, STEPS, cache)
    return CpuSettings(
        cache=cache,
        moments=2,
        episodes=EPISODES,
        steps=STEPS,
        training=BRIEF,
        judge_size=TINY,
        judge_frames=4,
    )


@pytest.mark.parametrize(
    "name", ["procvlm_env4", "procvlm_preset_env1", "judge_two_views", "topreward"]
)
def test_a_job_answers_as_transformers_does(name: str, settings: CpuSettings) -> None:
    figures = CPU_JOBS[name](settings)
    assert all(key.startswith(f"{name}_") for key in figures)
    assert figures[f"{name}_same_text"] == 1.0
    assert figures[f"{name}_max_abs_diff"] <= 1e-4
    assert figures[f"{name}_ratio"] > 0
    assert figures[f"{name}_queries"] == (8 if name == "procvlm_env4" else 2)


@pytest.mark.slow
def test_the_progresslm_job_answers_as_transformers_does(settings: CpuSettings) -> None:
    figures = CPU_JOBS["progresslm_visual"](settings)
    assert figures["progresslm_visual_same_text"] == 1.0
    # Trained for seconds: how long its answers are differs between processors.
    assert figures["progresslm_visual_answer_tokens"] > 0


def test_environments_have_streams_and_episodes_of_their_own(settings: CpuSettings) -> None:
    job = procvlm_job(4, settings)
    assert [query.stream for query in next(iter(job.moments))] == [f"env{i}/0" for i in range(4)]
    assert {query.stream.split("/")[0] for query in job.warm_up} == {"warm-up"}
    preset = procvlm_job(1, settings, preset=True)
    assert next(iter(preset.moments))[0].frame_steps == (0, 4, 8, 12)


def test_every_job_of_the_issue_has_its_goals() -> None:
    bounds = {goal.figure: goal.bound for goal in CPU_GOALS}
    assert bounds["procvlm_env1_ratio"] == 5.0
    assert bounds["procvlm_env16_ratio"] == 8.0
    assert bounds["judge_two_views_ratio"] == 4.0
    assert bounds["progresslm_visual_ratio"] == 5.0
    assert "topreward_ratio" not in bounds
    for job in CPU_JOBS:
        assert bounds[f"{job}_vs_batched"] == 1.0
        assert bounds[f"{job}_max_abs_diff"] == 1e-4
        assert bounds[f"{job}_same_text"] == 1.0
