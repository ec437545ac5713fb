from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from procreward.relabel._hdf5_times import clear_times, lookup3
from procreward.relabel.robomimic import RobomimicSource, RobomimicWriter
from scripts.sample_data.episodes import draw_episodes
from scripts.sample_data.robomimic import write_robomimic
from tests.relabel.drawn import labels_of


def timed_group(parent: Any, name: str) -> Any:
    """A group that keeps when it was last changed, as older h5py makes them in newer files."""
    kind = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    kind.set_obj_track_times(True)
    return h5py.Group(h5py.h5g.create(parent.id, name.encode(), gcpl=kind))


def test_lookup3() -> None:
    # Of lookup3.c's own self-test.
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def test_checksums_are_those_of_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w", libver="latest") as file:
        for length in range(1, 30):
            timed_group(file, f"group_{length}").attrs["a" * length] = "b"
        places = [h5py.h5o.get_info(group.id).addr for group in file.values()]
    before = path.read_bytes()
    assert clear_times(path) == 29
    after = path.read_bytes()
    with h5py.File(path, "r") as file:  # HDF5 checks them
        assert [list(file[f"group_{n}"].attrs) for n in range(1, 30)] == [
            ["a" * n] for n in range(1, 30)
        ]
    # Nothing but times and checksums has changed.
    assert len(after) == len(before)
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    assert 0 < changed <= len(places) * 20
    assert all(before[place : place + 4] == b"OHDR" for place in places)


@pytest.mark.parametrize("userblock", [0, 512])
def test_same_bytes_in_files_that_keep_times(tmp_path: Path, userblock: int) -> None:
    plain, path = tmp_path / "plain.hdf5", tmp_path / "timed.hdf5"
    write_robomimic(draw_episodes((3, 2)), plain)
    with (
        h5py.File(plain, "r") as old,
        h5py.File(path, "w", libver="latest", userblock_size=userblock) as file,
    ):
        data = timed_group(file, "data")
        for name, value in old["data"].attrs.items():
            data.attrs[name] = value
        for name, demo in old["data"].items():
            group = timed_group(data, name)
            group.attrs["num_samples"] = demo.attrs["num_samples"]
            for key in demo:
                old.copy(demo[key], group)
    source, writer = RobomimicSource(path), RobomimicWriter({})
    found = []
    for number in range(2):
        staged = tmp_path / f"staged-{number}"
        staged.mkdir()
        writer.write(source, [labels_of(one) for one in source.episodes], staged, {"k": 8})
        writer.validate(source, staged)
        found.append((staged / "timed.hdf5").read_bytes())
        time.sleep(1.1)  # times are in whole seconds
    assert found[0] == found[1]
    with h5py.File(staged / "timed.hdf5", "r") as file:
        assert np.array_equal(file["data/demo_1/rewards"][()], [1.1, 1.2])
