from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from procreward.errors import DatasetError
from procreward.relabel.videos import FrameFolderSource, VideoSource
from tests.relabel.sets import ramp, write_frames, write_instructions, write_video


def greys(source: VideoSource | FrameFolderSource, index: int, view: str) -> list[int]:
    frames = source.frames(source.episodes[index], (view,))
    return [round(float(pictures[view].mean())) for pictures in frames]


def test_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "lift.mp4", ramp(7))
    source = VideoSource(tmp_path / "lift.mp4")
    (episode,) = source.episodes
    assert (episode.name, episode.length, episode.frames, episode.fps) == ("lift", 6, 7, 10.0)
    assert (episode.instruction, episode.terminated, source.views) == ("", False, ("video",))
    assert source.picture_paths(episode) == {"video": "lift.mp4"}
    assert greys(source, 0, "video") == pytest.approx(ramp(7), abs=2)


def test_a_name_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "lift.mp4", ramp(4))
    (tmp_path / "lift.mp4").rename(tmp_path / "10:30 %d.mp4")
    monkeypatch.chdir(tmp_path)
    source = VideoSource(Path("10:30 %d.mp4"))
    assert greys(source, 0, "video") == pytest.approx(ramp(4), abs=2)


def test_a_folder_of_videos(tmp_path: Path) -> None:
    for name, count in (("ep_10", 3), ("ep_9", 4)):
        write_video(tmp_path / f"{name}.mp4", ramp(count))
    (tmp_path / "notes.txt").touch()
    write_instructions(tmp_path, ep_9="lift", **{"*": "push"})
    source = VideoSource(tmp_path)
    assert [(one.index, one.name, one.frames, one.instruction) for one in source.episodes] == [
        (0, "ep_9", 4, "lift"),
        (1, "ep_10", 3, "push"),
    ]


def test_views_of_an_episode(tmp_path: Path) -> None:
    for episode in ("a", "b"):
        write_video(tmp_path / episode / "front.mp4", ramp(4))
        write_video(tmp_path / episode / "wrist.mp4", ramp(4, 100))
    source = VideoSource(tmp_path)
    assert source.views == ("front", "wrist")
    assert greys(source, 1, "wrist") == pytest.approx(ramp(4, 100), abs=2)
    both = next(iter(source.frames(source.episodes[0], ("wrist", "front"))))
    assert list(both) == ["wrist", "front"]
    assert source.picture_paths(source.episodes[1])["front"] == "b/front.mp4"
    write_video(tmp_path / "c" / "front.mp4", ramp(4))
    with pytest.raises(DatasetError, match=r"same views, got \['front', 'wrist'\] of 'a'.*'c'"):
        VideoSource(tmp_path)


def test_views_of_differing_lengths(tmp_path: Path) -> None:
    write_video(tmp_path / "a" / "front.mp4", ramp(4))
    write_video(tmp_path / "a" / "wrist.mp4", ramp(5))
    source = VideoSource(tmp_path)
    with pytest.raises(DatasetError, match=r"same number of frames in every view, got 5 in.*wrist"):
        next(source.frames(source.episodes[0], ("front", "wrist")))


def test_damaged_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", ramp(12), damage=True)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    source = VideoSource(tmp_path)
    assert [one.frames for one in source.episodes] == [12, 0]
    with pytest.raises(DatasetError, match=r"Episode 'a' cannot be decoded; .*a\.mp4"):
        list(source.frames(source.episodes[0], ("video",)))
    with pytest.raises(DatasetError, match=r"Episode 'b' cannot be read: .*b\.mp4' is damaged or"):
        list(source.frames(source.episodes[1], ("video",)))


def test_frames_of_uneven_times_are_given_once_each(tmp_path: Path) -> None:
    """A player would show some of them longer."""
    import subprocess

    import imageio_ffmpeg

    write_video(tmp_path / "even.mp4", ramp(9))
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    uneven = ["-vf", "setpts=PTS*(1+gt(N\\,4))", "-fps_mode", "vfr", str(tmp_path / "uneven.mkv")]
    subprocess.run(
        [ffmpeg, "-nostdin", "-i", str(tmp_path / "even.mp4"), *uneven],
        check=True,
        capture_output=True,
    )
    source = VideoSource(tmp_path)
    assert [one.frames for one in source.episodes] == [9, 9]
    assert greys(source, 1, "video") == pytest.approx(ramp(9), abs=4)


def test_fingerprints(tmp_path: Path) -> None:
    write_frames(tmp_path / "set" / "a", ramp(3))
    write_frames(tmp_path / "set" / "b", ramp(3))
    prints = [_prints(tmp_path / "set")]
    os.utime(tmp_path / "set/a/001.png", ns=(1, 1))
    prints.append(_prints(tmp_path / "set"))
    write_instructions(tmp_path / "set", a="lift")
    prints.append(_prints(tmp_path / "set"))
    assert len({one["a"] for one in prints}) == 3
    assert len({one["b"] for one in prints}) == 1
    (tmp_path / "set").rename(tmp_path / "moved")
    assert _prints(tmp_path / "moved") == prints[-1]


def _prints(folder: Path) -> dict[str, str]:
    source = FrameFolderSource(folder)
    return {one.name: source.fingerprint(one) for one in source.episodes}


def test_folders_of_pictures(tmp_path: Path) -> None:
    write_frames(tmp_path / "one", ramp(12))
    source = FrameFolderSource(tmp_path / "one")
    assert [(one.name, one.length, one.frames) for one in source.episodes] == [("one", 11, 12)]
    assert greys(source, 0, "frames") == ramp(12)
    for episode in ("ep_2", "ep_10"):
        for view in ("front", "wrist"):
            write_frames(tmp_path / "views" / episode / view, ramp(3))
    source = FrameFolderSource(tmp_path / "views")
    assert [one.name for one in source.episodes] == ["ep_2", "ep_10"]
    assert source.views == ("front", "wrist")
    picture = next(iter(source.frames(source.episodes[0], ("wrist",))))["wrist"]
    assert (picture.shape, picture.dtype) == ((16, 16, 3), np.uint8)


def test_defects_of_folders(tmp_path: Path) -> None:
    write_frames(tmp_path / "a" / "front", ramp(3))
    write_frames(tmp_path / "a" / "wrist", ramp(2))
    source = FrameFolderSource(tmp_path)
    match = r"Episode 'a' must have the same number of pictures.*got 3 of 'front' and 2 of another"
    with pytest.raises(DatasetError, match=match):
        next(source.frames(source.episodes[0], ("front", "wrist")))
    write_frames(tmp_path / "b", ramp(2))
    (tmp_path / "b" / "001.png").write_bytes(b"no picture")
    source = FrameFolderSource(tmp_path / "b")
    with pytest.raises(DatasetError, match=r"Episode 'b' cannot be read: .*001\.png"):
        list(source.frames(source.episodes[0], ("frames",)))
    write_frames(tmp_path / "b" / "deeper", ramp(2))
    with pytest.raises(
        DatasetError, match=r"in one layout, got .*'000\.png' and 'deeper/000\.png'"
    ):
        FrameFolderSource(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    for kind in (FrameFolderSource, VideoSource):
        with pytest.raises(DatasetError, match="`source` must hold"):
            kind(tmp_path / "empty")


def test_instructions_as_editors_on_windows_write_them(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", ramp(2))
    (tmp_path / "instructions.json").write_text('{"a": "öffne es"}', encoding="utf-8-sig")
    assert FrameFolderSource(tmp_path).episodes[0].instruction == "öffne es"


def test_defects_of_instructions(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", ramp(2))
    write_instructions(tmp_path, b="lift")
    with pytest.raises(DatasetError, match=r"must name episodes of the folder, got 'b'.*'a'"):
        FrameFolderSource(tmp_path)
    for text in ("[]", '{"a": 3}', "{"):
        (tmp_path / "instructions.json").write_text(text)
        with pytest.raises(DatasetError, match=r"instructions\.json"):
            FrameFolderSource(tmp_path)


def test_names_must_differ(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.avi").touch()
    with pytest.raises(DatasetError, match="names of their own, got two of 'a'"):
        VideoSource(tmp_path)
