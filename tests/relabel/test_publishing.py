from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.errors import ConfigError, DatasetError, LockedError, UnknownNameError
from procreward.plan import StreamPlan
from procreward.relabel import RelabelConfig
from procreward.relabel.ahead import Ahead, resize
from procreward.relabel.cache import portable
from procreward.relabel.config import select
from procreward.relabel.publishing import FolderLock, check_free_space, publish
from procreward.relabel.readings import EpisodeReadings, Reading, read_readings, write_readings
from procreward.relabel.showing import Showing, find_view
from procreward.runner import Failure
from procreward.types import Frame, Score
from tests.relabel.sets import flat


def test_publish_takes_the_place_of_what_is_there(tmp_path: Path) -> None:
    for name, text in (("staged/new", "new"), ("place/old", "old"), ("kept", "kept")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "staged" / "link").symlink_to(tmp_path / "kept")
    publish(tmp_path / "staged", tmp_path / "place")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "place"]
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["link", "new"]
    (tmp_path / "file").write_text("one")
    publish(tmp_path / "file", tmp_path / "deep" / "er" / "file")
    assert (tmp_path / "deep/er/file").read_text() == "one"


def test_a_lock_is_of_one_holder(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out"):
        text = (tmp_path / "out" / ".lock").read_text()
        assert text.startswith(f"process {os.getpid()} on ")
        with (
            pytest.raises(LockedError, match=rf"process {os.getpid()} on"),
            FolderLock(tmp_path / "out"),
        ):
            pass
    assert list((tmp_path / "out").iterdir()) == []
    with FolderLock(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"`out` must be a folder that can be written.*file/x"),
        FolderLock(tmp_path / "file" / "x"),
    ):
        pass

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)  # as Lustre does where it is mounted without
    with (
        pytest.raises(ConfigError, match="`out` must be on a file system with locks"),
        FolderLock(tmp_path / "out"),
    ):
        pass


def test_free_space(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check_free_space(tmp_path / "not" / "there", 0) > 0
    with pytest.raises(ConfigError, match="`out` must be on a disk with room for about"):
        check_free_space(tmp_path, 2 * free)


class Counting:
    """Pictures that say how many were taken and whether they were closed."""

    def __init__(self, count: int, error_at: int | None = None) -> None:
        self.taken, self.closed = 0, False
        self.thread: int | None = None
        self._count, self._error_at = count, error_at

    def __call__(self) -> Iterator[Mapping[str, Frame]]:
        self.thread = threading.get_ident()
        try:
            for number in range(self._count):
                if number == self._error_at:
                    raise DatasetError("damaged")
                self.taken += 1
                yield {"front": flat(number + 1)}
        finally:
            self.closed = True


def test_pictures_are_read_ahead_within_bounds() -> None:
    source = Counting(50)
    size = flat(1).nbytes
    with Ahead(source, max_bytes=3 * size) as ahead:
        pictures = iter(ahead)
        assert next(pictures)["front"][0, 0, 0] == 1
        deadline = time.monotonic() + 30
        while source.taken < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        # One was handed out, three wait, one waits for space.
        assert source.taken == 5
        greys = [int(one["front"][0, 0, 0]) for one in pictures]
    assert greys == list(range(2, 51))
    assert source.closed
    assert source.thread != threading.get_ident()


def test_reading_ahead_ends_early_and_with_errors() -> None:
    source = Counting(50)
    with Ahead(source, max_bytes=1) as ahead:
        next(iter(ahead))
    assert source.closed
    assert source.taken < 5
    with Ahead(Counting(50, error_at=2), max_bytes=1 << 20) as ahead:
        pictures = iter(ahead)
        assert [int(next(pictures)["front"][0, 0, 0]) for _ in range(2)] == [1, 2]
        with pytest.raises(DatasetError, match="damaged"):
            next(pictures)


def test_a_reader_begins_when_another_has_read_all() -> None:
    first, second, third = Counting(4), Counting(2), Counting(1)
    size = flat(1).nbytes
    with Ahead(first, max_bytes=size) as one, Ahead(second, max_bytes=size, after=one) as two:
        pictures = iter(one)
        next(pictures)
        assert second.thread is None
        assert len(list(pictures)) == 3
        # It is read to its end by itself, and what follows it too.
        assert len(list(two)) == 2
        with Ahead(third, max_bytes=size, after=two) as three:
            assert len(list(three)) == 1


def test_a_reader_that_never_began_is_closed_and_followed() -> None:
    first, second, third = Counting(9), Counting(2), Counting(1)
    with Ahead(first, max_bytes=1) as one:
        two = Ahead(second, max_bytes=1, after=one)
        three = Ahead(third, max_bytes=1, after=two)
        two.close()
        assert len(list(three)) == 1
        three.close()
    assert second.thread is None
    assert first.closed


def test_resize() -> None:
    picture = np.arange(8 * 4 * 3, dtype=np.uint8).reshape(8, 4, 3)
    assert resize(picture, None) is picture
    assert resize(picture, (4, 8)) is picture
    assert resize(picture, (6, 2)).shape == (2, 6, 3)


def test_readings_are_read_as_they_were_written(tmp_path: Path) -> None:
    score = Score(progress=1 / 3, success_prob=0.1, text="ä\n", details={"x": 0.1}, spread=0.0)
    readings = (
        Reading.of(0, (0, 0), score, (0,), Score(complete=False)),
        Reading.of(4, (3, 4), Failure(reason="timeout", message="no"), (4,), Score(reason="n/a")),
        Reading.of(5, (4, 5), score),
    )
    episodes = (
        EpisodeReadings(
            index=3, name="ep", fingerprint="f", instruction="lift ü", readings=readings
        ),
        EpisodeReadings(index=4, name="no", fingerprint="g", instruction="lift", error="Broken."),
    )
    write_readings(episodes, tmp_path / "a")
    assert read_readings(tmp_path / "a") == episodes
    write_readings(read_readings(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [one.reasons for one in readings] == [(), ("timeout", "n/a"), ()]
    lines = (tmp_path / "a").read_text().splitlines()
    (tmp_path / "a").write_text("\n".join(lines[:2]))
    with pytest.raises(DatasetError, match="3 readings of 'ep' announced, 1 found"):
        read_readings(tmp_path / "a")
    (tmp_path / "a").write_text("{}")
    with pytest.raises(DatasetError, match="must hold readings"):
        read_readings(tmp_path / "a")


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "half a pair \ud83d"])
def test_any_text_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    reading = Reading.of(0, (0,), Score(progress=0.5, text=text))
    episodes = (
        EpisodeReadings(index=0, name=text, fingerprint="f", instruction=text, readings=(reading,)),
    )
    write_readings(episodes, tmp_path / "a")
    assert read_readings(tmp_path / "a") == episodes


def test_paths_of_this_machine_are_shortened() -> None:
    account: dict[str, Any] = {"model": "/home/me/models/big", "n": 1, "of": ["/a/b", "a/b", None]}
    assert portable(account) == {"model": "big", "n": 1, "of": ["b", "a/b", None]}


def test_views_that_models_name() -> None:
    there = ("observation.images.robot0_agentview_left", "observation.images.robot0_eye_in_hand")
    assert find_view("robot0_eye_in_hand", there) == there[1]
    with pytest.raises(UnknownNameError, match="Unknown view 'eye'"):
        find_view("eye", there)
    config = RelabelConfig(
        source=Path("a"), out=Path("b"), scorer="scripted", judge="robocasa-judge"
    ).reward_config()
    showing = Showing.of(
        StreamPlan.from_config(config), (*there, "images.robot0_agentview_right"), ()
    )
    assert [(one.name, one.view) for one in showing.shown] == [
        ("scorer:observation.images.robot0_agentview_left", there[0]),
        ("judge:robot0_agentview_right", "images.robot0_agentview_right"),
        ("judge:robot0_agentview_left", there[0]),
    ]
    pictures = {view: flat(9) for view in showing.views}
    assert list(next(showing.show([pictures]))) == [one.name for one in showing.shown]


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [(None, None, [0, 1, 2, 7]), ("7, 0-1", None, [0, 1, 7]), (None, 2, [0, 1]), ("2,7", 1, [2])],
)
def test_select(text: str | None, limit: int | None, expected: list[int]) -> None:
    assert select([0, 1, 2, 7], text, limit) == expected


def test_settings_are_checked(tmp_path: Path) -> None:
    for match, changes in (
        ("`every_k_frames` must be an integer of at least 1, got 0", {"every_k_frames": 0}),
        ("`gamma` must be a number in", {"gamma": 1.5}),
        ("`on_error` must be one of 'stop', 'skip', got 'go on'", {"on_error": "go on"}),
        ("`rewrite_option` belongs to `rewrite`", {"rewrite_option": ("a=b",)}),
        ("`rewrite_option` must be NAME=VALUE", {"rewrite_option": ("ab",), "rewrite": True}),
        ("`fps` must be above 0", {"fps": 0.0}),
        ("`limit` must be an integer", {"limit": 0}),
    ):
        settings: dict[str, Any] = {"source": tmp_path, "out": tmp_path, **changes}
        with pytest.raises(ConfigError, match=match):
            RelabelConfig(**settings)
    for text in ("3-1", "a", "1,,2", "-1"):
        with pytest.raises(ConfigError, match="`episodes` must be numbers and ranges"):
            select([1, 2, 3], text, None)
    for text, missing in (("2,9", 9), ("0", 0), ("2-999999999999", 4)):
        match = rf"of the dataset's 3 episodes \(1 to 3\), got {missing}\."
        with pytest.raises(ConfigError, match=match):
            select([1, 2, 3], text, None)
