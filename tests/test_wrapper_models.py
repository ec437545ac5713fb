"""The wrapper and the checker with real models behind them: nano, and a server that fails."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from procreward import CompletionChecker, ProgressReward
from procreward.errors import ScorerFailedError
from procreward.registry import get_scorer, resolve
from procreward.types import Query
from tests.helpers import CounterEnv, play
from tests.serving import Reply, completion, serving

HELD = threading.Event()
"""Never set: who waits for it hangs."""


def served(url: str, **settings: Any) -> dict[str, Any]:
    server = {"base_url": url, "model": "m", "timeout_s": 10.0, "max_retries": 0, **settings}
    return {"name": "procvlm", "options": {"engine": "served", "server": server}}


@pytest.mark.parametrize(
    ("fails", "settings", "reason"),
    [
        (Reply(wait=HELD), {"timeout_s": 2.0}, "timeout"),
        (Reply(status=500, body=b"{}"), {}, "http_500"),
        (Reply(body=b"<html>"), {}, "malformed"),
        (completion("I cannot tell."), {}, "unparsable"),
        (completion("<progress>4", "length"), {}, "truncated"),
    ],
    ids=["hangs", "fails", "malformed", "no number", "cut off"],
)
def test_a_server_that_fails_holds_the_potential_and_is_counted(
    fails: Reply, settings: dict[str, Any], reason: str
) -> None:
    replies = itertools.chain([completion("<progress>40%</progress>")] * 2, itertools.repeat(fails))
    with serving(lambda request: next(replies)) as server:
        env = ProgressReward(
            CounterEnv(9),
            scorer=served(server.url, **settings),
            every_k_steps=1,
            gamma=1.0,
            max_consecutive_failures=3,
        )
        trace = play(env, 3)
        assert [step["potential"] for step in trace] == [0.4] * 4
        assert [step["valid"] for step in trace] == [True, True, False, False]
        assert [step["reward"] for step in trace] == [0.0] * 4
        assert (env.stats.queries, env.stats.failures) == (4, 2)
        assert env.stats.invalid_reasons == {reason: 2}
        with pytest.raises(ScorerFailedError, match=rf"the last: {reason}\b.*[^.]\. Check"):
            env.step(0)


def test_numbers_out_of_range_are_clamped_and_counted() -> None:
    answers = itertools.cycle(["<progress>140%</progress>", "<progress>50%</progress>"])
    with serving(lambda request: completion(next(answers))) as server:
        env = ProgressReward(CounterEnv(3), scorer=served(server.url), every_k_steps=1)
        trace = play(env)
    assert [step["progress"] for step in trace] == [1.0, 0.5, 1.0, 0.5]
    assert (env.stats.clamped, env.stats.failures) == (2, 0)


def test_an_unanswerable_picture_is_no_number() -> None:
    answers = itertools.chain(["50%"], itertools.repeat("n/a"))
    with serving(lambda request: completion(next(answers))) as server:
        spec = served(server.url)
        spec["name"] = "progresslm"
        spec["options"] |= {"demo": ["reach", "lift"], "think": False}
        env = ProgressReward(CounterEnv(2), scorer=spec, every_k_steps=1)
        trace = play(env)
    assert [(step["progress"], step["valid"]) for step in trace] == [
        (0.5, True),
        (0.5, False),
        (0.5, False),
    ]
    assert env.stats.invalid_reasons == {"n/a": 2}


NANO = {"preset": "nano", "options": {"batch_size": 7}}
NANO_JUDGE = {"preset": "nano-judge", "options": {"batch_size": 7}}
"""Engines that no other test has asked."""


def kept(spec: dict[str, Any]) -> dict[str, set[str]]:
    """The streams of which an engine keeps anything."""
    engine: Any = get_scorer(resolve(spec))
    engine = engine._engine
    return {
        "frames": set(engine._frames._store._streams),
        "prompts": {name.partition("/")[0] for name in engine._recall._store._streams},
        "answers": {name.partition("/")[0] for name in engine._drafts._last},
    }


def test_engines_keep_nothing_of_ended_episodes() -> None:
    env = gym.make("procreward.envs:procreward/Toy-v0", width=128, height=128)
    env = ProgressReward(TimeLimit(env, 4), scorer=NANO, judge=NANO_JUDGE, every_k_steps=2)
    seen: set[str] = set()
    for seed in range(4):
        env.reset(seed=seed)
        (stream,) = kept(NANO)["frames"]
        assert stream not in seen
        seen.add(stream)
        for _ in range(4):
            env.step(env.action_space.sample())
        assert kept(NANO) == {"frames": {stream}, "prompts": {stream}, "answers": {stream}}
        assert kept(NANO_JUDGE) == {"frames": {stream}, "prompts": set(), "answers": set()}
    env.close()
    checker = CompletionChecker(NANO_JUDGE, "lift the cube")
    checker.push(env.unwrapped.render())  # type: ignore[arg-type]  # on purpose
    assert len(kept(NANO_JUDGE)["frames"]) == 1
    checker.close()
    for spec in (NANO, NANO_JUDGE):
        assert kept(spec) == {"frames": set(), "prompts": set(), "answers": set()}


def test_scorer_and_judge_on_one_base_answer_as_two_models_do() -> None:
    beside = [
        get_scorer(resolve({"preset": name, "merge_adapter": False}))
        for name in ("nano", "nano-judge")
    ]
    scorer, judge = (dict(one._engine._loaded.model.named_parameters()) for one in beside)  # type: ignore[attr-defined]  # known
    base = {weight.data_ptr() for weight in scorer.values()}
    own = [name for name, weight in judge.items() if weight.data_ptr() not in base]
    assert own
    assert all("lora_" in name for name in own)
    merged = get_scorer(resolve("nano-judge"))
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 128, 128, 3), np.uint8)
    queries = [
        Query(frames={"front": clip}, instruction="lift the cube", frame_steps=(0, 4, 8, 12))
        for clip in frames
    ]
    for one, other in zip(beside[1].score(queries), merged.score(queries), strict=True):
        assert one.success_prob == pytest.approx(other.success_prob, abs=1e-4)
        assert dict(one.details) == pytest.approx(dict(other.details), abs=1e-4)
    alone = get_scorer(resolve("nano")).score(queries)
    assert [score.text for score in beside[0].score(queries)] == [score.text for score in alone]
