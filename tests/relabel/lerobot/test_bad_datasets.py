"""Datasets that contradict themselves are refused when they are opened, by what is wrong."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from procreward.errors import DatasetError
from procreward.relabel.lerobot import LeRobotSource
from tests.relabel.lerobot.made import HAND, VIEW, edit_json, make, read_json

INFO = "meta/info.json"


def _edit_info(**entries: Any) -> Callable[[Path], None]:
    return lambda root: edit_json(root / INFO, **entries)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _damage(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(b"nothing of use") and None


def _drop_row(name: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        pq.write_table(pq.read_table(root / name).slice(1), root / name)

    return edit


def _set(
    name: str, column: str, change: Callable[[list[Any]], list[Any]]
) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        table = pq.read_table(root / name)
        values = pa.array(change(table.column(column).to_pylist()))
        table = table.set_column(table.column_names.index(column), column, values)
        pq.write_table(table, root / name)

    return edit


def _declare(**features: Any) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        declared = read_json(root / INFO)["features"]
        for name, feature in features.items():
            if feature is None:
                del declared[name]
            else:
                declared[name] = feature
        edit_json(root / INFO, features=declared)

    return edit


def _add_line(name: str, text: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write(text)

    return edit


def _shift_last(root: Path) -> None:
    for column, values in (
        ("dataset_from_index", [0, 6, 16]),
        ("dataset_to_index", [6, 15, 23]),
    ):
        _set(EPISODES, column, lambda _, new=values: new)(root)


FIRST = "data/chunk-000/episode_000000.parquet"
VIDEO = f"videos/chunk-001/{VIEW}/episode_000002.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FILE = "data/chunk-000/file-001.parquet"
SCALAR = {"dtype": "float32", "shape": [1], "names": None}

V21: dict[str, tuple[Callable[[Path], None], str]] = {
    "old version": (
        _edit_info(codebase_version="v2.0"),
        "must be of `codebase_version` v2.1 and v3.0, got 'v2.0'; convert it with "
        "lerobot.datasets.v21.convert_dataset_v20_to_v21 of lerobot 0.3.3",
    ),
    "no version": (_edit_info(codebase_version=None), "v2.1 and v3.0, got None; convert it"),
    "new version": (_edit_info(codebase_version="v4.0"), "got 'v4.0'; convert it with LeRobot's"),
    "no rate": (_edit_info(fps=0), "`fps` of .* must be a number above 0, got 0"),
    "no features": (_edit_info(features={}), "`features` of .* must be an object"),
    "no pictures": (
        _declare(**{VIEW: None, HAND: None}),
        "must be features with pictures, of the dtype 'video' or 'image', got ",
    ),
    "no numbers": (_declare(index=None), "features of every dataset, 'index' too"),
    "a slash": (_declare(**{"a/b": SCALAR}), "names without '/', got 'a/b'"),
    "wrong path": (_edit_info(data_path="data/{number}"), "`data_path` of .* must be a path"),
    "outside": (
        _edit_info(data_path="../{episode_chunk}/{episode_index}"),
        "must lie inside it, got '../0/0'",
    ),
    "no chunks": (_edit_info(chunks_size=0), "`chunks_size` of .* at least 1, got 0"),
    "other chunks": (_edit_info(chunks_size=1), "chunk-001/episode_000001.parquet' is missing"),
    "other count": (_edit_info(total_episodes=4), "must list the episodes 0 to 3.* got 3, from 0"),
    "other frames": (_edit_info(total_frames=23), "must have 23 frames.* got 22"),
    "no info": (_remove(INFO), "cannot be read as JSON"),
    "broken info": (_damage(INFO), "cannot be read as JSON"),
    "no list": (_remove("meta/episodes.jsonl"), "episodes.jsonl' cannot be read"),
    "broken list": (_add_line("meta/episodes.jsonl", "{"), "Line 4 of .* is no JSON"),
    "no length": (
        _add_line("meta/episodes.jsonl", '{"episode_index": 3}'),
        "`length` in .* must be a whole number of at least 0, got None",
    ),
    "no tasks": (_remove("meta/tasks.jsonl"), "tasks.jsonl' cannot be read"),
    "no file": (_remove(FIRST), "episode_000000.parquet' is missing"),
    "broken file": (_damage(FIRST), "episode_000000.parquet' cannot be read as parquet"),
    "too few rows": (_drop_row(FIRST), "must have 6 rows, .* got 5"),
    "other episode": (
        _set(FIRST, "episode_index", lambda values: [1] * len(values)),
        "The rows of episode 0 in .* must have the `episode_index` 0 to 0, got 1 to 1",
    ),
    "other index": (
        _set(FIRST, "index", lambda values: [value + 1 for value in values]),
        "must have the `index` 0 to 5, got 1 to 6",
    ),
    "two values a row": (
        _set(FIRST, "next.reward", lambda values: [[value, value] for value in values]),
        "Column 'next.reward' of .* must have one value a row",
    ),
    "missing column": (_declare(depth=SCALAR), r"must be the features .*\['depth'\] are missing"),
    "stray file": (
        lambda root: (root / FIRST).with_name("copy.parquet").write_bytes(b"") and None,
        "must belong to an episode, got '.*copy.parquet'",
    ),
}
V30: dict[str, tuple[Callable[[Path], None], str]] = {
    "undeclared": (_declare(action=None), r"must be the features .*\['action'\] are not declared"),
    "no list": (_remove(EPISODES), "must have the list of episodes"),
    "broken list": (_damage(EPISODES), "cannot be read as parquet"),
    "no tasks": (_remove("meta/tasks.parquet"), "tasks.parquet' is missing"),
    "no file": (_remove(FILE), "file-001.parquet' is missing"),
    "too few rows": (_drop_row(FILE), "must have 7 rows, .* got 6"),
    "other length": (
        _set(EPISODES, "length", lambda values: [6, 8, 7]),
        "as many frames as its `length`, 8, got indices 6 to 15",
    ),
    "a gap": (
        _set(EPISODES, "episode_index", lambda values: [0, 1, 3]),
        "must list the episodes 0 to 2",
    ),
    "more indices": (
        _set(EPISODES, "dataset_to_index", lambda values: [6, 15, 23]),
        "as many frames as its `length`, 7, got indices 15 to 23",
    ),
    "a hole": (_shift_last, "must have frames, from index 15, got 7 from 16"),
    "no times": (
        _set(EPISODES, f"videos/{VIEW}/to_timestamp", lambda values: [None] * 3),
        "must state from when to when episodes are in",
    ),
}
VIDEOS: dict[str, tuple[str, int, Callable[[Path], None], str]] = {
    "no video of v2.1": (
        "v2.1",
        2,
        _remove(VIDEO),
        "The video '.*episode_000002.mp4' of episode 2 is missing",
    ),
    "no video of v3.0": (
        "v3.0",
        2,
        _remove(f"videos/{VIEW}/chunk-000/file-001.mp4"),
        "of episode 2 is missing",
    ),
    "half a frame": (
        "v3.0",
        1,
        _set(EPISODES, f"videos/{VIEW}/from_timestamp", lambda values: [0.0, 0.325, 0.0]),
        "Episode 1 in .* must begin at a frame of .*file-000.mp4', got 0.325 s at 20 fps",
    ),
    "too short": (
        "v3.0",
        1,
        _set(EPISODES, f"videos/{VIEW}/to_timestamp", lambda values: [0.3, 0.7, 0.35]),
        "Episode 1 in .* must have 9 frames in .*, got 0.3 to 0.7 s at 20 fps",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Copies of a dataset with videos, of either version."""
    folder = tmp_path_factory.mktemp("made")
    roots = {version: make(folder, version, images=False) for version in ("v2.1", "v3.0")}
    count = itertools.count()

    def copy(version: str) -> Path:
        return Path(shutil.copytree(roots[version], folder / str(next(count))))

    return copy


@pytest.mark.parametrize("case", V21)
def test_v21(case: str, made: Callable[[str], Path]) -> None:
    edit, message = V21[case]
    root = made("v2.1")
    edit(root)
    with pytest.raises(DatasetError, match=message):
        LeRobotSource(root)


@pytest.mark.parametrize("case", V30)
def test_v30(case: str, made: Callable[[str], Path]) -> None:
    edit, message = V30[case]
    root = made("v3.0")
    edit(root)
    with pytest.raises(DatasetError, match=message):
        LeRobotSource(root)


def test_a_column_that_v21_does_not_declare(made: Callable[[str], Path]) -> None:
    """LeRobot 0.3.3 reads such datasets, and so do we."""
    root = made("v2.1")
    _declare(action=None)(root)
    assert len(LeRobotSource(root).episodes) == 3


def _read(source: LeRobotSource, index: int) -> list[object]:
    return list(source.frames(source.episodes[index], [VIEW]))


@pytest.mark.parametrize("case", VIDEOS)
def test_a_video_that_keeps_nobody_from_others(case: str, made: Callable[[str], Path]) -> None:
    version, broken, edit, message = VIDEOS[case]
    root = made(version)
    edit(root)
    source = LeRobotSource(root)
    episode = source.episodes[broken]
    assert len(_read(source, 0)) == 6
    with pytest.raises(DatasetError, match=message):
        _read(source, broken)
    with pytest.raises(DatasetError, match=message):
        source.check(episode, [HAND, VIEW])
    source.check(episode, [HAND])
    assert len(list(source.frames(episode, [HAND]))) == episode.length
    assert len({source.fingerprint(one) for one in source.episodes}) == 3


def test_a_corrupt_video(made: Callable[[str], Path]) -> None:
    """Only the episodes whose pictures are damaged cannot be read."""
    root = made("v3.0")
    path = root / f"videos/{VIEW}/chunk-000/file-000.mp4"
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    size = int.from_bytes(data[begin - 8 : begin - 4], "big")
    data[begin + size - 80 : begin + size - 20] = b"\x55" * 60  # in the last pictures
    path.write_bytes(data)
    source = LeRobotSource(root)
    assert len(_read(source, 0)) == 6
    message = re.escape(f"Episode 1 in {str(path)!r} cannot be decoded: ")
    with pytest.raises(DatasetError, match=message):
        _read(source, 1)
    assert len(_read(source, 2)) == 7


def test_a_video_that_is_none(made: Callable[[str], Path]) -> None:
    root = made("v2.1")
    (root / VIDEO).write_bytes(b"nothing of use")
    source = LeRobotSource(root)
    with pytest.raises(DatasetError, match=r"Episode 2 in .* cannot be decoded: .* frame 0 to 6;"):
        _read(source, 2)


def test_a_video_with_too_few_pictures(made: Callable[[str], Path]) -> None:
    root = made("v2.1")
    first = root / f"videos/chunk-000/{VIEW}/episode_000000.mp4"
    shutil.copyfile(first, root / VIDEO)
    source = LeRobotSource(root)
    with pytest.raises(DatasetError, match=r"Episode 2 in .* 7 pictures from frame 0, got 6"):
        _read(source, 2)


def test_a_video_of_another_rate(made: Callable[[str], Path]) -> None:
    root = made("v2.1")
    edit_json(root / INFO, fps=10)
    source = LeRobotSource(root)
    with pytest.raises(DatasetError, match=r"must have 10 frames a second, .* got 20"):
        _read(source, 0)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"bytes": None, "path": "a.png"}, "must be stored in the file, got NoneType"),
        ({"bytes": b"\x89PNG nothing", "path": None}, "cannot be decoded"),
    ],
)
def test_a_picture_that_is_none(cell: dict[str, object], message: str, tmp_path: Path) -> None:
    root = make(tmp_path, "v2.1", images=True)
    path = root / FIRST
    table = pq.read_table(path)
    place = table.column_names.index(VIEW)
    cells = table.column(VIEW).to_pylist()
    cells[3] = cell
    column = pa.array(cells, table.schema.field(VIEW).type)
    pq.write_table(table.set_column(place, VIEW, column), path)
    source = LeRobotSource(root)
    with pytest.raises(DatasetError, match=f"Picture 3 of .* in episode 0 of .*{message}"):
        _read(source, 0)
