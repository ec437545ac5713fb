from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from procreward.bench.clock import Clock, Stopwatch, measure_ceilings
from procreward.bench.device_jobs import DEVICE_JOBS, DeviceSettings, device_goals, run_device

SMALL = DeviceSettings(
    device="cpu",
    size="tiny",
    environments=(1, 3),
    quick=True,
    procvlm_pixels=64,
    judge_pixels=64,
    judge_frames=8,
    cache_gib=0.1,
    batched_judge=2,
)


def test_every_job_runs_and_answers_as_transformers_does() -> None:
    lines: list[str] = []
    figures = run_device(SMALL, DEVICE_JOBS, lines.append)
    assert figures["machine_matmul_tflops"] > 0
    assert figures["machine_copy_gb_per_s"] > 0
    for count in SMALL.environments:
        for job in DEVICE_JOBS:
            name = f"{job}_env{count}"
            assert figures[f"{name}_queries_per_s"] > 0
            assert figures[f"{name}_peak_gib"] > 0
            assert figures[f"{name}_ratio"] > 0
            assert figures[f"{name}_vision_prefill_of_matmul_limit"] > 0
        reasoning = f"procvlm_reasoning_env{count}"
        assert figures[f"{reasoning}_same_text"] == 1.0
        assert figures[f"{reasoning}_answer_tokens"] > 60
        assert figures[f"{reasoning}_passes_per_moment"] < 20
        assert figures[f"{reasoning}_draft_acceptance"] > 0.7
        assert figures[f"{reasoning}_decode_of_limit"] > 0
        judge = f"judge_two_views_env{count}"
        assert figures[f"{judge}_same_text"] == 1.0
        assert figures[f"{judge}_max_abs_diff"] < 1e-4
        assert figures[f"procvlm_direct_env{count}_max_abs_diff_to_strict"] < 1e-4
    assert figures["procvlm_free_same_text_fast"] == 1.0
    assert figures["procvlm_free_same_text_strict"] == 1.0
    # Too many for the baseline's batch: not measured rather than out of memory.
    assert "judge_two_views_env1_vs_batched" in figures
    assert "judge_two_views_env3_vs_batched" not in figures
    assert any("imposed" in line for line in lines)


def test_one_job_alone_has_its_baselines() -> None:
    settings = DeviceSettings(
        device="cpu", size="tiny", environments=(1,), quick=True, procvlm_pixels=64, cache_gib=0.1
    )
    figures = run_device(settings, ["procvlm_direct"], lambda line: None)
    assert figures["procvlm_direct_env1_ratio"] > 0
    assert not any(key.startswith("procvlm_reasoning") for key in figures)


def test_goals_are_for_full_sizes() -> None:
    assert device_goals(SMALL) == []
    goals = {goal.figure: goal.bound for goal in device_goals(DeviceSettings(environments=(16,)))}
    assert goals["procvlm_reasoning_env16_ratio"] == 40.0
    assert goals["procvlm_direct_env16_ratio"] == 100.0
    assert goals["procvlm_reasoning_env16_decode_of_limit"] == 0.5
    assert goals["judge_two_views_env16_vision_prefill_of_matmul_limit"] == 0.4


def test_full_sizes_are_measured_in_bfloat16() -> None:
    assert DeviceSettings(device="cuda").dtype == torch.bfloat16
    assert DeviceSettings(device="cpu", size="full").dtype == torch.bfloat16
    assert SMALL.dtype == torch.float32
    assert [DeviceSettings().moments(count) for count in (1, 4, 16, 64)] == [20, 20, 10, 5]


def test_neither_gymnasium_nor_a_simulator_nor_tyro_is_needed() -> None:
    code = (
        "import sys\n"
        "for name in ('gymnasium', 'tyro', 'imageio', 'mujoco', 'robosuite', 'metaworld'):\n"
        "    sys.modules[name] = None\n"
        "import procreward.bench.device_cases, procreward.bench.script\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_a_stopwatch_adds_laps_up_by_name() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.part("one"):
            sum(range(1000))
    watch.start("two")
    watch.stop("two")
    watch.stop("never begun")
    watch.start("never ended")
    taken = watch.take()
    assert set(taken) == {"one", "two"}
    assert taken["one"] > taken["two"] > 0
    assert watch.take() == {}


def test_a_clock_and_ceilings_on_the_cpu() -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.seconds(lambda: sum(range(10_000))) > 0
    clock.reset_peak()
    assert 0.01 < clock.peak_gib() < 1000
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    assert ceilings.flops > 1e8
    assert ceilings.bandwidth > 1e7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tiny_models_run_on_a_gpu() -> None:
    settings = DeviceSettings(device="cuda", size="tiny", environments=(1, 4), quick=True)
    figures = run_device(settings, DEVICE_JOBS, print)
    assert figures["procvlm_reasoning_env4_same_text"] == 1.0
