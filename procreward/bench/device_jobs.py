"""The GPU jobs: full-size random weights in bfloat16, against the machine's own limits.

* ``procvlm_reasoning`` - Qwen3-VL-2B, 8 pictures of 256x256, the window slides by one step; answers
  of about ninety tokens are imposed (:mod:`procreward.bench.imposed`).
* ``procvlm_direct`` - the same prompts, the number read as an expectation.
* ``judge_two_views`` - Qwen3-VL-4B without adapter, 64 frames of 224x224 in two views, by 8 steps.

Everything runs on a CPU with tiny models as well. Neither Gymnasium nor a simulator is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from procreward.bench.clock import measure_ceilings
from procreward.bench.device_cases import DeviceBench, DeviceSettings, say_figures
from procreward.bench.measure import Figures, Goal, Say

__all__ = ["DEVICE_JOBS", "DeviceSettings", "device_goals", "run_device"]

DEVICE_JOBS = ("procvlm_reasoning", "procvlm_direct", "judge_two_views")


def run_device(settings: DeviceSettings, names: Sequence[str], say: Say) -> Figures:
    """Measure the jobs that are named.

    Args:
        settings: How much, where.
        names: Some of :data:`DEVICE_JOBS`.
        say: Takes one line.

    Returns:
        The figures: ``machine_...``, and per job and number of environments
        ``<job>_env<n>_<what>``.
    """
    device = torch.device(settings.device)
    say(_describe(device))
    say("Weights are random, answers are imposed on the heads' logits; all arithmetic is real.")
    say("Baselines read our prompts and preprocessing, which are faster than their own.")
    ceilings = measure_ceilings(device, settings.dtype)
    figures: Figures = {
        "machine_matmul_tflops": ceilings.flops / 1e12,
        "machine_copy_gb_per_s": ceilings.bandwidth / 1e9,
    }
    say_figures(figures, say)
    bench = DeviceBench(settings, ceilings, say)
    procvlm = [name for name in names if name.startswith("procvlm")]
    if procvlm:
        figures |= bench.procvlm(procvlm)
    if "judge_two_views" in names:
        figures |= bench.judge()
    return figures


def _describe(device: torch.device) -> str:
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


_RATIO_GOALS = {
    "procvlm_reasoning_env1_ratio": 15.0,
    "procvlm_reasoning_env16_ratio": 40.0,
    "procvlm_direct_env16_ratio": 100.0,
    "procvlm_reasoning_env16_vs_batched": 5.0,
    "procvlm_direct_env16_vs_batched": 10.0,
    "judge_two_views_env1_ratio": 3.0,
}


def device_goals(settings: DeviceSettings) -> list[Goal]:
    """Return the goals; there are none for tiny models.

    Args:
        settings: What was measured.
    """
    if settings.size != "full":
        return []
    goals = [Goal(figure=name, bound=bound) for name, bound in _RATIO_GOALS.items()]
    for count in settings.environments:
        for job in DEVICE_JOBS:
            name = f"{job}_env{count}"
            goals.append(Goal(figure=f"{name}_vision_prefill_of_matmul_limit", bound=0.4))
            if job == "procvlm_reasoning":
                goals.append(Goal(figure=f"{name}_decode_of_limit", bound=0.5))
    return goals
