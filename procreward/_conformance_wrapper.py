"""The points of :func:`procreward.testing.check_wrapper`."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import ClipReward, TimeLimit

from procreward.testing import Report, Skip, Suite
from procreward.wrapper import INFO_KEY, ProgressReward

TYPES: dict[str, type] = {
    "progress": float,
    "potential": float,
    "shaping": float,
    "env_reward": float,
    "queried": bool,
    "complete": bool,
    "age_steps": int,
    "valid": bool,
}
TOLERANCE = 1e-9

OUTSIDE = {
    TimeLimit: "it cuts episodes off unseen, without the final query; put it inside "
    "(`gym.make(..., max_episode_steps=...)` does)",
    ClipReward: "a clipped difference of potentials no longer telescopes and can be farmed; "
    "remove it",
}


@dataclass(slots=True)
class _Step:
    """One step of a rollout, the reset first."""

    reward: Any
    ended: bool
    terminated: bool
    ours: dict[str, Any]


def run_wrapper_suite(env: gym.Env[Any, Any], *, max_steps: int, seed: int) -> Report:
    """Run every point; see :func:`procreward.testing.check_wrapper`."""
    suite = Suite(str(env))
    outside, found = _find(env)
    if not suite.run(
        "has_wrapper",
        "there is one ProgressReward in the stack",
        lambda: "" if found is not None else "none was found.",
    ):
        return suite.report()
    assert found is not None
    suite.run(
        "stack_order",
        "no TimeLimit and no ClipReward is around the ProgressReward",
        lambda: _stack_order(outside),
    )
    suite.run(
        "spec_round_trip",
        "`gym.make(env.spec)` builds the same stack, and the spec can be written as JSON",
        lambda: _spec_round_trip(env),
    )
    rollouts: list[list[_Step]] = []
    if suite.run(
        "runs",
        "an episode can be rolled out with random actions",
        lambda: _roll_out_twice(found, rollouts, max_steps, seed),
    ):
        _rollout_points(suite, found, rollouts)
    return suite.report()


def _rollout_points(suite: Suite, env: ProgressReward[Any, Any], runs: list[list[_Step]]) -> None:
    steps = runs[0]
    suite.run(
        "reward_is_float",
        "the reward is a Python float, and finite",
        lambda: _reward_is_float(steps),
    )
    suite.run(
        "info_constant",
        f"`info[{INFO_KEY!r}]` has the same keys and types at every step, and only finite numbers",
        lambda: _info_constant(steps),
    )
    suite.run(
        "reward_adds_up",
        "reward = env_reward_weight * env_reward + shaping, plus the success bonus at most once",
        lambda: _reward_adds_up(env, steps),
    )
    suite.run(
        "telescopes",
        "the shaping rewards add up to what the first and the last potential say",
        lambda: _telescopes(env, steps),
    )
    suite.run(
        "queries_on_schedule",
        "the scorer is asked at the reset, every `every_k_steps` steps and at the end",
        lambda: _on_schedule(env, steps),
    )
    suite.run(
        "deterministic",
        "two rollouts with one seed get the same rewards",
        lambda: _deterministic(runs),
    )


def _find(
    env: gym.Env[Any, Any],
) -> tuple[list[gym.Env[Any, Any]], ProgressReward[Any, Any] | None]:
    """The wrappers around the ProgressReward, outermost first, and itself."""
    outside: list[gym.Env[Any, Any]] = []
    layer = env
    while not isinstance(layer, ProgressReward):
        outside.append(layer)
        if not isinstance(layer, gym.Wrapper):
            return outside, None
        layer = layer.env
    return outside, layer


def _stack_order(outside: Sequence[gym.Env[Any, Any]]) -> str:
    for layer in outside:
        for kind, why in OUTSIDE.items():
            if isinstance(layer, kind):
                return f"{kind.__name__} is around the ProgressReward: {why}."
    return ""


def _spec_round_trip(env: gym.Env[Any, Any]) -> str:
    spec = env.spec
    if spec is None:
        raise Skip("the environment was not made by gym.make, so it has no spec.")
    json.loads(spec.to_json())
    made = gym.make(spec)
    try:
        if made.spec != spec:
            return f"the rebuilt environment has another spec: {made.spec}"
        # A TimeLimit is always rebuilt innermost, so only the rest has to be in the same order.
        before, after = _names(env), _names(made)
        return "" if before == after else f"{before} is rebuilt as {after}."
    finally:
        made.close()


def _names(env: gym.Env[Any, Any]) -> list[str]:
    names = []
    while isinstance(env, gym.Wrapper):
        names.append(type(env).__name__)
        env = env.env
    return names


def _roll_out_twice(
    env: ProgressReward[Any, Any], rollouts: list[list[_Step]], max_steps: int, seed: int
) -> str:
    rollouts += [_roll_out(env, max_steps, seed) for _ in range(2)]
    return ""


def _roll_out(env: ProgressReward[Any, Any], max_steps: int, seed: int) -> list[_Step]:
    # A copy, so that the environment's own generator stays where it is.
    actions = copy.deepcopy(env.action_space)
    actions.seed(seed)
    _, info = env.reset(seed=seed)
    steps = [_Step(0.0, False, False, dict(info[INFO_KEY]))]
    while len(steps) <= max_steps and not steps[-1].ended:
        _, reward, terminated, truncated, info = env.step(actions.sample())
        steps.append(_Step(reward, terminated or truncated, terminated, dict(info[INFO_KEY])))
    return steps


def _reward_is_float(steps: list[_Step]) -> str:
    for number, step in enumerate(steps):
        if type(step.reward) is not float or not math.isfinite(step.reward):
            return f"the reward of step {number} is {step.reward!r}."
    return ""


def _info_constant(steps: list[_Step]) -> str:
    for number, step in enumerate(steps):
        types = {name: type(value) for name, value in step.ours.items()}
        if types != TYPES:
            return f"step {number} has {types}, expected {TYPES}."
        for name, value in step.ours.items():
            if not math.isfinite(value):
                return f"{name!r} of step {number} is {value!r}."
    return ""


def _reward_adds_up(env: ProgressReward[Any, Any], steps: list[_Step]) -> str:
    config = env.config
    bonuses = 0
    for number, step in enumerate(steps[1:], start=1):
        plain = step.ours["shaping"] + config.env_reward_weight * step.ours["env_reward"]
        if abs(step.reward - plain) <= TOLERANCE:
            continue
        bonuses += 1
        if abs(step.reward - plain - config.success_bonus) > TOLERANCE or bonuses > 1:
            return f"step {number} paid {step.reward}, expected {plain}."
    return ""


def _telescopes(env: ProgressReward[Any, Any], steps: list[_Step]) -> str:
    config = env.config
    known = next((i for i, step in enumerate(steps) if step.ours["valid"]), None)
    if known is None:
        raise Skip("the scorer answered no query.")
    phis = [step.ours["potential"] for step in steps[known:]]
    shapings = [step.ours["shaping"] for step in steps[known + 1 :]]
    scale, gamma = config.scale, config.gamma
    if config.shaping == "pbrs":
        total = sum(gamma**t * shaping for t, shaping in enumerate(shapings))
        end = 0.0 if steps[-1].terminated else phis[-1]
        expected = scale * (gamma ** len(shapings) * end - phis[0]) if shapings else 0.0
    elif config.shaping == "delta":
        total, expected = sum(shapings), scale * (phis[-1] - phis[0])
    elif config.shaping == "raw":
        total, expected = sum(shapings), scale * sum(phis[1:])
    else:
        total, expected = sum(shapings), 0.0
    if abs(total - expected) > TOLERANCE * max(1.0, scale) * len(steps):
        return f"the sum over {len(shapings)} steps is {total}, expected {expected}."
    return ""


def _on_schedule(env: ProgressReward[Any, Any], steps: list[_Step]) -> str:
    if env.config.skip_unchanged is not None:
        raise Skip("`skip_unchanged` leaves queries out.")
    known = False
    for number, step in enumerate(steps):
        # Completion ends an episode at a query, so an end is a query in any case.
        due = number % env.config.every_k_steps == 0 or step.ended or not known
        if step.ours["queried"] != due:
            return f"step {number} was {'not ' if due else ''}asked about."
        known = known or bool(step.ours["queried"] and step.ours["valid"])
    return ""


def _deterministic(runs: list[list[_Step]]) -> str:
    first, second = ([(step.reward, step.ours) for step in run] for run in runs)
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return (
                f"step {number} differed: {one} and {other}. Either the environment ignores its "
                "seed (`check_env` tells) or the scorer is not deterministic (`check_scorer`)."
            )
    lengths = len(first), len(second)
    return "" if lengths[0] == lengths[1] else f"the rollouts had {lengths} steps."
