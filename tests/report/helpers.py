"""Episodes with known numbers."""

from __future__ import annotations

from typing import Any

from procreward.report.records import EpisodeRecord, StepTrace


def step_trace(step: int, **changes: Any) -> StepTrace:
    values: dict[str, Any] = {
        "step": step,
        "reward": 0.0,
        "env_reward": 0.0,
        "progress": 0.25 * step,
        "potential": 0.25 * step,
        "queried": True,
        "valid": True,
        "complete": False,
        "success": False,
        "true_progress": 0.25 * step,
        "text": f"<progress>{25 * step}%</progress>",
    }
    return StepTrace(**{**values, **changes})


def episode(policy: str = "expert", number: int = 0, **changes: Any) -> EpisodeRecord:
    """Four steps of a quarter each; the model says complete at step 3, the env at step 4."""
    trace = (
        step_trace(0),
        step_trace(1, reward=0.25),
        step_trace(2, reward=0.25),
        step_trace(3, reward=0.25, complete=True),
        step_trace(4, reward=-0.5, complete=True, success=True, env_reward=1.0),
    )
    values: dict[str, Any] = {
        "env_id": "procreward/Toy-v0",
        "policy": policy,
        "episode": number,
        "seed": 7,
        "instruction": "move the red dot onto the blue square",
        "scorer": "constant",
        "steps": 4,
        "episode_return": 0.25,
        "env_return": 1.0,
        "final_progress": 1.0,
        "complete": True,
        "env_success": True,
        "queries": 5,
        "invalid_answers": 0,
        "terminated": False,
        "truncated": True,
        "trace": trace,
    }
    return EpisodeRecord(**{**values, **changes})
