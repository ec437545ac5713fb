from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="Meta-World is an extra")

from procreward.models.nano.shards import read_shard
from procreward.models.nano.tasks import TASKS, get_task
from procreward.models.nano.wander import TASK_NAMES, _Turns, render_wandering, wander_episode

TASK = get_task("button_press")


@pytest.fixture(scope="module")
def env():
    made = gym.make(TASK.env_id, max_episode_steps=30)
    yield made
    made.close()


def test_tasks_are_those_of_meta_world():
    assert {TASKS[name].env_id.split("/")[-1] for name in TASK_NAMES} == {
        "WindowOpen-v0",
        "DrawerClose-v0",
        "ButtonPressTopdown-v0",
    }


@pytest.mark.sim
def test_an_episode_depends_on_its_seed_alone(env):
    first = wander_episode(env, TASK, 3)
    other = wander_episode(env, TASK, 4)
    again = wander_episode(env, TASK, 3)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.progress == again.progress
    assert not np.array_equal(first.frames, other.frames)


@pytest.mark.sim
def test_every_fourth_frame_and_the_last(env):
    episode = wander_episode(env, TASK, 5)
    assert episode.steps == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert episode.kind in ("loose", "wander")


@pytest.mark.sim
def test_shards_are_skipped_when_there(tmp_path):
    settings = {"episodes": 2, "seed_start": 7, "out": tmp_path}
    (path,) = render_wandering(TASK, **settings)
    assert path.name == "button_press-0000007-2.npz"
    shard = read_shard(path)
    assert shard.lengths.tolist() == [26, 26]
    assert shard.seeds.tolist() == [7, 8]
    written = path.stat().st_mtime_ns
    assert render_wandering(TASK, **settings) == [path]
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("seed", range(5))
def test_the_hand_wanders_for_good_after_success(seed):
    turns = _Turns(np.random.default_rng(seed))
    seen = []
    for step in range(200):
        turns.begin_step()
        seen.append(turns.scripted)
        turns.end_step(success=step >= 20)
    # At most 39 steps later, whoever's turn it was.
    assert not any(seen[60:])


def test_turns_change_without_success():
    scripted = set()
    for seed in range(20):
        turns = _Turns(np.random.default_rng(seed))
        for _ in range(200):
            turns.begin_step()
            scripted.add(turns.scripted)
            turns.end_step(success=False)
    assert scripted == {True, False}
