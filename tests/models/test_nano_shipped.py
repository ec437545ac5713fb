"""The shipped weights, through the doors that users take: real model, real simulators."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from procreward import CompletionChecker, ProgressReward
from procreward.engine import Clip, Prompt
from procreward.engine.fast import FastEngine
from procreward.engine.loading import load_model
from procreward.engine.reference import ReferenceEngine
from procreward.envs.experts import make_expert
from procreward.errors import FrameError
from procreward.models.nano import WEIGHTS
from procreward.rollout import RandomPolicy
from procreward.scorers.completion_judge import LABELS
from procreward.scorers.procvlm_text import STOP, procvlm_prompt

pytestmark = pytest.mark.sim

LIFT, DRAWER = "procreward/Lift-v0", "procreward/DrawerClose-v0"
TEXT = "Lift the red cube off the table."


@cache
def episode(env_id: str, kind: str) -> tuple[list[dict[str, Any]], np.ndarray, str]:
    """Roll out a policy; returns our info of every step, the last window and the last answer."""
    env = ProgressReward(
        gym.make(f"procreward.envs:{env_id}", render_mode="rgb_array"),
        scorer="nano",
        judge="nano-judge",
    )
    policy = RandomPolicy(3) if kind == "random" else make_expert(env_id, kind, 3)
    _, info = env.reset(seed=3)
    policy.reset(env)
    trace, frames, done = [info["procreward"]], [env.render()], False
    while not done:
        _, _, terminated, truncated, info = env.step(policy.act(env))
        done = terminated or truncated
        trace.append({**info["procreward"], "success": info["success"]})
        frames.append(env.render())
    assert env.last_score is not None
    text = env.last_score.text
    env.close()
    return trace, np.stack(frames[-13::4]), text


@pytest.mark.parametrize("env_id", [LIFT, DRAWER])
def test_an_expert_reads_as_done_and_the_judge_says_so(env_id: str) -> None:
    trace, _, text = episode(env_id, "expert")
    assert trace[-1]["success"]
    assert trace[0]["progress"] < 0.3
    assert trace[-1]["progress"] > 0.9
    assert trace[-1]["complete"]
    assert text.startswith("The task is finished")
    assert all(entry["valid"] for entry in trace)


def test_random_actions_do_not_read_as_done() -> None:
    trace, _, text = episode(LIFT, "random")
    assert not trace[-1]["success"]
    assert max(entry["progress"] for entry in trace) < 0.7
    assert not any(entry["complete"] for entry in trace)
    assert text.startswith("The following actions are required:")


def test_checker_agrees_with_the_last_picture() -> None:
    _, done, _ = episode(LIFT, "expert")
    _, undone, _ = episode(LIFT, "random")
    for frames, complete in ((done, True), (undone, False)):
        checker = CompletionChecker("nano-judge", TEXT, frame_stride_frames=1)
        for frame in frames:
            checker.push(frame)
        assert checker.verdict().complete is complete


def test_another_tasks_instruction_reads_low_while_the_task_runs() -> None:
    _, frames, _ = episode(LIFT, "fail")
    for instruction, low in ((TEXT, False), ("Push the drawer closed.", True)):
        checker = CompletionChecker("nano", instruction, frame_stride_frames=1)
        for frame in frames:
            checker.push(frame)
        progress = checker.verdict().progress
        assert progress is not None
        assert (progress < 0.1) is low


def test_engines_give_the_same_answers_with_real_weights_and_frames() -> None:
    loaded = load_model("nano")
    prompts = [
        Prompt(parts=(Clip(frames=episode(LIFT, kind)[1]), procvlm_prompt(TEXT)))
        for kind in ("expert", "random")
    ]
    engines = [ReferenceEngine(loaded), FastEngine(loaded, exact=True), FastEngine(loaded)]
    reference, *others = (
        engine.generate(prompts, max_new_tokens=48, stop=(STOP,)) for engine in engines
    )
    assert len({answer.text for answer in reference}) == 2
    assert all(answers == reference for answers in others)
    reference_nll, *other_nlls = (engine.label_nll(prompts, LABELS).nll for engine in engines)
    for nll in other_nlls:
        np.testing.assert_allclose(nll, reference_nll, atol=1e-4)


def test_frames_of_another_size_are_refused() -> None:
    checker = CompletionChecker("nano", TEXT)
    with pytest.raises(FrameError, match="128x128"):
        checker.push(np.full((64, 64, 3), 9, np.uint8))


def test_weights_are_small_and_safe() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}
