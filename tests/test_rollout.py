from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from procreward.errors import FrameError, UnsupportedEnvError
from procreward.rollout import RandomPolicy, Rollout, run_episode
from procreward.types import Score
from procreward.wrapper import ProgressReward
from tests.helpers import Recorder


class Ladder(gym.Env[Any, Any]):
    """Position counts the steps; its picture is as bright as the position is high."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    instruction = "climb to the top"

    def __init__(self, render_mode: str | None = "rgb_array", *, ends_at: int = 99) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(0.0, 100.0, (1,), np.float64)
        self.action_space = gym.spaces.Discrete(1000)
        self.position = 0
        self.ends_at = ends_at

    def _observation(self) -> Any:
        return np.array([float(self.position)])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.position = 0
        return self._observation(), {"success": False}

    def step(self, action: Any) -> Any:
        self.position += 1
        ended = self.position >= self.ends_at
        return self._observation(), 2.0, ended, False, {"success": self.position in (3, 4)}

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        picture = np.zeros((6, 8, 3), dtype=np.uint8)
        picture[:3] = 10 + self.position
        return picture

    def privileged_progress(self) -> float:
        return self.position / 10


class Blind(Ladder):
    """Shows the scorer a picture in its observation, and a viewer none."""

    def __init__(self) -> None:
        super().__init__(render_mode=None)
        image = gym.spaces.Box(0, 255, (6, 8, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({"image": image})

    def _observation(self) -> Any:
        return {"image": np.full((6, 8, 3), 9, np.uint8)}


def roll(
    progress: list[float | None], *, steps: int = 5, env: Ladder | None = None, **settings: Any
) -> Rollout:
    wrapped = ProgressReward(
        TimeLimit(env or Ladder(), steps),
        scorer={"name": "scripted", "options": {"progress": progress}},
        **{"every_k_steps": 2, "gamma": 1.0, **settings},
    )
    return run_episode(
        wrapped,
        RandomPolicy(0),
        seed=11,
        env_id="Ladder-v0",
        policy_name="random",
        scorer_name="scripted",
        episode=2,
    )


def test_every_figure_of_a_truncated_episode() -> None:
    record = roll([0.0, 9.9, 0.25, 9.9, 1.0, 0.5], env_reward_weight=0.0).record
    assert (record.env_id, record.policy, record.episode, record.seed) == (
        "Ladder-v0",
        "random",
        2,
        11,
    )
    assert (record.instruction, record.scorer) == ("climb to the top", "scripted")
    assert (record.steps, record.queries, record.invalid_answers) == (5, 4, 0)
    assert (record.episode_return, record.env_return) == (0.5, 10.0)
    assert record.final_progress == 0.5
    assert (record.terminated, record.truncated) == (False, True)
    assert (record.env_success, record.final_success, record.success_step) == (True, False, 3)
    assert not record.complete


def test_the_trace_step_by_step() -> None:
    trace = roll([0.0, 9.9, 0.25, 9.9, 1.0, 0.5]).record.trace
    assert [entry.step for entry in trace] == [0, 1, 2, 3, 4, 5]
    assert [entry.reward for entry in trace] == [0.0, 0.0, 0.25, 0.0, 0.75, -0.5]
    assert [entry.env_reward for entry in trace] == [0.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert [entry.progress for entry in trace] == [0.0, 0.0, 0.25, 0.25, 1.0, 0.5]
    assert [entry.queried for entry in trace] == [True, False, True, False, True, True]
    assert [entry.success for entry in trace] == [False, False, False, True, True, False]
    assert [entry.true_progress for entry in trace] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [entry.text for entry in trace] == [
        "<progress>0%</progress>",
        "",
        "<progress>25%</progress>",
        "",
        "<progress>100%</progress>",
        "<progress>50%</progress>",
    ]


def test_invalid_answers_are_counted_and_leave_progress_unknown_until_the_first_valid() -> None:
    record = roll([None, None, 0.5, 9.9, None, 0.75]).record
    # The query at the reset failed, so the next step asks again.
    assert [entry.queried for entry in record.trace] == [True, True, True, False, True, True]
    assert [entry.valid for entry in record.trace] == [False, False, True, True, False, True]
    assert [entry.progress for entry in record.trace] == [None, None, 0.5, 0.5, 0.5, 0.75]
    assert (record.queries, record.invalid_answers) == (5, 3)
    assert (record.final_progress, record.episode_return) == (0.75, 0.25)


def test_why_a_query_failed_is_kept_with_what_was_said() -> None:
    truncated = Score(reason="truncated", text="The following")
    scorer = Recorder([0.5, truncated, RuntimeError("down"), 0.25, 9.9, 1.0])
    wrapped = ProgressReward(TimeLimit(Ladder(), 3), scorer=scorer, every_k_steps=1)
    names = {"env_id": "Ladder-v0", "policy_name": "random", "scorer_name": "recorder"}
    trace = run_episode(wrapped, RandomPolicy(0), seed=11, **names).record.trace  # type: ignore[arg-type]  # from a mapping
    assert [entry.reason for entry in trace] == ["", "truncated", "RuntimeError", ""]
    said = ["<progress>50%</progress>", "The following", "", "<progress>25%</progress>"]
    assert [entry.text for entry in trace] == said


def test_a_reward_that_is_not_finite_is_the_environment_s_fault() -> None:
    class Broken(Ladder):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, float("nan") if self.position == 2 else 1.0, *rest

    with pytest.raises(UnsupportedEnvError, match="must pay finite rewards, got nan at step 2 of"):
        roll([0.5], env=Broken())


def test_no_reading_at_all_is_none_not_zero() -> None:
    record = roll([None]).record
    assert record.final_progress is None
    assert record.invalid_answers == record.queries == 6


def test_completion_can_end_the_episode() -> None:
    record = roll([1.0], on_complete="terminate", steps=9).record
    assert (record.steps, record.complete, record.complete_step) == (2, True, 2)
    assert (record.terminated, record.truncated) == (True, False)
    assert record.trace[-1].potential == 0.0


def test_a_terminal_state_ends_the_episode() -> None:
    record = roll([0.5], env=Ladder(ends_at=3)).record
    assert (record.steps, record.terminated, record.truncated) == (3, True, False)


def test_one_picture_a_step_that_is_a_picture_of_that_step() -> None:
    rollout = roll([0.5])
    assert rollout.frame_steps == (0, 1, 2, 3, 4, 5)
    assert [int(frame[0, 0, 0]) for frame in rollout.frames] == [10, 11, 12, 13, 14, 15]
    assert {frame.shape for frame in rollout.frames} == {(6, 8, 3)}


def test_pictures_are_kept_apart_when_the_environment_draws_into_one_buffer() -> None:
    class Reuses(Ladder):
        picture = np.zeros((6, 8, 3), dtype=np.uint8)

        def render(self) -> Any:
            self.picture[:3] = 10 + self.position
            return self.picture

    frames = roll([0.5], env=Reuses()).frames
    assert [int(frame[0, 0, 0]) for frame in frames] == [10, 11, 12, 13, 14, 15]


def test_without_pictures_nothing_is_rendered() -> None:
    wrapped = ProgressReward(TimeLimit(Ladder(), 3), scorer="constant")
    rollout = run_episode(
        wrapped,
        RandomPolicy(0),
        seed=0,
        env_id="Ladder-v0",
        policy_name="random",
        scorer_name="constant",
        record_frames=False,
    )
    assert (rollout.frames, rollout.frame_steps) == ((), ())


def test_steps_are_reported_in_order() -> None:
    seen: list[int] = []
    run_episode(
        ProgressReward(TimeLimit(Ladder(), 4), scorer="constant"),
        RandomPolicy(0),
        seed=0,
        env_id="Ladder-v0",
        policy_name="random",
        scorer_name="constant",
        on_step=seen.append,
    )
    assert seen == [1, 2, 3, 4]


def test_an_environment_without_our_wrapper_is_refused() -> None:
    with pytest.raises(UnsupportedEnvError, match="must have a ProgressReward wrapper"):
        run_episode(
            TimeLimit(Ladder(), 4),
            RandomPolicy(0),
            seed=0,
            env_id="Ladder-v0",
            policy_name="random",
            scorer_name="constant",
        )


def test_an_environment_that_shows_nothing_is_refused() -> None:
    with pytest.raises(FrameError, match=r"got None; make the environment with render_mode"):
        run_episode(
            ProgressReward(TimeLimit(Blind(), 4), scorer="constant", views="image"),
            RandomPolicy(0),
            seed=0,
            env_id="Blind-v0",
            policy_name="random",
            scorer_name="constant",
        )


def test_random_actions_repeat_with_the_seed_and_leave_the_space_alone() -> None:
    env = Ladder()
    env.action_space.seed(5)
    expected = env.action_space.sample()
    env.action_space.seed(5)
    policies = [RandomPolicy(3), RandomPolicy(3), RandomPolicy(4)]
    actions = [[int(policy.act(env)) for _ in range(5)] for policy in policies]
    assert actions[0] == actions[1] != actions[2]
    policies[0].reset(env)
    assert int(policies[0].act(env)) == actions[0][0]
    assert env.action_space.sample() == expected
