from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from procreward.errors import UnknownNameError
from procreward.relabel.episodes import Episode
from procreward.relabel.formats import detect, open_source
from procreward.relabel.lerobot import LeRobotSource
from scripts.sample_data.lerobot import write_v30
from tests.relabel.lerobot.made import (
    HAND,
    SIZE,
    VERSIONS,
    VIEW,
    drawn,
    edit_json,
    make,
    read_json,
    read_lines,
)


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes(version: str, tmp_path: Path) -> None:
    root = make(tmp_path, version, images=False)
    assert detect(root) == f"lerobot-{version}"
    source = open_source(root)
    assert isinstance(source, LeRobotSource)
    assert (source.format, source.root) == (f"lerobot-{version}", root)
    assert source.views == (VIEW, HAND)
    assert source.episodes == (
        Episode(
            index=0,
            name="episode_000000",
            length=6,
            frames=6,
            instruction="pick up the cube",
            terminated=True,
            fps=20.0,
        ),
        Episode(
            index=1,
            name="episode_000001",
            length=9,
            frames=9,
            instruction="stack the cubes",
            terminated=False,
            fps=20.0,
        ),
        Episode(
            index=2,
            name="episode_000002",
            length=7,
            frames=7,
            instruction="pick up the cube",
            terminated=True,
            fps=20.0,
        ),
    )
    assert [source.first_index(episode) for episode in source.episodes] == [0, 6, 15]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("images", [True, False])
def test_pictures(version: str, images: bool, tmp_path: Path) -> None:
    """Each picture is the one that was drawn for its step: nearer to it than to any other."""
    source = LeRobotSource(make(tmp_path, version, images=images))
    for episode, truth in zip(source.episodes, drawn(), strict=True):
        frames = list(source.frames(episode, (VIEW, HAND)))
        assert len(frames) == episode.frames
        for view in (VIEW, HAND):
            wanted = truth.frames[view.rpartition(".")[2]][:-1].astype(int)
            got = np.stack([frame[view] for frame in frames])
            assert (got.dtype, got.shape) == (np.uint8, (episode.length, SIZE, SIZE, 3))
            if images:
                assert np.array_equal(got, wanted)
            else:
                assert _nearest(got, wanted) == _nearest(wanted, wanted)
                assert np.abs(got - wanted).mean() < 4


def _nearest(pictures: np.ndarray, truth: np.ndarray) -> list[int]:
    return [int(np.abs(truth - picture).mean(axis=(1, 2, 3)).argmin()) for picture in pictures]


def test_picture_paths(tmp_path: Path) -> None:
    source = LeRobotSource(make(tmp_path, "v2.1", images=False))
    assert source.picture_paths(source.episodes[2]) == {
        VIEW: f"videos/chunk-001/{VIEW}/episode_000002.mp4",
        HAND: f"videos/chunk-001/{HAND}/episode_000002.mp4",
    }
    for source in (
        LeRobotSource(make(tmp_path, "v3.0", images=False)),
        LeRobotSource(make(tmp_path, "v2.1")),
    ):
        assert source.picture_paths(source.episodes[1]) == {}


def test_one_view_and_a_stream_that_is_left_early(tmp_path: Path) -> None:
    source = LeRobotSource(make(tmp_path, "v3.0", images=False))
    one, other = (source.frames(source.episodes[index], [HAND]) for index in (0, 1))
    for number, (frame, second) in enumerate(zip(one, other, strict=False)):
        assert list(frame) == list(second) == [HAND]
        if number == 2:
            break
    assert not np.array_equal(frame[HAND], second[HAND])
    assert len(list(itertools.islice(source.frames(source.episodes[2], [VIEW]), 3))) == 3
    with pytest.raises(UnknownNameError, match="Unknown view 'agentview'"):
        next(iter(source.frames(source.episodes[0], ["agentview"])))


@pytest.mark.parametrize(
    "depth",
    [
        {"info": {"video.is_depth_map": True}},
        {"video_info": {"video.is_depth_map": True}},
        {"shape": [SIZE, SIZE, 1]},
    ],
)
def test_maps_of_depth_are_not_the_first_view(depth: dict[str, object], tmp_path: Path) -> None:
    root = make(tmp_path, "v2.1", images=False)
    features = read_json(root / "meta/info.json")["features"]
    features[VIEW] |= depth
    edit_json(root / "meta/info.json", features=features)
    assert LeRobotSource(root).views == (HAND, VIEW)


def test_av1(tmp_path: Path) -> None:
    """LeRobot's own codec, with four episodes in a file."""
    episodes = draw = drawn((5, 9, 5, 4))
    write_v30(episodes, tmp_path / "set", codec="libsvtav1")
    source = LeRobotSource(tmp_path / "set")
    assert [part.videos[VIEW].start for part in source.layout.episodes] == [0, 5, 14, 19]
    got = [frame[VIEW] for frame in source.frames(source.episodes[2], [VIEW])]
    wanted = draw[2].frames["agentview"][:-1].astype(int)
    assert _nearest(np.stack(got), wanted) == [0, 1, 2, 3, 4]


def test_fingerprints(tmp_path: Path) -> None:
    source = LeRobotSource(make(tmp_path, "v2.1", images=False))
    first, second, _ = source.episodes
    before = source.fingerprint(first)
    assert before != source.fingerprint(second)
    assert before == LeRobotSource(source.root).fingerprint(first)
    moved = source.root.rename(tmp_path / "elsewhere")
    assert before == LeRobotSource(moved).fingerprint(first)
    video = LeRobotSource(moved).layout.episodes[0].videos[HAND].path
    os.utime(video, ns=(1, 1))
    assert before != LeRobotSource(moved).fingerprint(first)


def _replace(root: Path, **columns: list[object]) -> LeRobotSource:
    """Change columns of the first episode of a v2.1 dataset; None leaves one out."""
    path = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)
    return LeRobotSource(root)


def test_instructions(tmp_path: Path) -> None:
    """RoboCasa's annotation wins, and sentences win over names of tasks."""
    root = make(tmp_path, "v2.1")
    described = "annotation.human.task_description"
    tasks = {row["task_index"]: row["task"] for row in read_lines(root / "meta/tasks.jsonl")}
    assert tasks == {0: "pick up the cube", 1: "stack the cubes", 2: "Lift"}
    for description, task_index, instruction in (
        (1, 0, "stack the cubes"),
        (0, 2, "pick up the cube"),
        (2, 1, "stack the cubes"),
        (2, 2, "pick up the cube"),  # from the list of episodes
        (7, 7, "pick up the cube"),
    ):
        rows = {described: [description] * 6, "task_index": [task_index] * 6}
        assert _replace(root, **rows).episodes[0].instruction == instruction
    lines = (root / "meta/episodes.jsonl").read_text().replace("pick up the cube", " ")
    (root / "meta/episodes.jsonl").write_text(lines)
    assert LeRobotSource(root).episodes[0].instruction == "Lift"


@pytest.mark.parametrize(
    ("rewards", "terminated"),
    [
        ([0.0, 0, 0, 0, 1, 1], True),
        ([0.0, 1, 0, 0, 1, 0], False),
        ([1.0, 1, 1, 1, 1, 1], False),  # paid for being alive
        ([0.0, 0.5, 0, 0, 0, 1], False),
        ([[0.0], [0.0], [0.0], [0.0], [0.0], [1.0]], True),
    ],
)
def test_terminated_by_a_sparse_reward(
    rewards: list[object], terminated: bool, tmp_path: Path
) -> None:
    root = make(tmp_path, "v2.1")
    assert _replace(root, **{"next.reward": rewards}).episodes[0].terminated is terminated


def test_terminated_by_done_and_truncated(tmp_path: Path) -> None:
    root = make(tmp_path, "v2.1")
    ends = [False] * 5 + [True]
    for path in sorted((root / "data").glob("*/*.parquet")):
        table = pq.read_table(path)
        truncated = pa.array([False] * table.num_rows)
        pq.write_table(table.append_column("next.truncated", truncated), path)
    assert [one.terminated for one in LeRobotSource(root).episodes] == [True, True, True]
    assert not _replace(root, **{"next.truncated": ends}).episodes[0].terminated
    none = {"next.truncated": [False] * 6, "next.done": [False] * 6}
    assert not _replace(root, **none).episodes[0].terminated
