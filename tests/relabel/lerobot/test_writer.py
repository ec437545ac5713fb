from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from procreward.errors import ConfigError, DatasetError, UnknownNameError
from procreward.relabel.episodes import Source
from procreward.relabel.formats import open_writer
from procreward.relabel.lerobot import LeRobotSource, LeRobotWriter
from tests.relabel.lerobot.made import (
    VERSIONS,
    VIEW,
    column,
    edit_json,
    label,
    make,
    read_json,
    read_lines,
    rewrite,
    snapshot,
)

REWARD, ENV, NOTE = "next.reward", "next.reward_env", "meta/procreward.json"
ADDED = ["progress", "success_prob", "complete"]
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(params=VERSIONS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path, request.param)


def test_rewards_are_in_place(root: Path, tmp_path: Path) -> None:
    """``next.reward[t]`` is the label's ``reward[t]``, of ``(s_t, a_t, s_{t+1})``."""
    old, new = LeRobotSource(root), rewrite(root, tmp_path / "new")
    assert new.episodes == old.episodes
    assert column(new, 1, REWARD) == [100.0, 101, 102, 103, 104, 105, 106, 107, 108]
    assert column(new, 2, REWARD) == [200.0, 201, 202, 203, 204, 205, 206]
    assert column(new, 0, ENV) == column(old, 0, REWARD) == [0.0, 0, 0, 0, 0, 1]
    assert column(new, 0, "progress") == [np.float32(step / 6) for step in range(6)]
    assert column(new, 0, "success_prob") == [np.float32(step / 12) for step in range(6)]
    assert column(new, 0, "complete") == [False, False, False, False, True, True]
    for name in old.info.columns:
        if name != REWARD:
            assert [column(new, index, name) for index in range(3)] == [
                column(old, index, name) for index in range(3)
            ]


def test_features(root: Path, tmp_path: Path) -> None:
    old, new = LeRobotSource(root), rewrite(root, tmp_path / "new")
    names = list(old.info.features)
    names.insert(names.index(REWARD) + 1, ENV)
    assert list(new.info.features) == names + ADDED
    scalar = {"dtype": "float32", "shape": [1], "names": None}
    assert new.info.features[REWARD] == new.info.features[ENV] == scalar
    assert new.info.features["success_prob"] == scalar
    assert new.info.features["complete"] == {"dtype": "bool", "shape": [1], "names": None}
    for key, value in old.info.raw.items():
        if key != "features":
            assert new.info.raw[key] == value
    for files in new.layout.episodes:
        schema = pq.read_schema(files.data)
        assert sorted(schema.names) == sorted(new.info.features)
        assert (schema.field(REWARD).type, schema.field("complete").type) == (
            pa.float32(),
            pa.bool_(),
        )


def test_what_datasets_is_told(tmp_path: Path) -> None:
    """The note by which `datasets` knows a column of pictures names the new columns too."""
    new = rewrite(make(tmp_path, "v2.1"), tmp_path / "new")
    metadata = pq.read_schema(new.layout.episodes[2].data).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert sorted(features) == sorted(new.info.features)
    assert features[VIEW] == {"_type": "Image"}
    assert features["complete"] == {"dtype": "bool", "_type": "Value"}


def test_row_groups(tmp_path: Path) -> None:
    """v3.0: a row group for each episode, even where the source had one for all."""
    root = make(tmp_path, "v3.0")
    path = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path, compression="zstd")
    new = rewrite(root, tmp_path / "new")
    with pq.ParquetFile(new.layout.episodes[0].data) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [6, 9]
    assert {group.column(0).compression for group in groups} == {"ZSTD"}


def test_stats_v21(tmp_path: Path) -> None:
    root = make(tmp_path, "v2.1")
    rewrite(root, tmp_path / "new")
    old = read_lines(root / "meta/episodes_stats.jsonl")
    new = read_lines(tmp_path / "new/meta/episodes_stats.jsonl")
    assert [row["episode_index"] for row in new] == [0, 1, 2]
    assert new[1]["stats"][REWARD] == {
        "min": [100.0],
        "max": [108.0],
        "mean": [104.0],
        "std": [pytest.approx(np.sqrt(60 / 9))],
        "count": [9],
    }
    assert new[1]["stats"]["complete"]["mean"] == [pytest.approx(4 / 9)]
    assert new[1]["stats"]["complete"]["min"] == [False]
    assert new[1]["stats"][ENV] == old[1]["stats"][REWARD]
    assert new[1]["stats"][VIEW] == old[1]["stats"][VIEW]
    # GR00T's: without a count, with two quantiles.
    together = read_json(tmp_path / "new/meta/stats.json")
    rewards = [*range(6), *range(100, 109), *range(200, 207)]
    assert together[REWARD] == {
        "min": [0.0],
        "max": [206.0],
        "mean": [pytest.approx(np.mean(rewards))],
        "std": [pytest.approx(np.std(rewards))],
        "q01": [pytest.approx(np.quantile(rewards, 0.01))],
        "q99": [pytest.approx(np.quantile(rewards, 0.99))],
    }
    before = read_json(root / "meta/stats.json")
    assert together[ENV] == before[REWARD]
    assert together["action"] == before["action"]


def test_stats_v30(tmp_path: Path) -> None:
    root = make(tmp_path, "v3.0")
    rewrite(root, tmp_path / "new")
    old = pq.read_table(root / EPISODES).to_pylist()
    table = pq.read_table(tmp_path / "new" / EPISODES)
    new = table.to_pylist()
    described = {
        name.rpartition("/")[2]: value
        for name, value in new[1].items()
        if name.startswith(f"stats/{REWARD}/")
    }
    assert described == {
        "min": [100.0],
        "max": [108.0],
        "mean": [104.0],
        "std": [pytest.approx(np.sqrt(60 / 9))],
        "count": [9],
        "q01": [pytest.approx(100.08)],
        "q10": [pytest.approx(100.8)],
        "q50": [104.0],
        "q90": [pytest.approx(107.2)],
        "q99": [pytest.approx(107.92)],
    }
    assert new[1][f"stats/{ENV}/max"] == old[1][f"stats/{REWARD}/max"] == [0.0]
    assert table.schema.field("stats/complete/max").type == pa.list_(pa.bool_())
    for name, value in old[2].items():
        if not name.startswith(f"stats/{REWARD}/"):
            assert new[2][name] == value
    together = read_json(tmp_path / "new/meta/stats.json")
    assert (together[REWARD]["max"], together[REWARD]["count"]) == ([206.0], [22])
    assert together[ENV] == read_json(root / "meta/stats.json")[REWARD]


def test_stats_follow_those_that_are_there(tmp_path: Path) -> None:
    """Without ``stats.json`` none is written; without quantiles none are."""
    root = make(tmp_path, "v3.0")
    (root / "meta/stats.json").unlink()
    path = root / EPISODES
    table = pq.read_table(path)
    kept = [name for name in table.column_names if "/q" not in name]
    pq.write_table(table.select(kept), path)
    rewrite(root, tmp_path / "new")
    assert not (tmp_path / "new/meta/stats.json").exists()
    names = pq.read_schema(tmp_path / "new" / EPISODES).names
    assert f"stats/{REWARD}/mean" in names
    assert not [name for name in names if "/q" in name]


def test_the_note(root: Path, tmp_path: Path) -> None:
    rewrite(root, tmp_path / "new")
    assert read_json(tmp_path / "new" / NOTE) == {
        "alignment": "next.reward[t] is the reward of (s_t, a_t, s_{t+1})",
        "env_reward": ENV,
        "columns": [REWARD, *ADDED],
        "source_episodes": [0, 1, 2],
        "videos": None,
        "provenance": {"scorer": "x"},
    }


@pytest.mark.parametrize("images", [True, False])
def test_the_same_bytes(root: Path, images: bool, tmp_path: Path) -> None:
    if not images:
        root = make(tmp_path, root.name[:4], images=False)
    for name in ("one", "two"):
        rewrite(root, tmp_path / name)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_the_source_stays(root: Path, tmp_path: Path) -> None:
    before = snapshot(root)
    rewrite(root, tmp_path / "new")
    assert snapshot(root) == before


def test_rewritten_twice(root: Path, tmp_path: Path) -> None:
    """The environment's reward stays, ours is replaced, and so are our columns."""
    first = rewrite(root, tmp_path / "first")
    again = rewrite(tmp_path / "first", tmp_path / "again", success=False)
    names = [name for name in first.info.features if name not in ADDED]
    assert list(again.info.features) == [*names, "progress", "complete"]
    assert column(again, 0, ENV) == [0.0, 0, 0, 0, 0, 1]
    assert column(again, 2, REWARD) == [200.0, 201, 202, 203, 204, 205, 206]
    stats = read_json(tmp_path / "again/meta/stats.json")
    assert ("success_prob" in stats, stats[ENV]["max"]) == (False, [1.0])


def test_without_a_reward_of_its_own(root: Path, tmp_path: Path) -> None:
    declared = read_json(root / "meta/info.json")["features"]
    del declared[REWARD]
    edit_json(root / "meta/info.json", features=declared)
    for path in sorted((root / "data").glob("*/*.parquet")):
        with pq.ParquetFile(path) as file:
            groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        pq.write_table(pa.concat_tables(groups).drop_columns([REWARD]), path)
    new = rewrite(root, tmp_path / "new")
    assert list(new.info.features)[-4:] == [REWARD, *ADDED]
    assert ENV not in new.info.features
    assert read_json(tmp_path / "new" / NOTE)["env_reward"] is None
    assert column(new, 1, REWARD)[:2] == [100.0, 101.0]


def test_left_out_episodes(root: Path, tmp_path: Path) -> None:
    """The others are numbered anew, with their rows, places, statistics and files."""
    old = LeRobotSource(root)
    new = rewrite(root, tmp_path / "new", only=[1, 2])
    assert [(one.index, one.length) for one in new.episodes] == [(0, 9), (1, 7)]
    assert [one.instruction for one in new.episodes] == ["stack the cubes", "pick up the cube"]
    assert column(new, 0, REWARD)[:2] == [100.0, 101.0]
    assert column(new, 1, "index") == [9, 10, 11, 12, 13, 14, 15]
    assert column(new, 1, "episode_index") == [1] * 7
    assert column(new, 1, "action") == column(old, 2, "action")
    raw = new.info.raw
    assert (raw["total_episodes"], raw["total_frames"], raw["splits"]) == (2, 16, {"train": "0:2"})
    assert read_json(tmp_path / "new" / NOTE)["source_episodes"] == [1, 2]
    stats = read_json(tmp_path / "new/meta/stats.json")
    actions = np.concatenate([column(old, index, "action") for index in (1, 2)])
    assert stats["action"]["mean"] == pytest.approx(actions.mean(0).tolist(), abs=1e-6)
    assert stats["action"]["min"] == pytest.approx(actions.min(0).tolist())
    for frame, before in zip(
        new.frames(new.episodes[1], [VIEW]), old.frames(old.episodes[2], [VIEW]), strict=True
    ):
        assert np.array_equal(frame[VIEW], before[VIEW])


def test_left_out_files_of_v21(tmp_path: Path) -> None:
    root = make(tmp_path, "v2.1", images=False)
    new = rewrite(root, tmp_path / "new", only=[2])
    assert (new.info.raw["total_videos"], new.info.raw["total_chunks"]) == (2, 1)
    [row] = read_lines(tmp_path / "new/meta/episodes_stats.jsonl")
    assert (row["episode_index"], row["stats"]["index"]["max"]) == (0, [6])
    assert read_json(tmp_path / "new/extras/episode_000000/ep_meta.json") == {"layout_id": 2}
    files = {path.name for path in (tmp_path / "new").rglob("episode_*")}
    assert files == {"episode_000000", "episode_000000.parquet", "episode_000000.mp4"}


def test_nan_in_another_column(tmp_path: Path) -> None:
    """A reading that was lost is no reason to refuse what was written."""
    root = make(tmp_path, "v3.0")
    path = root / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    states = np.array(table.column("observation.state").to_pylist(), np.float32)
    states[2, 1] = np.nan
    values = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), states.shape[1])
    place = table.column_names.index("observation.state")
    pq.write_table(table.set_column(place, "observation.state", values), path)
    new = rewrite(root, tmp_path / "new")
    assert np.isnan(column(new, 2, "observation.state")[2][1])


def _write(source: Source, labels: list[Any], staged: Path) -> None:
    staged.mkdir()
    LeRobotWriter({}).write(source, labels, staged, {})


def test_labels_of_another_dataset(root: Path, tmp_path: Path) -> None:
    source = LeRobotSource(root)
    first, second, _ = (label(one) for one in source.episodes)
    moved = replace(first, episode=replace(first.episode, instruction="else"))
    for number, (labels, message) in enumerate(
        [
            ([second, first], r"must be of episodes in order, each once, got \[1, 0\]"),
            ([], r"each once, got \[\]"),
            ([moved], "must be of episodes of"),
            ([replace(first, progress=np.zeros(7))], "`progress` of episode_000000 must have 6"),
            ([replace(first, reward=np.full(6, np.nan))], "must be finite"),
        ]
    ):
        with pytest.raises(DatasetError, match=message):
            _write(source, labels, tmp_path / str(number))


def test_a_feature_in_the_way(root: Path, tmp_path: Path) -> None:
    rewrite(root, tmp_path / "new")
    (tmp_path / "new" / NOTE).unlink()
    source = LeRobotSource(tmp_path / "new")
    labels = [label(one) for one in source.episodes]
    with pytest.raises(DatasetError, match="has a feature 'progress' of its own"):
        _write(source, labels, tmp_path / "again")


def test_a_target_inside_the_source(root: Path) -> None:
    source = LeRobotSource(root)
    with pytest.raises(DatasetError, match="must lie outside the dataset"):
        _write(source, [label(one) for one in source.episodes], root / "new")


def test_options() -> None:
    assert isinstance(open_writer("lerobot-v3.0", {"videos": "copy"}), LeRobotWriter)
    with pytest.raises(UnknownNameError, match="Unknown option 'video'"):
        LeRobotWriter({"video": "copy"})
    with pytest.raises(ConfigError, match="`videos` must be"):
        LeRobotWriter({"videos": "move"})


def _spoil(path: Path, name: str, values: Any) -> None:
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index(name), name, values)
    pq.write_table(table, path, row_group_size=9)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (REWARD, pa.array([np.nan] * 7, pa.float32()), "`next.reward` must be finite"),
        (REWARD, pa.array([0.0] * 7), "`next.reward` must be float, got double"),
        (ENV, pa.array([3.0] * 7, pa.float32()), "`next.reward_env` must be as it was"),
        ("progress", pa.array([1.5] * 7, pa.float32()), r"`progress` must be in \[0, 1\]"),
        ("complete", pa.array([None] * 7, pa.bool_()), "`complete` must be bool"),
        ("task_index", pa.array([1] * 7), "`task_index` must be as it was"),
    ],
)
def test_validate_finds(name: str, values: Any, message: str, root: Path, tmp_path: Path) -> None:
    new = rewrite(root, tmp_path / "new")
    _spoil(new.layout.episodes[2].data, name, values)
    with pytest.raises(DatasetError, match=message):
        LeRobotWriter({}).validate(LeRobotSource(root), new.root)


def test_validate_finds_files(tmp_path: Path) -> None:
    root = make(tmp_path, "v3.0", images=False)
    new = rewrite(root, tmp_path / "new")
    path = new.layout.episodes[0].data
    original = path.read_bytes()
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(DatasetError, match=r"a row group for each episode, \[6, 9\], got \[15\]"):
        LeRobotWriter({}).validate(LeRobotSource(root), new.root)
    path.write_bytes(original)
    video = new.layout.episodes[2].videos[VIEW].path
    video.unlink()
    shutil.copyfile(new.layout.episodes[0].videos[VIEW].path, video)
    with pytest.raises(DatasetError, match=r"file-001.mp4' must be .*, got another"):
        LeRobotWriter({}).validate(LeRobotSource(root), new.root)
