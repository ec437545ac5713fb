from __future__ import annotations

import json
from pathlib import Path

import pytest

from procreward.errors import DatasetError, UnknownNameError
from procreward.relabel.formats import FORMATS, detect, open_source, open_writer
from tests.relabel.sets import write_frames


def touch(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_states_its_version(version: str, tmp_path: Path) -> None:
    touch(tmp_path / "meta/info.json", json.dumps({"codebase_version": version}).encode())
    assert detect(tmp_path) == f"lerobot-{version}"


def test_lerobot_of_another_version(tmp_path: Path) -> None:
    info = touch(tmp_path / "meta/info.json", b'{"codebase_version": "v1.6"}')
    with pytest.raises(DatasetError, match=r"a LeRobotDataset v2\.1 or v3\.0, got 'v1\.6'"):
        detect(tmp_path)
    info.write_text("{}")
    with pytest.raises(DatasetError, match="must state `codebase_version`"):
        detect(tmp_path)


def test_hdf5_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    assert detect(touch(tmp_path / "demo", b"\x89HDF\r\n\x1a\n...")) == "robomimic"
    touch(tmp_path / "set/data/metadata.json", b"{}")
    assert detect(tmp_path / "set") == "minari"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.MP4", "video"),
        ("a/front.webm", "video"),
        ("a.png", "frames"),
        ("a/0.jpg", "frames"),
        ("a/front/0.png", "frames"),
    ],
)
def test_plain_files(name: str, expected: str, tmp_path: Path) -> None:
    touch(tmp_path / "set" / name)
    assert detect(tmp_path / "set") == expected


def test_a_video_file(tmp_path: Path) -> None:
    assert detect(touch(tmp_path / "lift.mp4")) == "video"


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        detect(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"which looks like none of: lerobot-v2\.1"):
        detect(touch(tmp_path / "notes.txt", b"hello"))
    touch(tmp_path / "deep/.hidden.png")
    with pytest.raises(DatasetError, match="of a known format"):
        detect(tmp_path / "deep")


def test_a_folder_of_datasets(tmp_path: Path) -> None:
    touch(tmp_path / "one-v0/data/metadata.json", b"{}")
    touch(tmp_path / "lift/meta/info.json", b"{}")
    touch(tmp_path / "kitchen/two-v0/data/metadata.json", b"{}")
    touch(tmp_path / "demo.hdf5")
    with pytest.raises(DatasetError) as caught:
        detect(tmp_path)
    names = ", ".join(str(tmp_path / name) for name in ("lift", "one-v0", "kitchen/two-v0"))
    expected = f"Give one of the datasets in it: {names}, {tmp_path / 'demo.hdf5'}."
    assert str(caught.value).endswith(expected)
    for number in range(3):
        touch(tmp_path / f"more-{number}/meta/info.json", b"{}")
    with pytest.raises(DatasetError, match=r"one-v0 and 2 more\.$"):
        detect(tmp_path)


def test_open(tmp_path: Path) -> None:
    write_frames(tmp_path / "lift", [9, 10])
    assert open_source(tmp_path).format == "frames"
    assert open_source(str(tmp_path), "frames").root == tmp_path
    with pytest.raises(UnknownNameError, match="Did you mean 'frames'"):
        open_source(tmp_path, "frame")
    with pytest.raises(DatasetError, match="no such file"):
        open_source(tmp_path / "nowhere", "frames")
    with pytest.raises(DatasetError, match="has no place for rewards"):
        open_writer("frames")


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if entry.writer])
def test_writers_can_be_had(name: str) -> None:
    writer = open_writer(name, {})
    assert callable(writer.write)
    assert callable(writer.validate)
