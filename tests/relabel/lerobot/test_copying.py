"""Videos are linked, the rest is copied."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from procreward.errors import DatasetError
from procreward.relabel.lerobot import LeRobotSource, LeRobotWriter
from procreward.relabel.lerobot.copying import place_video
from tests.relabel.lerobot.made import VERSIONS, label, make, read_json, rewrite

NOTE = "meta/procreward.json"


@pytest.fixture(params=VERSIONS)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path, request.param, images=False)


def _videos(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*.mp4"))


def test_videos_take_no_room(root: Path, tmp_path: Path) -> None:
    rewrite(root, tmp_path / "new")
    assert _videos(tmp_path / "new") == _videos(root) != []
    for name in _videos(root):
        assert (tmp_path / "new" / name).samefile(root / name)
        assert not (tmp_path / "new" / name).is_symlink()
    assert read_json(tmp_path / "new" / NOTE)["videos"] == "hardlink"


@pytest.mark.parametrize("way", ["symlink", "copy"])
def test_other_ways(way: str, root: Path, tmp_path: Path) -> None:
    source, staged = LeRobotSource(root), tmp_path / "new"
    staged.mkdir()
    writer = LeRobotWriter({"videos": way})
    writer.write(source, [label(one) for one in source.episodes], staged, {})
    writer.validate(source, staged)
    assert read_json(staged / NOTE)["videos"] == way
    for name in _videos(root):
        assert (staged / name).is_symlink() is (way == "symlink")
        assert (staged / name).samefile(root / name) is (way == "symlink")
    moved = staged.rename(tmp_path / "moved")
    assert len(LeRobotSource(moved).episodes) == 3


def test_where_links_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other file systems refuse hard links, and some any link: the next way is taken, and said."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    rewrite(root, tmp_path / "one")
    assert read_json(tmp_path / "one" / NOTE)["videos"] == "symlink"
    monkeypatch.setattr(os, "symlink", refuse)
    rewrite(root, tmp_path / "two")
    assert read_json(tmp_path / "two" / NOTE)["videos"] == "copy"
    assert [(tmp_path / "two" / name).read_bytes() for name in _videos(root)] == [
        (root / name).read_bytes() for name in _videos(root)
    ]


def test_a_video_that_is_a_link(tmp_path: Path) -> None:
    """Hub caches hold links to blobs: what they lead to is linked."""
    blob, video = tmp_path / "blob", tmp_path / "video.mp4"
    blob.write_bytes(b"pictures")
    video.symlink_to(blob)
    assert place_video(video, tmp_path / "new/video.mp4", "hardlink") == "hardlink"
    assert not (tmp_path / "new/video.mp4").is_symlink()
    assert (tmp_path / "new/video.mp4").samefile(blob)
    with pytest.raises(DatasetError, match=r"gone.mp4' cannot be copied"):
        place_video(tmp_path / "gone.mp4", tmp_path / "new/gone.mp4", "copy")


def test_what_is_carried_over(tmp_path: Path) -> None:
    """All that the reader does not know comes along, but what belongs to the old dataset."""
    root = make(tmp_path, "v2.1", images=False)
    known = ("README.md", "notes/deep/a.txt", "meta/embodiment.json", "sarm_progress.parquet")
    for name in known:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in (".git/config", "notes/.cache/x", "procreward_progress.parquet"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    rewrite(root, tmp_path / "new")
    before = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    after = {
        path.relative_to(tmp_path / "new")
        for path in (tmp_path / "new").rglob("*")
        if path.is_file()
    }
    assert {str(path) for path in before - after} == {
        ".git/config",
        "notes/.cache/x",
        "procreward_progress.parquet",
    }
    assert {str(path) for path in after - before} == {NOTE}
    for name in (
        "sarm_progress.parquet",
        "notes/deep/a.txt",
        "meta/modality.json",
        "extras/dataset_meta.json",
    ):
        assert (tmp_path / "new" / name).read_bytes() == (root / name).read_bytes()
    rewrite(root, tmp_path / "part", only=[0, 1])
    assert (tmp_path / "part/README.md").is_file()
    assert not (tmp_path / "part/sarm_progress.parquet").exists()
