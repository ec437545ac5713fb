from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from procreward.errors import ConfigError, FrameError, UnknownNameError
from procreward.scorers.demonstration import Demonstration, Demonstrations, load_demonstrations
from procreward.types import Frame

STEPS = ["pick up the cup", "open the door", "put it in"]


def picture(grey: int, size: int = 16) -> Frame:
    return np.full((size, size, 3), grey, np.uint8)


def greys(demo: Demonstration) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in demo.frames]


def one(demo: Any, **options: Any) -> Demonstration:
    common = load_demonstrations(demo, **options).common
    assert common is not None
    return common


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Key frames whose names are in order only by their numbers."""
    path = tmp_path / "key frames"
    path.mkdir()
    for name, grey in (("camera_9.png", 9), ("camera_10.png", 10), ("Camera_011.PNG", 11)):
        Image.fromarray(picture(grey)).save(path / name)
    (path / "notes.txt").write_text("not a picture")
    (path / ".hidden.png").write_text("not a picture either")
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames that grow brighter by twenty."""
    path = tmp_path_factory.mktemp("video") / "demo.mp4"
    writer = imageio_ffmpeg.write_frames(
        str(path), (32, 32), fps=10, macro_block_size=8, output_params=["-crf", "0"]
    )
    writer.send(None)
    for index in range(10):
        writer.send(picture(20 + 20 * index, 32))
    writer.close()
    return path


class TestDemonstration:
    def test_steps_end_at_equal_parts_of_the_task(self) -> None:
        demo = Demonstration(steps=tuple(STEPS))
        assert (demo.visual, demo.percents) == (False, (33, 67, 100))

    def test_key_frames_go_from_nothing_to_all(self) -> None:
        demo = Demonstration(frames=tuple(map(picture, range(1, 8))))
        assert (demo.visual, demo.percents) == (True, (0, 17, 33, 50, 67, 83, 100))

    @given(st.integers(2, 300))
    def test_percentages_never_fall_and_end_at_the_whole(self, count: int) -> None:
        frame = picture(1, 1)
        for demo in (Demonstration(steps=("go",) * count), Demonstration(frames=(frame,) * count)):
            assert len(demo.percents) == count
            assert sorted(demo.percents) == list(demo.percents)
            assert demo.percents[-1] == 100
            assert demo.percents[0] == (0 if demo.visual else round(100 / count))

    def test_the_digest_tells_demonstrations_apart(self) -> None:
        wide = np.full((8, 32, 3), 5, np.uint8)  # as many bytes as 16 x 16
        demos = [
            Demonstration(steps=("a", "b")),
            Demonstration(steps=("a b",)),
            Demonstration(steps=("a", "b"), progress=(40, 100)),
            Demonstration(frames=(picture(5), picture(6))),
            Demonstration(frames=(picture(5), picture(7))),
            Demonstration(frames=(wide, picture(6))),
            Demonstration(frames=(picture(5), picture(6), picture(6))),
        ]
        assert len({demo.digest for demo in demos}) == len(demos)
        assert Demonstration(steps=("a", "b")).digest == demos[0].digest
        # What is cached for a picture does not depend on the percentage beside it.
        frames = (picture(1), picture(2), picture(3))
        even, given = (
            Demonstration(frames=frames),
            Demonstration(frames=frames, progress=(0, 9, 100)),
        )
        assert even.pixel_digest == given.pixel_digest
        assert even.digest != given.digest

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "either steps or key frames, got neither"),
            ({"steps": ("a",), "frames": (picture(1),) * 2}, "got both"),
            ({"steps": ("a", " ")}, "`steps` must be a list of sentences, got ' '"),
            ({"steps": ("a", 3)}, "`steps` must be a list of sentences, got 3"),
            (
                {"frames": (picture(1),)},
                "at least 2 key frames, the task's start and its end, got 1",
            ),
            ({"frames": (picture(1),) * 3, "progress": (0, 100)}, r"per key frame \(3\), got 2"),
            ({"steps": ("a",), "progress": (50, 100)}, r"per step \(1\), got 2"),
            ({"frames": (picture(1),) * 3, "progress": (0, 60, 50)}, "strictly from 0 to 100"),
            ({"frames": (picture(1),) * 3, "progress": (0, 50, 50)}, r"got \[0, 50, 50\]"),
            ({"frames": (picture(1),) * 3, "progress": (1, 50, 100)}, "strictly from 0 to 100"),
            ({"frames": (picture(1),) * 3, "progress": (0, 50, 99)}, "strictly from 0 to 100"),
            ({"frames": (picture(1),) * 3, "progress": (0, 0.5, 1)}, "to 100 percent"),
            ({"steps": ("a", "b"), "progress": (0, 100)}, "strictly from above 0 to 100"),
            ({"steps": ("a",), "progress": ("100%",)}, "`progress` must be a list of percentages"),
            ({"steps": ("a",), "progress": (float("nan"),)}, "a list of percentages"),
        ],
    )
    def test_what_cannot_be_right_is_refused(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Demonstration(**values)

    def test_key_frames_must_be_pictures(self) -> None:
        with pytest.raises(FrameError, match="`key frame 1 of the demonstration` must be a"):
            Demonstration(frames=(picture(1), np.ones((3, 8, 8), np.uint8)))


class TestForms:
    def test_a_list_is_a_text_demonstration(self) -> None:
        assert one(STEPS).steps == tuple(STEPS)
        assert one({"steps": STEPS, "progress": [10, 20, 100]}).percents == (10, 20, 100)

    def test_a_folder_in_natural_order(self, folder: Path) -> None:
        for demo in (str(folder), folder, {"folder": str(folder)}):
            assert greys(one(demo)) == [9, 10, 11]
        assert one({"folder": str(folder), "progress": [0, 90, 100]}).percents == (0, 90, 100)

    def test_picture_files_in_the_order_given(self, folder: Path) -> None:
        names = ["Camera_011.PNG", "camera_9.png"]
        assert greys(one({"frames": names}, folder=folder)) == [11, 9]

    def test_pictures_of_other_modes_become_rgb(self, tmp_path: Path) -> None:
        Image.fromarray(picture(7)[..., 0]).save(tmp_path / "1.png")
        rgba = np.dstack([picture(8), np.full((16, 16), 255, np.uint8)])
        Image.fromarray(rgba).save(tmp_path / "2.png")
        demo = one(tmp_path)
        assert [frame.shape for frame in demo.frames] == [(16, 16, 3)] * 2
        assert greys(demo) == [7, 8]

    def test_frames_of_a_video_are_evenly_spread_with_both_ends(self, video: Path) -> None:
        demo = one(str(video))
        assert demo.percents == (0, 25, 50, 75, 100)
        assert greys(demo) == pytest.approx([20, 60, 100, 160, 200], abs=3)
        assert greys(one({"video": str(video)}, demo_frames=2)) == pytest.approx([20, 200], abs=3)
        assert len(one(str(video), demo_frames=10).frames) == 10
        given = one({"video": str(video), "progress": [0, 10, 100]})
        assert (len(given.frames), given.percents) == (3, (0, 10, 100))

    def test_paths_in_a_yaml_file_are_relative_to_it(
        self, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "demo.yaml"
        file.write_text("folder: key frames\nprogress: [0, 30, 100]\n")
        monkeypatch.chdir(folder)
        demo = one("../demo.yaml")
        assert (greys(demo), demo.percents) == ([9, 10, 11], (0, 30, 100))
        file.write_text("- pick up the cup\n- open the door\n")
        assert one(str(file)).steps == ("pick up the cup", "open the door")

    def test_one_for_each_instruction(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "other.yml").write_text("steps: [open it]\n")
        file = tmp_path / "tasks.yaml"
        file.write_text(
            "' put the cup away ': {folder: key frames}\nopen the door: other.yml\n"
            "close it: [push the door]\n"
        )
        demos = load_demonstrations(file)
        assert demos.common is None
        assert greys(demos.find("put the cup away\n")) == [9, 10, 11]
        assert demos.find("open the door").steps == ("open it",)
        assert demos.find("close it").steps == ("push the door",)
        with pytest.raises(
            ConfigError, match=r"got none for 'Close it'\. It has: 'put the cup away'"
        ):
            demos.find("Close it")

    def test_ready_made_ones(self) -> None:
        demo = Demonstration(steps=("a",))
        assert one(demo) is demo
        demos = load_demonstrations({"do a": demo})
        assert demos.find("do a") is demo
        assert load_demonstrations(demos) is demos

    def test_the_account_is_json(self, folder: Path) -> None:
        common = load_demonstrations(folder).describe()
        assert json.loads(json.dumps(common)) == common
        assert (common["kind"], common["count"], common["percents"]) == ("visual", 3, [0, 50, 100])
        each = load_demonstrations({"do a": ["a"], "do b": folder}).describe()
        assert each["do b"] == common
        assert each["do a"] == {
            "kind": "text",
            "count": 1,
            "percents": [100],
            "sha256": Demonstration(steps=("a",)).digest,
        }


class TestBadInput:
    @pytest.mark.parametrize(
        ("demo", "message"),
        [
            (None, "`demo` must be a list of steps, a mapping with one of `steps`"),
            (3, "`demo` must be a list of steps"),
            ({}, "`demo` must be a list of steps"),
            ("", "`demo` must be a path, got ''"),
            ([], "`steps` must be a list of at least one sentence"),
            ({"steps": []}, "`steps` must be a list of at least one sentence"),
            ({"steps": "open it"}, "`steps` must be a list, got 'open it'"),
            ({"steps": [""]}, "`steps` must be a list of sentences"),
            ({"frames": []}, "`frames` must be a list of at least 2 picture files"),
            ({"frames": [3]}, "`frames` must be a path, got 3"),
            ({"frames": ["no.png", "such.png"]}, "`demo` must name picture files, got 'no.png'"),
            ({"folder": "no/such"}, "`folder` must be a folder of pictures, got 'no/such'"),
            ({"video": 3}, "`video` must be a path, got 3"),
            ("no/such.mp4", "'no/such.mp4': there is no such file or folder"),
            ("no/such.yaml", "The demonstration 'no/such.yaml' cannot be read"),
            (
                {"steps": ["a"], "video": "b.mp4"},
                "exactly one of steps, frames, folder, video, got ",
            ),
            ({"progress": [100]}, "exactly one of .* got none"),
            ({"steps": ["a"], "progress": 100}, "`progress` must be a list, got 100"),
            ({"do a": None}, "`demo` must be a list of steps"),
            ({"do a": {"do b": ["c"]}}, "Unknown demonstration setting 'do b'"),
        ],
    )
    def test_what_is_no_demonstration(self, demo: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_demonstrations(demo)

    @pytest.mark.parametrize(("key", "meant"), [("step", "steps"), ("vidoe", "video")])
    def test_a_misspelt_setting_is_no_instruction(self, key: str, meant: str) -> None:
        with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}'"):
            load_demonstrations({key: ["a", "b"]})
        with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}'"):
            load_demonstrations({"progress": [100], key: ["a"]})

    def test_a_folder_without_or_with_a_single_picture(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"must hold pictures \(.png, .*\), got none in"):
            load_demonstrations(tmp_path)
        Image.fromarray(picture(1)).save(tmp_path / "1.png")
        with pytest.raises(ConfigError, match="at least 2 key frames"):
            load_demonstrations(tmp_path)

    def test_files_that_cannot_be_read(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "clip.mp4").write_bytes(b"no video at all")
        with pytest.raises(FrameError, match="cannot be read as a video"):
            load_demonstrations(str(tmp_path / "clip.mp4"))
        whole = (folder / "camera_9.png").read_bytes()
        (folder / "camera_9.png").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FrameError, match=r"camera_9\.png' cannot be read as a picture"):
            load_demonstrations(folder)
        (tmp_path / "bad.yaml").write_text("steps: [a\n")
        with pytest.raises(ConfigError, match="is not valid YAML"):
            load_demonstrations(tmp_path / "bad.yaml")

    def test_a_black_picture_is_refused(self, folder: Path) -> None:
        Image.fromarray(picture(0)).save(folder / "camera_12.png")
        with pytest.raises(FrameError, match=r"camera_12\.png` must show something"):
            load_demonstrations(folder)

    def test_more_key_frames_than_the_video_has(self, video: Path) -> None:
        with pytest.raises(ConfigError, match="number of frames, got 11 for the 10 of"):
            load_demonstrations(str(video), demo_frames=11)
        with pytest.raises(ConfigError, match="`demo_frames` must be an integer of at least 2"):
            load_demonstrations(str(video), demo_frames=1)
        with pytest.raises(ConfigError, match=r"per key frame \(2\), got 1"):
            load_demonstrations({"video": str(video), "progress": [100]})

    def test_neither_or_both_kinds(self) -> None:
        demo = Demonstration(steps=("a",))
        with pytest.raises(ConfigError, match="got neither"):
            Demonstrations()
        with pytest.raises(ConfigError, match="got both"):
            Demonstrations(common=demo, by_instruction={"b": demo})
