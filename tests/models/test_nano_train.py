"""A whole tiny run: render nothing, train on noise for seconds, resume, export, load."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from procreward.errors import ConfigError, ModelNotFoundError
from procreward.models.nano.corpus import load_corpus
from procreward.models.nano.export import export
from procreward.models.nano.judge import JudgeConfig, JudgeSampler, train_judge
from procreward.models.nano.shards import Shard, write_shard
from procreward.models.nano.train import TrainConfig, train


def write_toy_shards(folder):
    rng = np.random.default_rng(0)
    for task, seed in (("lift", 0), ("stack", 0), ("lift", 900_000), ("stack", 900_000)):
        level = np.tile(np.linspace(0, 1, 10, dtype=np.float32), 3)
        frames = np.zeros((30, 128, 128, 3), dtype=np.uint8)
        frames[...] = (40 + 160 * level[:, None, None, None]).astype(np.uint8)
        frames += rng.integers(0, 5, frames.shape, dtype=np.uint8)
        state = np.repeat(level[:, None], 12, axis=1)
        shard = Shard(
            task=task,
            instruction=f"Do {task}.",
            stage_names=("reach it", "move it"),
            kinds=("expert", "miss", "retry"),
            seeds=np.arange(seed, seed + 3, dtype=np.int64),
            lengths=np.full(3, 10, dtype=np.int64),
            frames=frames,
            steps=np.tile(np.arange(0, 40, 4, dtype=np.int32), 3),
            progress=level,
            stage=(level * 2).astype(np.int8),
            success=level >= 1.0,
            state=state,
        )
        write_shard(folder / f"{task}-{seed:07d}-3.npz", shard)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_toy_shards(folder)
    return folder


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    short = dict(frames=4, chunks=1, watch_episodes=1, threads=1)
    train(TrainConfig(data=shards, out=out, minutes_vision=0.01, minutes_joint=0.01, **short))
    torch.set_num_threads(threads)
    return out


def test_run_ends_with_a_checkpoint_and_held_out_figures(run):
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["phase"] == "done"
    assert "held_out/mae_lift" in entries[-1] or "held_out/invalid_lift" in entries[-1]


def test_finished_run_does_nothing_more(run, shards):
    before = (run / "checkpoint.pt").read_bytes()
    train(TrainConfig(data=shards, out=run, threads=1))
    assert (run / "checkpoint.pt").read_bytes() == before


def test_interrupted_run_goes_on_where_it_was(run, shards):
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    content["progress"] = ["joint", 7, 0.3]
    other = run.parent / "resumed"
    other.mkdir()
    torch.save(content, other / "checkpoint.pt")
    (run / "tokenizer").rename(other / "tokenizer")
    config = TrainConfig(
        data=shards, out=other, minutes_joint=0.02, chunks=1, watch_episodes=1, threads=1
    )
    train(config)
    (other / "tokenizer").rename(run / "tokenizer")
    done = torch.load(other / "checkpoint.pt", weights_only=True)
    assert done["progress"][0] == "done"
    old, new = content["modules"]["average"]["steps"], done["modules"]["average"]["steps"]
    assert new > old


def test_export_and_judge(run, shards, tmp_path):
    from procreward.engine.loading import load_model

    export(run, tmp_path)
    judge = tmp_path / "judge"
    train_judge(
        JudgeConfig(data=shards, base=tmp_path, out=judge, minutes=0.01, windows=2, threads=1)
    )
    assert sorted(p.name for p in judge.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    plain, merged = load_model(str(tmp_path)), load_model(str(tmp_path), adapter="judge")
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(plain.model.state_dict()[name], merged.model.state_dict()[name])


def test_export_without_a_run_says_what_to_do(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"procreward\.models\.nano\.train"):
        export(tmp_path, tmp_path / "out")


def test_budget_must_be_positive():
    with pytest.raises(ConfigError, match="`minutes_joint` must be positive, got 0"):
        TrainConfig(minutes_joint=0.0)


def test_judge_labels_follow_success_and_instruction(shards):
    corpus = load_corpus(shards, seeds=range(900_000))
    rows, tasks, labels = JudgeSampler(corpus, seed=0).draw(300)
    ends = rows[:, -1]
    done = corpus.success[ends] & (tasks == corpus.task[ends])
    np.testing.assert_array_equal(labels == 0, done)
    assert 60 <= int(done.sum()) <= 200
