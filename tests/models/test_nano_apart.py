from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="Meta-World is an extra")

from procreward.models.nano.apart import (
    SLIDES,
    _Part,
    _Places,
    _share,
    apart_episode,
    render_apart,
)
from procreward.models.nano.shards import read_shard
from procreward.models.nano.tasks import get_task


@pytest.fixture(scope="module", params=sorted(SLIDES))
def scene(request):
    task = get_task(request.param)
    env = gym.make(task.env_id)
    yield task, env
    env.close()


@pytest.mark.sim
def test_a_part_put_on_its_way_reads_as_moved(scene):
    task, env = scene
    fractions = []
    for share in (0.0, 0.5, 1.0):
        env.reset(seed=3)
        _Part(env.unwrapped, SLIDES[task.name], share).put()
        fractions.append(env.unwrapped.privileged_state()["fraction"])
    assert fractions[0] == pytest.approx(0.0, abs=0.02)
    assert 0.3 < fractions[1] < 0.7
    assert fractions[2] > 0.85


@pytest.mark.sim
def test_a_part_stays_where_it_was_put(scene):
    task, env = scene
    env.reset(seed=3)
    bare = env.unwrapped
    part = _Part(bare, SLIDES[task.name], 0.5)
    part.put()
    before = bare.privileged_state()["fraction"]
    for _ in range(30):
        bare.step(np.zeros(4, np.float32))
        part.hold()
    assert bare.privileged_state()["fraction"] == pytest.approx(before, abs=0.02)


@pytest.mark.sim
def test_places_do_not_depend_on_where_the_part_is(scene):
    task, env = scene
    drawn = []
    for share in (0.0, 1.0):
        env.reset(seed=3)
        places = _Places(env.unwrapped, np.random.default_rng(0))
        _Part(env.unwrapped, SLIDES[task.name], share).put()
        drawn.append([places() for _ in range(20)])
    np.testing.assert_array_equal(*drawn)


@pytest.mark.sim
def test_an_episode_depends_on_its_seed_alone(scene):
    task, env = scene
    first, other, again = (apart_episode(env, task, seed) for seed in (3, 4, 3))
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.progress == again.progress
    assert not np.array_equal(first.frames, other.frames)
    assert first.kind == "apart"
    assert first.steps == list(range(0, 84, 4))


@pytest.mark.sim
def test_a_shard_holds_parts_that_no_hand_has_moved(tmp_path):
    (path,) = render_apart(get_task("window_open"), episodes=8, seed_start=5, out=tmp_path)
    shard = read_shard(path)
    assert path.name == "window_open-0000005-8.npz"
    assert shard.seeds.tolist() == list(range(5, 13))
    begins = shard.progress[shard.starts()]
    assert begins.min() < 0.3
    assert begins.max() > 0.5


def test_shares_are_often_untouched_and_often_done():
    rng = np.random.default_rng(0)
    shares = np.array([_share(rng) for _ in range(2000)])
    assert shares.min() == 0.0
    assert shares.max() == 1.0
    assert np.mean(shares == 0.0) == pytest.approx(0.40, abs=0.04)
    # Of those drawn as done, two in five reach the stop.
    assert np.mean(shares == 1.0) == pytest.approx(0.06, abs=0.02)
