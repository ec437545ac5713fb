"""PPO and SAC on RoboCasa tasks with nano's reward, and the judge of two views, really run.

In the tiny kitchen, with a few hundred steps: that everything fits together, not that it learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from procreward.integrations.sb3 import VecProgressReward, make_progress_vec_env
from procreward.registry import clear_scorers, get_scorer, resolve
from procreward.testing import check_wrapper
from procreward.types import Query, Score
from procreward.wrapper import ProgressReward
from tests.robocasa.conftest import HORIZON, Kitchens
from tests.tiny import quiet_peft, save_tiny, save_tiny_adapter

LEFT, RIGHT = "robot0_agentview_left", "robot0_agentview_right"
NUM_STEPS = 200
SHORT = 40
EVERY_K = 16
NET = {"net_arch": [32, 32]}


class Kept(gym.Wrapper[Any, Any, Any, Any]):
    """A kitchen that other tests go on using."""

    def close(self) -> None:
        pass


def ppo(venv: VecEnv) -> BaseAlgorithm:
    return PPO(
        "MlpPolicy", venv, n_steps=50, batch_size=50, n_epochs=2, policy_kwargs=dict(NET), seed=0
    )


def sac(venv: VecEnv) -> BaseAlgorithm:
    return SAC(
        "MlpPolicy", venv, learning_starts=20, batch_size=32, policy_kwargs=dict(NET), seed=0
    )


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The preset robocasa-judge with all its settings, on a tiny random twin of its model."""
    root = tmp_path_factory.mktemp("twin")
    base = save_tiny(root / "qwen3")
    adapter = save_tiny_adapter(root / "adapter", base)
    return {
        "preset": "robocasa-judge",
        "model": str(base),
        "adapter": str(adapter),
        "dtype": "float32",
    }


@pytest.fixture(autouse=True)
def fewer_models() -> Any:
    with quiet_peft():
        yield
    clear_scorers()


def watched(spec: Any, monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """The queries that a model is going to be asked, which it answers as it does."""
    scorer, queries = get_scorer(resolve(spec)), list[Query]()
    real = scorer.score

    def score(asked: Sequence[Query]) -> list[Score]:
        queries.extend(asked)
        return real(asked)

    monkeypatch.setattr(scorer, "score", score)
    return queries


@pytest.mark.parametrize("learner", [ppo, sac])
@pytest.mark.parametrize(
    "task", ["OpenDrawer", "CloseDrawer", "OpenCabinet", "PickPlaceCounterToCabinet"]
)
def test_trained_with_nano(
    task: str,
    learner: Callable[[VecEnv], BaseAlgorithm],
    kitchens: Kitchens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queries = watched("nano", monkeypatch)
    venv = make_progress_vec_env(
        lambda: Kept(kitchens(task)),
        1,
        seed=0,
        scorer="nano",
        every_k_steps=EVERY_K,
        # What nano makes of kitchens, which it has never seen, is not to the point.
        max_consecutive_failures=10**6,
    )
    model = learner(venv)
    before = [weights.detach().clone() for weights in model.policy.parameters()]
    model.learn(NUM_STEPS)
    episodes = list(model.ep_info_buffer or ())
    assert [episode["l"] for episode in episodes] == [HORIZON] * (NUM_STEPS // HORIZON)
    assert all(np.isfinite(episode["r"]) for episode in episodes)
    after = list(model.policy.parameters())
    assert all(bool(weights.isfinite().all()) for weights in after)
    assert any(not bool((old == new).all()) for old, new in zip(before, after, strict=True))
    # Per episode the reset, every 16th step and the end; of the one begun last only its reset.
    whole, rest = divmod(NUM_STEPS, HORIZON)
    expected = whole * (HORIZON // EVERY_K + 2) + rest // EVERY_K + 1
    rewarded: Any = venv.venv
    assert isinstance(rewarded, VecProgressReward)
    assert rewarded.stats.queries == len(queries) == expected
    assert {tuple(query.frames) for query in queries} == {(RIGHT,)}
    assert {clip.shape for query in queries for clip in query.frames.values()} == {(4, 128, 128, 3)}
    assert all(clip.std() > 10.0 for query in queries for clip in query.frames.values())
    assert {query.instruction for query in queries} <= {
        "Open the left drawer.",
        "Open the right drawer.",
        "Close the left drawer.",
        "Close the right drawer.",
        "Open the cabinet doors.",
        "Pick the apple from the counter and place it in the cabinet.",
    }
    venv.close()


@pytest.mark.parametrize(
    "task", ["OpenDrawer", "CloseDrawer", "OpenCabinet", "PickPlaceCounterToCabinet"]
)
def test_judged_by_right_and_left(
    task: str, judge: dict[str, Any], kitchens: Kitchens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kitchens(task).unwrapped, "horizon", SHORT)
    asked, judged = watched("nano", monkeypatch), watched(judge, monkeypatch)
    env = ProgressReward(
        kitchens(task),
        scorer="nano",
        judge=judge,
        every_k_steps=SHORT // 2,
        max_consecutive_failures=10**6,
    )
    env.reset(seed=0)
    env.action_space.seed(0)
    scores = []
    for step in range(1, SHORT + 1):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite(reward)
        assert info["procreward"]["queried"] == (step in (SHORT // 2, SHORT))
        assert (terminated, truncated) == (False, step == SHORT)
        if info["procreward"]["queried"]:
            assert env.outcome is not None
            scores.append(env.outcome.judge_score)
    assert env.stats.queries == 6
    assert [query.frame_steps[-1] for query in asked] == [0, SHORT // 2, SHORT]
    assert [query.frame_steps[-1] for query in judged] == [0, SHORT // 2, SHORT]
    assert {tuple(query.frames) for query in asked} == {(RIGHT,)}
    assert {frozenset(query.frames) for query in judged} == {frozenset({RIGHT, LEFT})}
    for query in judged:
        assert [clip.shape for clip in query.frames.values()] == [(64, 224, 224, 3)] * 2
        assert not np.array_equal(query.frames[RIGHT], query.frames[LEFT])
    for score, padded in zip(scores, (64 - SHORT // 2 - 1, 64 - SHORT - 1), strict=True):
        assert score is not None
        assert score.text in ("complete", "not complete")
        assert score.complete == (score.text == "complete")
        assert score.details["frames"] == 64.0
        assert score.details["padded_frames"] == padded
        assert {key for key in score.details if "/" in key} == {
            f"nll_{label}/{view}"
            for label in ("complete", "not_complete")
            for view in (LEFT, RIGHT)
        }
        assert np.isfinite(list(score.details.values())).all()


def test_our_own_checks_find_nothing_wrong(kitchens: Kitchens) -> None:
    env = ProgressReward(kitchens("OpenDrawer"), scorer="constant")
    # Rebuilding the stack would make another kitchen; `procreward verify env` does.
    report = check_wrapper(Unmade(env), max_steps=24)
    assert [check.name for check in report.checks if check.skipped] == ["spec_round_trip"]
    assert len(report.checks) > 6


class Unmade(Kept):
    """A stack that does not say how to make it again."""

    @property
    def spec(self) -> None:
        return None


def test_in_a_worker_process(tiny_assets: Path) -> None:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    from tests.robocasa.tiny_kitchen import make_in_worker

    venv = make_progress_vec_env(
        make_in_worker,
        1,
        seed=3,
        env_kwargs={"folder": str(tiny_assets), "task": "OpenCabinet", "horizon": 10},
        vec_env_cls=SubprocVecEnv,
        scorer="constant",
        every_k_steps=4,
    )
    try:
        assert venv.reset().shape == (1, 16)
        dones = [bool(venv.step(np.zeros((1, 12), np.float32))[2][0]) for _ in range(10)]
        assert dones == [False] * 9 + [True]
        rewarded: Any = venv.venv
        assert rewarded.instructions == ("Open the cabinet doors.",)
        assert rewarded.stats.queries == 5
    finally:
        venv.close()
