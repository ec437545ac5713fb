from __future__ import annotations

import numpy as np
import pytest

from procreward.errors import ConfigError
from procreward.models.nano.corpus import AUX_NAMES, MARGIN_BOX, load_corpus, phrasings
from procreward.models.nano.render import TEST_SEEDS, kinds_for
from procreward.models.nano.sampling import CHUNK_FRAMES, Sampler, augment
from procreward.models.nano.shards import Shard, read_shard, write_shard

KINDS = ("expert", "retry", "drop", "miss", "stall", "backtrack", "idle", "random", "fail")


def make_shard(task: str, seed: int, lengths: tuple[int, ...] = (12, 1, 9)) -> Shard:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    progress = rng.random(total).astype(np.float32)
    return Shard(
        task=task,
        instruction=f"Do {task}.",
        stage_names=("reach it", "move it"),
        kinds=("expert", "miss", "drop")[: len(lengths)],
        seeds=np.arange(seed, seed + len(lengths), dtype=np.int64),
        lengths=np.array(lengths, dtype=np.int64),
        frames=rng.integers(0, 256, (total, 128, 128, 3), dtype=np.uint8),
        steps=np.arange(total, dtype=np.int32),
        progress=progress,
        stage=(progress > 0.5).astype(np.int8),
        success=progress > 0.9,
        state=rng.random((total, 12)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    for task in ("lift", "stack"):
        write_shard(path / f"{task}-0000000-3.npz", make_shard(task, 0))
    write_shard(path / "lift-0900000-3.npz", make_shard("lift", 900_000))
    return path


@pytest.fixture(scope="module")
def corpus(folder):
    return load_corpus(folder, seeds=range(900_000))


def test_shard_round_trip_is_lossless(tmp_path):
    shard = make_shard("lift", 5)
    write_shard(tmp_path / "a.npz", shard)
    back = read_shard(tmp_path / "a.npz")
    for name in ("frames", "progress", "stage", "success", "state", "steps", "lengths", "seeds"):
        np.testing.assert_array_equal(getattr(back, name), getattr(shard, name))
    assert (back.kinds, back.stage_names) == (shard.kinds, shard.stage_names)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_damaged_shard_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"not a shard")
    with pytest.raises(ConfigError, match="must be a shard"):
        read_shard(tmp_path / "a.npz")


def test_corpus_keeps_episodes_apart(corpus):
    assert corpus.names == ("lift", "stack")
    assert corpus.episodes() == [(0, 11), (12, 12), (13, 21), (22, 33), (34, 34), (35, 43)]
    assert corpus.images.shape == (44, MARGIN_BOX[2], MARGIN_BOX[3], 3)
    assert corpus.aux.shape == (44, len(AUX_NAMES))


def test_state_targets_are_standardised_per_task(corpus):
    for task in (0, 1):
        part = corpus.aux[corpus.task == task][:, :-2]
        np.testing.assert_allclose(part.mean(axis=0), 0.0, atol=1e-4)


def test_corpus_without_shards_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match=r"procreward\.models\.nano\.render"):
        load_corpus(tmp_path, seeds=range(10))


def test_validation_seeds_stay_out_of_training(corpus):
    assert max(corpus.seeds) < 900_000


def test_chunks_stay_within_their_episode(corpus):
    sampler = Sampler(corpus, seed=1)
    for _ in range(40):
        batch = sampler.draw_batch(3)
        for chunk in batch.frames.reshape(3, CHUNK_FRAMES):
            assert len(set(corpus.episode[chunk])) == 1


def test_window_labels_are_those_of_its_last_frame(corpus):
    batch = Sampler(corpus, seed=2).draw_batch(6)
    np.testing.assert_array_equal(batch.frames[batch.windows[:, -1]], batch.focus)


def test_some_windows_are_reversed_and_some_get_another_instruction(corpus):
    sampler = Sampler(corpus, seed=3)
    backwards = wrong = 0
    for _ in range(40):
        batch = sampler.draw_batch(4)
        chunks = batch.frames.reshape(4, CHUNK_FRAMES)
        backwards += int((np.diff(chunks, axis=1) < 0).any(axis=1).sum())
        wrong += int((batch.instructed != corpus.task[batch.focus]).sum())
    assert 10 <= backwards <= 60
    assert 30 <= wrong <= 110


def test_same_seed_draws_the_same_batches(corpus):
    one, two = Sampler(corpus, seed=4), Sampler(corpus, seed=4)
    for _ in range(5):
        np.testing.assert_array_equal(one.draw_batch(3).frames, two.draw_batch(3).frames)


def test_augmentation_keeps_repeated_frames_equal():
    image = np.random.default_rng(0).integers(0, 256, (1, 104, 128, 3), dtype=np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(20):
        out = augment(np.repeat(image, 4, axis=0), 1, rng)
        assert out.shape == (4, 96, 128, 3)
        assert (out == out[:1]).all()


def test_training_wordings_include_the_environments_own_first(corpus):
    texts = phrasings(corpus, 0)
    assert texts[0] == "Do lift."
    assert {"lift the cube", "Lift the cube."} <= set(texts)
    assert len(texts) == len(set(texts))


def test_held_out_kinds_are_balanced():
    kinds = kinds_for(range(TEST_SEEDS, TEST_SEEDS + 100), known=KINDS, test=True)
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert min(counts["drop"], counts["miss"], counts["retry"]) >= 10
    assert "fail" not in counts


def test_a_kind_a_task_does_not_know_is_left_out():
    kinds = kinds_for(range(200), known=("expert", "miss"), test=False)
    assert set(kinds) == {"expert", "miss"}
    assert 105 <= kinds.count("expert") <= 130
